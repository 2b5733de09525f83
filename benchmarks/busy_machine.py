"""What training takes alongside other work, by how OpenMP's threads wait for each other.

    python benchmarks/busy_machine.py [RECIPE] [--set KEY=VALUE]... [--threads N] [--busy 1] [--repeats 3]

Trains RECIPE, ``digits_mart`` for five epochs without evaluation if left out, in a process of its own with each of
`SETTINGS` in turn: with nothing else to do on the machine, and alongside ``--busy`` processes that count without end. A
thread that waits for the others spins for so many rounds and then sleeps; one that spins on a core that another process
could use makes all wait. Prints the median seconds of training over ``--repeats`` rounds, and their ratio to what the
library does by itself.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

SETTINGS = {
    "spins, the library's own": {"GOMP_SPINCOUNT": "300000"},
    "spins 10,000 rounds": {"GOMP_SPINCOUNT": "10000"},
    "spins 1,000 rounds": {"GOMP_SPINCOUNT": "1000"},
    "sleeps at once": {"OMP_WAIT_POLICY": "passive"},
}
SHORT = ["train.epochs=5", "evaluation.pgd=false", "evaluation.autoattack=false", 'evaluation.checkpoints=["last"]']


@contextmanager
def counting(number: int) -> Iterator[None]:
    """Keeps so many processes busy."""
    busy = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(number)]
    try:
        yield
    finally:
        for process in busy:
            process.kill()
            process.wait()


def seconds(recipe: str, changes: list[str], environment: dict[str, str]) -> float:
    """Returns what a run's training takes, without validation and checkpoints."""
    sets = [part for change in changes for part in ("--set", change)]
    with tempfile.TemporaryDirectory() as folder:
        output = Path(folder) / "run"
        command = [sys.executable, "-m", "robustcords", "run", recipe, *sets, "--output", str(output)]
        subprocess.run(command, check=True, capture_output=True, env={**os.environ, **environment})
        rows = [json.loads(line)["seconds"] for line in (output / "metrics.jsonl").read_text().splitlines()]
    return float(sum(row[phase] for row in rows for phase in ("data", "attack", "update", "selection")))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recipe", nargs="?", default="digits_mart")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE")
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--busy", type=int, default=1, help="processes that count")
    parser.add_argument("--repeats", type=int, default=3)
    options = parser.parse_args()
    changes = [*SHORT, *options.set]
    print(f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores, {options.threads} threads a run")
    print(f"| threads that wait | idle, s | ratio | alongside {options.busy} busy, s | ratio to idle |")
    print("|:--|--:|--:|--:|--:|")
    taken: dict[tuple[str, int], list[float]] = {}
    for _ in range(options.repeats):
        for busy in (0, options.busy):
            for name, environment in SETTINGS.items():
                with counting(busy):
                    own = {"OMP_NUM_THREADS": str(options.threads), **environment}
                    taken.setdefault((name, busy), []).append(seconds(options.recipe, changes, own))
    medians = {key: statistics.median(values) for key, values in taken.items()}
    usual = medians[next(iter(SETTINGS)), 0]
    for name in SETTINGS:
        idle, disturbed = medians[name, 0], medians[name, options.busy]
        print(f"| {name} | {idle:.2f} | {idle / usual:.2f} | {disturbed:.2f} | {disturbed / usual:.2f} |")


if __name__ == "__main__":
    main()
