"""One run at a time in a directory, and a finished one that goes on for longer."""

from __future__ import annotations

import json
import signal
from pathlib import Path

import pytest
from command_line import call, contents, settings, start

from robustcords import run_directory
from robustcords.errors import UserError

HOLDS = """
import sys, time
from pathlib import Path
from robustcords.run_directory import claim
with claim(Path("run")):
    print("claimed", flush=True)
    time.sleep(600)
"""
RECIPE = [
    "digits_mart",
    *settings(
        model__width=2,
        attack__steps=1,
        bullet="false",
        selector="false",
        loss__name="sat",
        evaluation__limit=10,
        evaluation__pgd="{steps = 1, restarts = 1, step_size = 0.1, epsilons = [0.15]}",
        evaluation__autoattack="false",
    ),
]


def test_a_second_run_is_refused_while_the_first_lives_and_not_after(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    path = Path("run")
    path.mkdir()
    holder = start("-c", HOLDS, folder=tmp_path)
    assert holder.stdout is not None
    assert holder.stdout.readline() == "claimed\n"
    with pytest.raises(UserError, match=r"^run: another process is running in there; wait for it, or name another"):
        run_directory.claim(path)
    holder.send_signal(signal.SIGKILL)
    holder.communicate(timeout=30)
    for _ in range(2):
        with run_directory.claim(path):
            pass


def test_the_command_says_so_and_touches_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert call(capsys, "run", *RECIPE, *settings(train__epochs=1), "--output", "run").status == 0
    (tmp_path / "run" / "report.json").unlink()
    before = contents(tmp_path / "run")
    with run_directory.claim(Path("run")):
        # In another process: a lock is between processes.
        process = start(
            "-m", "robustcords", "run", *RECIPE, *settings(train__epochs=1), "--output", "run", "--resume",
            folder=tmp_path,
        )  # fmt: skip
        _, err = process.communicate(timeout=120)
    assert process.returncode == 2
    assert err == (
        "error: run: another process is running in there; wait for it, or name another directory with --output\n"
    )
    assert {path: held for path, held in contents(tmp_path / "run").items() if path.name != ".lock"} == {
        path: held for path, held in before.items() if path.name != ".lock"
    }


def test_a_finished_run_goes_on_for_more_epochs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys):
    monkeypatch.chdir(tmp_path)
    run = Path("run")

    def train(epochs: int, *more: str):
        return call(capsys, "run", *RECIPE, *settings(train__epochs=epochs), *more, "--output", "run", "--resume")

    assert train(1).status == 0
    first = (run / "report.json").read_bytes()
    assert train(1, "--set", "train.keep_checkpoints=5").status == 0
    assert (run / "report.json").read_bytes() == first, "nothing more was asked for"
    longer = train(3)
    assert longer.status == 0
    assert "resumed from run/checkpoints/step_" in longer.err
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert [row["epoch"] for row in rows] == [0, 1, 2]
    assert (run / "report_after_1_epochs.json").read_bytes() == first
    assert (run / "report_after_1_epochs.md").exists()
    assert json.loads((run / "report.json").read_text())["recipe"]["train"]["epochs"] == 3
    fewer = train(2)
    assert fewer.status == 2
    assert "what differs: train.epochs; what may: more train.epochs, " in fewer.err
