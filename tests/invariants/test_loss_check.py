"""What a loss declares and gives is looked at before a run depends on it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import pytest
import torch
from support.cases import cases
from support.small_run import chooser, made_up, network, trainer
from torch import Tensor

from robustcords.data.images import ImageSet
from robustcords.errors import UserError
from robustcords.losses import LOSSES
from robustcords.losses.check import EXAMPLES, check_loss
from robustcords.losses.objective import Objective
from robustcords.losses.sat import SAT
from robustcords.losses.trades import TRADES
from robustcords.methods.adversarial import AdversarialTraining
from robustcords.recipe.tables import find


@cases(
    ("name", "value", "said"),
    [
        (
            "views",
            ("adversial",),
            r"views = \('adversial',\): no view is called 'adversial'; did you mean 'adversarial'\? "
            r"\(one of: adversarial, clean\)",
        ),
        ("views", (), r'views = \(\), expected \("clean",\), \("adversarial",\) or both'),
        ("views", "clean", r"views = 'clean', expected \(\"clean\",\), "),
        ("views", (1,), r"views = \(1,\): no view is called 1 \(one of"),
        ("views", ("clean", "clean"), r"views = \('clean', 'clean'\): each at most once"),
        ("relative_to_clean", "yes", r"relative_to_clean = 'yes', expected True or False"),
        ("batchwise", None, r"batchwise = None, expected True or False"),
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


@cases(
    ("name", "value", "said"),
    [
        (
            "__call__",
            lambda self, logits, y: logits[0].sum(1),
            r"from_logits\(logits, y\), with logits by the name of their view",
        ),
        ("passes", ("adversarial",), "views"),
        ("anchored", True, "relative_to_clean"),
        ("start", "gaussian", r"the start of the Objective that objective\(y, clean\) returns"),
    ],
)
def test_a_loss_of_an_earlier_version_is_told_what_has_changed(name: str, value: Any, said: str):
    """It would train as the loss that it is a subclass of."""
    kind = type("Mine", (SAT,), {name: value, "__module__": "mine"})
    with pytest.raises(UserError, match=f"^loss mine:Mine: {name} was renamed in 0.2; it is {said}$"):
        type("Further", (kind,), {"__module__": "mine", "__qualname__": "Mine"})()


@pytest.mark.parametrize("relative_to_clean", [True, False])
def test_a_loss_and_its_objective_agree_on_the_anchor(relative_to_clean: bool):
    base = SAT if relative_to_clean else TRADES
    loss = type("Mine", (base,), {"relative_to_clean": relative_to_clean, "__module__": "mine"})()
    said = f"^the objective of loss mine:Mine says relative_to_clean = {not relative_to_clean}, and the loss says "
    with pytest.raises(UserError, match=said):
        check_loss(loss, network(), *some(made_up()))


def test_an_objective_is_one():
    kind = type("Mine", (SAT,), {"objective": lambda self, y, clean: torch.sum, "__module__": "mine"})
    with pytest.raises(UserError, match=r"^the objective of loss mine:Mine is a .*, expected an Objective$"):
        check_loss(kind(), network(), *some(made_up()))


def test_an_objective_starts_somewhere():
    with pytest.raises(UserError, match=r"^start = 'normal' is no random start"):
        Objective(torch.sum, "normal")  # type: ignore[arg-type]


class Bent(TRADES):
    """TRADES whose values, or whose objective's, are bent."""

    bend: Callable[[Tensor], Any] = staticmethod(lambda value: value)
    bend_objective: Callable[[Tensor], Any] = staticmethod(lambda value: value)
    calls = 0

    def from_logits(self, logits: Mapping[str, Tensor], y: Tensor) -> Any:
        self.calls += 1
        return self.bend(super().from_logits(logits, y))

    def objective(self, y: Tensor, clean: Callable[[], Tensor]) -> Objective:
        given = super().objective(y, clean)
        return replace(given, value=lambda logits: self.bend_objective(given.value(logits)))


MIXES = "mixes examples: the value of one changes with another's logits"


def some(images: ImageSet) -> tuple[Tensor, Tensor]:
    """Images and labels that a loss is tried on."""
    return images.first(EXAMPLES)


@cases(
    ("bend", "said"),
    [
        (lambda value: value.mean().expand(len(value)), MIXES),
        (lambda value: value / value.detach().mean() + value.sum(), MIXES),
        (lambda value: value.flip(0), MIXES),
        (lambda value: value * float("nan"), "or its gradient is nan or infinite for logits that are finite"),
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


@cases("name", sorted(LOSSES))
@cases("count", [1, 61])
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


def test_a_term_of_the_batch_is_declared():
    def shares(value: Tensor) -> Tensor:
        return value + value.std() / len(value)

    bent = {"bend": staticmethod(shares), "bend_objective": staticmethod(shares), "__module__": "mine"}
    with pytest.raises(UserError, match=r"mixes examples: .* declares batchwise = True$"):
        check_loss(type("Mine", (Bent,), bent)(), network(), *some(made_up()))
    check_loss(type("Mine", (Bent,), {**bent, "batchwise": True})(), network(), *some(made_up()))
    constant = {**bent, "batchwise": True, "bend": staticmethod(Tensor.mean)}
    with pytest.raises(UserError, match=r"returned shape \(\), expected \(3,\)"):
        check_loss(type("Mine", (Bent,), constant)(), network(), *some(made_up()))


def test_a_loss_is_looked_at_once_in_a_run(monkeypatch: pytest.MonkeyPatch):
    looked_at: list[Any] = []
    for module in ("training.subsets", "selection.selector"):
        monkeypatch.setattr(f"robustcords.{module}.check_loss", lambda loss, *_: looked_at.append(loss))
    made = trainer()
    assert looked_at == [made.method.loss]
    looked_at.clear()
    made = trainer(selector=chooser("adv-gradmatch"))
    assert looked_at == [made.method.loss], "its selector has the same one"
