"""What a model has to be for selection by gradients is found out before training."""

from __future__ import annotations

import logging

import pytest
import torch
from support.cases import cases
from support.small_problem import Problem, network
from torch import Tensor, nn
from torch.nn import functional as F

from robustcords.config.registry import find
from robustcords.errors import UserError
from robustcords.selection.base import SelectionContext

pytestmark = pytest.mark.filterwarnings("ignore:'pin_memory'", "ignore:'cgi'")
GRADMATCH = "cords.selectionstrategies.SL:GradMatchStrategy"


class Followed(nn.Module):
    """Has an operation after its head."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.body, self.how = network(3), how
        self.temperature = nn.Parameter(torch.ones((), dtype=torch.float64))
        if how == "zero head":
            nn.init.zeros_(self.body[-1].weight)
            nn.init.zeros_(self.body[-1].bias)

    def forward(self, x: Tensor) -> Tensor:
        z = self.body(x)
        if self.how == "dropout":
            return F.dropout(z, 0.5, self.training)
        return z / self.temperature if self.how == "temperature" else z * 3 if self.how == "zero head" else z


def context(model: nn.Module, **changes: object) -> SelectionContext:
    return Problem([20, 13, 9]).context(model=model, **changes)


def check(name: str, context: SelectionContext, **options: object) -> None:
    strategy = find("selector", name)
    strategy.check(strategy.Config(name=name, **options), context)


@cases("name", ["adv-gradmatch", "adv-glister", "gradmatch", "glister", GRADMATCH])
@cases("how", ["temperature", "zero head"])
def test_what_follows_the_head_and_does_nothing_yet_is_refused(name: str, how: str) -> None:
    model = Followed(how)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    with pytest.raises(UserError, match="something follows it"):
        check(name, context(model))
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


@cases("name", ["gradmatch", "glister", GRADMATCH])
def test_dropout_of_logits_is_refused_where_the_model_selects_in_train_mode(name: str) -> None:
    check(name, context(Followed("dropout")), model_mode="eval")
    check("adv-gradmatch", context(Followed("dropout")))
    with pytest.raises(UserError, match="something follows it"):
        check(name, context(Followed("dropout")), model_mode="train")


@cases("name", ["adv-gradmatch", "gradmatch", GRADMATCH])
def test_a_check_leaves_no_trace_in_the_model_or_the_random_state(name: str) -> None:
    model = Followed("none").eval()
    tensors = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    before, state = {key: value.clone() for key, value in tensors.items()}, torch.get_rng_state()
    check(name, context(model))
    after = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    assert all(after[key] is tensors[key] and torch.equal(after[key], before[key]) for key in before)
    assert not any(module.training for module in model.modules())
    assert torch.equal(torch.get_rng_state(), state)


def test_a_batch_of_one_image_is_refused_where_cords_selects_in_train_mode() -> None:
    given = Problem([20, 13, 8], batch=8).context()  # 41 images
    for fine in ({"granularity": "per_class"}, {"granularity": "per_batch", "model_mode": "eval"}):
        check(GRADMATCH, given, **fine)
    with pytest.raises(UserError, match=r"a batch has one image, .*selector\.model_mode = \"eval\"") as error:
        check(GRADMATCH, given, granularity="per_batch")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("name", "options", "sizes"),
    [
        ("gradmatch", {"granularity": "full"}, [20, 13, 10]),
        ("glister", {"granularity": "per_gradient"}, [20, 13, 10]),
        ("gradmatch", {"granularity": "per_batch"}, [20, 13, 8]),
    ],
)
def test_a_mode_that_this_packages_strategy_does_not_have_is_warned_of_once(
    name: str, options: dict[str, str], sizes: list[int], caplog: pytest.LogCaptureFixture
) -> None:
    given = Problem(sizes, batch=8).context(logger=logging.getLogger("mode"))
    check(name, given, **options)
    (record,) = caplog.records
    assert f"{name}: this package selects here, in eval mode" in record.getMessage()
    caplog.clear()
    check(name, given, **options, model_mode="eval")
    check("gradmatch", given, granularity="per_class")
    assert not caplog.records
