"""What a cheaper attack does to a selection: fewer steps and lower precision than the full attack.

    python benchmarks/selection_attack.py runs/my_run [--images 10000] [--seed 0] [--set loss.name=mart]...

Attacks part of the training split, and the validation split, with the last weights of a run and with each attack, and
selects 30 % per class from the gradients. Prints a Markdown table. *Overlap* is the share of the full attack's picks
that are picked again; a random subset gives 30 %. *Matching error* is that of Adv-GRAD-MATCH's rows and weights,
measured on the gradients of the full attack: ``|| sum w g - b || / || b ||``, averaged over classes; first on those of
the same random starts, which the cheaper attacks share, then on those of other ones, as an epoch of training has them.
The full attack is the recipe's own, with float32 passes; its row with other random starts says what chance alone does.
Seconds are the processor's, of the pass over the training examples (with one thread, what it takes on an idle core).
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader

from robustcords.data.split import apportion
from robustcords.engine.inference import Inference
from robustcords.engine.precision import Precision
from robustcords.experiments import build
from robustcords.recipe.recipe import Recipe, load
from robustcords.rng import derive, generator
from robustcords.selection.base import SelectionContext
from robustcords.selection.gradients.factors import LastLayerGradients
from robustcords.selection.strategies.adv_glister import AdvGLISTERStrategy
from robustcords.selection.strategies.adv_gradmatch import AdvGradMatchStrategy

FRACTION = 0.3
STEPS = (0, 1, 2, 3, 5, 10)
DRAWS = 10  # of random subsets, whose errors are averaged

Picks = dict[int, tuple[Tensor, Tensor]]
"""Of each class the rows (among the examples of that class) and their weights."""


@dataclass(frozen=True)
class Selections:
    """What one attack leads to: gradients by class, picks, and processor seconds of the pass over training examples."""

    gradients: dict[int, LastLayerGradients]
    matched: Picks
    greedy: Picks
    seconds: float


def context_of(run: Path, images: int, seed: int, overrides: Sequence[str]) -> tuple[Recipe, SelectionContext]:
    """Returns a run's recipe, and what selections are made with; forward passes are in float32."""
    recipe = load(run / "recipe.toml", [*overrides, 'train.precision="fp32"'])
    data = build.data(recipe)
    assert data.validation is not None, "the run needs a validation split"
    model = build.model(recipe, data)
    build.load_weights(model, run / "weights" / "last.safetensors")
    rows = torch.randperm(len(data.train), generator=generator(seed, "benchmark"))[:images].sort().values
    train, validation = (
        DataLoader(part, batch_size=recipe.train.batch_size) for part in (data.train.subset(rows), data.validation)
    )
    return recipe, SelectionContext(
        train_loader=train,
        val_loader=validation,
        model=Inference(model.to(memory_format=torch.channels_last), build.accelerator(recipe).autocast),
        loss=build.component("loss", recipe.loss),
        attack=build.attack(recipe),
        num_classes=len(data.train.classes),
        device=torch.device("cpu"),
        seed=seed,
        lr=getattr(recipe.optimizer, "lr", None),
    )


def by_class(gradients: LastLayerGradients) -> dict[int, LastLayerGradients]:
    return {int(label): gradients.rows(gradients.labels == label) for label in gradients.labels.unique()}


def attacked(
    context: SelectionContext, steps: int | None, step_size: float | None, precision: Precision | None
) -> Selections:
    """Attacks once and selects with both strategies, class by class."""
    finished: list[float] = []

    def on_batch(done: int, total: int) -> None:
        if done == total:
            finished.append(time.process_time())

    options: dict[str, Any] = {"attack_steps": steps, "attack_step_size": step_size, "attack_precision": precision}
    context = replace(context, on_batch=on_batch)
    config = AdvGLISTERStrategy.Config(granularity="per_class", **options)
    looking_ahead = AdvGLISTERStrategy.from_context(config, context)
    matching = AdvGradMatchStrategy.from_context(AdvGradMatchStrategy.Config(**options), context)
    start = time.process_time()
    looking_ahead.compute_gradients(valid=True)
    groups, validation = by_class(looking_ahead.gradients), by_class(looking_ahead.validation_gradients)
    shares = shares_of(groups)
    matched, greedy = {}, {}
    for label, group in groups.items():
        looking_ahead.validation = validation[label]
        matched[label] = matching.pick(group, shares[label], generator(context.seed, "pick", label))
        greedy[label] = looking_ahead.pick(group, shares[label], generator(context.seed, "pick", label))
    return Selections(groups, matched, greedy, finished[0] - start)


