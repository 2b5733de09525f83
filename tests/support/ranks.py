"""The processes of one run, started as a launcher does, some of which die at a chosen place or live on hosts apart."""

from __future__ import annotations

import ctypes
import os
import secrets
import signal
import socket
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from multiprocessing.context import ForkServerProcess
from pathlib import Path
from pkgutil import resolve_name
from typing import Any

from support.several import SERVER, together

PLACES = {
    "training": ("robustcords.training.step:LoopStep", "backward", 5),
    "selection": ("robustcords.selection.strategies.adv_glister:AdvGLISTERStrategy", "pick", 2),
    "checkpoint": ("robustcords.storage.checkpoint", "write_atomic", 2),
    "AutoAttack": ("robustcords.evaluation.attacks.autoattack", "run", 1),
}
"""What is called where, and in which of its calls the process dies there."""

_NEW_NETWORK = 0x40000000  # CLONE_NEWNET


def die_in(place: str) -> None:
    """Makes this process kill itself in the middle of something."""
    where, name, fatal = PLACES[place]
    owner = resolve_name(where)
    before, calls = getattr(owner, name), 0

    def call(*arguments: Any, **options: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == fatal:
            Path("died.txt").touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return before(*arguments, **options)

    setattr(owner, name, call)


def _rank(
    folder: Path, arguments: Sequence[str], environment: Mapping[str, str], place: str, host: str, silence: int
) -> None:
    """Is what one process does: one command, with what it prints in files of its own."""
    import torch

    from robustcords.cli.app import main
    from robustcords.runtime import watchdog

    if host and ctypes.CDLL(None, use_errno=True).setns(os.open(f"/run/netns/{host}", os.O_RDONLY), _NEW_NETWORK):
        raise OSError(ctypes.get_errno(), f"cannot enter the network namespace {host}")
    torch.set_num_threads(1)
    os.environ.update(environment)
    os.chdir(folder)
    sys.path.insert(0, str(folder))
    for number, name in ((1, "out"), (2, "err")):
        os.dup2(os.open(f"{name}{environment['RANK']}.txt", os.O_WRONLY | os.O_CREAT | os.O_TRUNC), number)
    if place:
        die_in(place)
    if silence:
        watchdog.GRACE_S, watchdog._IDLE_S, watchdog._INTERVAL_S, watchdog._PROBES = 2.0, silence - 3, 1, 3
    sys.argv = ["robustcords", *arguments]
    main()


def start(
    world: int,
    folder: Path,
    arguments: Sequence[str],
    *,
    victim: int = -1,
    place: str = "",
    hosts: Sequence[str] = (),
    address: str = "127.0.0.1",
    silence: int = 0,
) -> list[ForkServerProcess]:
    """Starts a run's processes with nothing but environment variables, as ``srun`` does.

    Args:
        world: how many.
        folder: where they work, and leave ``out0.txt``, ``err0.txt`` and so on.
        arguments: of the command line.
        victim: the process that dies.
        place: in which of `PLACES`.
        hosts: the network namespace of each; empty for none.
        address: of the main process.
        silence: seconds after which a silent host is lost, and two later whoever waits for it; 0 for the usual ones.
    """
    folder.mkdir(exist_ok=True)
    meeting = {"MASTER_ADDR": address, "MASTER_PORT": free_port(), "WORLD_SIZE": str(world), "OMP_NUM_THREADS": "1"}
    started = []
    for rank in range(world):
        environment = {**meeting, "RANK": str(rank), "LOCAL_RANK": "0" if hosts else str(rank)}
        own = (place if rank == victim else "", hosts[rank] if hosts else "", silence)
        started.append(SERVER.Process(target=_rank, args=(folder, arguments, environment, *own), daemon=True))
        started[-1].start()
    return started


def joined(work: Callable[..., None], world: int, *arguments: Any) -> None:
    """Calls ``work(rank, *arguments)`` in each of the processes of a run; fails if one of them does."""
    together(_member, world, world, free_port(), work, arguments)


def _member(rank: int, world: int, port: str, work: Callable[..., None], arguments: Sequence[Any]) -> None:
    import torch

    from robustcords.runtime import accelerator

    torch.set_num_threads(1)
    meeting = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    os.environ |= {**meeting, "WORLD_SIZE": str(world), "RANK": str(rank), "LOCAL_RANK": str(rank)}
    started = accelerator.start("fp32")
    assert started.num_processes == world
    work(rank, *arguments)
    started.state.destroy_process_group()


def free_port() -> str:
    """Returns a port that nothing listens at, below those that the system gives out itself.

    Tests that run at the same time have ranges of their own: a port is taken only seconds from here.
    """
    worker = int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw")) % 16
    while True:
        port = 20_000 + 750 * worker + secrets.randbelow(750)
        with socket.socket() as probe:
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
            return str(port)


def ended(started: Sequence[ForkServerProcess], within: float) -> list[int]:
    """Returns the exit statuses; fails, and ends what is left, where the processes do not end in time."""
    deadline = time.monotonic() + within
    try:
        for process in started:
            process.join(timeout=max(0.0, deadline - time.monotonic()))
        statuses = [process.exitcode for process in started]
        assert None not in statuses, f"still waiting after {within} s: {statuses}"
    finally:
        for process in started:
            process.kill()
    return [status for status in statuses if status is not None]


def said(folder: Path, rank: int, what: str = "err") -> list[str]:
    """Returns the lines that a process has printed."""
    return (folder / f"{what}{rank}.txt").read_text().splitlines()
