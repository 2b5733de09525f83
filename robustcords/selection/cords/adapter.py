"""Taking strategies that are written for CORDS, its own and subclasses of them, for selectors."""

from __future__ import annotations

import importlib
import importlib.util
from contextlib import suppress
from typing import Any

from robustcords.errors import UserError
from robustcords.selection.base import Strategy


def make_importable(module: str) -> None:
    """Lets a module import CORDS' strategies, whose package does not import as it is; see `_cords`.

    Does nothing where CORDS is not installed, or not whole, and the module is not one of CORDS'.

    Args:
        module: dotted name of the module that will be imported.

    Raises:
        UserError: the module is one of CORDS', and CORDS cannot be imported.
    """
    own = module.partition(".")[0] == "cords"
    if own:
        importlib.import_module("robustcords.selection.cords._cords")
    elif importlib.util.find_spec("cords"):
        with suppress(UserError):
            importlib.import_module("robustcords.selection.cords._cords")


def adapted(found: Any) -> Any:
    """Returns a selector for a strategy of CORDS or a subclass of one, and anything else as it is.

    Raises:
        UserError: the strategy has a parameter that neither a selection nor a recipe has a value for, or CORDS could
            not import it.
    """
    if not isinstance(found, type) or issubclass(found, Strategy):
        return found
    if text := getattr(found, "unavailable", None):
        raise UserError(text)
    if not any(base.__module__.partition(".")[0] == "cords" for base in found.__mro__):
        return found
    from robustcords.selection.cords.strategy import selector

    strategy: Any = found
    return selector(strategy)
