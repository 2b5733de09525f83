"""Measurements on a GPU that is lent for minutes: starts what fits the time, in order, and keeps what is done.

    python benchmarks/on_gpu.py --limit 540 --output OUT [--finished NAME]... [--only NAME]... [--data-path DIR]
        [--jobs 3] [--preset paper] [--set KEY=VALUE]... [--row TABLE/ROW=SECONDS]...

The tasks: `tests` (the tests that need a GPU), `replay` (benchmarks/graph_replay.py), then rows of the paper's tables,
so many of these at a time, each with the seconds that it is expected to take. A task that `--finished` names is left
out, and so is one that would not be done by the limit. OUT gets what each printed, and of every run all but its
checkpoints, its weights in bfloat16 in parts of at most 16 MiB (`cat` joins them). Tried on a CPU with

    python benchmarks/on_gpu.py --limit 120 --output runs/on_gpu --only table1/cifar10_fresh --preset smoke --jobs 1
"""

from __future__ import annotations

import argparse
import shutil
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import load_file, save

ROOT = Path(__file__).parents[1]
PART = 16 * 2**20
ROWS = {
    "table1/cifar10_fresh": 600,
    "table1/cifar10_gradmatch": 700,
    "table1/cifar10_fresh_bullet": 600,
    "table1/cifar10_gradmatch_bullet": 700,
    "table1/cifar10_glister": 700,
    "table1/cifar10_glister_bullet": 700,
}


@dataclass(frozen=True)
class Task:
    """Something to run.

    Attributes:
        name: of the task, and of its files.
        command: of the program and its arguments.
        seconds: that it is expected to take.
        run: the run directory that it leaves, or None.
    """

    name: str
    command: list[str]
    seconds: float
    run: Path | None = None


def tasks(options: argparse.Namespace, work: Path) -> list[Task]:
    """Returns everything that there is to do, in order."""
    python = sys.executable
    found = [
        Task("tests", [python, "-m", "pytest", "-n0", "-m", "gpu", "tests"], 90),
        Task("replay", [python, str(ROOT / "benchmarks" / "graph_replay.py")], 60),
    ]
    rows = ROWS | {name: float(seconds) for name, _, seconds in (row.partition("=") for row in options.row)}
    sets = [part for change in options.set for part in ("--set", change)]
    if options.data_path:
        sets += ["--set", f"data.path={options.data_path}"]
    for name, seconds in rows.items():
        table, _, row = name.partition("/")
        folder = work / table / row
        command = [python, "-m", "robustcords", "reproduce", table, "--preset", options.preset, "--row", row]
        found.append(Task(name, [*command, *sets, "--output", str(folder)], seconds, folder / f"{row},seed=0"))
    return found


def bring_home(run: Path, output: Path) -> None:
    """Copies a run without its checkpoints, with weights in bfloat16, in parts."""
    shutil.copytree(run, output, ignore=shutil.ignore_patterns("checkpoints", "weights", "*.lock", ".lock"))
    for file in (run / "weights").glob("*.safetensors"):
        small = {
            key: value.bfloat16() if value.is_floating_point() else value for key, value in load_file(file).items()
        }
        content = save(small)
        for number, start in enumerate(range(0, len(content), PART)):
            (output / f"{file.stem}.bf16.safetensors.{number:02d}").write_bytes(content[start : start + PART])


def do(task: Task, output: Path, end: float) -> str:
    """Runs a task, and returns how it ended."""
    left = end - time.monotonic()
    if left < task.seconds:
        return f"not started: {left:.0f} s left, {task.seconds:.0f} needed"
    start, log = time.monotonic(), output / f"{task.name.replace('/', '_')}.txt"
    with log.open("w") as file:
        try:
            ended = subprocess.run(
                task.command, cwd=ROOT, stdout=file, stderr=subprocess.STDOUT, timeout=left, check=False
            )
        except subprocess.TimeoutExpired:
            return f"stopped at the limit, after {time.monotonic() - start:.0f} s"
    if task.run and (task.run / "report.json").exists():
        bring_home(task.run, output / "runs" / task.name)
    return f"exit status {ended.returncode} after {time.monotonic() - start:.0f} s"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--limit", type=float, required=True, help="seconds")
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--work", type=Path, default=ROOT / "runs" / "on_gpu_work")
    parser.add_argument("--finished", action="append", default=[], metavar="NAME")
    parser.add_argument("--only", action="append", default=[], metavar="NAME")
    parser.add_argument("--row", action="append", default=[], metavar="TABLE/ROW=SECONDS")
    parser.add_argument("--jobs", type=int, default=3, help="rows at a time")
    parser.add_argument("--preset", default="paper")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE")
    parser.add_argument("--data-path", default="")
    options = parser.parse_args()
    end = time.monotonic() + options.limit
    options.output.mkdir(parents=True, exist_ok=True)
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else "no GPU"
    print(f"{device}, torch {torch.__version__}", flush=True)
    wanted = [task for task in tasks(options, options.work) if task.name not in options.finished]
    wanted = [task for task in wanted if not options.only or task.name in options.only]
    alone, together = ([task for task in wanted if bool(task.run) is is_run] for is_run in (False, True))
    for task in alone:
        print(f"{task.name}: {do(task, options.output, end)}", flush=True)
    with ThreadPoolExecutor(options.jobs) as pool:
        for task, ended in [(task, pool.submit(do, task, options.output, end)) for task in together]:
            print(f"{task.name}: {ended.result()}", flush=True)


if __name__ == "__main__":
    main()
