"""Whether what a selector chooses is more than a random choice, for every selector.

    python benchmarks/random_choice.py RUN_DIR [--images 6000] [--shuffles 50] [--selector "NAME KEY=VALUE ..."]...

Selects twice, with other random numbers, from part of a run's training split with the weights that it ended with.
Prints a Markdown table of the share of Adv-GLISTER's picks for which the validation gradient was not 0 (where it is, a
pick is as random as the examples that it is taken from), and of two measures, each beside what chance gives:

* *overlap*: the share of one choice that the other makes again;
* *loss ahead*: the value of Eq. 5 of Li et al. 2023, the mean cross-entropy at adversarial validation examples after
  one step of the last layer along the chosen examples' gradients. Selectors with an eta take their own step, all
  classes together; for the others it is `--step` times the mean gradient, weighted as they weigh examples.

Chance is what remains where gradients are shuffled among the examples of a class: the same choice then falls on others
of the same classes. The spread over such shuffles says how far from chance each measure is, in standard deviations (z):
above 0 for the overlap, below 0 for the loss means more than a random choice. With ``per_batch`` the two draws have
other batches too, so their overlap is that of chance where batches hardly differ.
"""

from __future__ import annotations

import argparse
import json
import platform
import tomllib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple
from unittest.mock import patch

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils.data import DataLoader

from robustcords.engine.inference import Inference
from robustcords.engine.memory_format import lay_out
from robustcords.errors import UserError
from robustcords.experiments import build
from robustcords.recipe.recipe import Recipe, load
from robustcords.recipe.tables import find
from robustcords.rng import generator
from robustcords.selection.base import SelectionContext
from robustcords.selection.gradients.factors import LastLayerGradients
from robustcords.selection.gradients.validation_gradient import ValidationGradient
from robustcords.selection.selector import SubsetSelector
from robustcords.selection.solvers import greedy
from robustcords.selection.strategies import STRATEGIES
from robustcords.selection.strategies.adv_glister import AdvGLISTERStrategy
from robustcords.storage.run_directory import RunDirectory

OF_NO_SIZE = {"fixed", "infobatch"}
"""Selectors that do not choose a given share of the images."""


class Measure(NamedTuple):
    """A number, beside what it is by chance."""

    found: float
    chance: Tensor

    def __str__(self) -> str:
        """Returns the cells found, chance and z."""
        spread = self.chance.std()
        z = f"{(self.found - self.chance.mean()) / spread:.1f}" if spread > 0 else ""
        return f"{self.found:.4g} | {self.chance.mean():.4g} | {z}"


class Judge:
    """Attacks part of a run's data once, and says what a choice is worth.

    Args:
        recipe: of the run.
        model: its network, with its last weights.
        images: its data.
        count: candidates.
        step: learning rate of the look-ahead, on the mean gradient.
    """

    def __init__(self, recipe: Recipe, model: Inference, images: build.Data, count: int, step: float) -> None:
        rows = torch.randperm(len(images.train), generator=generator(0, "random-choice"))[:count].sort().values
        self.recipe, self.model, self.step = recipe, model, step
        self.train, self.validation = images.train.subset(rows), images.validation
        assert self.validation is not None, "the run needs a validation split"
        size = recipe.train.batch_size
        context = SelectionContext(
            train_loader=DataLoader(self.train, batch_size=size),
            val_loader=DataLoader(self.validation, batch_size=size),
            model=model,
            loss=build.component("loss", recipe.loss),
            attack=build.attack(recipe),
            num_classes=len(self.train.classes),
            device=torch.device("cpu"),
            seed=7,  # none of the selections' own
        )
        strategy = AdvGLISTERStrategy.from_context(AdvGLISTERStrategy.Config(granularity="full", eta=0.0), context)
        strategy.compute_gradients(valid=True)
        self.gradients: LastLayerGradients = replace(strategy.gradients, logits=())
        self.beside = strategy.validation_gradients

    def select(self, config: Any, seed: int) -> tuple[Tensor, Tensor]:
        """Returns the rows (k,) and weights (k,) of a selector's choice."""
        selector = SubsetSelector(find("selector", config.name), config, validation=self.validation)
        selector.bind(
            self.train,
            loss=build.component("loss", self.recipe.loss),
            attack=build.attack(self.recipe),
            epochs=10,
            batch_size=self.recipe.train.batch_size,
            seed=seed,
            lr=getattr(self.recipe.optimizer, "lr", None),
        )
        subset = selector.select(1, self.model)
        return subset.indices, subset.weights

    def loss_ahead(self, config: Any, rows: Tensor, weights: Tensor) -> float:
        """Returns the mean validation loss after the step that a selector looks ahead by."""
        if not hasattr(config, "eta"):
            return self._loss_after(self.step * self.gradients.rows(rows).sum(weights) / weights.sum())
        on_the_sum = config.eta == "lr" or config.name == "glister"
        eta: float = getattr(self.recipe.optimizer, "lr", 0.1) if config.eta == "lr" else config.eta
        count = 1 if on_the_sum else len(rows)
        if on_the_sum and config.granularity == "per_batch":
            count = self.recipe.train.batch_size  # the gradient of a batch is its examples' mean
        return self._loss_after(eta * self.gradients.rows(rows).sum() / count)

    def _loss_after(self, step: Tensor) -> float:
        """Returns the mean loss of the validation examples once the last layer has moved."""
        z, h = (part[0].double() for part in (self.beside.logits, self.beside.features))
        moved = z - h @ step[:, 1:].T - step[:, 0]
        return float(F.cross_entropy(moved, self.beside.labels))

    def shuffled(self, rows: Tensor, number: int) -> Tensor:
        """Returns a choice as it falls where gradients are shuffled among the examples of a class."""
        draw = generator(number, "shuffle")
        target = torch.arange(len(self.train))
        for label in range(len(self.train.classes)):
            same = (self.train.labels == label).nonzero().view(-1)
            target[same] = same[torch.randperm(len(same), generator=draw)]
        return target[rows]


