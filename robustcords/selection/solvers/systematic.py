"""Systematic sampling without replacement at given inclusion probabilities (Madow 1949)."""

from __future__ import annotations

import torch
from torch import Tensor

_CERTAIN = 1 - 1e-9
"""Probabilities from here on count as 1: rounding of their sums could otherwise take an example twice."""


def inclusion_probabilities(sizes: Tensor, budget: int) -> Tensor:
    """Returns ``pi_i = min(1, c sizes_i)`` (N,) float64 with the c for which they add up to the budget.

    Args:
        sizes: (N,), > 0.
        budget: k, from 1 to N.
    """
    ordered, order = sizes.double().sort(descending=True)
    # With the m largest certain, c = (k - m) / (sum of the others); m is the least for which none of those exceeds 1.
    left = ordered.flip(0).cumsum(0).flip(0)
    scales = (budget - torch.arange(len(ordered), dtype=torch.float64)) / left
    certain = int((ordered[:budget] * scales[:budget] >= _CERTAIN).long().cumprod(0).sum())
    probabilities = torch.ones_like(ordered)
    if certain < len(ordered):
        probabilities[certain:] = ordered[certain:] * scales[certain]
    return torch.empty_like(probabilities).scatter_(0, order, probabilities)


def systematic_sample(probabilities: Tensor, start: float) -> Tensor:
    """Returns rows (k,) in ascending order, each included with its probability over a uniform start.

    The probabilities are laid end to end, and where one of ``start, start + 1, ...`` falls, that row is taken.

    Args:
        probabilities: (N,) float64 in [0, 1] that add up to a whole number k.
        start: in [0, 1).
    """
    certain = probabilities >= _CERTAIN
    rest = (~certain).nonzero().view(-1)
    ends = probabilities[rest].cumsum(0)
    count = round(float(ends[-1])) if len(rest) else 0
    points = start + torch.arange(count, dtype=torch.float64)
    places = torch.searchsorted(ends, points, right=True).clamp(max=len(rest) - 1)
    return torch.cat([certain.nonzero().view(-1), rest[places]]).sort().values


def drawn_by_size(sizes: Tensor, budget: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Returns rows (k,), unique, drawn with inclusion probabilities by size, and their weights (k,), ``1 / pi_i``.

    Candidates are put into a random order first, so that neighbours do not exclude each other.

    Args:
        sizes: (N,), > 0.
        budget: k, from 1 to N.
        generator: of the order and the start.
    """
    order = torch.randperm(len(sizes), generator=generator)
    probabilities = inclusion_probabilities(sizes[order], budget)
    start = float(torch.rand((), generator=generator, dtype=torch.float64))
    chosen = systematic_sample(probabilities, start)
    return order[chosen], 1 / probabilities[chosen]
