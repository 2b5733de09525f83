"""What a strategy keeps between its selections: a run that is resumed goes on as one that was left alone."""

from __future__ import annotations

import itertools
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from stateful import KeepsNumbers, LeastUsed
from support.ranks import joined
from support.small_run import After, chooser, fitted, made_up, network, trainer

from robustcords.errors import Interrupted, UserError
from robustcords.rng import derive, generator
from robustcords.training.step import LoopStep

EPOCHS = 5


def options(run: Path | None, strategy: str = "LeastUsed", **changes: Any) -> dict[str, Any]:
    """Returns a run with a selection before each of its epochs."""
    granularity = changes.pop("granularity", "per_class")
    return {
        "loss": "mart",
        "selector": chooser(
            f"stateful:{strategy}", loss="mart", epochs=EPOCHS, select_first=True, fraction=0.3, granularity=granularity
        ),
        "validation": made_up(12, seed=1),
        "settings": {"epochs": EPOCHS, "validate_every": 1, "batch_size": 6, "precision": "fp32"},
        "run": run,
        **changes,
    }


def check_same(one: Path, other: Path) -> None:
    """Two runs have the same bytes of weights and selections."""
    files = {path.relative_to(one) for path in one.glob("[sw]*/*")}
    assert files == {path.relative_to(other) for path in other.glob("[sw]*/*")}
    assert len(files) == EPOCHS + 2
    for file in files:
        assert (one / file).read_bytes() == (other / file).read_bytes(), file


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("whole")
    fitted(**options(folder / "run"))
    return folder / "run"


