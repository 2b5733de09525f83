"""A trace of some training steps: what it holds, where it goes, and that it changes nothing."""

from __future__ import annotations

import gzip
import io
import json
import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from rich.console import Console
from support.command_line import call, settings

from robustcords.runtime import progress
from robustcords.runtime.profiler import STEPS, WARM_UP, Profiler, operators, print_operators
from robustcords.runtime.progress import Display
from robustcords.runtime.stopwatch import TRAINING

SMALL = [
    "digits_mart",
    *settings(
        data__train_limit=400,
        model__width=4,
        model__depths="[1]",
        attack__steps=2,
        selector__name="random",
        train__epochs=1,
        train__batch_size=12,
        evaluation__limit=10,
        evaluation__pgd="false",
        evaluation__autoattack="false",
        callbacks__overfitting="false",
    ),
]


def events(path: Path) -> list[dict[str, Any]]:
    with gzip.open(path) as trace:
        found: list[dict[str, Any]] = json.load(trace)["traceEvents"]
    return found


def work() -> None:
    torch.ones(8, 8) @ torch.ones(8, 8)


def recorded(folder: Path, steps: int) -> str:
    """Profiles an epoch of so many steps; returns what was said."""
    console = Console(file=io.StringIO(), width=80)
    with Profiler(folder, display=Display(console=console)) as profiler:
        for _ in range(steps):
            work()
            profiler.step()
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def test_a_run_writes_a_trace_and_says_what_took_the_time(tmp_path: Path, monkeypatch: Any, capsys: Any):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(progress, "LINE_EVERY_S", math.inf)
    plain, profiled = (call(capsys, "run", *SMALL, *more) for more in ([], ["--profile"]))
    assert (plain.status, profiled.status) == (0, 0)
    first, second = (Path("runs") / name / "weights" / "last.safetensors" for name in ("digits_mart", "digits_mart-2"))
    assert first.read_bytes() == second.read_bytes(), "a trace may change nothing"
    assert not Path("runs/digits_mart/profile").exists()
    names = [event["name"] for event in events(Path("runs/digits_mart-2/profile/trace.json.gz"))]
    for phase in {*TRAINING} - {"averaging"}:
        assert names.count(phase) == STEPS, phase
    assert "aten::convolution_backward" in names
    lines = profiled.err.splitlines()
    at = next(number for number, line in enumerate(lines) if "trace.json.gz" in line)
    assert lines[at].endswith(f"{STEPS} training steps, after {WARM_UP} to warm up")
    assert lines[at + 1].split() == ["operator", "calls", "seconds", "percent"]
    assert lines[at + 2].startswith("aten::")
    assert len(lines) == len(plain.err.splitlines()) + 17, "the table and nothing else"


def test_only_the_steps_after_the_warm_up_are_recorded(tmp_path: Path):
    recorded(tmp_path / "profile", WARM_UP + STEPS + 4)
    found = events(tmp_path / "profile" / "trace.json.gz")
    assert [event["name"] for event in found].count("aten::mm") == STEPS


def test_an_epoch_may_end_early(tmp_path: Path):
    said = recorded(tmp_path / "profile", WARM_UP + 2)
    assert "2 training steps" in said
    found = events(tmp_path / "profile" / "trace.json.gz")
    assert [event["name"] for event in found].count("aten::mm") == 2


def test_an_epoch_too_short_leaves_nothing(tmp_path: Path):
    said = recorded(tmp_path / "profile", WARM_UP)
    assert said == f"no profile: {WARM_UP} steps are too few, as the first {WARM_UP} only warm up\n"
    assert not (tmp_path / "profile").exists()


def test_an_earlier_trace_is_kept(tmp_path: Path):
    for _ in range(3):
        recorded(tmp_path, WARM_UP + 1)
    assert {path.name for path in tmp_path.iterdir()} == {"trace.json.gz", "trace-2.json.gz", "trace-3.json.gz"}


def test_an_interrupted_epoch_leaves_its_trace(tmp_path: Path):
    profiler = Profiler(tmp_path / "profile")
    with pytest.raises(KeyboardInterrupt), profiler:
        for _ in range(WARM_UP + 1):
            work()
            profiler.step()
        raise KeyboardInterrupt
    assert (tmp_path / "profile" / "trace.json.gz").exists()


def average(name: str, seconds: float, gpu_seconds: float = 0, annotation: bool = False, gpu: bool = False) -> Any:
    kind = SimpleNamespace(name="CUDA" if gpu else "CPU")
    times = {"self_cpu_time_total": seconds * 1e6, "self_device_time_total": gpu_seconds * 1e6}
    return SimpleNamespace(key=name, count=2, device_type=kind, is_user_annotation=annotation, **times)


def test_operators_are_sorted_by_the_time_of_the_device_that_works():
    averages = [average("attack", 9, annotation=True), average("kernel", 0, 5, gpu=True), average("a", 3, 1)]
    averages += [average("b", 1, 2), average("c", 2)]
    assert [each.name for each in operators(averages)] == ["b", "a", "c"]
    assert [each.name for each in operators([average("d", 1), average("e", 2)])] == ["e", "d"]


def test_percentages_are_of_all_operators():
    console = Console(file=io.StringIO())
    print_operators(operators([average("aten::a[x]", 3, 1), average("aten::b", 1, 4)]), Display(console=console))
    assert isinstance(console.file, io.StringIO)
    assert [line.split() for line in console.file.getvalue().splitlines()] == [
        ["operator", "calls", "seconds", "percent", "GPU", "seconds", "GPU", "percent"],
        ["aten::b", "2", "1.0000", "25.0", "4.0000", "80.0"],
        ["aten::a[x]", "2", "3.0000", "75.0", "1.0000", "20.0"],
    ]
