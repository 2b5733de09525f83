"""Whole runs with efforts that change over them: stopped and resumed, on two processes, in parts and in bfloat16."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache, partial
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from support.by_hand import in_double, untrained, weights
from support.ranks import joined
from support.small_run import THREAT, After, chooser, fitted, made_up, vector

from robustcords.attacks.pgd import PGD
from robustcords.errors import Interrupted
from robustcords.methods.efforts.curriculum import Curriculum
from robustcords.methods.efforts.fat import FAT
from robustcords.methods.efforts.plateau import Plateau
from robustcords.methods.efforts.ramp import Ramp
from robustcords.storage.run_directory import RunDirectory
from robustcords.training.trainer import Trainer

EFFORTS: dict[str, Any] = {
    "ramp": partial(Ramp, start=0.2, steps=1),
    "fat": partial(FAT, tau=[0, 1], milestones=[0.5]),
    "plateau": partial(Plateau, rise=0.01),
    "curriculum": partial(Curriculum, most=3, patience=1),
}
ATTACK = PGD(THREAT, steps=3, step_size=0.03)
LOSSES = {"plateau": "sat"}  # in float32 TRADES' flat first steps are most of what a relative rise depends on
PAPERS = ("sat", "mart", "trades")
EVERY = pytest.mark.parametrize("effort", EFFORTS)


def options(effort: str, **changes: Any) -> dict[str, Any]:
    settings = {"epochs": 3, "batch_size": 12, "accumulation": 2, "validate_every": 1}
    settings |= changes.pop("settings", {})
    given = {
        "effort": EFFORTS[effort],
        "attack": ATTACK,
        "loss": LOSSES.get(effort, "trades"),
        "validation": made_up(12, seed=1),
    }
    return {**given, "selector": chooser(loss="trades"), "settings": settings, **changes}


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Trainer]:
    """Gives the finished run of an effort, on one process and never stopped."""
    return cache(lambda effort: fitted(**options(effort), run=tmp_path_factory.mktemp("alone") / "run"))


@EVERY
def test_a_run_that_was_stopped_ends_as_if_it_had_not_been(
    effort: str, alone: Callable[[str], Trainer], tmp_path: Path
):
    whole = alone(effort)
    with pytest.raises(Interrupted):
        fitted(**options(effort), run=tmp_path / "parts", interruption=After(7))
    parts = fitted(**options(effort), run=tmp_path / "parts")
    assert torch.equal(vector(whole), vector(parts))
    assert whole.method.effort.state_dict() == parts.method.effort.state_dict()
    assert counts(whole.run) == counts(parts.run)


def counts(run: RunDirectory | None) -> list[dict[str, int]]:
    assert run is not None
    return [row["counts"] for row in run.rows()]


@pytest.mark.parametrize(
    ("effort", "loss"),
    [
        *(("ramp", loss) for loss in PAPERS),
        *((effort, "trades") for effort in EFFORTS if effort != "ramp"),
        *(
            pytest.param(effort, loss, marks=pytest.mark.slow)
            for effort in EFFORTS
            for loss in PAPERS
            if effort != "ramp" and loss != "trades"
        ),
    ],
)
def test_accumulation_is_the_larger_batch(effort: str, loss: str):
    kind = partial(Curriculum, most=3, enough=0.01) if effort == "curriculum" else EFFORTS[effort]
    trained = []
    for parts in (1, 3):
        settings = {"validate_every": 1, "accumulation": parts}
        held_out = in_double(count=12, seed=1)
        made = untrained(loss=loss, effort=kind, attack=ATTACK, validation=held_out, settings=settings)
        made.fit()
        trained.append(weights(made))
    torch.testing.assert_close(*trained, rtol=0, atol=1e-9)


@EVERY
def test_bf16(effort: str, alone: Callable[[str], Trainer]):
    found = fitted(**options(effort, settings={"precision": "bf16"}))
    assert vector(found).isfinite().all()
    assert not torch.equal(vector(found), vector(alone(effort)))


def part(rank: int, folder: Path) -> None:
    """Trains with each effort as one of two processes."""
    states = []
    for effort in EFFORTS:
        made = fitted(**options(effort), run=folder / effort)
        states.append(made.method.effort.state_dict())
    torch.save(states, folder / f"{rank}.pt")


def test_two_processes_are_one(alone: Callable[[str], Trainer], tmp_path: Path):
    for effort in EFFORTS:
        (tmp_path / effort).mkdir()
    joined(part, 2, tmp_path)
    first, second = (torch.load(tmp_path / f"{rank}.pt") for rank in range(2))
    assert first == second
    for effort, state in zip(EFFORTS, first, strict=True):
        whole, both = alone(effort), RunDirectory(tmp_path / effort)
        assert whole.run is not None
        assert state == whole.method.effort.state_dict()
        one, other = (load_file(run.path / "weights" / "last.safetensors") for run in (both, whole.run))
        for name in one:
            torch.testing.assert_close(one[name], other[name], rtol=1e-4, atol=1e-6)
        assert counts(both) == counts(whole.run)
