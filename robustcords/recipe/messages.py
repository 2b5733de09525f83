"""Allowed values of a key in words, for error messages and for the comments of a new recipe."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from functools import cache
from typing import Any

from pydantic import BaseModel, ValidationError
from pydantic.errors import PydanticUserError

from robustcords.errors import nearest, printable
from robustcords.recipe.layers import shortened

Path = tuple[str | int, ...]

_TYPES = {
    "boolean": "true or false",
    "string": "a string",
    "object": "a table",
    "duration": 'a time such as "90 s", "10 min" or "1.5 h"',
}
_NUMBERS = {"number": "a number", "integer": "a whole number"}
_RANGES = {"exclusiveMinimum": ">", "minimum": ">=", "exclusiveMaximum": "<", "maximum": "<="}
_LIMITS = {"gt": "exclusiveMinimum", "ge": "minimum", "lt": "exclusiveMaximum", "le": "maximum"}
_BARE_KEY = re.compile(r"[A-Za-z0-9_-]+")


def show(value: Any, longest: int = 60) -> str:
    """Returns a value the way TOML writes it, in one line and not at length."""
    try:
        text = printable(json.dumps(value, default=str, ensure_ascii=False))
    except (TypeError, ValueError, RecursionError):  # keys that are no strings, integers of thousands of digits, depth
        text = f"({type(value).__name__})"
    return text if len(text) <= longest else f"{text[:longest]}..."


def dotted(path: Sequence[str | int]) -> str:
    """Returns a path as ``pgd.epsilons[0]``."""
    text = ""
    for part in path:
        if isinstance(part, int):
            text += f"[{part}]"
        else:
            text += f"{'.' if text else ''}{part if _BARE_KEY.fullmatch(part) else show(part)}"
    return text


def place(path: Sequence[str | int]) -> str:
    """Returns a path from the recipe's root as ``[evaluation] pgd.epsilons[0]``; a key outside tables stays bare."""
    return dotted(path) if len(path) < 2 else f"[{dotted(path[:1])}] {dotted(path[1:])}"


def allowed(table: type[BaseModel], path: Path) -> str | None:
    """Returns what a key may hold, for example ``a number > 0 and <= 1``; None where that cannot be said.

    Args:
        table: the class that the key's table is checked by.
        path: the key, seen from that table.
    """
    schema = _schema_at(table, path)
    return _words(schema) if schema else None


def explain(
    error: ValidationError, table: type[BaseModel], values: dict[str, Any], above: Path
) -> list[tuple[Path, str]]:
    """Returns the path of each key to blame, from the recipe's root, and one line that says what is wrong with it.

    Args:
        error: what checking ``values`` raised.
        table: the class they were checked by.
        values: the table's keys and values.
        above: the path of the table.
    """
    problems = error.errors(include_url=False)
    misspelt = {each["loc"][:-1] for each in problems if each["type"] == "extra_forbidden"}
    # A misspelt key is the reason why another one is missing, not the other way round. A value that fits no branch of a
    # union is a problem of each branch, be it of the whole or of an item: the first one is said.
    said = [each for each in problems if not (each["type"] == "missing" and each["loc"][:-1] in misspelt)]
    blamed: dict[Path, str] = {}
    for each in said:
        path, text = _explained(each, table, values, above)
        if not any(path[:end] in blamed for end in range(len(above) + 1, len(path))):
            blamed.setdefault(path, text)
    return list(blamed.items())


def _explained(problem: Any, table: type[BaseModel], values: dict[str, Any], above: Path) -> tuple[Path, str]:
    """Returns the path and the line of one problem of pydantic's; see `explain`."""
    *parents, last = problem["loc"] or ("",)
    if problem["type"] == "extra_forbidden":
        inside = _walk(parents, values)
        guess = nearest(str(last), _keys(table, inside))
        return (*above, *inside, last), f"[{dotted((*above, *inside))}] unknown key {show(last)}{guess}"
    if problem["type"] == "missing":
        inside = (*above, *_walk(parents, values))
        return inside, f"[{dotted(inside)}] {last} is missing"
    path = _walk(problem["loc"], values)
    reason = _reason(problem, table, path)
    if not path:
        return above, f"[{dotted(above)}] {reason}"
    for part in path:
        values = values[part]  # type: ignore[index]
    return (*above, *path), f"{place((*above, *path))} = {show(values)}: {reason}"


