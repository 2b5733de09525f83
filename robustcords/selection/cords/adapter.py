"""Wraps strategies written for CORDS, and subclasses of them, as selectors."""

from __future__ import annotations

import importlib
from typing import Any

from robustcords.errors import UserError
from robustcords.selection.base import Strategy


def make_importable(module: str) -> None:
    """Lets a module import CORDS' strategies, whose package does not import as it is; see `_cords`.

    Raises:
        UserError: the module is one of CORDS', and CORDS cannot be imported.
    """
    try:
        importlib.import_module("robustcords.selection._cords")
    except UserError:
        if _of_cords(module):
            raise


def adapted(found: Any) -> Any:
    """Returns a selector for a strategy of CORDS or a subclass of one, and anything else as it is.

    Raises:
        UserError: the strategy has a parameter that neither a selection nor a recipe has a value for, or CORDS could
            not import it.
    """
    if text := getattr(found, "unavailable", None):
        raise UserError(text)
    bases = getattr(found, "__mro__", ())
    if Strategy in bases or not any(_of_cords(base.__module__) for base in bases):
        return found
    return importlib.import_module("robustcords.selection.cords.options").selector(found)


def _of_cords(module: str) -> bool:
    return module.partition(".")[0] == "cords"
