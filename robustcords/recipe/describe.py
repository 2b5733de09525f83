"""Names that a recipe may contain and their options, read from the classes' docstrings."""

from __future__ import annotations

import inspect
import re

from pydantic import BaseModel

from robustcords.config import registry
from robustcords.errors import UserError, nearest
from robustcords.recipe.layers import shipped
from robustcords.recipe.tables import find

_ATTRIBUTE = re.compile(r" {4}(\w+): (.*)")


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


def attributes(table: type[BaseModel]) -> dict[str, str]:
    """Returns what each field of a class means: its entry under ``Attributes:``, without markup, in one line.

    A subclass's entry wins over its base's.
    """
    found: dict[str, str] = {}
    for base in reversed(table.__mro__):
        _, _, section = inspect.cleandoc(base.__dict__.get("__doc__") or "").partition("Attributes:\n")
        key = ""
        for line in section.splitlines():
            if entry := _ATTRIBUTE.fullmatch(line):
                key = entry[1]
                found[key] = entry[2].replace("`", "")
            elif key and line.startswith(" " * 5):
                found[key] += " " + line.strip().replace("`", "")
            else:
                break
    return {key: text for key, text in found.items() if key in table.model_fields}


def _components(kind: str) -> dict[str, str]:
    return {name: _first_line(find(kind, name)) for name in registry.names(kind)}


def _first_line(component: object) -> str:
    return (inspect.getdoc(component) or "").partition("\n")[0].replace("`", "")


def _recipes() -> dict[str, str]:
    """Returns the shipped recipes and the comment that each one opens with."""
    first = {name: path.read_text(encoding="utf-8").partition("\n")[0] for name, path in shipped().items()}
    return {name: line.removeprefix("#").strip() if line.startswith("#") else "" for name, line in first.items()}
