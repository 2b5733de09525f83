"""No option of a recipe is there for nothing."""

from __future__ import annotations

import ast
import inspect
from collections.abc import Iterator
from pathlib import Path

import torch
from support.cases import cases

from robustcords.config import registry
from robustcords.recipe import recipe, tables

PACKAGE = Path(recipe.__file__).parents[1]


def read(tree: ast.AST) -> Iterator[str]:
    """Yields the names of the attributes that code reads, also by `getattr`."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Load):
            yield node.attr
        elif isinstance(node, ast.Call) and ast.unparse(node.func) == "getattr":
            yield from (str(each.value) for each in node.args[1:2] if isinstance(each, ast.Constant))


READ = {name for file in PACKAGE.rglob("*.py") for name in read(ast.parse(file.read_text(encoding="utf-8")))}
COMPONENTS = {
    f"{kind} {name}": registry.config_of(tables.find(kind, name))
    for kind in registry.KINDS
    for name in registry.names(kind)
}
TABLES = {".".join(path): registry.imported(target) for path, target in tables.TABLES.items()}


@cases("where", [*COMPONENTS, *TABLES])
def test_every_key_is_read(where: str):
    # An optimizer's are handed to torch's class as they are.
    handed_on = {"optimizer sgd": torch.optim.SGD, "optimizer adamw": torch.optim.AdamW}.get(where)
    elsewhere = set(inspect.signature(handed_on).parameters) if handed_on else set()
    assert set((COMPONENTS | TABLES)[where].model_fields) <= READ | elsewhere


def test_one_that_is_not_read_would_be_noticed():
    assert set(read(ast.parse("a.b = c.d; getattr(e, 'f', g.h)"))) == {"d", "f", "h"}
    assert not {"v1", "unread_option"} & READ
