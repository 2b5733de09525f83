"""What a loss declares and gives is looked at before a run depends on it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from small_run import chooser, made_up, network, trainer
from torch import Tensor

from robustcords.data.images import ImageSet
from robustcords.errors import UserError
from robustcords.losses import LOSSES
from robustcords.losses.check import EXAMPLES, check_loss
from robustcords.losses.objective import Objective
from robustcords.losses.sat import SAT
from robustcords.losses.trades import TRADES
from robustcords.methods.adversarial import AdversarialTraining
from robustcords.recipe.recipe import find


@pytest.mark.parametrize(
    ("name", "value", "said"),
    [
        (
            "passes",
            ("adversial",),
            r"passes = \('adversial',\): no pass is called 'adversial'; did you mean 'adversarial'\? "
            r"\(one of: adversarial, clean\)",
        ),
        ("passes", (), r'passes = \(\), expected \("clean",\), \("adversarial",\) or both'),
        ("passes", "clean", r"passes = 'clean', expected \(\"clean\",\), "),
        ("passes", (1,), r"passes = \(1,\): no pass is called 1 \(one of"),
        ("passes", ("clean", "clean"), r"passes = \('clean', 'clean'\): each at most once"),
        ("start", "normal", r"start = 'normal' is no random start.*\(one of: gaussian, uniform\)"),
        ("start", None, r"start = None is no random start"),
        ("anchored", "yes", r"anchored = 'yes', expected True or False"),
    ],
)
def test_what_a_loss_declares_means_something(name: str, value: Any, said: str):
    kind = type("Mine", (SAT,), {name: value, "__module__": "mine"})
    with pytest.raises(UserError, match=f"^loss mine:Mine: {said}"):
        kind()
    late = SAT()
    setattr(late, name, value)  # in its own constructor, after ours
    made = trainer()
    with pytest.raises(UserError, match=f"^loss robustcords.losses.sat:SAT: {said}"):
        type(made)(
            made.model,
            AdversarialTraining(late, made.method.attack),
            made.train,
            made.optimizer.optimizer,
            made.settings,
        )


def test_an_objective_starts_somewhere():
    with pytest.raises(UserError, match=r"^start = 'normal' is no random start"):
        Objective(torch.sum, "normal")  # type: ignore[arg-type]


class Bent(TRADES):
    """TRADES whose values, or whose objective's, are bent."""

    bend: Callable[[Tensor], Any] = staticmethod(lambda value: value)
    bend_objective: Callable[[Tensor], Any] = staticmethod(lambda value: value)
    calls = 0

    def __call__(self, logits: list[Tensor], y: Tensor) -> Any:
        self.calls += 1
        return self.bend(super().__call__(logits, y))

    def objective(self, y: Tensor, clean: Tensor | None = None) -> Any:
        value = super().objective(y, clean)
        return lambda logits: self.bend_objective(value(logits))


MIXES = "mixes examples: the value of one changes with another's logits"


def some(images: ImageSet) -> tuple[Tensor, Tensor]:
    """Images and labels that a loss is tried on."""
    return images.first(EXAMPLES)


@pytest.mark.parametrize(
    ("bend", "said"),
    [
        (lambda value: value.mean().expand(len(value)), MIXES),
        (lambda value: value / value.detach().mean() + value.sum(), MIXES),
        (lambda value: value.flip(0), MIXES),
        (lambda value: value.detach(), "returned a constant: no gradient leads from it to the logits"),
        (torch.mean, r"returned shape \(\), expected \(3,\)"),
    ],
)
def test_examples_keep_to_themselves(bend: Any, said: str):
    for name, source in (("bend", "loss mine:Mine"), ("bend_objective", "the objective of loss mine:Mine")):
        loss = type("Mine", (Bent,), {name: staticmethod(bend), "__module__": "mine"})()
        with pytest.raises(UserError, match=f"^{source} {said}"):
            check_loss(loss, network(), *some(made_up()))
        selector = chooser("adv-gradmatch")
        selector.loss = loss
        with pytest.raises(UserError, match=f"^{source} {said}"):
            selector.select(0, network())


@pytest.mark.parametrize("name", sorted(LOSSES))
@pytest.mark.parametrize("count", [1, 61])
def test_ours_pass_and_nothing_is_left_of_it(name: str, count: int):
    model, state = network(norm=True), torch.get_rng_state()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    check_loss(find("loss", name)(), model, *some(made_up(count)))
    loss = Bent()
    check_loss(loss, model, *some(made_up(count)))
    assert loss.calls == 0, "a copy is called, as a loss may count its calls"
    assert model.training
    assert torch.equal(torch.get_rng_state(), state)
    for key, value in before.items():
        assert torch.equal(value, model.state_dict()[key]), key
