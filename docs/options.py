"""Writes the tables of options in recipes.md, from the classes that check recipes: ``python docs/options.py``.

A table stands between ``<!-- options: module:Class -->`` and ``<!-- end -->``; the rest of the page is written by hand.
Class is a table of a recipe, or a component, whose ``Config`` is meant.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterator
from pathlib import Path

from robustcords.config import registry
from robustcords.config.schema import Table
from robustcords.recipe.describe import Option, options

PAGE = Path(__file__).with_name("recipes.md")

_PART = re.compile(r"^(?P<level>##+) (?P<heading>.+)$|<!-- options: (?P<target>\S+) -->\n(?s:.*?)<!-- end -->", re.M)
_NAMING = {kind.key for kind in registry.KINDS.values()}
"""The keys that name a component, which the page describes for all of them."""


def table_of(target: str) -> type[Table]:
    """Returns the class that checks the table of ``"module:Class"``."""
    found: type[Table] = registry.config_of(registry.imported(target))
    return found


def targets(page: str) -> list[str]:
    """Returns what a page has tables of."""
    return [match["target"] for match in _PART.finditer(page) if match["target"]]


def written(page: str) -> str:
    """Returns a page with its tables as the classes have them now."""
    level, heading = "", ""
    shown: dict[tuple[type, Option], str] = {}
    keys: dict[str, list[str]] = {}  # under each heading

    def block(match: re.Match[str]) -> str:
        nonlocal level, heading
        if not match["target"]:
            level, heading = match["level"], match["heading"]
            return match[0]
        new: list[Option] = []
        elsewhere: dict[str, list[str]] = {}
        table = table_of(match["target"])
        for option in options(table):
            declared = _owner(table, option.key), option
            if option.key in _NAMING:
                continue
            if declared not in shown:
                shown[declared] = "" if level == "##" else heading  # those of a whole section are not repeated
                keys.setdefault(heading, []).append(option.key)
                new.append(option)
            elif shown[declared] not in {"", heading}:
                elsewhere.setdefault(shown[declared], []).append(option.key)
        links = [
            f"{'all' if same == keys[where] else _code(same)} of [{_title(where)}](#{_anchor(where)})"
            for where, same in elsewhere.items()
        ]
        lines = "\n\n".join(_lines(match["target"], new, links))
        return f"<!-- options: {match['target']} -->\n{lines}\n<!-- end -->"

    return _PART.sub(block, page)


def _lines(target: str, new: list[Option], links: list[str]) -> Iterator[str]:
    """Yields the paragraphs of a block: the names of a component, a table of options, where others are described."""
    if names := [name for kind in registry.KINDS for name, each in registry.names(kind).items() if each == target]:
        yield f"Names: {_code(names)}"
    if new:
        yield "\n".join(["| key | allowed | default | meaning |", "| --- | --- | --- | --- |", *map(_row, new)])
    if links:
        yield f"{'Further keys' if new else 'Keys'}: {', '.join(links)}"
    if not new and not links:
        yield "No further keys."


def _row(option: Option) -> str:
    if option.default is None:
        default = "required" if option.required else "left out"
    else:
        default = "below" if option.default.startswith("{") else f"`{option.default}`"
    allowed = re.sub(r'"[^",]+"', r"`\g<0>`", option.allowed)
    cells = (f"`{option.key}`", allowed, default, option.meaning.replace("``", "`"))
    return f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |"


def _code(words: list[str]) -> str:
    return ", ".join(f"`{word}`" for word in words)


def _title(heading: str) -> str:
    return heading.replace("`", "").replace("[", "\\[").replace("]", "\\]")


def _anchor(heading: str) -> str:
    return re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")


def _owner(table: type[Table], key: str) -> type:
    """Returns the class that declares a key."""
    return next(each for each in table.__mro__ if key in inspect.get_annotations(each))


if __name__ == "__main__":
    PAGE.write_text(written(PAGE.read_text()))
