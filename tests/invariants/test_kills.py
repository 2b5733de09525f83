"""Runs that are killed at random instants, again and again, end with the bytes of one that was left alone."""

from __future__ import annotations

import os
import random
import shutil
import signal
import socket
import sys
import time
from collections import Counter
from dataclasses import dataclass
from multiprocessing.context import ForkServerProcess
from pathlib import Path

import pytest
from digits_run import RECIPE, check_same
from phases import PHASES, page, show
from several import SERVER

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="kills as POSIX does")

AUTOATTACK = '{version = "standard", epsilons = [0.3, 0.35], limit = 8}'
VARIANTS = {
    "plain": [],
    "bf16": ["--set", "train.precision=bf16"],
    "within epochs": ["--set", "train.checkpoint_every=0.05 s"],
    "AutoAttack": ["--set", f"evaluation.autoattack={AUTOATTACK}"],
    "two processes": [],
}


def run(folder: Path, options: list[str], environment: dict[str, str]) -> None:
    """Is what a process does: one command, with its output in a file."""
    import torch

    from robustcords.app import main

    torch.set_num_threads(1)
    os.environ.update(environment)
    os.chdir(folder)
    show(Path(f"phase_{environment.get('RANK', '0')}"))
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


@dataclass(frozen=True)
class Instant:
    """When to kill: after so many seconds, and then, where it names a phase, so many seconds after that begins."""

    after: float
    phase: str | None = None
    later: float = 0.0


def drawn(draw: random.Random, number: int, whole: float, aims: bool) -> Instant:
    """Returns a random instant of a run; every second one is in a phase of its own, as most phases are short."""
    if aims and number % 2:
        phase = PHASES[1 + number // 2 % (len(PHASES) - 1)]
        return Instant(draw.uniform(0, whole / 2), phase, 10 ** draw.uniform(-4, -1.5))
    return Instant(draw.uniform(0, whole))


def killed(processes: list[ForkServerProcess], instant: Instant, victim: int, folder: Path) -> str | None:
    """Kills one process; the others end by themselves. Returns the phase that it was in, or None if it had ended."""
    shared = page(folder / f"phase_{victim}")
    time.sleep(instant.after)
    while instant.phase and processes[victim].is_alive() and PHASES[shared[0]] != instant.phase:
        time.sleep(0.0002)
    time.sleep(instant.later)
    process = processes[victim]
    phase = None
    if process.is_alive() and process.pid:
        os.kill(process.pid, signal.SIGSTOP)  # so that it is killed where it is seen to be
        time.sleep(0.001)
        phase = PHASES[shared[0]]
        process.kill()
    deadline = time.monotonic() + 60
    for process in processes:
        process.join(timeout=max(0.0, deadline - time.monotonic()))
        assert process.exitcode is not None, "left waiting for a process that has died"
        if phase and process is not processes[victim]:
            assert process.exitcode not in (0, -signal.SIGKILL)
    return phase


def campaign(folder: Path, variant: str, kills: int, seed: int, aims: bool) -> Counter[str]:
    """Kills runs that many times, each of them up to five times; returns how often each phase was hit."""
    draw = random.Random(seed)
    begun = time.monotonic()
    finish(begin(folder / "whole", variant), folder / "whole")
    whole = time.monotonic() - begun
    hit: Counter[str] = Counter()
    runs = 0
    while hit.total() < kills:
        runs += 1
        for _ in range(min(kills - hit.total(), 5)):
            processes = begin(folder / "parts", variant)
            instant = drawn(draw, hit.total() + runs, whole, aims)
            phase = killed(processes, instant, draw.randrange(len(processes)), folder / "parts")
            if phase is None:
                break
            hit[phase] += 1
        finish(begin(folder / "parts", variant), folder / "parts")
        check_same(folder / "whole" / "run", folder / "parts" / "run")
        shutil.rmtree(folder / "parts")
    print(f"\n{variant}: {hit.total()} kills of {runs} runs of {whole:.1f} s:", dict(hit))
    return hit


def test_five_random_kills(tmp_path: Path):
    assert campaign(tmp_path, "plain", 5, seed=0, aims=False).total() == 5


@pytest.mark.slow
@pytest.mark.parametrize("variant", VARIANTS)
def test_forty_random_kills(tmp_path: Path, variant: str):
    hit = campaign(tmp_path, variant, 40, seed=1, aims=True)
    assert len(hit) >= 8, "kills in as many phases"
