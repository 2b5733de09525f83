"""The order of an epoch's examples: all of them shuffled, or blocks of neighbours, and then what is near each other."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

BLOCK = 100
"""Neighbours that are kept near each other: as many as the row groups have that Hugging Face writes of images."""
_LOOKED_AT = 64  # batches, spread over the epoch


def shuffled(numbers: Tensor, window: int | None, source: torch.Generator) -> Tensor:
    """Returns the order of an epoch.

    With a window, blocks of 100 neighbours in the full training set are put in random order, and then the examples
    within each stretch of that order that is no longer than the window. Every example comes once, as ever, but is drawn
    with those of a few blocks only; how many blocks that is, is how many places images on disk are read from at a time.

    Args:
        numbers: (n,) int64, the examples' rows in the full training set.
        window: how many examples are shuffled with one another, at least 1; None for all of them.
        source: of what is drawn.

    Returns:
        (n,) int64, places in ``numbers``.

    Example:
        >>> order = shuffled(torch.arange(1000), 200, torch.Generator().manual_seed(0))
        >>> len(order.unique()), len((order[:200] // 100).unique())
        (1000, 2)
    """
    if window is None or window >= len(numbers):
        return torch.randperm(len(numbers), generator=source)
    blocks, block = (numbers // BLOCK).unique(return_inverse=True)
    near = torch.randperm(len(blocks), generator=source)[block].argsort(stable=True)
    stretches = near.tensor_split(math.ceil(len(near) / window))
    return torch.cat([part[torch.randperm(len(part), generator=source)] for part in stretches])


def classes_in_a_batch(labels: Tensor, batches: Sequence[Tensor]) -> tuple[float, float]:
    """Returns how many classes a batch has: on average over some of these, and expected of a batch of all shuffled.

    Args:
        labels: (n,) int64, of all examples.
        batches: places in ``labels``; at least one.
    """
    looked_at = [batches[place * len(batches) // _LOOKED_AT] for place in range(_LOOKED_AT)]
    found = sum(len(labels[places].unique()) for places in looked_at) / len(looked_at)
    shares = labels.bincount().double() / len(labels)
    return found, float((1 - (1 - shares) ** len(batches[0])).sum())
