"""What `from robustcords import ...` gives, to Python and to a type checker."""

from __future__ import annotations

import ast
import importlib
import inspect
from pathlib import Path

import pytest

import robustcords

SOURCE = Path(robustcords.__file__)


@pytest.mark.parametrize("name", robustcords.__all__)
def test_every_public_name_is_there(name: str):
    value = getattr(robustcords, name)
    assert value.__doc__
    module, _, own = robustcords._PUBLIC[name].partition(":")
    assert value is getattr(importlib.import_module(f"robustcords.{module}"), own)
    if isinstance(value, type) or inspect.isfunction(value):  # an alias of a type has no place of its own
        assert (value.__module__, value.__name__) == (f"robustcords.{module}", own)


def test_type_checkers_see_the_same():
    [block] = [node for node in ast.parse(SOURCE.read_text()).body if isinstance(node, ast.If)]
    seen = {
        alias.asname or alias.name: f"{node.module}:{alias.name}".removeprefix("robustcords.")
        for node in block.body
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    }
    assert seen == robustcords._PUBLIC
    assert sorted(robustcords.__all__) == sorted(seen)


def test_what_is_not_there_is_an_import_error():
    with pytest.raises(ImportError, match="cannot import name 'PDG'"):
        exec("from robustcords import PDG")
    assert "PGD" in dir(robustcords)
