"""Runs that are killed at random instants, again and again, end with the bytes of one that was left alone."""

from __future__ import annotations

import os
import random
import shutil
import signal
import socket
import sys
import time
from multiprocessing.context import ForkServerProcess
from pathlib import Path

import pytest
from digits_run import RECIPE, check_same
from several import SERVER

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="kills as POSIX does")

VARIANTS = {
    "plain": [],
    "bf16": ["--set", "train.precision=bf16"],
    "within epochs": ["--set", "train.checkpoint_every=0.05 s"],
    "two processes": [],
}


def run(folder: Path, options: list[str], environment: dict[str, str]) -> None:
    """Is what a process does: one command, with its output in a file."""
    import torch

    from robustcords.app import main

    torch.set_num_threads(1)
    os.environ.update(environment)
    os.chdir(folder)
    log = os.open("log.txt", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(log, 1)
    os.dup2(log, 2)
    sys.argv = ["robustcords", "run", *RECIPE, "--output", "run", "--resume", *options]
    main()


def begin(folder: Path, variant: str) -> list[ForkServerProcess]:
    folder.mkdir(exist_ok=True)
    ranks = [{}]
    if variant == "two processes":
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = str(probe.getsockname()[1])
        meeting = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "ACCELERATE_USE_CPU": "true"}
        ranks = [{**meeting, "RANK": rank, "LOCAL_RANK": rank} for rank in ("0", "1")]
    started = [SERVER.Process(target=run, args=(folder, VARIANTS[variant], rank)) for rank in ranks]
    for process in started:
        process.start()
    return started


def finish(processes: list[ForkServerProcess], folder: Path) -> None:
    for process in processes:
        process.join(timeout=120)
        assert process.exitcode == 0, (folder / "log.txt").read_text()[-2000:]


def killed(processes: list[ForkServerProcess], after: float, victim: int) -> bool:
    """Kills one process after so many seconds; the others end by themselves. Returns whether there was one to kill."""
    time.sleep(after)
    alive = processes[victim].is_alive()
    processes[victim].kill()
    deadline = time.monotonic() + 60
    for process in processes:
        process.join(timeout=max(0.0, deadline - time.monotonic()))
        assert process.exitcode is not None, "left waiting for a process that has died"
        if alive and process is not processes[victim]:
            assert process.exitcode not in (0, -signal.SIGKILL)
    return alive


def campaign(folder: Path, variant: str, kills: int, seed: int) -> int:
    """Kills runs that many times, each of them up to five times; returns how many runs it took."""
    draw = random.Random(seed)
    begun = time.monotonic()
    finish(begin(folder / "whole", variant), folder / "whole")
    whole = time.monotonic() - begun
    left, runs = kills, 0
    while left:
        runs += 1
        for _ in range(min(left, 5)):
            processes = begin(folder / "parts", variant)
            if not killed(processes, draw.uniform(0, whole), draw.randrange(len(processes))):
                break
            left -= 1
        finish(begin(folder / "parts", variant), folder / "parts")
        check_same(folder / "whole" / "run", folder / "parts" / "run")
        shutil.rmtree(folder / "parts")
    return runs


def test_five_random_kills(tmp_path: Path):
    assert campaign(tmp_path, "plain", 5, seed=0) >= 1


@pytest.mark.slow
@pytest.mark.parametrize("variant", VARIANTS)
def test_fifty_random_kills(tmp_path: Path, variant: str):
    assert campaign(tmp_path, variant, 50, seed=1) >= 10
