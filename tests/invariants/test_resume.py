"""A run that is stopped or killed in one phase after the other, and resumed, ends with the bytes of one left alone."""

from __future__ import annotations

import json
import signal
import sys
from pathlib import Path

import pytest
from support.command_line import call, contents, settings
from support.digits_run import AUTOATTACK, RECIPE, check_same
from support.forked_run import begin, finish, stop_in

from robustcords.errors import signal_name
from robustcords.storage.checkpoint import Checkpoints

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="signals as POSIX has them")

INT, TERM, KILL = signal.SIGINT, signal.SIGTERM, signal.SIGKILL


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("whole")
    finish(begin(folder, AUTOATTACK), folder)
    return folder / "run"


@pytest.fixture(scope="module")
def stopped(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that was stopped or killed in one phase after the other, and then brought to its end."""
    folder = tmp_path_factory.mktemp("stopped")
    run, kept = folder / "run", Checkpoints(folder / "run" / "checkpoints")
    steps = []
    for phase, number in (("attack", INT), ("selection", TERM), ("validation", INT), ("selection", KILL)):
        said = stop_in(phase, number, folder, AUTOATTACK)
        if number != KILL:
            assert said[-1] == f"error: stopped by {signal_name(number)}; continue with --resume"
        found = kept.latest()
        assert found is not None
        steps.append(found[1]["progress"]["steps"])
    assert steps == sorted(steps)
    assert len(set(steps)) == 4, "each was stopped further on"
    for phase, number in (("evaluation", INT), ("AutoAttack", TERM)):
        said = stop_in(phase, number, folder, AUTOATTACK)
        assert said[-1] == f"error: stopped by {signal_name(number)}; continue with --resume"
    assert (run / "weights" / "last.safetensors").exists()
    report = json.loads((run / "report.json").read_text())
    assert report["complete"] is False
    (weights, *_), (measured, *_) = report["evaluation"].keys(), report["evaluation"].values()
    assert weights in {"best", "last"}
    assert "clean" in measured
    assert "autoattack" not in measured
    assert "the evaluation has not ended" in (run / "report.md").read_text()
    finish(begin(folder, AUTOATTACK), folder)
    return run


def test_the_bytes_and_the_figures_are_the_same(whole: Path, stopped: Path):
    check_same(whole, stopped)


def test_other_commands_stop_as_well(stopped: Path, tmp_path: Path):
    weights = str(stopped / "weights" / "last.safetensors")
    select = ("select", *RECIPE, "--weights", weights, "--output", "subset.npz")
    assert stop_in("selection", INT, tmp_path, what=select)[-1] == "error: stopped by Ctrl-C (SIGINT)"
    assert not (tmp_path / "subset.npz").exists()
    evaluate = ("evaluate", str(stopped), "--attack", "autoattack", "--epsilon", "0.05", "--limit", "60")
    said = stop_in("AutoAttack", TERM, tmp_path, what=evaluate)
    assert said[-1] == "error: stopped by SIGTERM; the same command continues where it stopped"


def test_resuming_a_finished_run_changes_nothing(whole: Path, capsys: pytest.CaptureFixture[str]):
    before = contents(whole)
    answer = call(capsys, "run", *RECIPE, AUTOATTACK, "--output", whole, "--resume")
    assert answer.status == 0
    assert "is finished; nothing to do" in answer.err
    assert "PGD-2-1" in answer.out
    assert contents(whole) == before


def test_another_recipe_is_not_resumed(stopped: Path, capsys: pytest.CaptureFixture[str]):
    before = contents(stopped)
    answer = call(
        capsys, "run", *RECIPE, AUTOATTACK, *settings(loss__beta=4.5, seed=3), "--output", stopped, "--resume"
    )
    assert answer.status == 2
    assert answer.err == (
        f"error: --resume {stopped}: that run has another recipe; what differs: loss.beta, seed; what may: more "
        "train.epochs or train.steps, data.cache, data.path, data.storage, data.workers, logging.trackers, "
        "train.checkpoint_every, train.compile, train.cuda_graphs, train.keep_checkpoints, train.memory_format, "
        "train.time_limit\n"
    )
    assert contents(stopped) == before


def test_a_run_is_never_overwritten(stopped: Path, capsys: pytest.CaptureFixture[str]):
    before = contents(stopped)
    answer = call(capsys, "run", *RECIPE, "--output", stopped)
    assert answer.status == 2
    assert answer.err == f"error: --output {stopped}: already holds a run; name another, or continue with --resume\n"
    assert contents(stopped) == before
