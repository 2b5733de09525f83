"""What experiment trackers are given: every number of a table, each under a name of its own."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

_LONGEST = 100
"""Longer lists, such as the sizes of a thousand classes, are left to the files."""
_UNNAMEABLE = re.compile(r"[^\w\-. /]")
"""What MLflow has in no name."""


def figures(table: Any, name: str = "") -> dict[str, float]:
    """Returns the numbers in nested tables and lists, named by their keys, such as ``"seconds/attack"``.

    Args:
        table: of text to numbers, tables, lists and anything else, which is left out.
        name: what comes before its keys.
    """
    if type(table) in {int, float}:
        return {name: table}
    if isinstance(table, list):
        table = {str(number): each for number, each in enumerate(table)} if len(table) <= _LONGEST else {}
    if not isinstance(table, Mapping):
        return {}
    found: dict[str, float] = {}
    for key, value in table.items():
        own = _UNNAMEABLE.sub("_", str(key))
        found |= figures(value, f"{name}/{own}" if name else own)
    return found
