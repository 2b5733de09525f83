"""What an epoch costs: on a fraction of the data, and with Bullet-Train's fewer attack steps.

    python benchmarks/epoch_cost.py fraction [--data-path DIR] [--images 10000] [--large-images 2560]
    python benchmarks/epoch_cost.py bullet [--data-path DIR] [--images 10000] [--warm-up 1] [--weights FILE]

Trains with the recipe ``cifar10_small_trades``, on CIFAR-10 from a folder of parquet files, or without ``--data-path``
on made-up images of the same shape. ``--set KEY=VALUE`` changes the recipe, as for ``robustcords run``.

``fraction`` compares epochs on random subsets, chosen beforehand, with epochs on everything, and says which share of an
epoch is loading and augmentation. ``bullet`` predicts an epoch with Bullet-Train from how many examples it found of
each kind, and from what one attack step, one forward in eval mode and one update cost an image; these come from epochs
on full batches in which every image gets 10 attack steps, or none. Seconds are those of metrics.jsonl, without
selection, validation and checkpoints. Epochs of all kinds take turns; figures are medians over ``--repeats`` rounds.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Annotated

import torch
from pydantic import Field
from torch.nn.functional import interpolate

from robustcords.attacks.pgd import PGD
from robustcords.data.base import DataConfig, DataSource, Splits
from robustcords.data.images import Images, ImageSet
from robustcords.experiments import build
from robustcords.methods.efforts.bullet import KINDS, Bullet
from robustcords.methods.efforts.uniform import Uniform
from robustcords.recipe.recipe import Recipe, load
from robustcords.rng import derive, generator
from robustcords.runtime.session import Session
from robustcords.selection.selector import Subset, everything
from robustcords.training.state import Progress
from robustcords.training.trainer import Trainer

FRACTIONS = (0.1, 0.3, 0.5)
STEPS = 10
WRONG = 0.2


class MadeUp(DataSource):
    """Images of CIFAR-10's shape that a small network learns to tell apart: one blurred pattern a class, and noise.

    A fifth of the labels are wrong, so that there are outliers.
    """

    class Config(DataConfig):
        """Options of made-up images.

        Attributes:
            count: training images.
        """

        count: Annotated[int, Field(ge=10)] = 50_000

    config: MadeUp.Config
    crop, flip = 4, True

    def load(self) -> Splits:
        """Returns made-up training and test sets."""
        return Splits(self._images("training", self.config.count), self._images("test", 10))

    def _images(self, split: str, count: int) -> ImageSet:
        patterns = torch.rand((10, 3, 4, 4), generator=generator(0, "patterns"))
        means = interpolate(patterns, size=(32, 32), mode="bilinear")
        source = generator(0, split)
        labels = torch.randint(10, (count,), generator=source)
        images = torch.empty((count, 3, 32, 32), dtype=torch.uint8)
        for rows in torch.arange(count).split(1000):
            noise = torch.randn((len(rows), 3, 32, 32), generator=source)
            images[rows] = (means[labels[rows]] + 0.3 * noise).clamp_(0, 1).mul_(255).byte()
        wrong = torch.rand(count, generator=source) < WRONG
        labels[wrong] = (labels[wrong] + 1) % 10
        return ImageSet(images, labels, tuple(map(str, range(10))))


def data_options(parser: argparse.ArgumentParser) -> None:
    """Adds what both benchmarks of epochs know of data and recipes."""
    parser.add_argument("--data-path", default="", help="folder of CIFAR-10's parquet files; left out, made-up images")
    parser.add_argument("--images", type=int, default=10_000, help="training images")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--weights", type=Path, help="start from the weights of a safetensors file")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="change a key of the recipe")


def recipe_of(name: str, options: argparse.Namespace, overrides: Sequence[str] = ()) -> Recipe:
    """Returns a shipped recipe with this data, and ``--set`` on top."""
    data = [f"data.path={json.dumps(options.data_path)}"] if options.data_path else ["data.name=epoch_cost:MadeUp"]
    return load(name, [*data, *overrides, *options.set])


def images_of(recipe: Recipe, count: int) -> build.Data:
    """Returns the recipe's data with a random part of it, training and validation images by the same share."""
    whole = build.data(recipe)
    share = min(1.0, count / (len(whole.train) + len(whole.validation or ())))
    validation = part_of(whole.validation, share) if whole.validation else None
    return replace(whole, train=part_of(whole.train, share), validation=validation)


def part_of(images: Images, share: float) -> Images:
    """Returns a random share of some images."""
    rows = torch.randperm(len(images), generator=generator(0, "benchmark"))[: round(share * len(images))]
    return images.subset(rows)


def trainer_of(recipe: Recipe, images: build.Data, weights: Path | None) -> Trainer:
    """Returns a trainer, from the weights if there are any."""
    trainer = build.trainer(recipe, images, Session(build.accelerator(recipe)))
    if weights:
        build.load_weights(trainer.model, weights)
    return trainer


def epoch(trainer: Trainer, subset: Subset, number: int) -> tuple[dict[str, float], dict[str, int]]:
    """Trains an epoch; returns its seconds by phase, and the counts of Bullet-Train."""
    trainer.progress = Progress(epoch=number)
    trainer.stopwatch.restart("data")
    trainer.train_epoch(number, subset)
    return trainer.stopwatch.seconds(), trainer.progress.counts


