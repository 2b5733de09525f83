"""``robustcords new --minutes``: a recipe for a user's images that finishes in a given time on this machine."""

from __future__ import annotations

import tomllib
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

from robustcords import data as sources
from robustcords.data.folder import Folder
from robustcords.data.image_sizes import sizes_below
from robustcords.data.parquet import Parquet
from robustcords.data.sets import TEST_NAMES, class_sets, parquet_sets
from robustcords.errors import UserError, printable
from robustcords.experiments.plan import plan
from robustcords.recipe import layers
from robustcords.recipe.layers import Layer
from robustcords.recipe.recipe import Recipe, assemble
from robustcords.recipe.scaffold import commented, write_text
from robustcords.report.plan_tables import Planned
from robustcords.runtime.progress import duration

_CHOICES = Path(layers.__file__).with_name("choices.toml")
_TESTED = 0.2
"""The share of the images that is tested on where nobody has set some apart."""
_LARGEST = 64
"""Images of several sizes are made this large at most: what an epoch takes grows with the square of it."""
_EVALUATION = 0.25
"""The share of the time that evaluation may take."""
_FEWEST, _MOST = 100, 10_000
"""Test images: with fewer an accuracy means little, and more make it no more certain than it has to be."""
_SPARE = 0.03
"""The share of the time that is left over: for starting, reports, and what a budget is missed by."""
_ATTACKS: tuple[dict[str, Any], ...] = (
    {"pgd": {"steps": 50, "restarts": 10}, "autoattack": {"version": "standard"}},
    {"pgd": {"steps": 50, "restarts": 1}, "autoattack": False},
)
"""Evaluations, the one to be preferred first."""


@dataclass(frozen=True)
class Choice:
    """A line of choices.toml.

    Attributes:
        recipe: a shipped one.
        epochs: of it that the time has to have room for.
        why: it is taken then.
    """

    recipe: str
    epochs: float
    why: str


def write(file: Path, name: str, minutes: float, model: str | None = None) -> list[str]:
    """Writes a complete recipe that is done in so many minutes, evaluation included, and returns what to tell.

    Args:
        file: must not exist yet.
        name: of the data: a registered name or a folder.
        minutes: from the start of the command on.
        model: None for the recipe's.

    Raises:
        UserError: the data cannot be used, the time is too short, or the file cannot be written.
    """
    if file.exists():
        raise UserError(f"{file}: exists already; choose another name")
    options, notes = look(name)
    values: dict[str, Any] = {"data": {"name": name, **options}}
    if model:
        values["model"] = {"name": model}
    choice, planned = _chosen(values, minutes)
    spared = minutes * 60 * (1 - _SPARE) - planned.data_seconds
    evaluation, seconds = _evaluation(values, choice, planned, minutes * 60 * _EVALUATION)
    budget = int(spared - seconds)
    step = sum(planned.seconds_per_step.values())
    if budget < max(20 * step, 10):
        raise UserError(
            f"--minutes {minutes:g}: too few: reading the data takes {duration(planned.data_seconds)}, evaluation "
            f"{duration(seconds)}, a batch {step:.2g} s"
        )
    values |= {"evaluation": evaluation, "train": {"budget": f"{budget} s"}}
    notes += [
        f"{choice.recipe}: {choice.why}",
        f"{duration(budget)} of training, about {planned.epochs_in_budget or 0:.3g} epochs, and {duration(seconds)} of "
        f"evaluation on {evaluation['limit']} images, on {planned.device}",
    ]
    recipe = _recipe(values, choice)
    header = [f"{choice.recipe}.toml on {name} in {minutes:g} minutes, written by robustcords new.", *notes]
    write_text(file, commented(recipe, "\n".join(f"# {printable(line)}" for line in header)))
    return notes


def look(name: str) -> tuple[dict[str, Any], list[str]]:
    """Returns the options that images in a folder need, and what there is to tell of them.

    Args:
        name: of the data.
    """
    kind = sources.source(name)
    folder = Path(name).expanduser()
    if kind not in {Folder, Parquet} or not folder.is_dir():
        return {}, []
    sets: Any = class_sets(folder) if kind is Folder else parquet_sets(folder)
    splits = {split for each in sets.values() for split in each}
    options: dict[str, Any] = {}
    notes = []
    if "train" in splits and not splits & {*TEST_NAMES}:
        options["test_fraction"] = _TESTED
        notes.append(f"there is no test split: {_TESTED:.0%} of train are tested on (data.test_fraction)")
    if kind is Folder and len(sizes := sizes_below(folder)) > 1:
        side = min(_LARGEST, max(8, min(min(size) for size in sizes) // 8 * 8))
        options["image_size"] = side
        notes.append(f"images have at least {len(sizes)} sizes; all become {side} x {side} (data.image_size)")
    return options, notes


def _chosen(values: dict[str, Any], minutes: float) -> tuple[Choice, Planned]:
    """Returns the first choice of which the time has room for enough epochs, and what it costs.

    No epoch is cheaper than the last choice's, so none is measured of which the time has no room for so many of those.
    """
    choices = [Choice(**each) for each in tomllib.loads(_CHOICES.read_text(encoding="utf-8"))["choice"]]
    room = timedelta(minutes=minutes * (1 - _EVALUATION))

    def measured(choice: Choice) -> Planned:
        return plan(_recipe(values, choice), choice.recipe, room)

    *others, cheapest = choices
    least = measured(cheapest)
    for choice in others:
        if _fits(choice, least) and _fits(choice, planned := measured(choice)):
            return choice, planned
    return cheapest, least


def _fits(choice: Choice, planned: Planned) -> bool:
    """Returns whether the time has room for as many epochs as a choice asks for, at the cost of those measured."""
    return (planned.epochs_in_budget or 0) >= choice.epochs


def _recipe(values: dict[str, Any], choice: Choice) -> Recipe:
    own = Layer("robustcords new", values)
    return assemble([*layers.stack(choice.recipe), own], own.origin)


def _evaluation(
    values: dict[str, Any], choice: Choice, planned: Planned, seconds: float
) -> tuple[dict[str, Any], float]:
    """Returns an evaluation that fits into a time, the thorough one where it does, and what it takes."""
    epsilons = [_recipe(values, choice).threat.epsilon]
    whole = dict(planned.seconds_per_image)
    for attacks in _ATTACKS:
        each = whole.get("pgd", 0.0) * attacks["pgd"]["restarts"] / _ATTACKS[0]["pgd"]["restarts"]
        each += whole.get("autoattack", 0.0) if attacks["autoattack"] else 0.0
        limit = min(int(seconds / each) if each else _MOST, _MOST)
        if limit >= min(_FEWEST, planned.test_images):
            break
    limit = min(max(1, limit // 50 * 50 or limit), planned.test_images)
    named = {key: {**table, "epsilons": epsilons} if table else table for key, table in attacks.items()}
    return {**named, "limit": limit}, limit * each
