"""What the options that the paper leaves open do to one selection, on the small network of a run.

    python benchmarks/selection_defaults.py RUNS/cifar10_glister,seed=0 [--images 10000]

Attacks part of the training data once with the weights of the run, then selects 30 % per class with each value of
Adv-GRAD-MATCH's ridge (``lam``) and Adv-GLISTER's step (``eta``), and prints Markdown tables: the relative
gradient-matching error ``|| sum w g - b || / || b ||``, averaged over the classes, beside random subsets'; and the
change of the adversarial validation loss by one step of the last layer along the subset's mean gradient.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import torch
from torch import Tensor

from robustcords.attacks.base import Attack
from robustcords.data.images import Images
from robustcords.engine.inference import Inference
from robustcords.experiments import build
from robustcords.losses.base import Loss
from robustcords.losses.sat import SAT
from robustcords.recipe.recipe import Recipe, load
from robustcords.rng import generator
from robustcords.selection.gradients.adversarial_pass import adversarial_pass
from robustcords.selection.gradients.factors import LastLayerGradients
from robustcords.selection.gradients.validation_gradient import ValidationGradient
from robustcords.selection.solvers.greedy import taylor_greedy
from robustcords.selection.solvers.omp import Problem, match

FRACTION = 0.3
LAMBDAS = (0.0, 1e-4, 1e-2, 0.1, 0.5, 5.0)
ETAS = (0.0, 0.01, 0.1, 1.0, 10.0)
STEP = 0.1  # of the last layer, along the subset's mean gradient


def gradients_of(recipe: Recipe, weights: Path, images: int) -> tuple[LastLayerGradients, LastLayerGradients]:
    """Returns the gradients of part of the training split, and of the validation split."""
    data = build.data(recipe)
    model = build.model(recipe, data)
    build.load_weights(model, weights)
    loss: Loss = build.component("loss", recipe.loss)
    accelerator = build.accelerator(recipe)
    network = Inference(model.to(memory_format=torch.channels_last), accelerator.autocast)
    attack = build.attack(recipe)

    def attacked(part: Images, objective: Loss, with_attack: Attack) -> LastLayerGradients:
        batches = [rows.tolist() for rows in torch.arange(len(part)).split(recipe.train.batch_size)]
        classes = len(part.classes)
        return adversarial_pass(
            network, part, batches, objective, with_attack, seed=0, num_classes=classes, device="cpu"
        )

    rows = torch.randperm(len(data.train), generator=generator(0, "benchmark"))[:images].sort().values
    assert data.validation is not None
    return attacked(data.train.subset(rows), loss, attack), attacked(data.validation, SAT(), attack)


def by_class(gradients: LastLayerGradients) -> list[tuple[LastLayerGradients, Tensor]]:
    classes = gradients.labels.unique()
    rows = [(gradients.labels == label).nonzero().view(-1) for label in classes]
    return [(gradients.rows(part), part) for part in rows]


def error(gradients: LastLayerGradients, rows: Tensor, weights: Tensor) -> float:
    target = gradients.double().sum()
    return float((gradients.double().rows(rows).sum(weights.double()) - target).norm() / target.norm())


def matching(train: LastLayerGradients) -> None:
    print("| lam | error | examples with weight 0 | s |\n|--:|--:|--:|--:|")
    groups = by_class(train)
    for lam in LAMBDAS:
        start, errors, zeros, total = time.perf_counter(), [], 0, 0
        for group, _ in groups:
            budget = round(FRACTION * len(group))
            rows, weights = match(Problem(group, group.sum(), budget), ridge=lam, tolerance=1e-10)
            errors.append(error(group, rows, weights))
            zeros, total = zeros + int((weights == 0).sum()), total + budget
        seconds = time.perf_counter() - start
        print(f"| {lam:g} | {sum(errors) / len(errors):.2e} | {zeros / total:.1%} | {seconds:.1f} |")
    errors = []
    for number, (group, _) in enumerate(groups):
        budget = round(FRACTION * len(group))
        rows = torch.randperm(len(group), generator=generator(0, "random", number))[:budget]
        errors.append(error(group, rows, torch.full((budget,), len(group) / budget)))
    print(f"| random subset, weights N / k | {sum(errors) / len(errors):.2e} | 0.0% | |\n")


def validation_loss(validation: LastLayerGradients, step: Tensor) -> float:
    [logits], [features] = validation.logits, validation.features
    moved = logits.double() - (features.double() @ step[:, 1:].T + step[:, 0])
    return float(SAT().from_logits({"adversarial": moved}, validation.labels).mean())


def looking_ahead(train: LastLayerGradients, validation: LastLayerGradients) -> None:
    before = validation_loss(validation, torch.zeros_like(train.sum()))
    print(f"validation loss before: {before:.4f}\n")
    print(f"| eta | validation loss after a step of {STEP} | chosen with eta 0 too |\n|--:|--:|--:|")
    first: set[int] = set()
    for eta in ETAS:
        chosen = []
        for label, (group, places) in enumerate(by_class(train)):
            same = validation.rows((validation.labels == label).nonzero().view(-1))
            budget = round(FRACTION * len(group))
            rows = taylor_greedy(
                group,
                ValidationGradient(same, SAT()),
                budget,
                step_size=eta / budget,
                method="RGreedy",
                rounds=15,
                generator=generator(0, "unused"),
            )
            chosen.append(places[rows])
        rows = torch.cat(chosen)
        first = first or set(rows.tolist())
        after = validation_loss(validation, STEP * train.rows(rows).sum() / len(rows))
        print(f"| {eta:g} | {after:.4f} | {len(first & set(rows.tolist())) / len(rows):.1%} |")
    rows = torch.randperm(len(train), generator=generator(0, "random"))[: len(rows)]
    after = validation_loss(validation, STEP * train.rows(rows).sum() / len(rows))
    print(f"| random subset | {after:.4f} | {len(first & set(rows.tolist())) / len(rows):.1%} |")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("run", type=Path, help="a finished run with a validation split")
    parser.add_argument("--images", type=int, default=10_000)
    options = parser.parse_args()
    train, validation = gradients_of(
        load(options.run / "recipe.toml"), options.run / "weights" / "last.safetensors", options.images
    )
    matching(train)
    looking_ahead(train, validation)


if __name__ == "__main__":
    main()
