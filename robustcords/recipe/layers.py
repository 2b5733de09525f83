"""Recipe files and overrides, merged in layers; each value keeps the place that it comes from."""

from __future__ import annotations

import os
import re
import tomllib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from datetime import date, time
from functools import cache
from pathlib import Path
from typing import Any

from robustcords.data import DATA
from robustcords.errors import UserError, nearest
from robustcords.recipe.short_forms import SHORT_FORMS, written_out

Keys = tuple[str, ...]

LARGEST_FILE = 1 << 16
MOST_FILES = 64
MOST_DOTS = 100
"""On one line. Tomllib's time, and its memory, grow with the square of a dotted key's parts: minutes for 200 kB."""
DEEPEST_TABLE = 8
PLACES: tuple[Keys, ...] = (
    ("data", "path"),
    ("data", "name"),
    ("model", "checkpoint"),
    ("selector", "file"),
    ("selector", "proxy", "weights"),
)
"""The keys whose values may be files and folders."""
_PARTS = re.compile(r'((?:"[^"]*"|[^.])*)\.')
"""The parts of a dotted key; one in quotes may have dots."""
_FRACTION = re.compile(r"[=,\[]\s*(\d+(?:\.\d+)?/\d+)")
"""A radius that was written without quotes."""
SWITCHES: frozenset[Keys] = frozenset(
    {("selector",), ("evaluation", "pgd"), ("evaluation", "autoattack"), ("train", "averaging")}
)
"""The tables that ``false`` switches off and ``true`` switches on with what they already hold; callbacks' too."""


@dataclass(frozen=True)
class Layer:
    """The values of one file, or of one ``--set``.

    Attributes:
        origin: who wrote them, as an error message names it.
        values: what TOML gives.
        together: written at the same moment as the layer before it, as all ``--set`` options of a command are.
    """

    origin: str
    values: dict[str, Any]
    together: bool = False


@dataclass(frozen=True)
class Written:
    """A value and who wrote it.

    Attributes:
        value: a dictionary of `Written` for a table; else what TOML gives.
        origin: the last one to write it.
        layer: the number of the layer that wrote it last.
        since: the number of the layer from which on it has had this value.
        before: the value that it had until then; None for none.
        spelled: the short form that a table was last written in; empty for none.
    """

    value: Any
    origin: str
    layer: int
    since: int
    before: Any = None
    spelled: str = ""

    @property
    def table(self) -> dict[str, Written] | None:
        """The table's values, or None for anything that is not a table."""
        return self.value if isinstance(self.value, dict) else None

    def plain(self) -> Any:
        """Returns the value without its history."""
        table = self.table
        return self.value if table is None else {key: item.plain() for key, item in table.items()}

    def at(self, path: Iterable[str | int]) -> Written:
        """Returns what is at a path, or the innermost table above it that was written."""
        here = self
        for part in path:
            below = (here.table or {}).get(str(part))
            if below is None:
                break
            here = below
        return here


@cache
def shipped() -> dict[str, Path]:
    """Returns the recipes that come with this package: name (without ``.toml``) to file, sorted by name."""
    package = Path(__file__).parents[1]
    # A wheel has them inside the package; a checkout has them next to it.
    folder = next((place for place in (package / "recipes", package.parent / "recipes") if place.is_dir()), None)
    files = sorted(folder.rglob("*.toml")) if folder else []
    return {file.relative_to(folder).with_suffix("").as_posix(): file for file in files if folder}


def stack(source: str | Path) -> list[Layer]:
    """Returns the layers of a recipe, those it extends first.

    Args:
        source: a file, or the name of a shipped recipe; a file wins.

    Raises:
        UserError: a file is missing or not a recipe's, or recipes extend each other in a circle.
    """
    return _stack(_resolve(str(source), Path(), ""), ())


def overrides(options: Sequence[str]) -> list[Layer]:
    """Returns the layers of ``--set KEY=VALUE`` options; a VALUE that is not TOML is a string.

    Raises:
        UserError: there is no ``=``, or the key or a part of it is empty.
    """
    return [_override(option, together=number > 0) for number, option in enumerate(options)]


