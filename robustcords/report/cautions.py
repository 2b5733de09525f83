"""Warnings about runs whose results are hard to compare or to believe."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from robustcords.evaluation import majority
from robustcords.report.run_report import RecipeTables
from robustcords.report.runs import Run

_ACCURACIES = "accuracies are not comparable"
_TIMES = "times are not comparable"


def cautions(named: Sequence[tuple[str, Run]]) -> list[str]:
    """Returns what makes the runs hard to compare or to believe, a line each.

    That is in what they differ that a method is not made of, which accuracies are not above the largest class's share,
    what AutoAttack warned of, and which checks for masked gradients failed.

    Args:
        named: what each run is called, and the run.
    """
    runs = [run for _, run in named]
    lines = [
        f"{what} differ ({'; '.join(kinds)}): {so}"
        for what, so, values in _conditions(runs)
        if len(kinds := sorted({str(value) for value in values if value is not None})) > 1
    ]
    lines += [f"{name}: {text}" for name, run in named for text in run.report.training.warnings]
    lines += [
        f"{name}: accuracy ({which}): {text}"
        for name, run in named
        for which, entry in run.report.evaluation.items()
        if (text := majority.warning(entry))
    ]
    lines += [
        f"{name}: {attack} warns ({which}): {text}"
        for name, run in named
        for which, entry in run.report.evaluation.items()
        for attack, text in entry.warnings
    ]
    lines += [
        f"{name}: masked gradients ({which}): the check of {check.name} fails: {check.finding}"
        for name, run in named
        for which, entry in run.report.evaluation.items()
        for check in (entry.sanity.checks if entry.sanity else [])
        if check.status == "fail"
    ]
    return lines


def _conditions(runs: Sequence[Run]) -> Iterable[tuple[str, str, list[Any]]]:
    """Yields what should be the same everywhere, what it means if it is not, and its values."""
    recipes = [run.recipe for run in runs]
    entries = [entry for run in runs for entry in run.report.evaluation.values()]
    places = [run.report.environment for run in runs]
    yield "data sets", _ACCURACIES, [recipe.data.name for recipe in recipes]
    yield "numbers of test images", _ACCURACIES, [entry.examples for entry in entries]
    yield "numbers of AutoAttack images", _ACCURACIES, [entry.autoattack_examples for entry in entries]
    yield "ways of taking test images", _ACCURACIES, [entry.sample for entry in entries]
    yield "PGD evaluations", _ACCURACIES, [_pgd(recipe) for recipe in recipes]
    yield "devices", _TIMES, [place.device for place in places]
    yield "numbers of processes", _TIMES, [place.world_size for place in places]
    yield "numbers of threads", _TIMES, [place.threads for place in places]
    yield "precisions", _TIMES, [recipe.train.precision for recipe in recipes]
    for package in dict.fromkeys(name for place in places for name in place.versions):
        yield f"versions of {package}", "results may too", [place.versions.get(package) for place in places]


def _pgd(recipe: RecipeTables) -> str | None:
    """Returns the evaluation's PGD as a report does not name it: with its step size."""
    pgd = recipe.evaluation.pgd
    return f"PGD-{pgd.steps}-{pgd.restarts} with steps of {pgd.step_size}" if pgd else None
