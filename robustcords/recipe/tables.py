"""Validates the tables of a recipe, each by its component's class."""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from pydantic import ValidationError

from robustcords.config import registry
from robustcords.config.schema import Table, nested
from robustcords.errors import UserError, together
from robustcords.recipe import layers, messages
from robustcords.recipe.layers import Written
from robustcords.training.config import LENGTHS

DEFAULTS: dict[str, dict[str, Any]] = {
    "attack": {"name": "pgd"},
    "augmentation": {"name": "crop_flip"},
    "callbacks": {"overfitting": {"action": "warn"}},
    "effort": {"name": "uniform"},
    "loss": {"name": "sat"},
    "method": {"name": "adversarial"},
    "optimizer": {"name": "sgd"},
    "schedule": {"name": "step"},
    "threat": {"norm": "linf"},
}
"""What is used where a recipe names nothing: standard adversarial training (Madry et al. 2018) on the full data."""

TABLES: dict[tuple[str | int, ...], str] = {
    ("selector", "proxy"): "robustcords.selection.proxy:ProxyConfig",
    ("train",): "robustcords.training.config:TrainConfig",
    ("train", "averaging"): "robustcords.training.config:AveragingConfig",
    ("evaluation",): "robustcords.evaluation.config:EvaluationConfig",
    ("logging",): "robustcords.training.config:LoggingConfig",
}
"""The tables that name no component, and the classes that check them, imported when a recipe is."""

LISTS: dict[tuple[str | int, ...], str] = {("evaluation", "attacks"): "evaluation_attack"}
"""The lists of tables that each name a component, and of which kind."""


def find(kind: str, name: str) -> Any:
    """Returns the class of a component; data sets and models have names that no dictionary lists, such as paths.

    Raises:
        UserError: there is no such component, or its module cannot be imported.
    """
    try:
        source = registry.KINDS[kind].source
        return registry.imported(source)(name) if source else registry.find(kind, name)
    except UserError:
        raise
    except (Exception, SystemExit) as error:  # a custom module may fail in any way while it is imported
        raise UserError(f"{kind} {name!r}: importing it failed: {type(error).__name__}: {error}") from error


def check_all(items: Mapping[str, Written], found: Sequence[UserError]) -> dict[str, Any]:
    """Returns all checked tables; see `check`.

    Args:
        items: the tables.
        found: what is wrong with the recipe apart from them.

    Raises:
        UserError: ``found``, and what is wrong with any of the tables, a line each.
    """
    checked, errors = {}, list(found)
    for key, item in items.items():
        try:
            checked[key] = check(key, item)
        except UserError as error:
            errors.append(error)
    together(errors)
    return checked


def check(key: str, item: Written) -> Any:
    """Returns a checked table; None for one that is switched off."""
    if key == "callbacks" and item.table is not None:
        return {name: _callback(name, below) for name, below in item.table.items()}
    switch = (key,) in layers.SWITCHES
    if switch and (item.value is None or item.value is False):
        return None
    if item.table is None:
        or_off = " or false" if switch or item.spelled else ""
        shown = f"{messages.place([item.spelled or key])} = {messages.show(item.value)}"
        raise problem(item.origin, f"{shown}: must be a table{or_off}")
    if key in registry.KINDS:
        return _component(key, item, (item.spelled or key,))
    return _checked(registry.imported(TABLES[key,]), _last_length(item) if key == "train" else item, (key,))


def _last_length(item: Written) -> Written:
    """Drops what an earlier layer wrote of how long training is, as one key of several says that.

    A run's own recipe has a budget, and in the same layer the steps that it came to.
    """
    table = item.table or {}
    newest = max((table[key].layer for key in LENGTHS if key in table), default=0)
    kept = {key: value for key, value in table.items() if key not in LENGTHS or value.layer == newest}
    return replace(item, value=kept)


def _component(kind: str, item: Written, path: tuple[str | int, ...]) -> Table:
    """Returns the checked table of a component, which is at a path."""
    config = _config(kind, item, f"[{messages.dotted(path)}] ")
    return _checked(config, _known(kind, item, config), path)


def _callback(name: str, item: Written) -> Any:
    """Returns a callback's checked table, which the key names; None where it is switched off."""
    where = ("callbacks", name)
    named = replace(item, value=name)
    if item.value is None or item.value is False:
        if ":" not in name:  # the module of a custom one that is switched off may be missing
            _class("callback", named, messages.place(where))
        return None
    if item.table is None:
        raise problem(item.origin, f"{messages.place(where)} = {messages.show(item.value)}: must be a table or false")
    config = _class("callback", named, messages.place(where))
    return _checked(config, replace(item, value={**item.table, "name": named}), where)


