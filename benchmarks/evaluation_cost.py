"""What PGD-50-10 costs with all examples attacked every time, with those that still resist, and with BatchNorms folded.

    python benchmarks/evaluation_cost.py RUN_DIR [--images 500] [--steps 50] [--restarts 10] [--epsilon 8/255]

Evaluates a run's last weights on its first test images in each way, with the same random starts, and prints how many
examples withstand, images passed forward and backward, seconds, and their ratios.
"""

from __future__ import annotations

import argparse
import platform
import time
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from robustcords.config.schema import parse_radius
from robustcords.data.images import Images
from robustcords.engine.memory_format import lay_out
from robustcords.evaluation.attacks.pgd import PGDEvaluation
from robustcords.evaluation.config import EvaluationConfig
from robustcords.evaluation.evaluate import evaluate
from robustcords.experiments import build
from robustcords.recipe.recipe import load
from robustcords.rng import Noise, derive
from robustcords.storage.run_directory import RunDirectory
from robustcords.threats.linf import Linf

SEED, BATCH, STEP = 0, 256, 2 / 255


class Counting(nn.Module):
    """A model that counts the images that gradients are taken of; being code of its own, it is not folded."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model
        self.attacked = 0

    def forward(self, x: Tensor) -> Tensor:
        """Returns the model's logits."""
        self.attacked += len(x) if torch.is_grad_enabled() else 0
        logits: Tensor = self.model(x)
        return logits


def plain_loop(model: nn.Module, data: Images, steps: int, restarts: int, epsilon: float) -> Tensor:
    """Returns which images withstand every restart, (N,) bool, attacking all of them in each."""
    kept = []
    for rows in torch.arange(len(data)).split(BATCH):
        x, y = data.batch(rows, torch.device("cpu"))
        noise = Noise(derive(SEED, "evaluation"), rows)
        with torch.no_grad():
            withstands = model(x).argmax(1) == y
        for restart in range(restarts):
            x_adv = (x + (2 * noise.restart(restart).uniform(x.shape[1:]) - 1) * epsilon).clamp(0, 1)
            for _ in range(steps):
                x_adv.requires_grad_()
                (gradient,) = torch.autograd.grad(F.cross_entropy(model(x_adv), y, reduction="sum"), x_adv)
                x_adv = x_adv.detach() + STEP * gradient.sign()
                x_adv = torch.min(torch.max(x_adv, x - epsilon), x + epsilon).clamp(0, 1)
            with torch.no_grad():
                withstands &= model(x_adv).argmax(1) == y
        kept.append(withstands)
    return torch.cat(kept)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run_dir", type=Path)
    parser.add_argument("--images", type=int, default=500)
    parser.add_argument("--steps", type=int, default=50)
    parser.add_argument("--restarts", type=int, default=10)
    parser.add_argument("--epsilon", type=parse_radius, default=8 / 255)
    options = parser.parse_args()
    directory = RunDirectory(options.run_dir, writes=False)
    recipe = load(directory.recipe)
    build.accelerator(recipe)
    images = build.data(recipe)
    model = build.model(recipe, images)
    build.load_weights(model, directory.weights("last"))
    lay_out(model.eval(), torch.device("cpu"), recipe.train.memory_format)
    data = images.test.subset(torch.arange(options.images))

    ours = Counting(model)
    pgd = PGDEvaluation(steps=options.steps, restarts=options.restarts, step_size=STEP, epsilons=[options.epsilon])
    begin = time.perf_counter()
    report = evaluate(ours, data, EvaluationConfig(pgd=pgd, autoattack=None), Linf(), seed=SEED)
    seconds = time.perf_counter() - begin
    found = next(iter(report.pgd.values()))

    begin = time.perf_counter()
    folded = evaluate(model, data, EvaluationConfig(pgd=pgd, autoattack=None), Linf(), seed=SEED)
    folded_seconds = time.perf_counter() - begin

    plain = Counting(model)
    begin = time.perf_counter()
    expected = plain_loop(plain, data, options.steps, options.restarts, options.epsilon)
    plain_seconds = time.perf_counter() - begin

    print(f"{platform.machine()}, {torch.get_num_threads()} threads, torch {torch.__version__}")
    print(f"{options.run_dir}: {report.clean:.1%} clean of {len(data)}\n")
    print("| loop | robust | images forward and backward | s |\n|:--|--:|--:|--:|")
    print(f"| all every time | {expected.double().mean():.2%} | {plain.attacked} | {plain_seconds:.1f} |")
    print(f"| those that resist | {found:.2%} | {ours.attacked} | {seconds:.1f} |")
    print(f"| the same, folded | {next(iter(folded.pgd.values())):.2%} | {ours.attacked} | {folded_seconds:.1f} |")
    print(f"| first to second | | {plain.attacked / ours.attacked:.2f} | {plain_seconds / seconds:.2f} |")
    print(f"| second to third | | 1 | {seconds / folded_seconds:.2f} |")


if __name__ == "__main__":
    main()
