"""The command line, called in this process or started as one of its own."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple
from unittest import mock

import pytest
import typer.main

from robustcords.cli import app

ROOT = Path(__file__).parents[2]
_TWO = {"num_processes": "2", "num_machines": "1", "mixed_precision": "no", "dynamo_backend": "no"}
LAUNCH = [
    *("-m", "accelerate.commands.launch", "--cpu"),
    *(word for key, value in _TWO.items() for word in (f"--{key}", value)),
]
"""What starts a program in two processes on one machine."""


class Answer(NamedTuple):
    """What a command gave back."""

    status: int
    out: str
    err: str


Command = Callable[..., Answer]
"""Runs a command in an empty folder; the fixture ``command``."""
typer.main.get_command = cache(typer.main.get_command)  # building the commands takes longer than most of what they do


def call(capsys: pytest.CaptureFixture[str], *arguments: str | Path) -> Answer:
    """Runs a command in this process."""
    capsys.readouterr()
    argv = mock.patch.object(sys, "argv", ["robustcords", *map(str, arguments)])
    with argv, mock.patch.object(app, "_debug", False), pytest.raises(SystemExit) as ended:
        app.main()
    code = ended.value.code
    return Answer(code if isinstance(code, int) else 0, *capsys.readouterr())


def start(*command: str | Path, folder: Path, **environment: str) -> subprocess.Popen[str]:
    """Starts a Python program, with one thread, in a folder."""
    return subprocess.Popen(
        [sys.executable, *map(str, command)],
        cwd=folder,
        env={**os.environ, **environment},
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )


def launched(folder: Path, *arguments: str) -> tuple[str, str]:
    """Runs a recipe in two processes, in a folder whose modules they find; returns what they wrote."""
    process = start(*LAUNCH, ROOT / "cli.py", "run", *arguments, folder=folder, PYTHONPATH=str(folder))
    out, err = process.communicate(timeout=280)
    assert process.returncode == 0, err
    return out, err


def settings(**values: Any) -> list[str]:
    """Returns ``--set`` options; a double underscore stands for the dot of a key."""
    return [part for key, value in values.items() for part in ("--set", f"{key.replace('__', '.')}={value}")]


def contents(folder: Path) -> dict[Path, tuple[int, bytes]]:
    """Returns every file below a folder, with its time and bytes."""
    return {file: (file.stat().st_mtime_ns, file.read_bytes()) for file in folder.rglob("*") if file.is_file()}


def refused(answer: Answer, *parts: str) -> None:
    """Checks that a command said what is wrong in one line, and did nothing."""
    assert answer.status == 2, answer
    assert answer.out == ""
    assert len(answer.err.splitlines()) == 1, answer.err
    assert answer.err.startswith("error: ")
    for part in parts:
        assert part in answer.err
    assert list(Path().iterdir()) == []


SMALL = settings(
    data__train_limit=240,
    model__width=4,
    model__depths="[1]",
    attack__steps=1,
    selector__select_every=1,
    train__epochs=2,
    train__batch_size=33,
    train__precision="fp32",
    evaluation__limit=20,
    evaluation__checkpoints='["best", "last"]',
    evaluation__pgd="{steps = 1, restarts = 1, step_size = 0.15, epsilons = [0.1, 0.15]}",
    evaluation__autoattack="false",
    callbacks__overfitting="false",  # takes longer than the steps
)
"""Makes a run of digits_mart a matter of a second, with two steps in each of two epochs."""
