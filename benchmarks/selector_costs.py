"""What each selector's choice costs beside the adversarial pass, class by class, on made-up gradients.

    python benchmarks/selector_costs.py [--examples 50000] [--classes 10] [--width 512] [--fraction 0.3] [--device cuda]

The default is the size of CIFAR-10 with a ResNet-18. Every class is made up, chosen from by each selector's ``pick``,
and forgotten, so the memory is that of one class. Prints a Markdown table of the seconds of all classes together.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterator

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from robustcords.config.registry import find
from robustcords.data.images import ImageSet
from robustcords.losses.base import Loss
from robustcords.losses.mart import MART
from robustcords.losses.sat import SAT
from robustcords.rng import generator
from robustcords.selection.base import SelectionContext
from robustcords.selection.gradient_based import AdversarialStrategy
from robustcords.selection.gradients.factors import LastLayerGradients, logit_gradients

SELECTORS = ("loss", "el2n", "adv-glister", "adv-gradmatch", "adv-craig")
VALIDATION = 0.1  # examples of the validation split, as a share of the candidates


def made_up(label: int, count: int, classes: int, width: int, loss: Loss, seed: int) -> LastLayerGradients:
    """Returns gradients of one class: features with a mean of the class's own, and logits that favour it."""
    source = generator(seed, "made-up", label)
    mean = torch.randn(width, generator=source).abs()
    head = torch.randn(classes, width, generator=generator(0, "head")) / width**0.5
    labels = torch.full((count,), label)
    features = tuple((mean + torch.randn(count, width, generator=source)).relu() for _ in loss.views)
    logits = tuple(h @ head.T + 2 * nn.functional.one_hot(labels, classes) for h in features)
    return LastLayerGradients(logit_gradients(loss, logits, labels), features, labels, logits)


def moved(gradients: LastLayerGradients, device: torch.device) -> LastLayerGradients:
    """Returns the same gradients on a device."""
    groups = (gradients.deltas, gradients.features, gradients.logits)
    deltas, features, logits = (tuple(factor.to(device) for factor in group) for group in groups)
    return LastLayerGradients(deltas, features, gradients.labels.to(device), logits)


def context(labels: Tensor, classes: int, device: torch.device) -> SelectionContext:
    """Returns what strategies are built with. No model is run: gradients are made up."""
    names = tuple(map(str, range(classes)))
    images = ImageSet(torch.zeros(len(labels), 1, 1, 1, dtype=torch.uint8), labels, names)
    loader = DataLoader(images, batch_size=128)
    model = nn.Sequential(nn.Flatten(), nn.Linear(1, classes))
    return SelectionContext(loader, loader, model, MART(), None, classes, device, lr=0.1)


def strategies(given: SelectionContext) -> Iterator[tuple[str, AdversarialStrategy]]:
    """Yields each selector that chooses from gradients or logits, with its default options."""
    for name in SELECTORS:
        strategy = find("selector", name)
        yield name, strategy.from_context(strategy.Config(), given)


def synchronised(device: torch.device) -> float:
    """Returns the time now, after all work on the device."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


def measure(options: argparse.Namespace) -> dict[str, float]:
    """Returns the seconds of every selector, all classes together."""
    device, count = torch.device(options.device), options.examples // options.classes
    labels = torch.arange(options.classes).repeat(count)
    given = context(labels, options.classes, device)
    budget = round(options.fraction * count)
    random = find("selector", "random")
    start = time.perf_counter()
    random.from_context(random.Config(), given).select(budget * options.classes, {})
    seconds = {"random": time.perf_counter() - start}
    for label in range(options.classes):
        shape = (options.classes, options.width)
        group = moved(made_up(label, count, *shape, MART(), seed=0), device)
        validation = moved(made_up(label, max(1, int(VALIDATION * count)), *shape, SAT(), seed=1), device)
        for name, strategy in strategies(given):
            strategy.validation = validation if strategy.uses_validation else None
            if label == 0:  # once before the clock runs: imports, and kernels of a GPU
                strategy.pick(group.rows(slice(0, 64)), 16, generator(0, "pick"))
            start = synchronised(device)
            strategy.pick(group, budget, generator(0, "pick", label))
            seconds[name] = seconds.get(name, 0.0) + synchronised(device) - start
    return seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--examples", type=int, default=50_000, help="N")
    parser.add_argument("--classes", type=int, default=10, help="C")
    parser.add_argument("--width", type=int, default=512, help="E, features before the last layer")
    parser.add_argument("--fraction", type=float, default=0.3, help="k / N")
    parser.add_argument("--device", default="cpu")
    options = parser.parse_args()
    print(f"{options}, two terms, {torch.get_num_threads()} threads\n")
    print("| selector | s |\n|---|--:|")
    for name, seconds in measure(options).items():
        print(f"| `{name}` | {seconds:.2f} |")


if __name__ == "__main__":
    main()
