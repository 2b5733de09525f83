"""Kinds of components, and lookup by the name in a recipe."""

from __future__ import annotations

import importlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from robustcords.errors import UserError, nearest


@dataclass(frozen=True)
class Kind:
    """A kind of component: everything that a recipe's table can name.

    Attributes:
        components: ``"module:DICTIONARY"``, of names to ``"module:Class"``.
        base: ``"module:Class"`` that all of them are subclasses of.
        key: the key of the recipe's table that names one.
        source: ``"module:function"`` from a name to a class, where there are names that no dictionary lists, such as
            paths.
    """

    components: str
    base: str
    key: str = "name"
    source: str | None = None


KINDS = {
    "data": Kind("robustcords.data:DATA", "robustcords.data.base:DataSource", source="robustcords.data:source"),
    "augmentation": Kind(
        "robustcords.data.augmentations:AUGMENTATIONS", "robustcords.data.augmentations.base:Augmentation"
    ),
    "model": Kind(
        "robustcords.models:MODELS", "robustcords.models.base:ModelSource", source="robustcords.models:source"
    ),
    "threat": Kind("robustcords.threats:THREATS", "robustcords.threats.base:ThreatModel", key="norm"),
    "attack": Kind("robustcords.attacks:ATTACKS", "robustcords.attacks.base:Attack"),
    "loss": Kind("robustcords.losses:LOSSES", "robustcords.losses.base:Loss"),
    "method": Kind("robustcords.methods:METHODS", "robustcords.methods.base:Method"),
    "effort": Kind("robustcords.methods.efforts:EFFORTS", "robustcords.methods.efforts.base:Effort"),
    "selector": Kind("robustcords.selection.strategies:STRATEGIES", "robustcords.selection.base:Strategy"),
    "optimizer": Kind("robustcords.training.optimizers:OPTIMIZERS", "robustcords.training.optimizers:Optimizer"),
    "schedule": Kind("robustcords.training.schedules:SCHEDULES", "robustcords.training.schedules:Schedule"),
    "callback": Kind("robustcords.training.callbacks:CALLBACKS", "robustcords.training.callbacks.base:Callback"),
    "evaluation_attack": Kind(
        "robustcords.evaluation.attacks:EVALUATION_ATTACKS", "robustcords.evaluation.attacks.base:EvaluationAttack"
    ),
}
"""What a recipe names components of: a table each, but for ``evaluation.attacks``, which is a list of tables."""

ADAPTER = "robustcords.selection.cords.adapter"
"""The module that makes a selector of a CORDS strategy."""


def names(kind: str) -> dict[str, str]:
    """Returns the registered names of a kind and where each one's class is."""
    found: dict[str, str] = imported(KINDS[kind].components)
    return found


def imported(target: str) -> Any:
    """Returns what ``"module:name"`` stands for, importing the module."""
    module, _, name = target.partition(":")
    return getattr(importlib.import_module(module), name)


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
    if module.endswith(".py"):
        right = f"{Path(module).stem}:{attribute}"
        raise UserError(f"{kind} {name!r}: {module!r} is a file; name a module, such as {right}")
    outside = kind == "selector" and name not in names(kind)
    try:
        if outside:
            importlib.import_module(ADAPTER).make_importable(module)
        found = getattr(importlib.import_module(module), attribute)
    except ImportError as error:
        why = str(error).strip().partition("\n")[0]
        if isinstance(error, ModuleNotFoundError) and error.name == module:
            why += "; modules are looked for in the current folder and on PYTHONPATH"
        raise UserError(f"{kind} {name!r}: cannot import {module!r}: {why}") from error
    except AttributeError as error:
        raise UserError(
            f"{kind} {name!r}: module {module!r} has no {attribute!r}{nearest(attribute, public(module))}"
        ) from error
    return importlib.import_module(ADAPTER).adapted(found) if outside else found


def constructed(kind: str, found: Any, /, *parts: Any, **options: Any) -> Any:
    """Returns an object of a component's class.

    Args:
        kind: one of `KINDS`.
        found: the class.
        parts: what components of this kind are given of a run.
        options: those of the recipe's table, with the name.

    Raises:
        UserError: its constructor does not take these.
    """
    try:
        return found(*parts, **options)
    except TypeError as error:
        if error.__traceback__ is not None and error.__traceback__.tb_next is None:  # the call, and nothing in it
            raise UserError(f"{kind} {found.__module__}:{found.__qualname__} cannot be built: {error}") from error
        raise


def config_of(found: Any) -> Any:
    """Returns the class that checks a component's table: its ``Config``; a threat model is its own."""
    return getattr(found, "Config", found)


def public(module: str) -> list[str]:
    """Returns the names of the classes that a module has."""
    found = importlib.import_module(module)
    # What a module lists and does not have yet, it finds when it is asked for; that may take importing all of it.
    return [key for key in dir(found) if isinstance(vars(found).get(key, type), type)]
