"""A run that dies at any write, and is resumed, ends with the same bytes; so does one that is stopped by the clock."""

from __future__ import annotations

import errno
import itertools
import os
import re
import shutil
import tempfile
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from support import small_run
from support.small_run import check_same, chooser, fitted, trainer

from robustcords.errors import Interrupted, RunError
from robustcords.runtime import interruption
from robustcords.runtime.interruption import Interruption
from robustcords.training import trainer as training
from robustcords.training.config import TrainConfig


def eventful(**settings: Any) -> dict[str, Any]:
    """Returns a run whose selections take no time."""
    return {**small_run.eventful(**settings), "selector": chooser(select_first=True)}


class Killed(BaseException):
    """The end of the process."""


class Disk:
    """Counts what changes the disk, and lets the process die before or after one of these changes."""

    CHANGES = (
        *((Path, name) for name in ("replace", "rename", "unlink", "mkdir")),
        (shutil, "rmtree"),
        (os, "fsync"),
    )

    def __init__(self, patch: pytest.MonkeyPatch, dies_at: int | None = None, late: bool = False) -> None:
        self.changes, self.dies_at, self.late, self.dead = 0, dies_at, late, False
        self.kinds: dict[str, int] = {}
        for owner, name in self.CHANGES:
            patch.setattr(owner, name, self.watched(getattr(owner, name)))

    def count(self, name: str, arguments: tuple[Any, ...]) -> None:
        """Counts a change, and notes the first of its kind: what is done to which file, whatever its number."""
        self.changes += 1
        target = str(arguments[-1]) if arguments and isinstance(arguments[-1], str | Path) else ""
        kind = re.sub(r"\d+|tmp\w+", "#", Path(target).name)
        self.kinds.setdefault(f"{name} {kind}", self.changes)

    def places(self, every: bool) -> list[int]:
        """Returns the changes to try: all of them, or one of each kind."""
        return list(range(1, self.changes + 1)) if every else sorted(self.kinds.values())

    def watched(self, original: Callable[..., Any]) -> Callable[..., Any]:
        def change(*arguments: Any, **options: Any) -> Any:
            if self.dead:  # what is still unwinding changes nothing any more
                raise Killed
            self.count(original.__name__, arguments)
            self.dead = self.changes == self.dies_at
            if self.dead and not self.late:
                raise Killed
            result = original(*arguments, **options)
            if self.dead:
                raise Killed
            return result

        return change


class FullDisk(Disk):
    """A disk that has no room for one of the changes, and then has again."""

    CHANGES = (*Disk.CHANGES, (tempfile, "mkstemp"))

    def watched(self, original: Callable[..., Any]) -> Callable[..., Any]:
        def change(*arguments: Any, **options: Any) -> Any:
            self.count(original.__name__, arguments)
            if self.changes == self.dies_at:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            return original(*arguments, **options)

        return change


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> training.Trainer:
    """A run that was left alone."""
    return fitted(**eventful(), run=tmp_path_factory.mktemp("runs") / "whole")


EVERY = pytest.mark.parametrize(
    "every", [pytest.param(False, id="each kind"), pytest.param(True, id="each", marks=pytest.mark.slow)]
)


@EVERY
def test_a_run_that_dies_at_any_change_of_the_disk_ends_as_if_it_had_not(every: bool, tmp_path: Path):
    made = trainer(**eventful(), run=tmp_path / "whole")
    with pytest.MonkeyPatch.context() as patch:
        disk = Disk(patch)
        made.fit()
    assert disk.changes >= 30
    assert len(disk.kinds) >= 8
    # What there is after a change is what there is before the next one, but for what is written in between.
    for number, late in itertools.product(disk.places(every), (False, True) if every else (False,)):
        run = tmp_path / f"{number}{late}"
        with pytest.MonkeyPatch.context() as patch, pytest.raises(Killed):
            dying = trainer(**eventful(), run=run)
            Disk(patch, number, late)
            dying.fit()
        check_same(made, fitted(**eventful(), run=run))
        shutil.rmtree(run)


@EVERY
def test_a_full_disk_is_told_in_one_line_and_costs_nothing_but_time(every: bool, tmp_path: Path):
    made = trainer(**eventful(), run=tmp_path / "whole")
    with pytest.MonkeyPatch.context() as patch:
        disk = FullDisk(patch)
        made.fit()
    assert disk.changes >= 40
    for number in disk.places(every):
        run = tmp_path / str(number)
        full = trainer(**eventful(), run=run)
        assert full.run is not None
        with pytest.MonkeyPatch.context() as patch, pytest.raises(RunError) as told:
            FullDisk(patch, number)
            full.fit()
        assert re.fullmatch(rf"{run}/\S+: cannot be written \(No space left on device\)", str(told.value))
        with warnings.catch_warnings():  # what there is is whole
            warnings.simplefilter("error")
            full.run.checkpoints.latest()
        check_same(made, fitted(**eventful(), run=run))
        shutil.rmtree(run)


class Clock:
    """Every look at it takes a second."""

    def __init__(self) -> None:
        self.now = 0.0

    def monotonic(self) -> float:
        self.now += 1
        return self.now


def test_checkpoints_come_by_the_clock_also_within_an_epoch(
    whole: training.Trainer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(training, "time", Clock())
    made = trainer(**eventful(checkpoint_every="1 s", keep_checkpoints=100), run=tmp_path / "run")
    made.fit()
    assert made.run is not None
    saved = [int(path.name.removeprefix("step_")) for path in made.run.checkpoints.paths()]
    assert any(step % 2 for step in saved), "an epoch has two steps"
    assert saved[-1] == made.progress.steps
    check_same(whole, made)
    for step in saved[:-1]:  # a run that has nothing but this one ends alike
        parts = tmp_path / f"from_{step}"
        shutil.copytree(tmp_path / "run", parts)
        for path in (parts / "checkpoints").iterdir():
            if path.name != f"step_{step:08d}":
                shutil.rmtree(path)
        check_same(whole, fitted(**eventful(), run=parts))


@pytest.mark.parametrize("limit", [1, 6, 11])
def test_a_time_limit_stops_with_a_checkpoint(
    limit: int, whole: training.Trainer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    with monkeypatch.context() as patch:
        patch.setattr(interruption, "time", Clock())
        config = TrainConfig(time_limit=f"{limit} s")
        with pytest.raises(Interrupted, match=r"^stopped at train\.time_limit$") as stopped:
            fitted(**eventful(), run=tmp_path / "parts", interruption=Interruption(config.time_limit))
    assert stopped.value.status == 75
    assert len(list((tmp_path / "parts" / "checkpoints").iterdir())) > 0
    check_same(whole, fitted(**eventful(), run=tmp_path / "parts"))
