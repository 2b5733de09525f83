"""Finding a component by the name that a recipe gives it."""

from __future__ import annotations

import importlib
from typing import Any

from robustcords.errors import UserError, nearest

KINDS = {
    "data": "robustcords.data:DATA",
    "model": "robustcords.models:MODELS",
    "attack": "robustcords.attacks:ATTACKS",
    "loss": "robustcords.losses:LOSSES",
    "selector": "robustcords.selection.strategies:STRATEGIES",
    "optimizer": "robustcords.training.optimizers:OPTIMIZERS",
    "schedule": "robustcords.training.schedules:SCHEDULES",
}
"""Recipe table -> where the dictionary of its components stands. Each maps a name to ``"module:Class"``."""

ADAPTER = "robustcords.selection.cords.adapter"
"""The module that makes a selector of a CORDS strategy."""


def names(kind: str) -> dict[str, str]:
    """Returns the registered names of a kind and where each one's class is."""
    module, attribute = KINDS[kind].split(":")
    registry: dict[str, str] = getattr(importlib.import_module(module), attribute)
    return registry


def find(kind: str, name: str) -> Any:
    """Returns the class of a component, importing its module now and not before.

    Args:
        kind: one of `KINDS`.
        name: a registered name, or ``"package.module:Class"`` for one outside this package. The latter imports, and so
            executes, that module.

    Raises:
        UserError: the name is not registered, or the module or class cannot be imported.
    """
    target = names(kind).get(name, name)
    module, separator, attribute = target.partition(":")
    if not separator or not module or not attribute:
        raise UserError(f"unknown {kind} {name!r}{nearest(name, names(kind))}")
    outside = kind == "selector" and name not in names(kind)
    try:
        if outside:
            importlib.import_module(ADAPTER).make_importable(module)
        found = getattr(importlib.import_module(module), attribute)
    except ImportError as error:
        why = str(error).strip().partition("\n")[0]
        raise UserError(f"{kind} {name!r}: cannot import {module!r}: {why}") from error
    except AttributeError as error:
        raise UserError(
            f"{kind} {name!r}: module {module!r} has no {attribute!r}{nearest(attribute, public(module))}"
        ) from error
    return importlib.import_module(ADAPTER).adapted(found) if outside else found


def public(module: str) -> list[str]:
    """Returns the names of the classes that a module has."""
    found = importlib.import_module(module)
    # What a module lists and does not have yet, it finds when it is asked for; that may take importing all of it.
    return [key for key in dir(found) if isinstance(vars(found).get(key, type), type)]
