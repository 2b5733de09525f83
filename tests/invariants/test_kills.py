"""Runs that are killed at random instants, again and again, end with the bytes of one that was left alone."""

from __future__ import annotations

import os
import random
import shutil
import signal
import sys
import time
from collections import Counter
from dataclasses import dataclass
from multiprocessing.context import ForkServerProcess
from pathlib import Path

import pytest
from support.digits_run import check_same
from support.forked_run import begin, finish, statuses, wait_for
from support.phases import PHASES, page

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="kills as POSIX does")

AUTOATTACK = '{version = "standard", epsilons = [0.3, 0.35], limit = 8}'
VARIANTS = {
    "plain": [],
    "bf16": ["--set", "train.precision=bf16"],
    "within epochs": ["--set", "train.checkpoint_every=0.05 s"],
    "AutoAttack": ["--set", f"evaluation.autoattack={AUTOATTACK}"],
    "two processes": [],
}


def begun(folder: Path, variant: str) -> list[ForkServerProcess]:
    return begin(folder, *VARIANTS[variant], world=2 if variant == "two processes" else 1)


@dataclass(frozen=True)
class Instant:
    """When to kill: after so many seconds, and then, where it names a phase, so many seconds after that begins."""

    after: float
    phase: str | None = None
    later: float = 0.0


def drawn(draw: random.Random, number: int, whole: float) -> Instant:
    """Returns a random instant; every second one is in some phase, as most phases are short."""
    if number % 2:
        phase = PHASES[1 + number // 2 % (len(PHASES) - 1)]
        after = 0 if phase == "resuming" else draw.uniform(0, whole / 3)  # that comes once, at the start
        return Instant(after, phase, 10 ** draw.uniform(-4, -1.5))
    return Instant(draw.uniform(0, whole / 3))


def killed(processes: list[ForkServerProcess], instant: Instant, victim: int, folder: Path) -> str | None:
    """Kills one process; the others end by themselves. Returns the phase that it was in, or None if it had ended."""
    shared = page(folder / f"phase_{victim}")
    process = processes[victim]
    time.sleep(instant.after)
    if instant.phase:
        wait_for(instant.phase, process, folder, victim)
    time.sleep(instant.later)
    phase = None
    if process.is_alive() and process.pid:
        os.kill(process.pid, signal.SIGSTOP)  # so that it is killed where it is seen to be
        time.sleep(0.001)
        phase = PHASES[shared[0]]
        process.kill()
    ended = statuses(processes, 60)
    assert None not in ended, "left waiting for a process that has died"
    if phase and not (folder / "run" / "report.json").exists():  # the others may be done, where the run is
        assert not {0, -signal.SIGKILL} & {*ended[:victim], *ended[victim + 1 :]}
    return phase


@pytest.mark.slow
@pytest.mark.parametrize("variant", VARIANTS)
def test_forty_random_kills(variant: str, tmp_path: Path):
    folder, kills, draw = tmp_path, 40, random.Random(1)
    finish(begin(folder / "first", "--set=train.epochs=1"), folder / "first")  # starts the server of processes too
    since = time.monotonic()
    finish(begun(folder / "whole", variant), folder / "whole")
    whole = time.monotonic() - since
    hit: Counter[str] = Counter()
    runs = 0
    while hit.total() < kills:
        runs += 1
        for _ in range(min(kills - hit.total(), 5)):
            processes = begun(folder / "parts", variant)
            instant = drawn(draw, hit.total() + runs, whole)
            phase = killed(processes, instant, draw.randrange(len(processes)), folder / "parts")
            if phase is None:
                break
            hit[phase] += 1
        finish(begun(folder / "parts", variant), folder / "parts")
        check_same(folder / "whole" / "run", folder / "parts" / "run")
        shutil.rmtree(folder / "parts")
    print(f"\n{variant}: {hit.total()} kills of {runs} runs of {whole:.1f} s:", dict(hit))
    assert len(hit) >= 8, "kills in as many phases"
