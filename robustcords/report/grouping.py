"""Groups of runs: which runs are the same method, its name, and its baseline."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from robustcords.config import registry
from robustcords.methods.efforts.base import Effort
from robustcords.recipe.roles import DEFAULTS, role_of
from robustcords.report.runs import Run

Recipe = Mapping[str, Any]
"""Dotted key to value; a key that is not there is a table that is switched off."""

_CALLBACKS_OF_0_1 = {"train.overfitting", "train.dynamics"}
_ALWAYS_NAMED = ("data.name", "model.name", "attack.name", "method.name", "train.epochs")
"""Keys that a name includes wherever a method has another value than most."""
_SIMILAR = 2.0
"""The largest ratio of two training times that are similar. It is shown with the difference."""


def flat(table: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yields the dotted keys and values of a recipe."""
    for key, value in table.items():
        if isinstance(value, Mapping):
            yield from flat(value, f"{prefix}{key}.")
        else:
            yield prefix + key, value


def method_of(run: Run) -> dict[str, Any]:
    """Returns what makes a run's method: its recipe without seed, paths, records, evaluation and how it is computed."""
    recipe = DEFAULTS | {
        key: value
        for key, value in flat(run.recipe.tables)
        if role_of(key).of == "method" and key not in _CALLBACKS_OF_0_1
    }
    if "train.budget" in recipe:  # what it came to on some machine
        recipe.pop("train.steps", None)
    return recipe


def group(runs: Sequence[Run]) -> list[tuple[dict[str, Any], list[Run]]]:
    """Returns the methods and their runs, in order of appearance.

    Precision, and how steps are computed otherwise, is no part of a method, unless the same seed was run in two ways.
    """
    groups = _grouped(runs, method_of)
    methods = []
    for recipe, members in groups:
        if len({run.seed for run in members}) < len(members):
            methods += _grouped(members, lambda run: method_of(run) | _computed(run))
        else:
            methods.append((recipe, members))
    return methods


def _computed(run: Run) -> dict[str, Any]:
    return {key: value for key, value in flat(run.recipe.tables) if role_of(key).of == "computation"}


def _grouped(runs: Sequence[Run], key_of: Any) -> list[tuple[dict[str, Any], list[Run]]]:
    groups: dict[str, tuple[dict[str, Any], list[Run]]] = {}
    for run in runs:
        recipe = key_of(run)
        groups.setdefault(repr(sorted(recipe.items())), (recipe, []))[1].append(run)
    return list(groups.values())


def method_names(recipes: Sequence[Recipe]) -> list[str]:
    """Returns a name for each method, all different: loss, subset, effort, and what tells it apart.

    The data set, network, attack and number of epochs are named where they are not what most methods have; any other
    key only where names would be the same, and there too where it is not what most methods have.
    """
    labels = [_plain_name(recipe) for recipe in recipes]
    for key in _ALWAYS_NAMED:
        usual = _usual([recipe.get(key) for recipe in recipes])
        labels = [
            name if recipe.get(key) == usual else f"{name}, {_written(key, recipe)}"
            for name, recipe in zip(labels, recipes, strict=True)
        ]
    for key in _by_use(recipes):
        usual = _usual([recipe.get(key) for recipe in recipes])
        for name, count in Counter(labels).items():
            alike = [number for number, other in enumerate(labels) if other == name]
            if count > 1 and len({repr(recipes[number].get(key)) for number in alike}) > 1:
                for number in alike:
                    if recipes[number].get(key) != usual:
                        labels[number] = f"{name}, {_written(key, recipes[number])}"
    return labels


def _plain_name(recipe: Recipe) -> str:
    subset = subset_name(recipe["selector.name"], recipe["selector.fraction"]) if has(recipe, "selector") else None
    effort = effort_name(recipe["effort.name"])
    return ", ".join(map(str, [recipe["loss.name"], subset or "full data", *([effort] if effort else [])]))


def subset_name(selector: str, fraction: float) -> str:
    """Returns what a method's subsets are called: the selector, and their share unless that is for it to decide."""
    return f"{selector} {fraction * 100:g} %" if fraction < 1 else selector


def effort_of(name: str) -> type[Effort]:
    """Returns the class of a run's effort; `Effort` for one of outside, which a report does not import."""
    return registry.find("effort", name) if name in registry.names("effort") else Effort


def effort_name(name: str) -> str:
    """Returns what a method's effort is called after its loss and subset; nothing where all is attacked alike."""
    title = effort_of(name).title
    return name if title is None else title


def has(recipe: Recipe, table: str) -> bool:
    """Returns whether a recipe has a table switched on."""
    return any(key.startswith(f"{table}.") for key in recipe)


def _usual(values: Sequence[Any]) -> Any:
    """Returns the value that more have than any other, or an object that equals none."""
    kinds = Counter(map(repr, values))  # lists cannot be counted
    (first, most), *others = kinds.most_common(2)
    tie = bool(others) and others[0][1] == most
    return object() if tie else next(value for value in values if repr(value) == first)


def _by_use(recipes: Sequence[Recipe]) -> list[str]:
    """Returns the keys that differ, those first that tell the most methods apart."""
    keys = dict.fromkeys(key for recipe in recipes for key in recipe)
    kinds = {key: len({repr(recipe.get(key)) for recipe in recipes}) for key in keys}
    return sorted((key for key in keys if kinds[key] > 1 and key not in _ALWAYS_NAMED), key=lambda key: -kinds[key])