def test_the_state_changes_what_is_chosen(whole: Path, tmp_path: Path):
    """Else the other tests would say nothing."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("robustcords.selection.selector.give_back", lambda *_: None)
        fitted(**options(tmp_path / "without"))
    files = [f"selections/epoch_{epoch:04d}.npz" for epoch in range(EPOCHS)]
    same = [(whole / file).read_bytes() == (tmp_path / "without" / file).read_bytes() for file in files]
    assert same == [True, False, False, False, False]


class Killed(BaseException):
    """The end of the process."""


# 18 of 61 examples an epoch are three steps, and there are three classes to pick from.
@pytest.mark.parametrize(("owner", "name"), [(LoopStep, "backward"), (LeastUsed, "pick")], ids=["between", "within"])
def test_a_run_that_dies_between_selections_or_in_one_ends_as_one_that_does_not(
    whole: Path, tmp_path: Path, owner: type, name: str
):
    before, calls = getattr(owner, name), itertools.count(1)

    def work(*arguments: Any, **named: Any) -> Any:
        if next(calls) == 8:
            raise Killed
        return before(*arguments, **named)

    with pytest.MonkeyPatch.context() as patch, pytest.raises(Killed):
        patch.setattr(owner, name, work)
        fitted(**options(tmp_path / "run"))
    assert len(list((tmp_path / "run" / "selections").iterdir())) in {2, 3}
    fitted(**options(tmp_path / "run"))
    check_same(whole, tmp_path / "run")


@pytest.mark.parametrize(
    "looks", [1, 7, 13, 26, *(pytest.param(looks, marks=pytest.mark.slow) for looks in (4, 19, 33, 40))]
)
def test_a_run_that_is_stopped_anywhere_ends_as_one_that_is_not(whole: Path, tmp_path: Path, looks: int):
    with pytest.raises(Interrupted):
        fitted(**options(tmp_path / "run"), interruption=After(looks))
    fitted(**options(tmp_path / "run"))
    check_same(whole, tmp_path / "run")


def test_a_selection_that_is_broken_off_is_begun_again_from_the_state_before_it():
    selector = chooser("stateful:LeastUsed", fraction=0.3)
    model = network()
    first = selector.select(1, model)
    before = selector.state_dict()["strategy"]
    expected = selector.select(2, model)
    selector.load_state_dict({**selector.state_dict(), "strategy": before})

    strategy = selector.strategy
    with pytest.MonkeyPatch.context() as patch:
        pick, calls = strategy.pick, []

        def broken(self: Any, *arguments: Any) -> Any:
            calls.append(pick(self, *arguments))
            if len(calls) == 2:
                raise Interrupted(signal.SIGTERM)
            return calls[-1]

        patch.setattr(strategy, "pick", broken)
        with pytest.raises(Interrupted):
            selector.select(2, model)
    again = selector.select(2, model)
    assert torch.equal(again.indices, expected.indices)
    assert torch.equal(again.weights, expected.weights)
    assert not torch.equal(first.indices, expected.indices)
    assert (first.weights.min(), again.weights.max()) == (2, 7), "picks are counted over classes and selections"


def part(_: int, folder: Path, looks: int) -> None:
    """Goes on with the run for so many steps, or to its end."""
    with pytest.raises(Interrupted):
        fitted(**options(folder / "run"), interruption=AfterSteps(looks))


class AfterSteps(After):
    """Is looked at once a step; selections and validations are not stopped."""

    def check(self) -> None:
        pass


def test_a_run_goes_on_with_other_processes(whole: Path, tmp_path: Path):
    for world, looks in ((1, 4), (3, 3), (2, 4)):
        joined(part, world, tmp_path, looks)
    fitted(**options(tmp_path / "run"))
    for epoch in range(EPOCHS):
        file = f"selections/epoch_{epoch:04d}.npz"
        assert (whole / file).read_bytes() == (tmp_path / "run" / file).read_bytes(), file


@pytest.mark.parametrize(
    ("strategy", "said"),
    [
        (
            "KeepsASet",
            r"^selector 'stateful:KeepsASet': state_dict: /deep/0/seen: a checkpoint cannot keep a "
            r"set; tensors, numbers, strings, None, lists and dicts can be kept$",
        ),
        (
            "Forgets",
            r"^selector 'stateful:Forgets': load_state_dict refuses what state_dict returned: KeyError: 'number' "
            r"\(stateful\.py:",
        ),
    ],
)
def test_a_state_that_cannot_be_kept_is_refused_before_training(strategy: str, said: str):
    selector = chooser(f"stateful:{strategy}", select_every=EPOCHS)
    with pytest.raises(UserError, match=said):
        trainer(**options(None, strategy, selector=selector))
    for ask in (selector.subset, selector.select):  # without a trainer
        with pytest.raises(UserError, match=said):
            ask(0, network())


@pytest.mark.parametrize(
    ("strategy", "said"),
    [
        ("OnlyWrites", "state_dict is written, and load_state_dict is not; implement both, or neither"),
        ("OnlyReads", "load_state_dict is written, and state_dict is not; implement both, or neither"),
    ],
)
def test_one_half_of_a_state_is_refused(strategy: str, said: str):
    with pytest.raises(UserError, match=f"^selector 'stateful:{strategy}': {said}"):
        chooser(f"stateful:{strategy}").check(network())


def test_numpys_numbers_are_kept_as_pythons():
    chooser("stateful:KeepsNumbers").check(network())
    given = KeepsNumbers.given
    assert given == {"count": 3, "share": 0.5, "on": True, "rows": {7: [0.25]}}
    assert [type(value) for value in (*given.values(), *given["rows"])] == [int, float, bool, dict, int]


@pytest.mark.parametrize("granularity", ["per_class", "per_gradient", "full", "per_batch"])
def test_a_strategy_is_told_which_examples_it_chooses_from(granularity: str, monkeypatch: pytest.MonkeyPatch):
    images = made_up()
    selector = chooser("adv-glister", granularity=granularity, select_first=True)
    found: list[Any] = []
    pick = selector.strategy.pick

    def looked_at(self: Any, gradients: Any, *rest: Any) -> Any:
        found.append(gradients)
        return pick(self, gradients, *rest)

    monkeypatch.setattr("robustcords.selection.gradient_based._KEPT", 1.0)  # a batch at a time
    monkeypatch.setattr(selector.strategy, "pick", looked_at)
    selector.select(0, network())
    for gradients in found:
        if granularity == "per_batch":
            order = torch.randperm(len(images), generator=generator(derive(0, "selection", 0), "batches"))
            assert [part.tolist() for part in gradients.numbers] == [part.tolist() for part in order.split(16)]
            assert torch.equal(gradients.rows(torch.tensor([2, 0])).numbers[0], gradients.numbers[2])
        else:
            assert torch.equal(images.labels[gradients.numbers], gradients.labels)
    if granularity != "per_batch":
        everyone = torch.cat([gradients.numbers for gradients in found])
        assert sorted(everyone.tolist()) == list(range(len(images)))
