"""A model's network as a file of its own, which needs torch and, where it is another library's, that library."""

from __future__ import annotations

import ast
import inspect
import sys
from types import ModuleType
from typing import Any

from robustcords.errors import UserError
from robustcords.experiments import build
from robustcords.models.base import OwnModel
from robustcords.recipe.recipe import Recipe

_LIBRARIES = {
    "torchvision:": (
        "import torchvision",
        "torchvision.models.get_model({name!r}, weights=None, num_classes={classes})",
    ),
    "timm:": ("import timm", "timm.create_model({name!r}, in_chans={channels}, num_classes={classes})"),
}
"""Prefix of a model's name to what its definition imports, and how it makes the network."""

_MODEL = '''

class Normalize(nn.Module):
    """``(x - mean) / std`` per channel; the weights have both."""

    def __init__(self, channels):
        super().__init__()
        self.register_buffer("mean", torch.zeros(channels))
        self.register_buffer("std", torch.ones(channels))

    def forward(self, x):
        return (x - self.mean.view(-1, 1, 1)) / self.std.view(-1, 1, 1)


class Model(nn.Module):
    """Images (B, SHAPE) in [0, 1] to logits (B, CLASSES)."""

    def __init__(self):
        super().__init__()
        self.normalize = Normalize(CHANNELS)
        self.network = NETWORK

    def forward(self, x):
        return self.network(self.normalize(x))
'''


def definition(recipe: Recipe, shape: tuple[int, int, int], classes: int) -> str:
    """Returns a module's source, with a class ``Model`` whose state dict has the names of the run's weights.

    Args:
        recipe: says the model.
        shape: (C, H, W) of the images.
        classes: number of logits.

    Raises:
        UserError: it is neither a model of this package nor one of torchvision's or timm's.
    """
    source, name = build.component("model", recipe.model), recipe.model.name
    imports = ["import torch", "from torch import nn"]
    parts: list[str] = []
    if isinstance(source, OwnModel):
        kind, arguments = source.made_of(shape[0], classes)
        network = f"{kind.__name__}({', '.join(f'{key}={value!r}' for key, value in arguments.items())})"
        more, parts = _sources(kind)
        imports += more
    else:
        prefix = next((prefix for prefix in _LIBRARIES if name.startswith(prefix)), None)
        if prefix is None:
            raise UserError(
                f"model {name!r}: there is no code to write for it: only for the models of this package, "
                "torchvision's and timm's; --to torch takes any"
            )
        library, call = _LIBRARIES[prefix]
        network = call.format(name=name.removeprefix(prefix), channels=shape[0], classes=classes)
        imports.append(library)
    said = {"SHAPE": ", ".join(map(str, shape)), "CLASSES": str(classes), "CHANNELS": str(shape[0]), "NETWORK": network}
    model = _MODEL
    for key, value in said.items():
        model = model.replace(key, value)
    head = [f'"""{name}, with its normalisation."""', "", "from __future__ import annotations", ""]
    return "\n".join(
        [
            *head,
            *sorted(set(imports), key=lambda line: (line.startswith("from"), line)),
            *(f"\n\n{part.rstrip()}" for part in parts),
            model,
        ]
    )


def _sources(kind: type) -> tuple[list[str], list[str]]:
    """Returns what a class's source imports from elsewhere, and its source after that of all that it uses of here."""
    imports: list[str] = []
    parts: dict[str, str] = {}

    def add(thing: Any) -> None:
        text, module = inspect.getsource(thing), sys.modules[thing.__module__]
        names = sorted({node.id for node in ast.walk(ast.parse(text)) if isinstance(node, ast.Name)})
        for name in names:
            used = getattr(module, name, None)
            if isinstance(used, ModuleType):
                package, _, last = used.__name__.rpartition(".")
                imports.append(f"from {package} import {last}" + (f" as {name}" if name != last else ""))
            elif not callable(used) or name in parts or used is thing:
                continue
            elif used.__module__.startswith("robustcords."):
                add(used)
            else:
                imports.append(f"from {used.__module__} import {name}")
        parts[thing.__name__] = text

    add(kind)
    return imports, list(parts.values())
