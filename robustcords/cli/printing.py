"""What is printed, and by which process; free of torch."""

from __future__ import annotations

import os
import sys
import warnings
from pathlib import Path
from typing import TextIO

import typer


def is_main() -> bool:
    """Returns whether this process prints; the launcher says so before torch is imported."""
    from robustcords.runtime.launch import rank

    return rank(os.environ) == 0


def show_warning(
    message: Warning | str,
    category: type[Warning],
    filename: str,
    lineno: int,
    file: TextIO | None = None,
    line: str | None = None,
) -> None:
    """Shows this package's own warnings as a line for a person, and those of others as Python does."""
    from robustcords.errors import printable

    if not is_main():
        return
    if Path(filename).is_relative_to(Path(__file__).parents[1]):
        text = f"warning: {printable(str(message))}"
    else:
        text = warnings.formatwarning(message, category, filename, lineno, line)
    typer.echo(text, file=file or sys.stderr)
