"""How far runs are."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path

import pytest
from made_runs import make_run
from support.command_line import call

from robustcords.experiments import watch
from robustcords.report.run_progress import underway


def unfinished(path: Path, epochs: int, **train: object) -> Path:
    """Makes a run of 4 epochs of 12 s that has come so far."""
    make_run(path, {"train": dict(train)})
    (path / "report.json").unlink()
    rows = (path / "metrics.jsonl").read_text().splitlines(keepends=True)
    (path / "metrics.jsonl").write_text("".join(rows[:epochs]))
    return path


def test_a_run_in_training(tmp_path: Path):
    path = unfinished(tmp_path / "run", 1)
    rows = [json.loads(line) for line in (path / "metrics.jsonl").read_text().splitlines()]
    rows[0]["validation"] = {"clean": 0.5, "robust": 0.25}
    (path / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows) + '{"epoch": 1, "tr')
    for file in (path, *path.rglob("*")):
        os.utime(file, (0, time.time() - 90))
    (run,) = underway([tmp_path])
    assert (run.name, run.state, run.epochs, run.loss) == (str(path), "training", "1 of 4", 2.0)
    assert run.seconds == pytest.approx(12)
    assert run.remaining == pytest.approx(36)
    assert run.validation == {"clean": 0.5, "robust": 0.25}
    assert run.silent == pytest.approx(90, abs=10)


def test_a_run_that_has_just_begun(tmp_path: Path):
    (run,) = underway([unfinished(tmp_path / "run", 0)])
    assert (run.epochs, run.share, run.remaining, run.loss) == ("0 of 4", 0.0, None, None)


def test_a_length_in_steps_goes_by_progress(tmp_path: Path):
    path = unfinished(tmp_path / "run", 1)
    recipe = (path / "recipe.toml").read_text().replace("epochs = 4", "steps = 100")
    (path / "recipe.toml").write_text(recipe)
    row = json.loads((path / "metrics.jsonl").read_text())
    (path / "metrics.jsonl").write_text(json.dumps({**row, "progress": 0.75}) + "\n")
    (run,) = underway([path])
    assert (run.epochs, run.share) == ("1", 0.75)
    assert run.remaining == pytest.approx(4)


def test_evaluating_and_done(tmp_path: Path):
    for name, complete in (("a", False), ("b", True)):
        path = make_run(tmp_path / name)
        report = json.loads((path / "report.json").read_text())
        (path / "report.json").write_text(json.dumps({**report, "complete": complete}))
    assert [(run.state, run.remaining) for run in underway([tmp_path])] == [("evaluating", 0.0), ("done", 0.0)]


def test_the_command_shows_them_once_or_until_they_are_done(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    path = unfinished(tmp_path / "run", 2)
    answer = call(capsys, "watch", tmp_path, "--once")
    assert answer.status == 0
    assert "2 of 4" in answer.out
    assert "0 of 1 done" in answer.out

    def finish(_: float) -> None:
        make_run(tmp_path / "other")
        (path / "report.json").write_text((tmp_path / "other" / "report.json").read_text())

    monkeypatch.setattr(watch.time, "sleep", finish)
    assert "2 of 2 done" in call(capsys, "watch", tmp_path).out
    assert call(capsys, "watch", tmp_path / "no").err.startswith(f"error: {tmp_path / 'no'}: there is no such folder")
