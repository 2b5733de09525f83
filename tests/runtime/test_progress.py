"""What a log or a terminal shows of long work."""

from __future__ import annotations

import io

import pytest
from rich.console import Console
from support.cases import cases

from robustcords.runtime import progress
from robustcords.runtime.progress import Display, duration, epoch_line


def shown(display: Display) -> list[str]:
    assert isinstance(display.console.file, io.StringIO)
    return display.console.file.getvalue().splitlines()


def log(visible: bool = True) -> Display:
    return Display(visible, Console(file=io.StringIO(), force_terminal=False, highlight=False, width=40))


@cases(("seconds", "text"), [(0.4, "0 s"), (59.4, "59 s"), (59.6, "1:00"), (3599, "59:59"), (7383, "2:03:03")])
def test_durations(seconds: float, text: str):
    assert duration(seconds) == text


def test_lines_are_written_as_they_are_and_only_by_the_main_process():
    text = "[red]not markup[/red] and longer than the forty columns of a log " * 2
    with log() as display:
        display.say(text)
    assert shown(display) == [text]
    with log(visible=False) as silent, silent.task("epoch 1/2") as update:
        silent.say(text)
        update(1, 2)
    assert shown(silent) == []


def test_a_log_gets_a_line_now_and_then(monkeypatch: pytest.MonkeyPatch):
    now = 1000.0
    monkeypatch.setattr(progress.time, "monotonic", lambda: now)
    display = log()
    with display, display.task("epoch 1/2") as update:
        for done in range(1, 11):
            now += 12.0
            update(done, 10, "loss 1.5")
    assert shown(display) == [
        "epoch 1/2: 3 of 10, 1:24 to go  loss 1.5",
        "epoch 1/2: 6 of 10, 48 s to go  loss 1.5",
        "epoch 1/2: 9 of 10, 12 s to go  loss 1.5",
    ]


def test_a_terminal_gets_a_bar_that_goes_away():
    console = Console(file=io.StringIO(), force_terminal=True, width=120, height=10, highlight=False)
    with Display(console=console) as display:
        with display.task("selection") as update:
            update(3, 4, "half way")
            bars = display._bars
            assert bars is not None
            (task,) = bars.tasks
            assert (task.description, task.completed, task.total) == ("selection", 3, 4)
        assert bars.tasks == []
    assert display._bars is None


def test_an_epochs_line():
    row = {"train_loss": 1.25, "subset_size": 364, "images_per_second": 400.4, "seconds": {"total": 61.0}}
    rows = [{**row, "progress": 0.25}, {**row, "progress": 0.5}]
    assert epoch_line(rows, "epoch 2/4") == "epoch 2/4  loss 1.250  364 images  400 images/s  1:01  2:02 to go"
    last = {**row, "progress": 1.0, "validation": {"clean": 0.5, "robust": 0.125}}
    assert epoch_line([*rows, last], "epoch 4/4").endswith("  1:01  validation 50.0% clean, 12.5% PGD")
