"""A run that was killed or stopped, and then resumed, ends with the same bytes as one that was left alone."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from support.command_line import call, contents, settings
from support.digits_run import RECIPE, SAME, check_same
from support.forked_run import begin, finish, log, statuses

from robustcords.storage.checkpoint import Checkpoints


def stop_at(number: signal.Signals, folder: Path, reached: Callable[[], bool]) -> int | None:
    """Sends a run a signal as soon as it has got somewhere; returns its exit status."""
    [process] = begin(folder)
    deadline = time.monotonic() + 120
    while process.is_alive() and not reached() and time.monotonic() < deadline:
        time.sleep(0.01)
    os.kill(process.pid or 0, number)
    return statuses([process])[0]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("whole")
    finish(begin(folder), folder)
    return folder / "run"


@pytest.fixture(scope="module")
def parts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that was asked to stop in its second epoch, and killed in a later one."""
    folder = tmp_path_factory.mktemp("parts")
    run, kept = folder / "run", Checkpoints(folder / "run" / "checkpoints")
    assert stop_at(signal.SIGINT, folder, lambda: len(kept.paths()) == 1) == 130
    assert log(folder).splitlines()[-1] == "error: stopped by Ctrl-C (SIGINT); continue with --resume"
    found = kept.latest()
    assert found is not None
    assert 0 < found[1]["progress"]["epoch"] < 4
    assert stop_at(signal.SIGKILL, folder, (run / SAME[4]).exists) == -signal.SIGKILL
    assert not (run / "report.json").exists()
    finish(begin(folder), folder)
    assert log(folder).count("resumed from run/checkpoints/step_") == 2
    return run


def test_the_bytes_and_the_figures_are_the_same(whole: Path, parts: Path):
    check_same(whole, parts)


def test_resuming_a_finished_run_changes_nothing(whole: Path, capsys: pytest.CaptureFixture[str]):
    before = contents(whole)
    answer = call(capsys, "run", *RECIPE, "--output", whole, "--resume")
    assert answer.status == 0
    assert "is finished; nothing to do" in answer.err
    assert "PGD-2-1" in answer.out
    assert contents(whole) == before


def test_another_recipe_is_not_resumed(parts: Path, capsys: pytest.CaptureFixture[str]):
    before = contents(parts)
    answer = call(capsys, "run", *RECIPE, *settings(loss__beta=4.5, seed=3), "--output", parts, "--resume")
    assert answer.status == 2
    assert answer.err == (
        f"error: --resume {parts}: that run has another recipe; what differs: loss.beta, seed; what may: more "
        "train.epochs or train.steps, data.cache, data.path, data.storage, data.workers, logging.trackers, "
        "train.checkpoint_every, train.compile, train.cuda_graphs, train.keep_checkpoints, train.memory_format, "
        "train.time_limit\n"
    )
    assert contents(parts) == before


def test_a_run_is_never_overwritten(parts: Path, capsys: pytest.CaptureFixture[str]):
    before = contents(parts)
    answer = call(capsys, "run", *RECIPE, "--output", parts)
    assert answer.status == 2
    assert answer.err == f"error: --output {parts}: already holds a run; name another, or continue with --resume\n"
    assert contents(parts) == before