def _written(key: str, recipe: Recipe) -> str:
    value = recipe.get(key, "none")
    if key == "train.epochs":
        if value == "none":
            return str(recipe.get("train.budget") or f"{recipe.get('train.steps')} steps")
        return f"{value} epoch{'s' if value != 1 else ''}"
    table, *path = key.split(".")
    path = [part for part in path if part != "name"]
    words = path if table in {"train", "loss", "selector"} else [table, *path]
    return f"{' '.join(words)} {value:g}" if isinstance(value, float) else f"{' '.join(words)} {value}"


def field_of(recipe: Recipe) -> tuple[Any, ...]:
    """Returns what two methods must share for a comparison to mean anything: data set, network and norm."""
    return recipe["data.name"], recipe["model.name"], recipe.get("threat.norm")


def baselines(recipes: Sequence[Recipe]) -> list[int | None]:
    """Returns for each method the number of the one it is compared with, or None.

    That is full data without Bullet under the same loss; of several, one with several attack steps, the one whose other
    keys most methods share, then the longest. A loss of which there are no subsets and no Bullet, such as that of fast
    training for a similar time, is compared with the baseline of the loss that has the most methods, if another has
    some or it is a single one.
    """
    of_loss: dict[tuple[Any, ...], list[int]] = {}
    for number, recipe in enumerate(recipes):
        of_loss.setdefault((*field_of(recipe), recipe["loss.name"]), []).append(number)
    chosen = {loss: _most_central(recipes, numbers) for loss, numbers in of_loss.items()}
    cheaper = {loss for loss, numbers in of_loss.items() if any(_is_cheaper(recipes[n]) for n in numbers)}
    baseline_numbers: list[int | None] = []
    for number, recipe in enumerate(recipes):
        loss = (*field_of(recipe), recipe["loss.name"])
        if loss not in cheaper:
            single = len(of_loss[loss]) == 1
            near = [
                other for other in of_loss if other[:-1] == loss[:-1] and other != loss and chosen[other] is not None
            ]
            others = [other for other in near if other in cheaper or (single and len(of_loss[other]) > 1)]
            loss = max(others, key=lambda other: (other in cheaper, len(of_loss[other])), default=loss)
        baseline_numbers.append(chosen[loss] if chosen[loss] != number else None)
    return baseline_numbers


def _is_cheaper(recipe: Recipe) -> bool:
    """Returns whether a method spends less on an epoch than all images without Bullet."""
    return has(recipe, "selector") or bool(effort_name(recipe["effort.name"]))


def _most_central(recipes: Sequence[Recipe], numbers: Sequence[int]) -> int | None:
    candidates = [n for n in numbers if not _is_cheaper(recipes[n])]

    def rank(number: int) -> tuple[bool, int, int]:
        mine = recipes[number]
        shared = sum(mine.get(key) == recipes[n].get(key) for n in numbers for key in mine)
        return mine.get("attack.steps", 1) > 1, shared, mine.get("train.epochs", 0)

    return max(candidates, key=rank, default=None)


def random_subsets_of(recipes: Sequence[Recipe], number: int) -> list[int]:
    """Returns the methods that train on random subsets instead of a selector's: on fresh ones, on others, or none.

    Their fraction, the epochs, the threat and the effort are the same. Of several of a kind, the one that differs
    in the fewest other keys.
    """
    mine = recipes[number]
    if not has(mine, "selector") or mine["selector.name"] == "random":
        return []
    shared = (
        "data.name",
        "model.name",
        "loss.name",
        "method.name",
        "selector.fraction",
        "train.epochs",
        "train.budget",
        "threat.norm",
        "threat.epsilon",
    )

    def fits(other: Recipe) -> bool:
        effort = {key for key in (*mine, *other) if key.startswith("effort.")}
        same = all(mine.get(key) == other.get(key) for key in (*shared, *effort))
        return same and other.get("selector.name") == "random"

    def distance(other: int) -> int:
        return sum(mine.get(key) != recipes[other].get(key) for key in {*mine, *recipes[other]})

    nearest_first = sorted((n for n, other in enumerate(recipes) if fits(other)), key=distance)
    kinds = {bool(recipes[n].get("selector.fresh")): n for n in reversed(nearest_first)}
    return [kinds[fresh] for fresh in sorted(kinds)]


def similar_time_as(
    recipes: Sequence[Recipe], seconds: Sequence[float | None], baselines: Sequence[int | None], number: int
) -> list[int]:
    """Returns methods on all images, without Bullet, that train for a similar time as a cheaper method.

    They answer whether a subset or Bullet is worth it: the same time could have gone into a shorter or simpler run.

    Args:
        recipes: of all methods.
        seconds: their training times, where they are known.
        baselines: their baselines; those of others, which train for as long as it takes, are not meant.
        number: which method; one on all images without Bullet has none.

    Returns:
        Of each loss the method whose time is nearest, if neither takes more than twice as long as the other.
    """
    mine, own = recipes[number], seconds[number]
    if own is None or not _is_cheaper(mine):
        return []
    nearest: dict[str, tuple[float, int]] = {}
    for n, (other, theirs) in enumerate(zip(recipes, seconds, strict=True)):
        if theirs is None or n in baselines or _is_cheaper(other):
            continue
        factor = max(own, theirs) / min(own, theirs)
        if field_of(other) == field_of(mine) and factor <= _SIMILAR:
            loss = str(other["loss.name"])
            nearest[loss] = min(nearest.get(loss, (factor, n)), (factor, n))
    return [n for _, n in nearest.values()]
