"""What a training step of each method costs: by what it computes, and by the clock.

    python benchmarks/method_cost.py [RECIPE[+KEY=VALUE]...] [--network resnet8] [--batch 128] [--repeats 5]

A recipe is a shipped one or a file, changed by what follows a plus: ``cifar10_trades+bullet=true``. Its data are images
of CIFAR-10's shape that are made up, its network each ``--network``. All methods train in one process and take turns,
step by step, in the middle of their runs, where schedules and warm-ups of methods are over; selection, validation and
checkpoints are not looked at.

A *unit* is the forward pass of one image. Everything that a step computes is counted in units, by torch's own counter
of the FLOPs in convolutions and matrix products: a backward pass to the image is about one unit, and the gradients of
the weights another one, so that an attack step has two and an update with one view three. With the milliseconds of
PGD-10 TRADES, that count says how long a step should take; "share of the count" is that by how long it takes.
"""

from __future__ import annotations

import argparse
import platform
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from epoch_cost import images_of
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

from robustcords.engine.modes import evaluation_mode
from robustcords.experiments import build
from robustcords.losses.context import Moment
from robustcords.recipe.recipe import Recipe, load
from robustcords.runtime.session import Session
from robustcords.selection.selector import everything
from robustcords.training.trainer import Trainer

REFERENCE = "cifar10_trades"
RECIPES = (
    "cifar10_fgsm_rs",
    "cifar10_n_fgsm",
    "cifar10_kim",
    "cifar10_atas",
    "cifar10_free",
    "cifar10_grad_align",
    "cifar10_fast_bat",
    "cifar10_nuat",
    "cifar10_awp",
    "cifar10_fat",
    "cifar10_cat",
    "cifar10_acat",
    "cifar10_mart",
    "cifar10_trades+bullet=true",
)
STEPS = 8
"""Batches of an epoch."""


class Flops(TorchDispatchMode):
    """Adds up the FLOPs of convolutions and matrix products, as torch's own `FlopCounterMode`.

    That also follows modules, and so may not see a gradient by a module's input taken alone, as every attack takes it.
    """

    total: int = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        count: Callable[..., int] | None = flop_registry.get(func.overloadpacket)
        if count:
            self.total += count(*args, **(kwargs or {}), out_val=result)
        return result


@dataclass
class Contender:
    """A method in the middle of its training.

    Attributes:
        name: of its recipe.
        recipe: what it trains by.
        trainer: takes its steps.
        units: of each counted step, an image.
        seconds: of each measured step.
        taken: steps so far.
    """

    name: str
    recipe: Recipe
    trainer: Trainer
    units: list[float] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)
    taken: int = 0

    def step(self) -> float:
        """Takes a step, its batch loaded and augmented; returns its seconds."""
        trainer, subset = self.trainer, everything(len(self.trainer.train))
        epochs = self.recipe.train.epochs or STEPS  # a budget in time says none
        epoch = epochs // 2
        batches = trainer.loader.order(epoch, subset)
        place = self.taken % len(batches)
        self.taken += 1
        begin = time.perf_counter()
        batch = trainer.loader.load(batches[place], subset, epoch)
        trainer.train_step(batch, Moment(epoch, place, (epoch + place / len(batches)) / epochs))
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        return time.perf_counter() - begin

    def count(self, unit: float) -> None:
        """Counts what a step computes; recorded passes are not seen, so none is replayed."""
        replay, self.trainer.inference.replay = self.trainer.inference.replay, False
        with Flops() as counter:
            self.step()
        self.trainer.inference.replay = replay
        self.units.append(counter.total / unit / self.recipe.train.batch_size)


def contender(text: str, network: str, batch: int) -> Contender:
    """Returns the method of a recipe and its changes on a network."""
    name, *changes = text.split("+")
    data = ["data.name=epoch_cost:MadeUp", f"data.count={batch * STEPS}", "data.validation_fraction=0"]
    settings = [f"model={{name = '{network}'}}", f"train.batch_size={batch}", "selector=false"]
    recipe = load(name, [*data, *settings, *changes])
    images = images_of(recipe, batch * STEPS)
    trainer = build.trainer(recipe, images, Session(build.accelerator(recipe)))
    trainer.model.train()
    return Contender(text, recipe, trainer)


def forward_flops(model: nn.Module) -> int:
    """Returns the FLOPs of one image's forward pass in eval mode."""
    device = next(model.parameters()).device
    with evaluation_mode(model), torch.no_grad(), Flops() as counter:
        model(torch.rand(1, 3, 32, 32, device=device))
    return int(counter.total)


def measure(network: str, options: argparse.Namespace) -> None:
    names = [REFERENCE, *(name for name in options.recipes if name != REFERENCE)]
    methods = [contender(name, network, options.batch) for name in names]
    unit = forward_flops(methods[0].trainer.model)
    for number in range(options.warm_up + options.repeats):
        for each in methods:
            taken = each.step()
            if number >= options.warm_up:
                each.seconds.append(taken)
                each.count(unit)
    reference = methods[0]
    base = statistics.median(reference.seconds) / statistics.mean(reference.units)
    for each in methods:
        seconds, units = statistics.median(each.seconds), statistics.mean(each.units)
        against = statistics.median(mine / theirs for mine, theirs in zip(each.seconds, reference.seconds, strict=True))
        cells = [network, each.name, f"{units:.2f}", f"{seconds * 1e3:.1f}", f"{options.batch / seconds:.0f}"]
        print(f"| {' | '.join([*cells, f'{against:.2f}', f'{units * base / seconds:.0%}'])} |", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recipes", nargs="*", default=RECIPES, metavar="RECIPE", help="left out, one of each method")
    parser.add_argument("--network", action="append", help="may be repeated; left out, resnet8 and resnet18")
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--repeats", type=int, default=5, help="measured steps, and as many counted ones")
    parser.add_argument("--warm-up", type=int, default=2, help="steps before the first measured one")
    options = parser.parse_args()
    print(f"{platform.machine()}, {torch.get_num_threads()} threads, torch {torch.__version__}\n")
    print("| network | recipe | units an image | ms a step | images/s | of PGD-10 TRADES | share of the count |")
    print("|:--|:--|--:|--:|--:|--:|--:|")
    for network in options.network or ("resnet8", "resnet18"):
        measure(network, options)


if __name__ == "__main__":
    main()
