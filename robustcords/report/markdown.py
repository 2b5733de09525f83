"""Markdown text, and text tables for Markdown and the terminal."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

from rich.cells import cell_len
from rich.console import Console
from rich.table import Table

# An underscore between letters or digits means nothing in Markdown.
_MEANS_SOMETHING = re.compile(r"([\\`*|<>~&$]|(?<![^\W_])_|_(?![^\W_])|\](?=\())")

_RULES = 3
"""What a column takes on a terminal in addition to its text: a space on either side, and a rule."""
_NAMES = 16
"""The least width of a first column that wraps."""


def plain(text: str) -> str:
    """Returns text that Markdown shows as it is, in one line."""
    return _MEANS_SOMETHING.sub(r"\\\1", " ".join(text.split()))


def in_markdown(header: Sequence[str], rows: Iterable[Sequence[str]], left: int = 1) -> str:
    """Returns a table whose first columns are aligned to the left; cells are Markdown already."""
    rule = [":--" if number < left else "--:" for number in range(len(header))]
    return "\n".join(f"| {' | '.join(row)} |" for row in (header, rule, *rows))


def on_terminal(header: Sequence[str], rows: Iterable[Sequence[str]], left: int = 1, wrap: bool = True) -> Table:
    """Returns a table whose first columns are aligned to the left; without ``wrap`` the others are cut if need be.

    Cells are text as it is, for a console without markup (`robustcords.runtime.progress.verbatim`).
    """
    table = Table()
    for number, name in enumerate(header):
        table.add_column(name, justify="left" if number < left else "right", no_wrap=number >= left and not wrap)
    for row in rows:
        table.add_row(*row)
    return table


def fitting(header: Sequence[str], rows: Sequence[Sequence[str]], console: Console) -> Table:
    """Returns as many columns of a table, from the left, as a console has room for without cutting a figure.

    The first column wraps, and headers have a word a line; a caption names the columns that there was no room for.
    """
    header = [header[0], *("\n".join(name.split()) for name in header[1:])]
    needs = [max(map(cell_len, (*name.split("\n"), *cells))) for name, *cells in zip(header, *rows, strict=True)]
    needs[0] = min(needs[0], _NAMES)
    fits = [count for count in range(2, len(header) + 1) if sum(needs[:count]) + _RULES * count + 1 <= console.width]
    count = max(fits, default=2)
    table = on_terminal(header[:count], [row[:count] for row in rows], wrap=False)
    if left_out := header[count:]:
        table.caption = f"no room here for: {', '.join(' '.join(name.split()) for name in left_out)}"
    return table
