"""Whether a change of a recipe changes where training ends: several variants, several seeds of each.

    python benchmarks/variant_study.py STUDY.toml --output DIR [--jobs 1] [--only VARIANT]... [--data-path DIR]

A study is a TOML file (those that docs quotes are in benchmarks/studies): `recipe`; `set`, a list of "KEY=VALUE" for
all runs; `seeds`; and `[variants]`, each a list of "KEY=VALUE" under its name, in which "recipe=NAME" takes another
recipe. Trains every variant with every seed, by seed, `--jobs` at a time (finished runs are kept, interrupted ones go
on), and prints a Markdown table: for each variant the mean over its seeds, their range, and the seconds. The last
weights are attacked, unless the study says otherwise, with PGD-20 on 2,000 test images in float32.
"""

from __future__ import annotations

import argparse
import json
import re
import statistics
import subprocess
import sys
import tomllib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

from robustcords.report.run_report import Report

EVALUATION = ("autoattack=false", "limit=2000", "pgd.steps=20", "pgd.restarts=1")


class Outcome(NamedTuple):
    """What a run came to."""

    clean: float
    pgd: float | None
    autoattack: float | None
    selection: float
    total: float


def run(recipe: str, name: str, changes: list[str], output: Path) -> Outcome:
    """Trains and evaluates one network, unless that is done already."""
    if not (output / "report.json").exists():
        sets = [part for change in changes for part in ("--set", change)]
        command = [sys.executable, "-m", "robustcords", "run", recipe, *sets, "--output", str(output), "--resume"]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            sys.exit(f"{name}: {done.stderr.strip().splitlines()[-1]}")
    report = Report.read(output / "report.json")
    last, training = report.evaluation["last"], report.training
    pgd, autoattack = (next(iter(radii.values()), None) for radii in (last.pgd, last.autoattack))
    found = Outcome(last.clean or 0.0, pgd, autoattack, training.phases["selection"], training.total)
    print(f"{output.name}: {found}", file=sys.stderr, flush=True)
    return found


def spread(values: list[float | None]) -> str:
    known = [value for value in values if value is not None]
    if not known:
        return ""
    mean = f"{statistics.mean(known):.1%}"
    return mean if len(known) == 1 else f"{mean} ({min(known):.1%} to {max(known):.1%})"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("study", type=Path)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--jobs", type=int, default=1, help="trainings at a time (set OMP_NUM_THREADS for several)")
    parser.add_argument("--only", action="append", default=[], metavar="VARIANT", help="of the study's variants")
    parser.add_argument("--data-path", default="", help="folder of CIFAR-10's parquet files")
    options = parser.parse_args()
    study = tomllib.loads(options.study.read_text())
    names = options.only or list(study["variants"])
    common = [f"evaluation.{change}" for change in EVALUATION] + study.get("set", [])
    if options.data_path:
        common.append(f"data.path={json.dumps(options.data_path)}")
    with ThreadPoolExecutor(options.jobs) as pool:
        found = {}
        for seed in study["seeds"]:
            for name in names:
                changes = list(study["variants"][name])
                recipe = next((each for each in changes if each.startswith("recipe=")), f"recipe={study['recipe']}")
                changes = [*common, *(each for each in changes if each != recipe), f"seed={seed}"]
                output = options.output / f"{re.sub(r'[^a-z0-9]+', '-', name.lower()).strip('-')}_{seed}"
                recipe = recipe.removeprefix("recipe=")
                found[name, seed] = pool.submit(run, recipe, name, changes, output)
    print(
        f"| variant, seeds {', '.join(map(str, study['seeds']))} | clean | PGD | AutoAttack | selections, s | all, s |"
    )
    print("|:--|--:|--:|--:|--:|--:|")
    for name in names:
        outcomes = [found[name, seed].result() for seed in study["seeds"]]
        clean, pgd, autoattack, selection, total = map(list, zip(*outcomes, strict=True))
        times = f"{statistics.mean(selection):.0f} | {statistics.mean(total):.0f}"
        print(f"| {name} | {spread(clean)} | {spread(pgd)} | {spread(autoattack)} | {times} |")


if __name__ == "__main__":
    main()
