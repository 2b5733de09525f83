"""Holding out a part of the training set."""

from __future__ import annotations

import torch
from torch import Tensor

from robustcords import rng


def stratified_split(labels: Tensor, fraction: float, seed: int) -> tuple[Tensor, Tensor]:
    """Splits a data set at random, each class in the same proportion.

    The held-out set has ``round(fraction * N)`` rows, shared out over the classes by largest remainder (Hamilton's
    method; classes of one example come last). A class of two or more examples keeps at least one for training; where
    fraction is so large that this leaves too few, the held-out set is smaller.

    Args:
        labels: (N,) int64 >= 0.
        fraction: share that is held out, in [0, 1).
        seed: the run's seed; equal seeds give equal splits.

    Returns:
        The training and the held-out rows, int64, each sorted; together they are 0 to N - 1.

    Raises:
        ValueError: fraction is outside [0, 1).
    """
    if not 0 <= fraction < 1:
        raise ValueError(f"fraction {fraction} is outside [0, 1)")
    labels = labels.cpu()
    counts = labels.bincount()
    held_out = torch.tensor(_shares(counts.tolist(), round(fraction * len(labels))), dtype=torch.int64)
    shuffled = torch.randperm(len(labels), generator=rng.generator(seed, "validation-split"))
    by_class = shuffled[labels[shuffled].argsort(stable=True)]
    classes = labels[by_class]
    place = torch.arange(len(labels)) - (counts.cumsum(0) - counts)[classes]
    chosen = place < held_out[classes]
    return by_class[~chosen].sort().values, by_class[chosen].sort().values


def _shares(counts: list[int], total: int) -> list[int]:
    """Returns how many of each class's examples are held out, in exact integer arithmetic."""
    everything = max(sum(counts), 1)
    most = [count - 1 if count > 1 else count for count in counts]
    shares = [min(count * total // everything, limit) for count, limit in zip(counts, most, strict=True)]
    order = sorted(range(len(counts)), key=lambda c: (counts[c] < 2, -(counts[c] * total % everything), c))
    missing = min(total, sum(most)) - sum(shares)
    while missing:
        for c in order:
            if missing and shares[c] < most[c]:
                shares[c] += 1
                missing -= 1
    return shares
