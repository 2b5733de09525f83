"""Names that a recipe may contain and their options, read from the classes' docstrings."""

from __future__ import annotations

import inspect
import itertools
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import tomli_w
from pydantic import BaseModel

from robustcords.config import registry
from robustcords.config.schema import Table, nested
from robustcords.errors import UserError, nearest
from robustcords.recipe import messages
from robustcords.recipe.layers import shipped
from robustcords.recipe.tables import DEFAULTS, find

_ATTRIBUTE = re.compile(r" {4}(\w+): (.*)")
_SENTENCE_END = re.compile(r"(?<!et al)\.\s+(?=[A-Z\"])|;\s+")


def listing(kind: str | None = None) -> dict[str, dict[str, str]]:
    """Returns what a recipe can name: kind to name to a line that describes it.

    Args:
        kind: a kind of component, such as ``"loss"``, or ``"recipe"``; None for all of them.

    Raises:
        UserError: there is no such kind.
    """
    kinds = [*registry.KINDS, "recipe"]
    if kind is not None and kind not in kinds:
        raise UserError(f"unknown kind {kind!r}{nearest(kind, kinds)}")
    return {each: _recipes() if each == "recipe" else _components(each) for each in ([kind] if kind else kinds)}


@dataclass(frozen=True)
class Option:
    """A key of a table: what ``robustcords new`` and docs/recipes.md say of it.

    Attributes:
        key: its name.
        allowed: what it may hold, in the words of error messages.
        default: as TOML; None where there is none.
        required: whether a recipe must have it.
        meaning: its entry in the class's docstring, in one line, with its markup; empty without one.
    """

    key: str
    allowed: str
    default: str | None
    required: bool
    meaning: str


def options(table: type[Table]) -> Iterator[Option]:
    """Yields the keys of a table in the order of its class."""
    meanings = attributes(table)
    for key, field in table.model_fields.items():
        allowed = messages.allowed(table, (key,)) or "any value"
        kind = nested(table).get(key, key)
        filled_in = allowed.startswith("a table") and (kind in DEFAULTS or kind not in registry.KINDS)
        default = None if field.is_required() else field.get_default(call_default_factory=True)
        if default is not None:  # as the table itself would write it
            default = toml(table.model_construct(**{key: default}).model_dump(include={key})[key])
        yield Option(key, allowed, default, field.is_required() and not filled_in, meanings.get(key, ""))


def attributes(table: type[BaseModel]) -> dict[str, str]:
    """Returns what each field of a class means: its entry under ``Attributes:``, in one line.

    A subclass's entry wins over its base's.
    """
    found: dict[str, str] = {}
    for base in reversed(table.__mro__):
        _, _, section = inspect.cleandoc(base.__dict__.get("__doc__") or "").partition("Attributes:\n")
        key = ""
        for line in section.splitlines():
            if entry := _ATTRIBUTE.fullmatch(line):
                key = entry[1]
                found[key] = entry[2]
            elif key and line.startswith(" " * 5):
                found[key] += " " + line.strip()
            else:
                break
    return {key: text for key, text in found.items() if key in table.model_fields}


def toml(value: Any) -> str:
    """Returns a value as TOML in one line."""
    if isinstance(value, list | tuple):
        return f"[{', '.join(map(toml, value))}]"
    if isinstance(value, dict):
        return f"{{{', '.join(f'{key} = {toml(item)}' for key, item in value.items() if item is not None)}}}"
    return tomli_w.dumps({"v": value}).removeprefix("v = ").rstrip("\n")


def _components(kind: str) -> dict[str, str]:
    return {name: _first_line(find(kind, name)) for name in registry.names(kind)}


def _first_line(component: object) -> str:
    return (inspect.getdoc(component) or "").partition("\n")[0].replace("`", "")


def _recipes() -> dict[str, str]:
    """Returns the shipped recipes and the first sentence of the comment that each one opens with."""
    return {name: _first_sentence(path.read_text(encoding="utf-8")) for name, path in shipped().items()}


def _first_sentence(text: str) -> str:
    """Returns the first sentence of the comment that a recipe opens with, in one line."""
    lines = itertools.takewhile(lambda line: line.startswith("# "), text.splitlines())
    comment = " ".join(line.removeprefix("# ").strip() for line in lines)
    return _SENTENCE_END.split(comment, maxsplit=1)[0].rstrip(".:")
