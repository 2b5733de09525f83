"""Adv-GLISTER's greedy choice of one example after the other, beside CORDS' own on the same gradients and draws.

    python benchmarks/stochastic_greedy.py [--threads 2] [--picks 200]

13,500 of 45,000 made-up candidates by 5,000 validation examples, as CIFAR-10 has them at 30 %: all picks of ours, the
first few hundred of CORDS', which would take up to an hour. Prints a Markdown table, at the end the time of the two
passes over the validation features (E x M float32) that a pick cannot do without, alone.
"""

from __future__ import annotations

import argparse
import logging
import platform
import statistics
import time
from contextlib import suppress

import torch
from selection_engine import made_up, seconds
from torch import Tensor, nn
from torch.nn import functional as F

from robustcords.losses.sat import SAT
from robustcords.selection._cords import GLISTERStrategy
from robustcords.selection.gradients.factors import LastLayerGradients
from robustcords.selection.gradients.validation_gradient import ValidationGradient
from robustcords.selection.solvers import greedy

COUNT, VALIDATION, CLASSES, ETA = 45_000, 5_000, 10, 0.1
BUDGET = round(0.3 * COUNT)


class EnoughError(Exception):
    """Ends CORDS' loop."""


class SameDraws:
    """Takes `random.sample`'s place: gives CORDS the candidates that ours draws, and notes what it picks.

    Args:
        picks: how many.
    """

    def __init__(self, picks: int) -> None:
        self.picks = picks
        self.made: list[int] = []
        self._free = list(range(COUNT))
        self._drawn: list[int] = []
        self._source = torch.Generator().manual_seed(0)

    def sample(self, remain: list[int], k: int) -> list[int]:
        """Returns k of those that remain."""
        if self._drawn:
            left = set(remain)
            place = next(place for place, row in enumerate(self._drawn) if row not in left)
            self.made.append(self._drawn[place])
            self._free[len(self._free) - len(self._drawn) + place] = self._free[-1]
            self._free.pop()
        if len(self.made) == self.picks:
            raise EnoughError
        self._drawn = greedy._drawn(self._free, k, self._source)
        return list(self._drawn)


def ours(train: LastLayerGradients, validation: LastLayerGradients) -> list[int]:
    looking = ValidationGradient(validation, SAT())
    source = torch.Generator().manual_seed(0)
    rows = greedy.taylor_greedy(train, looking, BUDGET, step_size=ETA, method="Stochastic", rounds=1, generator=source)
    return rows.tolist()


def cords(dense: Tensor, validation: LastLayerGradients, *, bias_alone: bool, picks: int) -> list[int]:
    import random

    theirs = object.__new__(GLISTERStrategy)
    theirs.logger, theirs.device, theirs.valloader = logging.getLogger(__name__), torch.device("cpu"), None
    theirs.num_classes, theirs.selection_type, theirs.greedy = CLASSES, "Supervised", "Stochastic"
    theirs.linear_layer, theirs.eta, theirs.loss = not bias_alone, ETA, nn.CrossEntropyLoss(reduction="none")
    theirs.model = nn.Module()
    theirs.model.get_embedding_dim = lambda: validation.features[0].shape[1]
    theirs.init_out, theirs.init_l1 = validation.logits[0].clone().requires_grad_(), validation.features[0]
    theirs.y_val, theirs.grads_per_elem = validation.labels.view(-1, 1), dense
    theirs._update_grads_val(torch.zeros(1, dense.shape[1]))
    draws, original = SameDraws(picks), random.sample
    random.sample = draws.sample  # type: ignore[assignment]
    try:
        with suppress(EnoughError):
            theirs.greedy_algo(BUDGET)
    finally:
        random.sample = original
    return draws.made


def two_passes(features: int) -> float:
    """Returns the seconds of the logits' change and of the gradient alone."""
    h, delta, one = torch.randn(features, VALIDATION), torch.randn(CLASSES, VALIDATION), torch.randn(1, features)
    return statistics.median(seconds(lambda: (one @ h, F.linear(delta, h))) for _ in range(50))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--picks", type=int, default=200, help="of CORDS'")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    print(f"{platform.machine()}, {options.threads} threads, torch {torch.__version__}\n")
    print("| gradients | E | all, s | a pick, ms | two passes, ms | CORDS: a pick, ms | ratio | same picks |")
    print("|:--|--:|--:|--:|--:|--:|--:|--:|")
    labels, beside = (torch.arange(count) * CLASSES // count for count in (COUNT, VALIDATION))
    for bias_alone, features in ((True, 64), (False, 64), (False, 512)):
        train, validation = made_up(labels, CLASSES, 1, 0, features), made_up(beside, CLASSES, 1, 1, features)
        parts = [train, validation] if not bias_alone else [train.bias_only(), validation.bias_only()]
        start = time.perf_counter()
        found = ours(*parts)
        all_of = time.perf_counter() - start
        start = time.perf_counter()
        expected = cords(parts[0].dense(), validation, bias_alone=bias_alone, picks=options.picks)
        upstream, mine = (time.perf_counter() - start) / options.picks, all_of / BUDGET
        same = sum(a == b for a, b in zip(found, expected, strict=False)) / options.picks
        name, width = ("bias", 0) if bias_alone else ("weight and bias", features)
        times = f"{all_of:.1f} | {1e3 * mine:.2f} | {1e3 * two_passes(width):.2f} | {1e3 * upstream:.1f}"
        print(f"| {name} | {width} | {times} | {upstream / mine:.0f} | {same:.1%} |", flush=True)


if __name__ == "__main__":
    main()
