"""Presets in which the paper's rows can be run: as published, for a CPU, and as a smoke test."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from robustcords.errors import UserError, nearest
from robustcords.paper.tables import Row
from robustcords.recipe import layers, recipe
from robustcords.recipe.layers import Layer

PRESETS = ("paper", "small", "smoke")
"""``paper`` changes nothing; the others are files in this folder."""

EPOCHS, SELECT_EVERY = 100, 20
"""The paper's numbers, which a preset's stand for (section 4.1, Tables 1 and 2)."""


def recipe_for(row: Row, preset: str = "paper", overrides: Sequence[str] = ()) -> recipe.Recipe:
    """Returns the recipe of a row in a size.

    A preset lies between the row's recipe and the overrides, without what the row keeps and without options that the
    row's selector does not have. Its epochs and ``select_every`` stand for the paper's 100 and 20; a row that differs
    from these gets the same multiple of the preset's, at least 1.

    Args:
        row: of `TABLES`.
        preset: one of `PRESETS`.
        overrides: ``"KEY=VALUE"`` as for `recipe.load`.

    Raises:
        UserError: there is no such preset, or an override is at fault.
    """
    if preset not in PRESETS:
        raise UserError(f"unknown preset {preset!r}{nearest(preset, PRESETS)}")
    stack = layers.stack(row.recipe)
    if preset != "paper":
        file = Path(__file__).with_name(f"{preset}.toml")
        values = _fitted(layers.read(file), row, recipe.load(row.recipe))
        stack.append(Layer(f"preset {preset}", values))
    return recipe.assemble([*stack, *layers.overrides(overrides)], stack[-1].origin)


def _fitted(values: dict[str, Any], row: Row, written: recipe.Recipe) -> dict[str, Any]:
    """Returns a preset's values as they are laid over a row whose recipe is ``written``."""
    train, selector = values["train"], values.pop("selector")
    train["epochs"] = _scaled(train["epochs"], (written.train.epochs or EPOCHS) / EPOCHS)
    if written.selector:
        selector["select_every"] = _scaled(selector["select_every"], written.selector.select_every / SELECT_EVERY)
        values["selector"] = {key: selector[key] for key in selector if hasattr(written.selector, key)}
    for key in row.keeps:
        *tables, last = key.split(".")
        table = values
        for name in tables:
            table = table.get(name, {})
        table.pop(last, None)
    return values


def _scaled(number: int, factor: float) -> int:
    return max(1, round(number * factor))