def _reason(problem: Any, table: type[BaseModel], path: Path) -> str:
    if problem["type"] in {"value_error", "assertion_error"}:
        return shortened(str(problem["ctx"]["error"]))
    schema = _schema_at(table, path) if path else None
    if schema and "enum" in schema and isinstance(problem["input"], str):
        return f"unknown value{nearest(problem['input'], map(str, schema['enum']))}"
    if schema:
        # A limit that stands outside a validator is not in the schema, but the problem knows it.
        limits = {_LIMITS[key]: value for key, value in problem.get("ctx", {}).items() if key in _LIMITS}
        return f"must be {_words(schema | limits)}"
    message = shortened(problem["msg"])
    return message[:1].lower() + message[1:]


def _walk(where: Sequence[str | int], values: Any) -> Path:
    """Returns the part of a location that the values have; pydantic puts the names of a union's branches between."""
    path: Path = ()
    for part in where:
        if isinstance(values, dict) and part in values:
            values = values[str(part)]
        elif isinstance(values, list | tuple) and isinstance(part, int) and part < len(values):
            values = values[part]
        else:
            continue
        path = (*path, part)
    return path


def _resolved(schema: dict[str, Any], root: dict[str, Any]) -> dict[str, Any]:
    """Follows a schema's reference, and those of a union's branches, of which null is left out: TOML has none."""
    while "$ref" in schema:
        schema = root["$defs"][schema["$ref"].rsplit("/", 1)[1]]
    branches = [_resolved(branch, root) for branch in schema.get("anyOf", []) if branch.get("type") != "null"]
    return {"anyOf": branches} if len(branches) > 1 else branches[0] if branches else schema


@cache
def _schema(table: type[BaseModel]) -> dict[str, Any]:
    """Returns a table's JSON schema, which takes long to make; empty where it has a type without words for it."""
    try:
        return table.model_json_schema()
    except PydanticUserError:
        return {}


def _schema_at(table: type[BaseModel], path: Path) -> dict[str, Any] | None:
    """Returns the JSON schema of what is at a path, or None where the class cannot say."""
    schema = root = _schema(table)
    for part in path:
        inside = next((branch for branch in schema.get("anyOf", []) if "const" not in branch), schema)
        below = inside.get("items") if isinstance(part, int) else inside.get("properties", {}).get(part)
        if not isinstance(below, dict):
            return None
        schema = _resolved(below, root)
    return schema


def _keys(table: type[BaseModel], path: Path) -> list[str]:
    schema = _schema_at(table, path) or {}
    tables = [schema, *schema.get("anyOf", [])]
    return [key for each in tables for key in each.get("properties", {})] if path else list(table.model_fields)


def _words(schema: dict[str, Any]) -> str:
    if "anyOf" in schema:
        return " or ".join(dict.fromkeys(_words(branch) for branch in schema["anyOf"]))
    if "enum" in schema or "const" in schema:
        choices = schema.get("enum", [schema.get("const")])
        return f"one of: {', '.join(map(show, choices))}" if len(choices) > 1 else show(choices[0])
    kind = schema.get("type", "object")
    if kind == "array":
        return f"a list{_length(schema)}, each {_words(schema.get('items', {}))}"
    if kind in _NUMBERS:
        return _number(schema)
    return _TYPES.get(schema.get("format", "")) or _TYPES.get(kind, kind)


def _number(schema: dict[str, Any]) -> str:
    if "minimum" in schema and schema["minimum"] == schema.get("maximum"):
        return f"{schema['minimum']:.15g}"
    fraction = ' or a fraction such as "8/255"' if schema.get("format") == "radius" else ""
    return f"{_NUMBERS[schema['type']]}{_range(schema)}{fraction}"


def _length(schema: dict[str, Any]) -> str:
    least, most = schema.get("minItems"), schema.get("maxItems")
    if least is not None and least == most:
        return f" of {least}"
    limits = [f"at {end} {limit}" for end, limit in (("least", least), ("most", most)) if limit is not None]
    return f" of {' and '.join(limits)}" if limits else ""


def _range(schema: dict[str, Any]) -> str:
    limits = dict(schema)
    if limits.get("exclusiveMinimum", -1) >= limits.get("minimum", 0):
        limits.pop("minimum", None)
    parts = [f"{sign} {limits[key]:.15g}" for key, sign in _RANGES.items() if key in limits]
    return f" {' and '.join(parts)}" if parts else ""
