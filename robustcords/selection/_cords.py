"""Imports CORDS' strategies without the parts that no longer import (Killamsetty et al.; version 0.0.4).

``cords.selectionstrategies.SL`` imports every strategy it has, and with them ``sklearn.datasets.load_boston`` and
apricot. A stand-in for that package, put into ``sys.modules`` first, has the same modules and finds the same names,
each when it is asked for. CORDS' own data loaders, which import their strategies from there, work with it too.
"""

from __future__ import annotations

import importlib
import logging
import sys
import warnings
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

from robustcords.errors import UserError

_PACKAGE = "cords.selectionstrategies.SL"

_HOMES = {
    "AdapWeightsStrategy": "adapweightsstrategy",
    "CRAIGStrategy": "craigstrategy",
    "DataSelectionStrategy": "dataselectionstrategy",
    "FixedWeightStrategy": "fixedweightstrategy",
    "GLISTERStrategy": "glisterstrategy",
    "GradMatchStrategy": "gradmatchstrategy",
    "RandomStrategy": "randomstrategy",
    "SELCONstrategy": "selconstrategy",
    "SubmodularSelectionStrategy": "submodularselectionstrategy",
}
"""The names of the package that is stood in for, and the module each one is in."""


class _StandIn(ModuleType):
    """The package, without what its ``__init__`` runs."""

    def __getattr__(self, name: str) -> Any:
        if name not in _HOMES:
            raise AttributeError(f"module {_PACKAGE!r} has no attribute {name!r}")
        try:
            found = getattr(_import(f"{_PACKAGE}.{_HOMES[name]}"), name)
        except ImportError as error:
            found = _unavailable(name, error)
        setattr(self, name, found)
        return found

    def __dir__(self) -> list[str]:
        return sorted({*vars(self), *_HOMES})


def _import(module: str) -> ModuleType:
    """Imports a module of CORDS and undoes its ``np.seterr(all="raise")``, which is for the whole process."""
    before = np.geterr()
    try:
        with warnings.catch_warnings():  # its sources have escape sequences that compilers warn of
            warnings.simplefilter("ignore")
            return importlib.import_module(module)
    finally:
        np.seterr(**before)


def _unavailable(name: str, cause: ImportError) -> type:
    """Returns a class that says, when it is used, what CORDS' class of that name could not import.

    CORDS' data loaders are one package and import all strategies, so one that cannot be imported must not stop the
    others.
    """

    def refuse(self: object, *args: object, **kwargs: object) -> None:
        raise UserError(text) from cause

    cure = "; `pip install apricot-select` installs it" if cause.name == "apricot" else ""
    text = f"cords' {name} cannot be imported: {str(cause).strip().partition(chr(10))[0]}{cure}"
    return type(name, (), {"__init__": refuse, "__doc__": f"Unavailable: {cause}.", "unavailable": text})


def _install() -> None:
    """Puts the stand-in where CORDS' package would be; leaves alone one that is imported already."""
    parent = importlib.import_module(_PACKAGE.rpartition(".")[0])
    if _PACKAGE in sys.modules:
        return
    package = _StandIn(_PACKAGE)
    package.__path__ = [str(Path(folder) / "SL") for folder in parent.__path__]
    package.__spec__ = ModuleSpec(_PACKAGE, None, is_package=True)
    package.__spec__.submodule_search_locations = package.__path__
    sys.modules[_PACKAGE] = package
    parent.SL = package  # type: ignore[attr-defined]


_before = np.geterr()
try:
    with warnings.catch_warnings(action="ignore"):  # as in `_import`
        _install()
        from cords.selectionstrategies.SL.dataselectionstrategy import DataSelectionStrategy
        from cords.selectionstrategies.SL.glisterstrategy import GLISTERStrategy
        from cords.selectionstrategies.SL.gradmatchstrategy import GradMatchStrategy
except ImportError as error:
    raise UserError(
        f"this strategy builds on CORDS, which cannot be imported ({error}): `uv run` installs it, and so does "
        "`pip install --no-deps cords==0.0.4`"
    ) from error
finally:
    np.seterr(**_before)

# SubmodularSelectionStrategy does not hand its base a logger, which its base has no default for.
DataSelectionStrategy.__init__.__defaults__ = (logging.getLogger("cords"),)

_greedy_algo = GLISTERStrategy.greedy_algo


def _finishing(strategy: Any, budget: int) -> Any:
    """GLISTER's greedy choice; RGreedy takes ``budget // r`` at a time, which for a budget below r is 0 for ever."""
    rounds, strategy.r = strategy.r, max(1, min(strategy.r, budget))
    try:
        return _greedy_algo(strategy, budget)
    finally:
        strategy.r = rounds


GLISTERStrategy.greedy_algo = _finishing

__all__ = ["DataSelectionStrategy", "GLISTERStrategy", "GradMatchStrategy"]
