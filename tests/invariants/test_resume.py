"""A run that was killed or stopped, and then resumed, ends with the same bytes as one that was left alone."""

from __future__ import annotations

import json
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from command_line import call, contents, settings, start

from robustcords.checkpoint import Checkpoints

RECIPE = [
    "digits_mart",
    *settings(
        model__width=4,
        attack__steps=2,
        bullet__steps__boundary=3,
        selector__select_every=2,
        train__epochs=8,
        train__accumulation=2,
        train__validate_every=3,
        train__averaging__kind="ema",
        train__averaging__decay=0.9,
        train__precision="fp32",
        evaluation__limit=40,
        evaluation__checkpoints='["best", "last"]',
        evaluation__pgd="{steps = 2, restarts = 1, step_size = 0.1, epsilons = [0.15]}",
        evaluation__autoattack="false",
    ),
]
SAME = (
    "weights/last.safetensors",
    "weights/best.safetensors",
    *(f"selections/epoch_{n:04d}.npz" for n in (0, 2, 4, 6)),
)


def begin(folder: Path, *options: str) -> subprocess.Popen[str]:
    return start("-m", "robustcords", "run", *RECIPE, "--output", "run", *options, folder=folder)


def finish(process: subprocess.Popen[str], status: int) -> str:
    _, err = process.communicate(timeout=120)
    assert process.returncode == status, err
    return err


def stop_at(process: subprocess.Popen[str], number: signal.Signals, reached: Callable[[], bool], status: int) -> str:
    """Sends a signal as soon as the run has got somewhere."""
    deadline = time.monotonic() + 120
    while process.poll() is None and not reached() and time.monotonic() < deadline:
        time.sleep(0.01)
    process.send_signal(number)
    return finish(process, status)


def rows(run: Path) -> list[dict[str, object]]:
    timed = ("seconds", "images_per_second")
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [{key: value for key, value in line.items() if key not in timed} for line in lines]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("whole")
    finish(begin(folder), 0)
    return folder / "run"


@pytest.fixture(scope="module")
def parts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that was asked to stop in its second epoch, and killed in a later one."""
    folder = tmp_path_factory.mktemp("parts")
    run, kept = folder / "run", Checkpoints(folder / "run" / "checkpoints")
    said = stop_at(begin(folder, "--resume"), signal.SIGINT, lambda: len(kept.paths()) == 1, 130)
    assert said.splitlines()[-1] == "error: stopped by signal 2; go on with --resume"
    found = kept.latest()
    assert found is not None
    assert 0 < found[1]["progress"]["epoch"] < 4
    stop_at(begin(folder, "--resume"), signal.SIGKILL, (run / SAME[4]).exists, -signal.SIGKILL)
    assert not (run / "report.json").exists()
    assert "resumed from run/checkpoints/step_" in finish(begin(folder, "--resume"), 0)
    return run


def test_the_bytes_are_the_same(whole: Path, parts: Path):
    for name in SAME:
        assert (whole / name).read_bytes() == (parts / name).read_bytes(), name
    assert len(list((parts / "selections").iterdir())) == len(SAME) - 2


def test_the_figures_are_the_same(whole: Path, parts: Path):
    assert [row["epoch"] for row in rows(parts)] == list(range(8))
    assert rows(whole) == rows(parts)
    one, other = (json.loads((run / "report.json").read_text()) for run in (whole, parts))
    assert one["evaluation"] == other["evaluation"]
    assert one["training"]["selections"] == other["training"]["selections"]


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
        f"error: --resume {parts}: that run has another recipe; what differs: loss.beta, seed; what "
        "may: more train.epochs, logging.trackers, train.checkpoint_every, train.keep_checkpoints, train.time_limit\n"
    )
    assert contents(parts) == before


def test_a_run_is_never_overwritten(parts: Path, capsys: pytest.CaptureFixture[str]):
    before = contents(parts)
    answer = call(capsys, "run", *RECIPE, "--output", parts)
    assert answer.status == 2
    assert answer.err == f"error: --output {parts}: already holds a run; name another, or go on with --resume\n"
    assert contents(parts) == before
