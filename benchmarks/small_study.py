"""Every method on the small network: full data, random, Adv-GLISTER and Adv-GRAD-MATCH, with and without Bullet.

    python benchmarks/small_study.py --output runs/small_study [--data-path DIR] [--epochs 4] [--select-every 2]

Runs the shipped ``cifar10_small_*`` recipes one after the other (finished ones are kept, interrupted ones go on) and
prints a Markdown table: accuracies, the median time of an epoch, the time of all selections, and how much of a method's
last subset it also chose under the other loss (TRADES or MART), with another network: the fraction itself if choosing
were drawing lots.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
from pathlib import Path

import numpy as np

METHODS = ["", "_random", "_glister", "_gradmatch"]


def recipes() -> list[str]:
    methods = [f"cifar10_small_{loss}{method}" for loss in ("trades", "mart") for method in METHODS]
    return ["cifar10_small_undefended", *(name + bullet for bullet in ("", "_bullet") for name in methods)]


def run(name: str, options: argparse.Namespace) -> None:
    changes = {"train.epochs": options.epochs, "evaluation.autoattack": "false", "seed": options.seed}
    if options.data_path:
        changes["data.path"] = json.dumps(options.data_path)
    if any(method in name for method in METHODS[1:]):
        changes["selector.select_every"] = options.select_every
    sets = [part for key, value in changes.items() for part in ("--set", f"{key}={value}")]
    command = [sys.executable, "-m", "robustcords", "run", name, *sets, "--output", str(options.output / name)]
    subprocess.run([*command, "--resume"], check=True, stdout=subprocess.DEVNULL)


def last_selection(path: Path) -> set[int]:
    files = sorted((path / "selections").glob("*.npz"))
    return set(np.load(files[-1])["indices"].tolist()) if files else set()


def row(path: Path) -> str:
    report = json.loads((path / "report.json").read_text())
    metrics = [json.loads(line) for line in (path / "metrics.jsonl").read_text().splitlines()]
    result = report["evaluation"]["last"]
    phases = ("attack", "update", "data")
    epoch = statistics.median(sum(line["seconds"][phase] for phase in phases) for line in metrics)
    cells = [path.name.removeprefix("cifar10_small_")]
    overlap = ""
    if "glister" in path.name or "gradmatch" in path.name:
        swapped = path.name.replace("trades", "x").replace("mart", "trades").replace("x", "mart")
        subset, other = last_selection(path), last_selection(path.with_name(swapped))
        overlap = f"{len(subset & other) / len(subset):.1%}"
    cells += [f"{result['clean']:.1%}", *(f"{value:.1%}" for value in result["pgd"].values())]
    cells += [
        str(metrics[-1]["subset_size"]),
        f"{epoch:.0f}",
        f"{report['training']['seconds']['selection']:.0f}",
        overlap,
    ]
    return f"| {' | '.join(cells)} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--data-path", default="")
    parser.add_argument("--epochs", type=int, default=4)
    parser.add_argument("--select-every", type=int, default=2)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    for name in recipes():
        run(name, options)
    head = [
        "method",
        "clean",
        "PGD-50-10 8/255",
        "images an epoch",
        "s an epoch",
        "s of selection",
        "chosen under the other loss too",
    ]
    print(f"| {' | '.join(head)} |\n|:--|{'--:|' * (len(head) - 1)}")
    for name in recipes():
        print(row(options.output / name))


if __name__ == "__main__":
    main()
