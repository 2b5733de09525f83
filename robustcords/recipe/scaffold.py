"""The text of ``robustcords new``: a recipe with every key and a comment on each."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from robustcords.config.registry import KINDS
from robustcords.config.schema import Table, nested
from robustcords.errors import UserError
from robustcords.recipe import messages
from robustcords.recipe.describe import listing, options, toml
from robustcords.recipe.recipe import Recipe, parse

__all__ = ["listing", "new", "write"]

_HEADER = """\
# {loss} on {data}, {portion}{effort}.
# Every key is here; delete what you do not change. A radius or step may be a fraction such as "8/255"."""

_STOP = re.compile(r"(?<!\bal)\.\s+(?=[^a-z])")


def new(
    data: str,
    loss: str,
    selector: str | None = None,
    fraction: float = 0.3,
    *,
    bullet: bool = False,
    effort: str | None = None,
    model: str = "resnet18",
    method: str = "adversarial",
) -> str:
    """Returns a commented recipe that validates.

    Args:
        data: name of a data set.
        loss: name of a loss.
        selector: name of a selection strategy; None or ``"none"`` for full data.
        fraction: share of the training set to select, in (0, 1]; means nothing without a selector.
        bullet: whether to use Bullet-Train, as with ``"bullet"`` for the effort.
        effort: name of what decides how hard each example is attacked; None for all alike.
        model: name of a model.
        method: name of what a training step does with a batch.

    Raises:
        UserError: a name is unknown, the fraction impossible, or there are two efforts.
    """
    values: dict[str, Any] = {"data": {"name": data}, "model": {"name": model}, "loss": {"name": loss}}
    values["method"] = {"name": method}
    if selector not in {None, "none"}:
        values["selector"] = {"name": selector, "fraction": fraction}
    if bullet and effort not in {None, "bullet"}:
        raise UserError(f"robustcords new: Bullet-Train is an effort, and so is {effort!r}; choose one of the two")
    values["effort"] = {"name": "bullet" if bullet else effort or "uniform"}
    recipe = parse(values, "robustcords new")
    return commented(recipe, _header(recipe))


def commented(recipe: Recipe, header: str) -> str:
    """Returns a recipe as TOML with every key in it and a comment on each, below a header of comments."""
    text = "\n".join([header, *_lines(recipe, ())]) + "\n"
    if parse(tomllib.loads(text)) != recipe:
        raise AssertionError("the recipe that was written does not say what was asked for")
    return text


def write(file: Path, **choices: Any) -> None:
    """Writes what `new` returns to a file that must not exist yet.

    Args:
        file: the recipe to write.
        choices: `new`'s arguments.

    Raises:
        UserError: as `new`, or the file exists or cannot be written.
    """
    write_text(file, new(**choices))


def write_text(file: Path, text: str) -> None:
    """Writes a recipe to a file that must not exist yet.

    Raises:
        UserError: the file exists or cannot be written.
    """
    try:
        with file.open("x", encoding="utf-8") as stream:
            stream.write(text)
    except FileExistsError as error:
        raise UserError(f"{file}: exists already; choose another name") from error
    except OSError as error:
        raise UserError(f"{file}: {error.strerror}") from error


def _header(recipe: Recipe) -> str:
    chosen, effort = recipe.selector, recipe.effort.name
    return _HEADER.format(
        loss=recipe.loss.name,
        data=recipe.data.name,
        portion=f"{chosen.fraction:.0%} of the data by {chosen.name}" if chosen else "full data",
        effort="" if effort == "uniform" else f", with effort {effort}",
    )


def _lines(table: Table, path: tuple[str, ...], kind: str | None = None) -> list[str]:
    """Returns a table's keys with their comments, then its tables.

    Args:
        table: the recipe, or a table of it.
        path: of the table.
        kind: of component that the table names.
    """
    written = table.model_dump()
    below = nested(type(table)) if path else {each: each for each in KINDS}
    lines, tables = [], []
    for option in options(type(table)):
        key, value, meaning = option.key, getattr(table, option.key), _sentence(option.meaning)
        allowed = f"{option.allowed[:1].upper()}{option.allowed[1:]}"
        if isinstance(value, dict):
            tables += _callbacks(value, meaning)
        elif kind and key == KINDS[kind].key:
            lines += [f"# One of `robustcords list {kind}`, or package.module:Class.", f"{key} = {toml(value)}"]
        elif isinstance(value, Table):
            inside = _lines(value, (*path, key), below.get(key))
            tables += ["", f"# {meaning}", f"[{'.'.join((*path, key))}]", *inside]
        elif value is None and written[key] is None:
            lines.append(f"# {key} (left out): {meaning} {allowed}.")
        else:
            default = "" if option.default is None else f"; default {option.default}"
            lines += [f"# {meaning} {allowed}{default}.".replace("#  ", "# "), f"{key} = {toml(written[key])}"]
    return [*lines, *tables]


def _callbacks(callbacks: Mapping[str, Table | None], meaning: str) -> list[str]:
    """Returns the ``[callbacks]`` table, with a line that says what there is."""
    lines = ["", f"# {meaning}", "[callbacks]", "# Any of `robustcords list callback`, or package.module:Class."]
    for name, config in callbacks.items():
        values = False if config is None else config.model_dump(exclude={"name"})
        lines.append(f"{messages.dotted([name])} = {toml(values)}")
    return lines


def _sentence(text: str) -> str:
    """Returns the first sentence, with a capital letter and without markup."""
    first = _STOP.split(text.replace("`", ""), maxsplit=1)[0].rstrip(".")
    return f"{first[:1].upper()}{first[1:]}." if first else ""
