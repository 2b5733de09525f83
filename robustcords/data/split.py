"""Held-out validation splits, and stratified samples of a set."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

from robustcords import rng

SampleKind = Literal["all", "first", "stratified"]
"""How images were taken: every one, the first so many, or at random with every class in proportion."""


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
    held_out = _held_out(labels.bincount().tolist(), round(fraction * len(labels)))
    return _drawn(labels, held_out, rng.generator(seed, "validation-split"))


def sample(labels: Tensor, limit: int) -> tuple[Tensor, SampleKind]:
    """Returns the rows of some images: always the same ones, whatever the run, its seed and its method.

    They are the first ``limit`` where the set is in random order and those have every class, which is how the test sets
    of benchmarks are used. Class folders are read class by class, so that their first images are of few classes: there
    the sample is drawn at random, one of each class and the rest in proportion, or one of each of so many classes.

    Args:
        labels: (N,) int64 >= 0, in the order of the set.
        limit: how many, at least 0; all where it is 0 or more than there are.

    Returns:
        (n,) int64 rows in ascending order, and how they were taken.

    Example:
        >>> rows, kind = sample(torch.tensor([0, 0, 0, 1, 1, 1]), 4)
        >>> kind, torch.tensor([0, 0, 0, 1, 1, 1])[rows].tolist()
        ('stratified', [0, 0, 1, 1])
    """
    labels = labels.cpu()
    if limit == 0 or limit >= len(labels):
        return torch.arange(len(labels)), "all"
    counts = labels.bincount().tolist()
    present = sum(count > 0 for count in counts)
    if _in_random_order(labels) and len(labels[:limit].unique()) == present:
        return torch.arange(limit), "first"
    source = rng.generator(0, "evaluation-sample")
    if limit < present:
        classes = labels.unique()
        wanted = torch.zeros(len(counts), dtype=torch.int64)
        wanted[classes[torch.randperm(present, generator=source)[:limit]]] = 1
        return _drawn(labels, wanted.tolist(), source)[1], "stratified"
    return _drawn(labels, _shares(counts, limit), source)[1], "stratified"


def training_sample(labels: Tensor, limit: int, seed: int) -> Tensor:
    """Returns the rows (limit,) of some training images in ascending order: drawn for a run, classes in proportion.

    Args:
        labels: (N,) int64 >= 0, of all training images.
        limit: how many, at least as many as there are classes; all where it is 0 or more than there are.
        seed: the run's seed; equal seeds give equal samples.
    """
    labels = labels.cpu()
    if limit == 0 or limit >= len(labels):
        return torch.arange(len(labels))
    return _drawn(labels, _shares(labels.bincount().tolist(), limit), rng.generator(seed, "training-sample"))[1]


def _shares(counts: Sequence[int], limit: int) -> list[int]:
    """Returns how many of each class are taken: one of each that has any, and the rest in proportion."""
    rest = apportion([max(count - 1, 0) for count in counts], limit - sum(count > 0 for count in counts))
    return [more + min(count, 1) for more, count in zip(rest, counts, strict=True)]


def apportion(sizes: Sequence[int], budget: int) -> list[int]:
    """Returns each group's share of a budget, in proportion to its size, by largest remainder.

    The shares add up to the budget exactly, and none is larger than its group. Equal remainders: the first groups.

    Args:
        sizes: number of examples of each group.
        budget: from 0 to the sum of the sizes.
    """
    total = max(1, sum(sizes))
    parts = [divmod(budget * size, total) for size in sizes]
    shares = [share for share, _ in parts]
    by_remainder = sorted(range(len(sizes)), key=lambda group: -parts[group][1])
    for group in by_remainder[: budget - sum(shares)]:
        shares[group] += 1
    return shares


def _drawn(labels: Tensor, wanted: Sequence[int], generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Returns the rows that are left and those drawn at random, so many of each class; each sorted."""
    counts = labels.bincount()
    shuffled = torch.randperm(len(labels), generator=generator)
    by_class = shuffled[labels[shuffled].argsort(stable=True)]
    classes = labels[by_class]
    place = torch.arange(len(labels)) - (counts.cumsum(0) - counts)[classes]
    chosen = place < torch.tensor(wanted, dtype=torch.int64)[classes]
    return by_class[~chosen].sort().values, by_class[chosen].sort().values


def _in_random_order(labels: Tensor) -> bool:
    """Returns whether neighbours are of different classes at least half as often as in a random order."""
    shares = labels.bincount().double() / len(labels)
    changes = float((labels[1:] != labels[:-1]).double().mean())
    return changes >= 0.5 * float(1 - shares.square().sum())


def _held_out(counts: Sequence[int], total: int) -> list[int]:
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
