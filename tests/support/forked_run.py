"""The command line on a run of the digits, in processes that have imported torch already and show what they do."""

from __future__ import annotations

import os
import signal
import socket
import sys
import time
from collections.abc import Callable, Sequence
from multiprocessing.context import ForkServerProcess
from pathlib import Path
from typing import Any

from support.digits_run import RECIPE
from support.phases import PHASES, page, show
from support.several import SERVER

RUN = ("run", *RECIPE, "--output", "run", "--resume")


def command(
    folder: Path, arguments: Sequence[str], environment: dict[str, str], prepare: Callable[[], None] | None
) -> None:
    """Is what a process does: one command, with its output in a file."""
    import torch

    from robustcords.__main__ import start

    torch.set_num_threads(1)
    os.environ.update(environment)
    os.chdir(folder)
    if prepare:
        prepare()
    show(Path(f"phase_{environment.get('RANK', '0')}"))
    log = os.open("log.txt", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(log, 1)
    os.dup2(log, 2)
    sys.argv = ["robustcords", *arguments]
    start()


def begin(
    folder: Path, *options: str, world: int = 1, what: Sequence[str] = RUN, prepare: Callable[[], None] | None = None
) -> list[ForkServerProcess]:
    """Starts a command in one process or more; ``prepare`` is called in each of them first."""
    folder.mkdir(exist_ok=True)
    ranks: list[dict[str, str]] = [{}]
    if world > 1:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = str(probe.getsockname()[1])
        meeting = {
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": port,
            "ACCELERATE_USE_CPU": "true",
            "OMP_NUM_THREADS": "1",
        }
        ranks = [
            {**meeting, "WORLD_SIZE": str(world), "RANK": str(rank), "LOCAL_RANK": str(rank)} for rank in range(world)
        ]
    for rank in range(world):  # not what an earlier command did last
        page(folder / f"phase_{rank}")[0] = 0
    started = [SERVER.Process(target=command, args=(folder, [*what, *options], rank, prepare)) for rank in ranks]
    for process in started:
        process.start()
    return started


def wait_for(phase: str, process: ForkServerProcess, folder: Path, rank: int = 0) -> None:
    """Waits until a process is in a phase, or has ended."""
    shared = page(folder / f"phase_{rank}")
    while process.is_alive() and PHASES[shared[0]] != phase:
        time.sleep(0.0002)


def statuses(processes: list[ForkServerProcess], seconds: float = 300) -> list[int | None]:
    """Waits for all processes to end; returns their exit statuses, None for one that has not ended."""
    deadline = time.monotonic() + seconds
    for process in processes:
        process.join(timeout=max(0.0, deadline - time.monotonic()))
    return [process.exitcode for process in processes]


def log(folder: Path) -> str:
    """Returns what the commands have said so far."""
    return (folder / "log.txt").read_text()


def finish(processes: list[ForkServerProcess], folder: Path) -> None:
    """Waits for a command that is to do what it should."""
    assert set(statuses(processes)) == {0}, log(folder)[-2000:]


def send(number: signal.Signals, *processes: ForkServerProcess) -> None:
    """Sends all of them a signal."""
    for process in processes:
        assert process.pid
        os.kill(process.pid, number)


def stop_in(phase: str, number: signal.Signals, folder: Path, *options: str, **how: Any) -> list[str]:
    """Stops a command of one process in some phase; returns the lines that it has written."""
    before = len(log(folder)) if (folder / "log.txt").exists() else 0
    [process] = begin(folder, *options, **how)
    wait_for(phase, process, folder)
    send(number, process)
    assert statuses([process], 10) == [-number if number == signal.SIGKILL else 128 + number], log(folder)[-2000:]
    said = log(folder)[before:]
    assert "Traceback" not in said
    return said.splitlines()
