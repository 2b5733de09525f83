"""Short forms of tables: ``[bullet]`` for ``[effort] name = "bullet"``."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from robustcords.recipe.renamed_keys import augmentation_moved

SHORT_FORMS = {"awp": "method", "bullet": "effort"}
"""A table, called as the component is, to the kind of that component."""

_WITHOUT = {"effort": "uniform", "method": "adversarial"}
"""What a kind is where a short form is switched off."""


def written_out(values: Mapping[str, Any], now: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """Returns tables of a recipe without short forms.

    A short form that is ``false`` switches its component off, and leaves any other as it is.

    Args:
        values: the tables of one layer of a recipe, or of an old run's.
        now: kind to the name of the component that lower layers name.

    Raises:
        ValueError: a component is written in both forms, or a short form names another one.
    """
    found = dict(values)
    for name, kind in SHORT_FORMS.items():
        if name not in found:
            continue
        short = found.pop(name)
        if short is False or short is None:
            if kind not in found and (now or {}).get(kind) == name:
                found[kind] = {"name": _WITHOUT[kind]}
            continue
        if kind in found:
            raise ValueError(f'[{name}] is short for [{kind}] name = "{name}"; write one of the two')
        if isinstance(short, Mapping) and "name" in short:
            raise ValueError(f'[{name}] unknown key "name"; [{kind}] has one')
        table: Any = {} if short is True else short
        found[kind] = {"name": name, **table} if isinstance(table, Mapping) else table
    return found


def of_run(recipe: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the tables of a run's recipe as this version writes them, also of one from before there were some.

    Raises:
        ValueError: as `written_out`.
    """
    tables = augmentation_moved(dict(recipe))
    augmentation = {"name": "crop_flip"} | tables.get("augmentation", {})
    usual = {"method": {"name": "adversarial"}, "effort": {"name": "uniform"}}
    return usual | written_out(tables) | {"augmentation": augmentation}