def merge(layers: Sequence[Layer]) -> Written:
    """Returns the layers as one table: tables merge key by key, anything else replaces what was there before.

    Raises:
        UserError: tables are nested too deeply, or one is written in its short form and in full.
    """
    merged = Written({}, "recipe", 0, 0)
    number = 0
    named: dict[str, tuple[str, bool]] = {}
    for layer in layers:
        number += not layer.together
        named = named if layer.together else {}
        tables = dict(merged.table or {})
        now = {kind: tables[kind].at(["name"]).value for kind in SHORT_FORMS.values() if kind in tables}
        try:
            values = written_out(layer.values, now)
        except ValueError as error:
            raise UserError(f"{layer.origin}: {error}") from None
        new = written(values, layer.origin, number, ())
        for short, kind in SHORT_FORMS.items():
            if short in layer.values and kind in values and kind not in layer.values:
                new.value[kind] = replace(new.value[kind], spelled=short)
                if layer.values[short] is False:  # its options go with it
                    tables.pop(kind, None)
        _agree(named, layer, values)
        merged = _over(replace(merged, value=tables), new)
    return merged


def _agree(named: dict[str, tuple[str, bool]], layer: Layer, values: dict[str, Any]) -> None:
    """Checks that a short form and a name in full, written at the same moment, mean the same component.

    Args:
        named: kind to the name that layers of this moment have given, and whether in short; written over.
        layer: the next of them.
        values: its tables without short forms.

    Raises:
        UserError: they mean two.
    """
    for short, kind in SHORT_FORMS.items():
        name = values[kind].get("name") if isinstance(values.get(kind), dict) else None
        if name is None or layer.values.get(short) is False:
            continue
        before, in_short = named.get(kind, (name, False))
        if before != name and in_short != (short in layer.values):
            other = before if before != short else name
            raise UserError(
                f'{layer.origin}: [{short}] is short for [{kind}] name = "{short}", and another --set has name = '
                f'"{other}"; write one of the two'
            )
        named[kind] = name, short in layer.values


def _resolve(name: str, folder: Path, said: str) -> Path:
    """Returns the file that a name means, seen from a folder; ``said`` begins the message of an error."""
    path, shown = folder / name, shortened(name, longest=100)
    try:
        directory = path.is_dir()
        if path.exists() and not directory:
            return path
    except OSError as error:
        raise UserError(f"{said}{shown}: {error.strerror}") from error
    known = shipped()  # only now: it looks through a folder
    if name.removesuffix(".toml") in known:
        return known[name.removesuffix(".toml")]
    if directory:
        raise UserError(f"{said}{shown} is a folder; a recipe is a TOML file")
    guess = nearest(shown.removesuffix(".toml"), known)
    raise UserError(
        f"{said}no file and no shipped recipe is called {shown!r}{guess}; `robustcords list recipe` lists them"
    )


def _stack(path: Path, above: tuple[Path, ...]) -> list[Layer]:
    shown = _shown(path)
    if path.resolve() in above:
        circle = [*above[above.index(path.resolve()) :], path]
        raise UserError(shortened(f"{shown}: recipes extend each other: {' -> '.join(map(_shown, circle))}"))
    values = read(path)
    bases = values.pop("extends", [])
    bases = [bases] if isinstance(bases, str) else bases
    if not isinstance(bases, list) or not all(isinstance(base, str) and base for base in bases):
        raise UserError(f"{shown}: extends must be the name of a recipe, or a list of names")
    layers: list[Layer] = []
    for base in bases:
        layers += _stack(_resolve(base, path.parent, f"{shown}: extends: "), (*above, path.resolve()))
        if len(layers) >= MOST_FILES:
            raise UserError(f"{shown}: extends more than {MOST_FILES} recipes")
    return [*layers, Layer(shown, _placed(values, (path.parent, Path())))]


def _placed(values: dict[str, Any], folders: Sequence[Path]) -> dict[str, Any]:
    """Returns what a layer says with files and folders by their full paths, so that a run's recipe holds anywhere.

    Args:
        values: as TOML gives them.
        folders: where a relative path begins: in the first of them in which there is such a file or folder. Where there
            is none, the path stays as it is.
    """
    for *above, key in PLACES:
        table: Any = values
        for name in above:
            table = table.get(name) if isinstance(table, dict) else None
        text = table.get(key) if isinstance(table, dict) else None
        if isinstance(text, str) and text and text not in DATA:
            places = (os.path.normpath(folder.absolute() / text) for folder in folders)
            # Unlike Path's, this one takes any text.
            table[key] = next((place for place in places if os.path.exists(place)), text)  # noqa: PTH110
    return values


