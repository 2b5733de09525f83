"""How warnings are printed."""

from __future__ import annotations

import os
import sys
import warnings
from pathlib import Path
from typing import TextIO

from robustcords.errors import printable
from robustcords.runtime.launch import rank


def show_warning(
    message: Warning | str,
    category: type[Warning],
    filename: str,
    lineno: int,
    file: TextIO | None = None,
    line: str | None = None,
) -> None:
    """Shows this package's own warnings as a line for a person, and those of others as Python does."""
    if rank(os.environ):  # the main process prints
        return
    if Path(filename).is_relative_to(Path(__file__).parents[1]):
        text = f"warning: {printable(str(message))}"
    else:
        text = warnings.formatwarning(message, category, filename, lineno, line)
    print(text, file=file or sys.stderr)
