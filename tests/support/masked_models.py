"""A linear classifier of scikit-learn's digits, honest or with gradients that say nothing, for recipes to name."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn import functional as F

from robustcords.data.images import ImageSet
from robustcords.experiments import build
from robustcords.experiments.run import plain
from robustcords.recipe import recipe
from robustcords.recipe.recipe import Recipe
from robustcords.storage.files import write_json

KINDS: dict[str, Callable[[nn.Module, Tensor], Tensor]] = {
    "honest": lambda linear, x: linear(x),
    # Athalye et al. 2018: stochastic, zero (a rounded input, a softmax that saturates) and shattered gradients.
    "randomised": lambda linear, x: linear(F.dropout(x, 0.5, training=True)),
    "quantised": lambda linear, x: linear(x.round()),
    "saturated": lambda linear, x: 1e4 * linear(x),
    "shattered": lambda linear, x: linear(x + 0.02 * torch.sin(1e3 * x)),
}


class Linear(nn.Module):
    """One linear layer on pixels, and what ``kind`` makes of it."""

    def __init__(self, num_classes: int, kind: str = "honest") -> None:
        super().__init__()
        self.kind = kind
        self.linear = nn.Linear(64, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        return KINDS[self.kind](self.linear, x.flatten(1))


def trained(kind: str) -> tuple[Recipe, nn.Module, ImageSet]:
    """Returns a recipe, its model with the weights of a ridge regression, and the test images."""
    model = f'model={{name = "support.masked_models:Linear", kind = "{kind}"}}'
    extends = recipe.load("digits_mart", ["selector=false", model, "evaluation.pgd={steps = 10, restarts = 2}"])
    images = build.data(extends)
    model = build.model(extends, images)
    x, y = images.train.batch(torch.arange(len(images.train)))
    features = F.pad(model.normalize(x).flatten(1), (0, 1), value=1.0).double()
    targets = 10 * F.one_hot(y).double() - 5
    solution = torch.linalg.solve(features.T @ features + 30 * torch.eye(65), features.T @ targets).float()
    with torch.no_grad():
        model.network.linear.weight.copy_(solution[:64].T)
        model.network.linear.bias.copy_(solution[64])
    return extends, model.eval(), images.test


def write(folder: Path, kind: str) -> None:
    """Writes the recipe and the weights of `trained` where a run has them, and a report to add to."""
    chosen, model, _ = trained(kind)
    (folder / "recipe.toml").write_text(recipe.dump(chosen))
    (folder / "weights").mkdir()
    save_file(model.state_dict(), folder / "weights" / "last.safetensors")
    around = {"device": "a processor", "world_size": 1, "threads": 1, "versions": {}, "precision": "fp32"}
    (folder / "environment.json").write_text(json.dumps(around))
    (folder / "metrics.jsonl").touch()
    training = {"epochs": 1, "seconds": {"total": 1.0}, "selections": []}
    evaluation = {"last": {"clean": 0.5, "examples": 100}}
    report = {"recipe": plain(chosen), "environment": around, "training": training, "evaluation": evaluation}
    write_json(folder / "report.json", report)
