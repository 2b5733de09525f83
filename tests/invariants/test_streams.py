"""Output that nobody reads any more ends nothing."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from support.digits_run import rows
from support.forked_run import begin, statuses

from robustcords.storage.checkpoint import Checkpoints
from robustcords.storage.run_directory import RunDirectory

TALKS = """
import sys
import typer
from rich.console import Console
from robustcords.runtime.streams import outlive_readers
outlive_readers()
print("first", flush=True)
print("first", file=sys.stderr)
sys.stdin.readline()
for number in range(500):
    print("more", number, flush=True)
    Console(file=sys.stderr).print("more")
    typer.echo("more", err=True)
sys.exit(7)
"""


def test_a_closed_pipe_changes_no_exit_status():
    options = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    process = subprocess.Popen([sys.executable, "-c", TALKS], text=True, **options)  # type: ignore[call-overload]
    for pipe in (process.stdout, process.stderr):
        assert pipe.readline() == "first\n"
        pipe.close()
    process.stdin.write("go on\n")
    process.stdin.close()
    assert process.wait(timeout=60) == 7


def test_a_full_disk_changes_no_exit_status():
    with Path("/dev/full").open("w") as full:
        ended = subprocess.run(
            [sys.executable, "-c", TALKS], input="", stdout=full, stderr=full, text=True, check=False
        )
    assert ended.returncode == 7


def test_characters_that_a_terminal_lacks_are_escaped():
    code = "from robustcords.runtime.streams import outlive_readers; outlive_readers(); print('caf\u00e9 \u250f')"
    environment = {**os.environ, "PYTHONIOENCODING": "ascii"}
    ended = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, check=True)
    assert ended.stdout == rb"caf\xe9 \u250f" + b"\n"


@pytest.mark.parametrize("stopped", [True, pytest.param(False, marks=pytest.mark.slow)])
def test_a_run_goes_on_without_its_reader(stopped: bool, tmp_path: Path):
    os.mkfifo(tmp_path / "log.txt")
    reader = os.open(tmp_path / "log.txt", os.O_RDONLY | os.O_NONBLOCK)
    [process] = begin(tmp_path)
    kept = Checkpoints(tmp_path / "run" / "checkpoints")
    while process.is_alive() and not kept.paths():
        time.sleep(0.005)
    os.close(reader)
    if stopped:
        os.kill(process.pid or 0, signal.SIGINT)
    assert statuses([process]) == [130 if stopped else 0]
    assert RunDirectory(tmp_path / "run").finished != stopped
    found = kept.latest()
    assert found is not None
    assert [row["epoch"] for row in rows(tmp_path / "run")] == list(range(found[1]["progress"]["epoch"]))