def fraction(options: argparse.Namespace) -> None:
    print("| network | images | fraction | s | s of all | ratio / fraction | data, % of the epoch |")
    print("|:--|--:|--:|--:|--:|--:|--:|")
    for name, count in (("resnet8", options.images), ("resnet18", options.large_images)):
        recipe = recipe_of(
            "cifar10_small_trades", options, [f"model.name={name}", f"train.epochs={options.repeats + 1}"]
        )
        images = images_of(recipe, count)
        trainer = trainer_of(recipe, images, options.weights if name == "resnet8" else None)
        subsets = {share: random_subset(len(images.train), share) for share in FRACTIONS}
        subsets[1.0] = everything(len(images.train))
        epoch(trainer, subsets[FRACTIONS[0]], 0)
        rounds = [
            {share: epoch(trainer, subset, number + 1)[0] for share, subset in subsets.items()}
            for number in range(options.repeats)
        ]
        for share, subset in subsets.items():
            ratio = statistics.median(each[share]["total"] / each[1.0]["total"] for each in rounds)
            taken, whole = (statistics.median(each[key]["total"] for each in rounds) for key in (share, 1.0))
            data = statistics.median(each[share]["data"] / each[share]["total"] for each in rounds)
            cells = f"{share} | {taken:.2f} | {whole:.2f} | {ratio / share:.3f} | {data:.2%}"
            print(f"| {name} | {len(subset.indices)} | {cells} |", flush=True)


def random_subset(size: int, share: float) -> Subset:
    rows = torch.randperm(size, generator=generator(derive(0, "fraction"), "subset"))[: round(share * size)]
    return Subset(rows.sort().values, torch.ones(len(rows)))


def bullet(options: argparse.Namespace) -> None:
    epochs = f"train.epochs={options.warm_up + options.repeats}"
    recipe = recipe_of("cifar10_small_trades", options, ["bullet=true", epochs])
    images = images_of(recipe, options.images)
    subset = everything(len(images.train))
    trainer = trainer_of(recipe, images, options.weights)
    uniform = {steps: trainer_of(recipe, images, options.weights) for steps in (0, STEPS)}
    for steps, each in uniform.items():
        each.method.attack = PGD(recipe.threat, steps=STEPS)
        # All kinds alike without steps: the forward that classifies, and nothing else.
        each.method.effort = Bullet(steps=dict.fromkeys(KINDS, 0)) if steps == 0 else Uniform()
        epoch(each, random_subset(len(images.train), 0.1), 0)
    for number in range(options.warm_up):
        epoch(trainer, subset, number)
    print("| outlier | boundary | robust | step, µs | forward, µs | update, µs | predicted, s | s | s / predicted |")
    print(f"|--:{'|--:' * 8}|")
    ratios = []
    for number in range(options.warm_up, options.warm_up + options.repeats):
        without, full = (epoch(uniform[steps], subset, number)[0] for steps in (0, STEPS))
        seconds, counts = epoch(trainer, subset, number)
        units = unit_costs(without, full, len(images.train))
        predicted = prediction(units, counts, dict(recipe.effort.options()["steps"]))
        ratios.append(seconds["total"] / predicted)
        shares = " | ".join(f"{counts[kind] / len(images.train):.1%}" for kind in ("outlier", "boundary", "robust"))
        costs = " | ".join(f"{units[name] * 1e6:.0f}" for name in ("step", "forward", "update"))
        print(f"| {shares} | {costs} | {predicted:.2f} | {seconds['total']:.2f} | {ratios[-1]:.3f} |", flush=True)
    print(f"\nmedian of s / predicted: {statistics.median(ratios):.3f}")


def unit_costs(without: dict[str, float], full: dict[str, float], count: int) -> dict[str, float]:
    """Returns seconds an image, from epochs with no attack step and with `STEPS` of them.

    Without steps the attack is the clean forward in eval mode.
    """
    return {
        "step": (full["attack"] - without["attack"]) / STEPS / count,
        "forward": without["attack"] / count,
        "update": (full["total"] - full["attack"]) / count,  # with loading, and all that is in no phase
    }


def prediction(units: dict[str, float], counts: dict[str, int], effort: dict[str, int]) -> float:
    """Returns the seconds of an epoch: each kind's steps, two forwards in eval mode, and the update."""
    steps = sum(counts[kind] * effort[kind] for kind in counts)
    return steps * units["step"] + sum(counts.values()) * (2 * units["forward"] + units["update"])


MEASUREMENTS = {each.__name__: each for each in (fraction, bullet)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=MEASUREMENTS)
    data_options(parser)
    parser.add_argument("--large-images", type=int, default=2560, help="training images of the ResNet-18")
    parser.add_argument("--warm-up", type=int, default=1, help="epochs with Bullet-Train before the first measured one")
    options = parser.parse_args()
    print(f"{platform.machine()}, {torch.get_num_threads()} threads, torch {torch.__version__}\n")
    MEASUREMENTS[options.what](options)


if __name__ == "__main__":
    main()