def config_of(spec: str) -> Any:
    """Returns a selector's options from ``"NAME KEY=VALUE ..."``."""
    name, *changes = spec.split()
    values: dict[str, Any] = {"fraction": 0.3}
    for change in changes:
        key, _, value = change.partition("=")
        try:
            values |= tomllib.loads(f"{key} = {value}")
        except tomllib.TOMLDecodeError:
            values[key] = value
    return find("selector", name).Config(name=name, **values)


@contextmanager
def watched() -> Iterator[list[bool]]:
    """Context that yields whether Adv-GLISTER had a gradient to follow, for each round of picks."""
    found: list[bool] = []

    class Watched(ValidationGradient):
        def now(self) -> Tensor:
            gradient = super().now()
            found.append(bool(gradient.any()))
            return gradient

    with patch.object(greedy, "ValidationGradient", Watched):
        yield found


def judged(judge: Judge, spec: str, shuffles: int) -> str:
    config = config_of(spec)
    with watched() as picks:
        rows, weights = judge.select(config, 0)
    others, _ = judge.select(config, 1)
    moved = [judge.shuffled(rows, number) for number in range(shuffles)]

    def overlap(chosen: Tensor) -> float:
        return float(torch.isin(chosen, others).double().mean())

    shared = Measure(overlap(rows), torch.tensor([overlap(each) for each in moved]))
    ahead = Measure(
        judge.loss_ahead(config, rows, weights),
        torch.tensor([judge.loss_ahead(config, each, weights) for each in moved]),
    )
    followed = f"{sum(picks) / len(picks):.0%}" if picks else ""
    return f"| {spec} | {followed} | {shared} | {ahead} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run_dir", type=Path)
    parser.add_argument("--images", type=int, default=6000)
    parser.add_argument("--shuffles", type=int, default=50)
    parser.add_argument("--step", type=float, default=0.1, help="learning rate of the look-ahead")
    parser.add_argument("--selector", action="append", help="left out, all of them with their default options")
    parser.add_argument("--data-path", default="", help="folder of the data, where it is not the recipe's")
    options = parser.parse_args()
    directory = RunDirectory(options.run_dir, writes=False)
    changes = [f"data.path={json.dumps(options.data_path)}"] if options.data_path else []
    recipe = load(directory.recipe, changes, of_run=True)
    images = build.data(recipe)
    network = build.model(recipe, images)
    build.load_weights(network, directory.weights("last"))
    model = Inference(lay_out(network.eval(), torch.device("cpu"), recipe.train.memory_format))
    judge = Judge(recipe, model, images, options.images, options.step)
    print(f"{platform.machine()}, torch {torch.__version__}; {options.run_dir}, {options.images} candidates\n")
    print("| selector | picks by a gradient | overlap | by chance | z | loss ahead | by chance | z |")
    print("|:--|--:|--:|--:|--:|--:|--:|--:|")
    for spec in options.selector or [name for name in STRATEGIES if name not in OF_NO_SIZE]:
        try:
            print(judged(judge, spec, options.shuffles), flush=True)
        except UserError as error:
            print(f"| {spec} | {error} | | | | | | |", flush=True)


if __name__ == "__main__":
    main()
