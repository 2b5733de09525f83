"""Many runs: so many at a time, each with a device; what is done is skipped, and one that fails stops none."""

from __future__ import annotations

import io
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from rich.console import Console
from support.command_line import call, settings
from support.forked_run import begin, log, statuses

from robustcords.errors import Interrupted, UserError
from robustcords.experiments import fleet
from robustcords.experiments.fleet import Fleet, Task
from robustcords.experiments.run import plain
from robustcords.recipe.recipe import load
from robustcords.runtime.interruption import Interruption
from robustcords.runtime.progress import Board
from robustcords.runtime.warm import Started

# Does what a run does to its directory, without importing torch.
PRETENDS = """
import json, os, pathlib, shutil, signal, sys, time, tomllib
recipe, output, behaviour = sys.argv[1:]
path = pathlib.Path(output)
path.mkdir(exist_ok=True)
shutil.copy(recipe, path / "recipe.toml")
(path / "begun").write_text(f"{time.monotonic()} {os.environ.get('CUDA_VISIBLE_DEVICES', '')}")
signal.signal(signal.SIGTERM, lambda *_: (path / "stopped").write_text("") and None or sys.exit(143))
print("epoch 1/2", file=sys.stderr, flush=True)
time.sleep(60 if behaviour == "hangs" else 0.3)
if behaviour in {"1", "2"} and path.name.endswith("1"):
    print("error: no such luck", file=sys.stderr)
    print("epoch 18/24, says a run that outlived its sweep", file=sys.stderr)
    sys.exit(int(behaviour))
(path / "metrics.jsonl").write_text("{}\\n{}\\n")
report = {
    "recipe": tomllib.loads(pathlib.Path(recipe).read_text()),
    "environment": {"versions": {}, "device": "none", "world_size": 1, "threads": 1},
    "training": {"epochs": 2, "seconds": {}, "selections": []},
    "evaluation": {"last": {"clean": 0.5, "examples": 4, "pgd": {"8/255": 0.25}, "pgd_attack": "PGD-1-1"}},
}
(path / "report.json").write_text(json.dumps(report))
(path / "ended").write_text(str(time.monotonic()))
"""


def tasks(count: int, epochs: int = 2) -> list[Task]:
    return [
        Task(f"run{n}", load("digits_mart", [f"seed={n}", f"train.epochs={epochs}", "train.precision=fp32"]))
        for n in range(count)
    ]


def made(folder: Path, monkeypatch: pytest.MonkeyPatch, behaviour: str, places: list[dict[str, str]]) -> Fleet:
    def pretended(recipe: Path, output: Path, log: Path, place: dict[str, str]) -> Started:
        command = [sys.executable, "-c", PRETENDS, str(recipe), str(output), behaviour]
        with log.open("ab") as file:
            return subprocess.Popen(command, stderr=file, env={**os.environ, **place}, start_new_session=True)

    monkeypatch.setattr(fleet, "start", pretended)
    monkeypatch.setattr(fleet, "_POLL_S", 0.02)
    return Fleet(folder, places, Board(Console(file=io.StringIO(), width=200)), Interruption())


def said(of: Fleet) -> list[str]:
    return of.board.console.file.getvalue().splitlines()  # type: ignore[attr-defined]