def _config(kind: str, item: Written, shown: str) -> type[Table]:
    """Returns the ``Config`` of the component that a table names; what its keys are shown after begins messages."""
    key, table = registry.KINDS[kind].key, item.table or {}
    if key not in table:
        close = difflib.get_close_matches(key, table, n=1, cutoff=0.5)
        guess = f"; is it {messages.show(close[0])}, misspelt?" if close else ""
        raise problem(item.origin, f"{shown}{key} is missing{guess}")
    name = table[key]
    where = f"{shown}{key} = {messages.show(name.plain())}"
    if not isinstance(name.value, str):
        raise problem(name.origin, f"{where}: must be a string")
    return _class(kind, name, where)


def _class(kind: str, name: Written, where: str) -> type[Table]:
    """Returns the ``Config`` of a component by its name.

    Args:
        kind: of the component.
        name: a string.
        where: what a message begins with.
    """
    try:
        found = find(kind, name.value)
    except UserError as error:
        raise problem(name.origin, f"{where}: {error}") from error
    if missing := sorted(getattr(found, "__abstractmethods__", ())):
        raise problem(name.origin, f"{where}: {found.__name__} lacks {' and '.join(missing)}")
    config = registry.config_of(found)
    base = registry.imported(registry.KINDS[kind].base)
    fits = any(isinstance(each, type) and issubclass(each, base) for each in (found, config))
    if not (fits and isinstance(config, type) and issubclass(config, Table)):
        raise problem(
            name.origin, f"{where}: not of kind {kind}; it needs a nested Config, and {base.__name__} as its base"
        )
    return config


def _known(kind: str, item: Written, config: type[Table]) -> Written:
    """Drops what was written for the component that a later layer replaced by another one.

    Options that both have from a common base stay, such as a selector's fraction. Others may have the same name and
    mean something else: PGD's step size is none for FGSM, and TRADES' beta none for MART.
    """
    table = item.table or {}
    name = table[registry.KINDS[kind].key]
    everybodys = registry.config_of(registry.imported(registry.KINDS[kind].base))

    def stays(key: str) -> bool:
        if key not in config.model_fields:
            return False
        origin = _origin(config, key)
        # The old component is asked last, as that imports it, and with it perhaps packages that the recipe needs not.
        return (
            name.before is None or issubclass(everybodys, origin) or issubclass(_config_of(kind, name.before), origin)
        )

    kept = {key: value for key, value in table.items() if value.layer >= name.since or stays(key)}
    return Written(kept, item.origin, item.layer, item.since)


def _config_of(kind: str, name: Any) -> type[Any]:
    """Returns the ``Config`` of a component that is no longer wanted; ``object`` where it is not known."""
    try:
        config = registry.config_of(find(kind, name))
    except (UserError, TypeError, AttributeError):
        return object
    return config if isinstance(config, type) else object


def _origin(config: type[Table], key: str) -> type[Any]:
    """Returns the base class that a field comes from."""
    return next(each for each in reversed(config.__mro__) if key in getattr(each, "model_fields", ()))


def _checked(config: type[Table], item: Written, path: tuple[str | int, ...]) -> Table:
    """Checks one table, and first those tables in it that are checked by classes of their own."""
    values, tables = item.plain(), item.table or {}
    for key, below in tables.items():
        if (*path, key) in TABLES and below.table is not None:
            values[key] = _checked(registry.imported(TABLES[*path, key]), below, (*path, key))
        if (*path, key) in LISTS and isinstance(below.value, list):
            entries, place = LISTS[*path, key], (*path, key)
            values[key] = [_entry(entries, value, below, (*place, n)) for n, value in enumerate(below.value)]
    for key, kind in nested(config).items():
        usual = {name: Written(value, item.origin, 0, 0) for name, value in DEFAULTS.get(kind, {}).items()}
        below = tables.get(key, Written({}, item.origin, 0, 0))
        if below.table is not None:
            values[key] = _component(kind, replace(below, value=usual | below.table), (*path, key))
    try:
        return config.model_validate(values)
    except ValidationError as error:
        blamed = messages.explain(error, config, values, path)
    raise UserError(*(str(problem(item.at(key[len(path) :]).origin, text)) for key, text in blamed))


def _entry(kind: str, value: Any, around: Written, path: tuple[str | int, ...]) -> Any:
    """Returns a table of a list of components, its options checked; anything but a table as it is."""
    if not isinstance(value, dict):
        return value
    name, entry = registry.KINDS[kind].key, layers.written(value, around.origin, around.layer, tuple(map(str, path)))
    config = _config(kind, entry, f"{messages.place(path)}.")
    options = {key: item for key, item in (entry.table or {}).items() if key != name}
    return {name: value[name], "options": _checked(config, replace(entry, value=options), path)}


def options_of(value: Any) -> Any:
    """Returns the options of a table of a list of components; anything else as it is."""
    return value.options if isinstance(getattr(value, "options", None), Table) else value


def problem(origin: str, text: str) -> UserError:
    """Returns the error that blames who wrote something, on one line."""
    return UserError(f"{origin}: {layers.shortened(text, longest=2000)}")
