"""What `from robustcords import ...` gives, to Python and to a type checker."""

from __future__ import annotations

import ast
import importlib
import inspect
from pathlib import Path

import pytest
from support.cases import cases

import robustcords

SOURCE = Path(robustcords.__file__)


@cases("name", robustcords.__all__)
def test_every_public_name_is_there(name: str):
    value = getattr(robustcords, name)
    assert value.__doc__
    assert value is getattr(importlib.import_module(robustcords._MODULES[name]), name)
    if isinstance(value, type) or inspect.isfunction(value):  # an alias of a type has no place of its own
        assert value.__module__ == robustcords._MODULES[name]


def test_type_checkers_see_the_same():
    block, *_ = [node for node in ast.parse(SOURCE.read_text()).body if isinstance(node, ast.If)]
    names = [alias.asname for node in block.body if isinstance(node, ast.ImportFrom) for alias in node.names]
    assert names == robustcords.__all__


def test_what_is_not_there_is_an_import_error():
    with pytest.raises(ImportError, match="cannot import name 'PDG'"):
        exec("from robustcords import PDG")
    assert "PGD" in dir(robustcords)