def test_as_many_at_a_time_as_there_are_places_each_with_a_device(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    many = made(tmp_path, monkeypatch, "runs", [{"CUDA_VISIBLE_DEVICES": "0"}, {"CUDA_VISIBLE_DEVICES": "3"}])
    assert [job.state for job in many.run(tasks(4))] == ["done"] * 4
    spans = []
    for number in range(4):
        begun, device = (tmp_path / f"run{number}" / "begun").read_text().split()
        spans.append((float(begun), float((tmp_path / f"run{number}" / "ended").read_text()), device))
    for begun, ended, device in spans:
        beside = [each for each in spans if each[0] < ended and each[1] > begun]
        assert len(beside) <= 2
        assert len({each[2] for each in beside}) == len(beside), "a device is used by one run at a time"
        assert device in {"0", "3"}
    assert sum(len([e for e in spans if e[0] < end and e[1] > begin]) == 2 for begin, end, _ in spans) >= 2
    assert "run3: done  last: clean 50.0%, PGD 8/255 25.0%" in " ".join(said(many))


def test_one_that_fails_stops_none_of_the_others_and_is_tried_again_next_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    some = made(tmp_path, monkeypatch, "1", [{}, {}, {}])
    assert [job.state for job in some.run(tasks(3))] == ["done", "failed", "done"]
    failed = next(line for line in said(some) if "failed" in line)
    assert failed.startswith(f"run1: failed with status 1: error: no such luck ({tmp_path / '.fleet' / 'run1.log'})")
    again = made(tmp_path, monkeypatch, "runs", [{}])
    assert [job.state for job in again.run(tasks(3))] == ["skipped", "done", "skipped"]


def test_after_one_whose_input_is_at_fault_no_other_begins(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    some = made(tmp_path, monkeypatch, "2", [{}])
    assert [job.state for job in some.run(tasks(4))] == ["done", "failed", "waiting", "waiting"]
    assert some.at_fault
    assert any("2 not started: the input of run1 is invalid" in line for line in said(some))
    assert sorted(path.name for path in tmp_path.glob("run*")) == ["run0", "run1"]


def test_what_is_done_is_skipped_unless_more_epochs_are_asked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    assert made(tmp_path, monkeypatch, "runs", [{}]).run(tasks(1))[0].state == "done"
    first = (tmp_path / "run0" / "begun").read_bytes()
    assert made(tmp_path, monkeypatch, "runs", [{}]).run(tasks(1))[0].state == "skipped"
    assert (tmp_path / "run0" / "begun").read_bytes() == first
    assert made(tmp_path, monkeypatch, "runs", [{}]).run(tasks(1, epochs=3))[0].state == "done"
    with pytest.raises(UserError, match=r"run0: holds a run of another recipe; what differs: train\.epochs; name"):
        made(tmp_path, monkeypatch, "runs", [{}]).run(tasks(1, epochs=1))


def test_a_run_of_another_recipe_is_in_the_way(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    made(tmp_path, monkeypatch, "runs", [{}]).run(tasks(1))
    other = [Task("run1", tasks(2)[1].recipe), Task("run0", load("digits_trades"))]
    with pytest.raises(UserError, match=r"run0: holds a run of another recipe; what differs: .*loss\.name"):
        made(tmp_path, monkeypatch, "runs", [{}]).run(other)
    assert not (tmp_path / "run1").exists(), "said before anything is started"


def test_stopping_lets_the_runs_write_their_checkpoints(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    hanging = made(tmp_path, monkeypatch, "hangs", [{}, {}])
    began = time.monotonic()

    def looked(_make: object) -> None:
        if all((tmp_path / f"run{n}" / "begun").exists() for n in range(2)):
            hanging.interruption.requested = signal.SIGTERM

    monkeypatch.setattr(hanging.board, "show", looked)
    with pytest.raises(Interrupted) as stopped:
        hanging.run(tasks(3))
    assert stopped.value.status == 143
    assert time.monotonic() - began < 30
    assert [(tmp_path / f"run{n}" / "stopped").exists() for n in range(3)] == [True, True, False]


def test_an_error_of_its_own_leaves_no_run_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    hanging = made(tmp_path, monkeypatch, "hangs", [{}, {}])

    def fail(_make: object) -> None:
        if all((tmp_path / f"run{n}" / "begun").exists() for n in range(2)) and not hanging.jobs[0].state == "waiting":
            raise OSError("no space left")

    monkeypatch.setattr(hanging.board, "show", fail)
    with pytest.raises(OSError, match="no space left"):
        hanging.run(tasks(2))
    assert all((tmp_path / f"run{n}" / "stopped").exists() for n in range(2))


def test_a_run_may_have_evaluated_nothing(tmp_path: Path):
    environment = {"versions": {}, "device": "none", "world_size": 1, "threads": 1}
    parts = {"recipe": plain(load("digits_mart")), "environment": environment, "evaluation": {}}
    training = {"epochs": 1, "seconds": {}, "selections": []}
    (tmp_path / "report.json").write_text(json.dumps({**parts, "training": training}))
    assert fleet._result(tmp_path) == "nothing evaluated"


def test_a_slot_for_each_card_and_threads_shared_out_on_a_cpu(monkeypatch: pytest.MonkeyPatch):
    import torch

    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 8)
    assert fleet.slots(None) == [{}]
    assert fleet.slots(3) == [{"OMP_NUM_THREADS": "2"}] * 3
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert fleet.slots(None) == [{"CUDA_VISIBLE_DEVICES": "0"}, {"CUDA_VISIBLE_DEVICES": "1"}]
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,GPU-aa")
    assert fleet.slots(3) == [{"CUDA_VISIBLE_DEVICES": name} for name in ("4", "GPU-aa", "4")]


TINY = settings(
    data__train_limit=240,
    model__width=2,
    model__depths="[1]",
    attack__steps=1,
    bullet="false",
    train__epochs=1,
    evaluation__limit=10,
    evaluation__pgd="{steps = 1, restarts = 1, step_size = 0.15, epsilons = [0.15]}",
    evaluation__autoattack="false",
    callbacks__overfitting="false",
)


def test_the_command_sweeps_and_a_second_time_has_nothing_to_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setattr(fleet, "_POLL_S", 0.02)
    names = ["selector.name=adv-gradmatch", "selector.name=random"]
    one = call(capsys, "run", "digits_mart", "--set", names[1], *TINY, "--output", f"out/{names[1]}")
    assert one.status == 0, one.err
    options = ["digits_mart", "--over", "selector.name=random,adv-gradmatch", *TINY, "--output", "out", "--jobs", "2"]
    first = call(capsys, "sweep", *options)
    assert first.status == 0, first.err
    assert sorted(path.parent.name for path in Path("out").glob("*/recipe.toml")) == names
    for name in names:
        report = json.loads((Path("out") / name / "report.json").read_text())
        assert report["recipe"]["selector"]["name"] == name.partition("=")[2]
    assert [name for name in names if f"{name}: started" in first.err] == names[:1], "the other one was done"
    assert first.out.endswith("\nout/report.html\n")
    assert all(name.partition("=")[2] in (Path("out") / "report.md").read_text() for name in names)
    again = call(capsys, "sweep", *options)
    assert again.status == 0
    assert "started" not in again.err
    (Path("out") / "recipe.toml").write_text("mine")  # of the folder, which is no run for all that
    fewer = [option.replace("random,adv-gradmatch", "random") for option in options]
    assert call(capsys, "sweep", *fewer).status == 0
    assert all(name.partition("=")[2] in (Path("out") / "report.md").read_text() for name in names), "the folder's page"


def test_ctrl_c_stops_the_runs_and_the_same_command_goes_on(tmp_path: Path):
    options = ["digits_mart", "--over", "seed=0,1", *TINY, *settings(train__epochs=400), "--output", "out"]
    [process] = begin(tmp_path, what=("sweep", *options))
    metrics = tmp_path / "out" / "seed=0" / "metrics.jsonl"
    while process.is_alive() and not metrics.exists():
        time.sleep(0.02)
    os.kill(process.pid or 0, signal.SIGINT)
    assert statuses([process], 60) == [130]
    last = log(tmp_path).splitlines()[-1]
    assert last == "error: stopped by Ctrl-C (SIGINT); the same command continues where it stopped"
    assert list((tmp_path / "out" / "seed=0" / "checkpoints").glob("step_*"))
    assert not (tmp_path / "out" / "seed=1").exists()
    said = (tmp_path / "out" / ".fleet" / "seed=0.log").read_text().splitlines()
    assert said[-1] == "error: stopped by SIGTERM; continue with --resume"


def test_the_time_to_go_counts_what_this_sweep_has_seen_done(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    of = made(tmp_path, monkeypatch, "hangs", [{}])
    of.jobs = [of._job(task) for task in tasks(2, epochs=10)]
    resumed, waiting = of.jobs
    assert of.remaining() is None
    resumed.path.mkdir()
    (resumed.path / "metrics.jsonl").write_text("{}\n" * 8)
    resumed.state, resumed.before, resumed.seconds, resumed.training = "running", 0.6, 20.0, 20.0
    # Two epochs in 20 s; two of its own and the other run's ten are left.
    assert of.remaining() == pytest.approx(12 * 10.0)
    assert waiting.share == 0


def test_the_time_to_go_takes_evaluation_for_as_long_as_it_has_been(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    of = made(tmp_path, monkeypatch, "hangs", [{}, {}])
    of.jobs = [of._job(task) for task in tasks(4, epochs=10)]
    epochs = {
        "done": (10, 130.0, 100.0),
        "running": (10, 110.0, 100.0),
        "waiting": (0, 0.0, 0.0),
        "failed": (0, 9.0, 0.0),
    }
    for job, (state, (lines, seconds, training)) in zip(of.jobs, epochs.items(), strict=True):
        job.path.mkdir()
        (job.path / "metrics.jsonl").write_text("{}\n" * lines)
        job.state, job.seconds, job.training = state, seconds, training
    # 10 s an epoch, 30 s an evaluation: 20 s of one are left, and the whole of a run, which ends last, on two devices.
    assert of.remaining() == pytest.approx(10 * 10 + 30)
    of.places = [{}]
    assert of.remaining() == pytest.approx(20 + 10 * 10 + 30)
    monkeypatch.setattr(of, "_last_lines", lambda _: [])
    monkeypatch.setattr(fleet.time, "monotonic", lambda: of.jobs[1].begun + 125)
    of.jobs[1].process = type("Ended", (), {"poll": lambda _: None})()
    of._look(of.jobs[1])
    assert (of.jobs[1].seconds, of.jobs[1].training) == (125, 100), "the epochs are done, so it evaluates"


def test_a_folder_or_page_that_cannot_be_is_told_before_any_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.setattr(fleet, "start", lambda *_: pytest.fail("a run was started"))
    (tmp_path / "file").write_text("")
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken" / "report.html").write_text("mine")
    for command in (["sweep", "digits_mart"], ["reproduce", "table1", "--preset", "smoke"]):
        for name, reason in (
            ("file", "cannot be a folder (File exists)"),
            ("file/below", "cannot be a folder (Not a directory)"),
            ("taken", "exists and is not an earlier report; name another file"),
        ):
            answer = call(capsys, *command, "--output", tmp_path / name)
            assert (answer.status, answer.err.count("\n")) == (2, 1), answer.err
            assert answer.err.startswith(f"error: --output {tmp_path / name}")
            assert reason in answer.err
    assert (tmp_path / "taken" / "report.html").read_text() == "mine"