def read(path: Path) -> dict[str, Any]:
    """Returns what a TOML file says.

    Raises:
        UserError: it cannot be read, is larger than 64 KiB, or is not UTF-8 or TOML; the message names line and column.
    """
    shown = _shown(path)
    try:
        with path.open("rb") as file:
            content = file.read(LARGEST_FILE + 1)
    except OSError as error:
        raise UserError(f"{shown}: {error.strerror}") from error
    if len(content) > LARGEST_FILE:
        raise UserError(f"{shown}: larger than 64 KiB; that is no recipe")
    try:
        text = content.decode("utf-8-sig")  # editors on Windows put a byte order mark in front
        if line := _dense_line(text):
            raise UserError(f"{shown}: more than {MOST_DOTS} dots in line {line}; that is no recipe")
        return tomllib.loads(text)
    except UnicodeDecodeError as error:
        raise UserError(f"{shown}: not UTF-8 text (byte {error.start}); a recipe is a TOML file") from error
    except RecursionError as error:
        raise UserError(f"{shown}: nested too deeply") from error
    except ValueError as error:
        fraction = _FRACTION.search(text)
        quotes = f'; a fraction such as {fraction[1]} needs quotes: "{fraction[1]}"' if fraction else ""
        raise UserError(shortened(f"{shown}: not TOML: {error}{quotes}")) from error


def _dense_line(text: str) -> int | None:
    """Returns the number of the first line that tomllib might take very long for, or None."""
    return next((number for number, line in enumerate(text.split("\n"), 1) if line.count(".") > MOST_DOTS), None)


def _override(option: str, together: bool) -> Layer:
    origin = shortened(f"--set {option}")
    if any("\ud800" <= each <= "\udfff" for each in option):
        raise UserError(f"{origin}: not UTF-8 text")
    key, separator, text = option.partition("=")
    parts = [part.strip().strip('"') for part in _PARTS.findall(f"{key}.")]
    if not separator:
        raise UserError(f"{origin}: expected KEY=VALUE, for example --set train.epochs=2")
    if not all(parts):
        raise UserError(f"{origin}: the key is empty or has an empty part; expected, for example, --set train.epochs=2")
    value: Any = text.strip()
    if number := re.fullmatch(r"([-+]?)(\.\d+)", value):  # as many write numbers, and TOML does not
        text = f"{number[1]}0{number[2]}"
    try:
        parsed = {} if _dense_line(text) else tomllib.loads(f"value = {text}")
    except (ValueError, RecursionError):
        parsed = {}
    # No option is a date, but a folder may be called by one, or by a number.
    if list(parsed) == ["value"] and (isinstance(parsed["value"], str) or not _is_text(tuple(parts), parsed["value"])):
        value = parsed["value"]
    for part in reversed(parts):
        value = {part: value}
    return Layer(origin, _placed(value, (Path(),)), together)


def _is_text(keys: Keys, value: Any) -> bool:
    """Returns whether a value of ``--set`` that TOML takes for something else is text."""
    return keys in PLACES or isinstance(value, date | time)


def written(value: Any, origin: str, layer: int, path: Keys) -> Written:
    """Returns a value that one layer has, with all that is in it.

    Args:
        value: as TOML gives it.
        origin: who wrote it.
        layer: its number.
        path: the keys that it is below.

    Raises:
        UserError: tables are nested too deep, or an integer is too long.
    """
    if len(path) > DEEPEST_TABLE:
        raise UserError(f"{origin}: tables are nested more than {DEEPEST_TABLE} deep")
    if not _fits(value):
        raise UserError(shortened(f"{origin}: {'.'.join(path)}: TOML's integers have 64 bits, and this one has more"))
    if (path in SWITCHES or path[:-1] == ("callbacks",)) and value is True:
        value = {}
    if isinstance(value, dict):
        value = {key: written(item, origin, layer, (*path, key)) for key, item in value.items()}
    return Written(value, origin, layer, layer)


def _fits(value: Any) -> bool:
    """Returns whether no integer, also none of a list, is longer than TOML's; Python's parser takes any."""
    if isinstance(value, list):
        return all(map(_fits, value))
    return not isinstance(value, int) or -(2**63) <= value < 2**63


def _over(old: Written, new: Written) -> Written:
    below, above = old.table, new.table
    if below is not None and above is not None:
        both = {key: _over(below[key], item) if key in below else item for key, item in above.items()}
        return Written({**below, **both}, new.origin, new.layer, old.since, spelled=new.spelled)
    if type(old.value) is type(new.value) and old.value == new.value:
        return Written(new.value, new.origin, new.layer, old.since, old.before)
    return Written(new.value, new.origin, new.layer, new.since, old.value, new.spelled)


def _shown(path: Path) -> str:
    """Returns a path as a message shows it: without detours, and from here if it is below here."""
    plain = os.path.normpath(path)
    here = os.path.relpath(plain)
    return shortened(plain if here.startswith("..") else here)


def shortened(text: str, longest: int = 400) -> str:
    """Returns a text without line breaks, and shortened where it is long."""
    text = " ".join(text.split())
    return text if len(text) <= longest else f"{text[:longest]}..."
