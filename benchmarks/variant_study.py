"""Whether a change of a recipe changes where training ends: several variants, several seeds of each.

    python benchmarks/variant_study.py RECIPE --output DIR --variant "KEY=VALUE ..." --variant "KEY=VALUE ..."
        [--set KEY=VALUE] [--seeds 3] [--data-path DIR]

Runs the recipe with each variant's changes and each seed (finished runs are kept, interrupted ones go on) and prints a
Markdown table: the accuracies and the selections' seconds of every run, and for each variant the mean and the range
over its seeds. The last weights are attacked with PGD-20 on 2,000 test images, in float32.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

EVALUATION = ("autoattack=false", "limit=2000", "pgd.steps=20", "pgd.restarts=1")


class Outcome(NamedTuple):
    """What a run came to."""

    clean: float
    robust: float
    selection: float


def run(variant: str, seed: int, options: argparse.Namespace) -> Outcome:
    """Trains and evaluates one network."""
    changes = [f"evaluation.{change}" for change in EVALUATION] + options.set + variant.split() + [f"seed={seed}"]
    if options.data_path:
        changes.append(f"data.path={json.dumps(options.data_path)}")
    sets = [part for change in changes for part in ("--set", change)]
    output = options.output / f"{options.variant.index(variant)}_{seed}"
    command = [sys.executable, "-m", "robustcords", "run", options.recipe, *sets, "--output", str(output), "--resume"]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    report = json.loads((output / "report.json").read_text())
    last = report["evaluation"]["last"]
    return Outcome(last["clean"], next(iter(last["pgd"].values())), report["training"]["seconds"]["selection"])


def spread(values: list[float]) -> str:
    return f"{statistics.mean(values):.1%} ({min(values):.1%} to {max(values):.1%})"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recipe")
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--variant", action="append", required=True, metavar='"KEY=VALUE ..."')
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="a change for all of them")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--data-path", default="", help="folder of CIFAR-10's parquet files")
    options = parser.parse_args()
    print("| variant | seed | clean | PGD-20, 8/255 | selections, s |\n|:--|--:|--:|--:|--:|")
    found: dict[str, list[Outcome]] = {variant: [] for variant in options.variant}
    for seed in range(options.seeds):
        for variant in options.variant:
            each = run(variant, seed, options)
            found[variant].append(each)
            print(f"| {variant} | {seed} | {each.clean:.1%} | {each.robust:.1%} | {each.selection:.0f} |", flush=True)
    for variant, outcomes in found.items():
        clean, robust, seconds = map(list, zip(*outcomes, strict=True))
        print(f"| {variant} | all | {spread(clean)} | {spread(robust)} | {statistics.mean(seconds):.0f} |")


if __name__ == "__main__":
    main()