def shares_of(groups: dict[int, LastLayerGradients]) -> dict[int, int]:
    sizes = [len(group) for group in groups.values()]
    return dict(zip(groups, apportion(sizes, round(FRACTION * sum(sizes))), strict=True))


def overlap(found: Picks, full: Picks) -> float:
    same = sum(len(set(found[label][0].tolist()) & set(full[label][0].tolist())) for label in full)
    return same / sum(len(rows) for rows, _ in full.values())


def matching_error(picks: Picks, gradients: dict[int, LastLayerGradients]) -> float:
    """Returns ``|| sum w g - b || / || b ||`` on some gradients, averaged over classes."""
    errors = []
    for label, (rows, weights) in picks.items():
        group = gradients[label].double()
        target = group.sum()
        errors.append(float((group.rows(rows).sum(weights.double()) - target).norm() / target.norm()))
    return sum(errors) / len(errors)


def random_picks(groups: dict[int, LastLayerGradients], seed: int) -> Picks:
    picks = {}
    for label, share in shares_of(groups).items():
        size = len(groups[label])
        rows = torch.randperm(size, generator=generator(seed, "random", label))[:share]
        picks[label] = rows, torch.full((share,), size / share)
    return picks


def row(name: str, precision: str, found: Selections, full: Selections, other: Selections) -> str:
    shares = f"{overlap(found.matched, full.matched):.1%} | {overlap(found.greedy, full.greedy):.1%}"
    errors = " | ".join(f"{matching_error(found.matched, each.gradients):.2e}" for each in (full, other))
    return f"| {name} | {precision} | {shares} | {errors} | {found.seconds:.1f} |"


def table(recipe: Recipe, context: SelectionContext) -> None:
    measures = (
        "overlap, Adv-GRAD-MATCH",
        "overlap, Adv-GLISTER",
        "matching error",
        "with other starts",
        "s of the pass",
    )
    print(f"| attack | precision | {' | '.join(measures)} |\n|:--|:--{'|--:' * len(measures)}|")
    attack, epsilon = recipe.attack.options(), recipe.threat.epsilon
    full = attacked(context, None, None, "fp32")
    other = attacked(replace(context, seed=derive(context.seed, "other starts")), None, None, "fp32")
    print(row(f"{attack['steps']} of {attack['step_size'] * 255:.1f}/255, the full attack", "fp32", full, full, other))
    print(row("the same, other random starts", "fp32", other, full, other), flush=True)
    for precision in ("fp32", "bf16"):
        for steps in STEPS:
            if (steps, precision) == (attack["steps"], "fp32"):
                continue
            size = attack["step_size"] if steps == attack["steps"] else min(epsilon, 2.5 * epsilon / max(steps, 1))
            name = f"{steps} of {size * 255:.1f}/255" if steps else "0, clean images"
            print(row(name, precision, attacked(context, steps, size, precision), full, other), flush=True)
    print(random_row(full, other, context.seed))


def random_row(full: Selections, other: Selections, seed: int) -> str:
    """Returns the row of random subsets with weights N / k, averaged over several draws."""
    draws = [random_picks(full.gradients, derive(seed, "draw", number)) for number in range(DRAWS)]
    shares = [f"{sum(overlap(draw, picks) for draw in draws) / DRAWS:.1%}" for picks in (full.matched, full.greedy)]
    errors = [f"{sum(matching_error(draw, each.gradients) for draw in draws) / DRAWS:.2e}" for each in (full, other)]
    return f"| random subset, weights N / k | | {' | '.join([*shares, *errors])} | |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, help="a finished run with a validation split")
    parser.add_argument("--images", type=int, default=10_000, help="training images to select from")
    parser.add_argument("--seed", type=int, default=0, help="of the images and the random starts")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="change a key of the recipe")
    options = parser.parse_args()
    table(*context_of(options.run, options.images, options.seed, options.set))


if __name__ == "__main__":
    main()
