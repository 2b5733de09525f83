"""``robustcords sweep``: a grid of runs over values of some keys."""

from __future__ import annotations

import hashlib
import itertools
import math
import re
from collections.abc import Sequence
from pathlib import Path

from robustcords.errors import UserError
from robustcords.experiments.fleet import Task
from robustcords.recipe.recipe import Recipe, dump, load

_MOST_RUNS = 10_000
_LONGEST_NAME = 120
_PAIRS = {"]": "[", "}": "{"}


def grid(recipes: Sequence[str], over: Sequence[str], overrides: Sequence[str] = ()) -> list[Task]:
    """Returns a task for every recipe and every combination of values.

    Args:
        recipes: files or names of shipped recipes.
        over: ``"KEY=V1,V2,..."``; the values are TOML, and what is not TOML is a string, as with ``--set``.
        overrides: ``"KEY=VALUE"``, the same for all of them.

    Raises:
        UserError: there are no values, two combinations are the same, or one is no recipe.
    """
    axes = [_axis(option) for option in over]
    keys = [key for key, _ in axes]
    if doubled := next((key for key in keys if keys.count(key) > 1), None):
        raise UserError(f"--over {doubled}: given twice; write all its values in one")
    count = len(recipes) * math.prod(len(values) for _, values in axes)
    if count > _MOST_RUNS:
        raise UserError(f"--over: {count} runs; at most {_MOST_RUNS} are made at once")
    combinations = list(itertools.product(*([(key, value) for value in values] for key, values in axes)))
    tasks = []
    for source in recipes:
        for combination in combinations:
            options = [f"{key}={value}" for key, value in combination]
            stem = [Path(source).stem] if len(recipes) > 1 or not options else []
            tasks.append(Task(_file_name(",".join([*stem, *options])), _load(source, overrides, options)))
    names = [task.name for task in tasks]
    if doubled := next((name for name in names if names.count(name) > 1), None):
        raise UserError(f"two runs of the sweep would both be called {doubled}; name each recipe and value once")
    known: dict[str, str] = {}
    for task in tasks:
        first = known.setdefault(dump(task.recipe), task.name)
        if first != task.name:
            raise UserError(f"{first} and {task.name} of the sweep are the same run; name each recipe and value once")
    return tasks


def _load(source: str, overrides: Sequence[str], options: Sequence[str]) -> Recipe:
    """Returns a recipe; what is wrong with a value of the grid is said of ``--over``, where it was written."""
    try:
        return load(source, [*overrides, *options])
    except UserError as error:
        text = str(error)
        if any(text.startswith(f"--set {option}:") for option in options):
            raise UserError(f"--over {text.removeprefix('--set ')}") from None
        raise


def _axis(option: str) -> tuple[str, list[str]]:
    """Returns a key and the texts of its values."""
    key, separator, text = option.partition("=")
    values = [value.strip() for value in _split(text)]
    if not separator or not key.strip() or not all(values):
        raise UserError(f"--over {option}: expected KEY=V1,V2,..., for example --over seed=0,1,2")
    return key.strip(), values


def _split(text: str) -> list[str]:
    """Splits at the commas that stand in no brackets, braces or quotes."""
    parts, opened, quote = [""], list[str](), ""
    for character in text:
        if quote:
            quote = "" if character == quote else quote
        elif character in "\"'":
            quote = character
        elif character in _PAIRS.values():
            opened.append(character)
        elif opened and _PAIRS.get(character) == opened[-1]:
            opened.pop()
        elif character == "," and not opened:
            parts.append("")
            continue
        parts[-1] += character
    return parts


def _file_name(text: str) -> str:
    """Returns a text as the name of a directory: plain characters, and an ending of its own where that loses some."""
    plain = re.sub(r"[^A-Za-z0-9._=,+-]+", "_", text).strip("._") or "run"
    if plain == text and len(plain) <= _LONGEST_NAME:
        return plain
    return f"{plain[:_LONGEST_NAME]}-{hashlib.sha256(text.encode()).hexdigest()[:8]}"
