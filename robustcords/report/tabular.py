"""Text in Markdown, and tables of text: in Markdown and on the terminal."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

from rich.table import Table

# An underscore between letters or digits means nothing in Markdown.
_MEANS_SOMETHING = re.compile(r"([\\`*|<>~&$]|(?<![^\W_])_|_(?![^\W_])|\](?=\())")


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
