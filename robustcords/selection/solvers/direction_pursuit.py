"""Matching pursuit for candidates whose Gram matrix does not fit into memory.

With A the gradients that are held, as columns, and ``P = (ridge I + A A^T)^-1``, the residual of the ridge solution is
``r = ridge P b`` and its weights are ``w = A^T r / ridge``: a held gradient's correlation and its weight are the same
thing. Taking g, as well as dropping it, adds a multiple of ``(P g)(P g)^T`` to P and of ``P g`` to r. What is kept are
the factors and a square matrix of the directions' size, whatever the number of candidates and the budget are.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from robustcords.selection.gradients.factors import Gradients

_BLOCK = 32  # steps whose changes of P are kept as vectors, and after which the host looks
_RENEW = 8  # blocks after which the residual is found anew from the weights
_SHORTLIST = 16  # candidates whose correlation is computed again in float64
_CHUNK = 8192  # rows that are turned into float64 at a time
_NOISE = 1e-12  # a correlation below this share of the largest one at the start is rounding
_LEAST_RIDGE = 1e-6  # of the mean squared gradient: without a ridge there is no P


def least_ridge(gradients: Gradients) -> float:
    """Returns the smallest ridge that `DirectionPursuit` works with: a millionth of the mean squared gradient."""
    return _LEAST_RIDGE * float(gradients.squared_norms().double().mean())


class DirectionPursuit:
    """The state of one pursuit.

    Args:
        gradients: N candidates.
        target: (C, 1 + E) float64, the direction b.
        budget: k.
        ridge: lam; at least a millionth of the mean squared gradient.
        tolerance: stop when the residual is below this share of b's norm.

    Attributes:
        count: number of held candidates.
        steps: number of steps so far.
        taken: (N,) bool, the held candidates.
        correlations: (N,) with the residual, in the gradients' own precision.
    """

    def __init__(self, gradients: Gradients, target: Tensor, budget: int, *, ridge: float, tolerance: float) -> None:
        self.gradients, self.target, self.budget = gradients, target, budget
        self.floor = tolerance * float(target.norm())
        self.ridge = max(ridge, least_ridge(gradients))
        size = target.numel()
        self._inverse = torch.eye(size, dtype=torch.float64, device=target.device) / self.ridge
        self._changes = target.new_zeros((_BLOCK, size))
        self._scales = target.new_zeros(_BLOCK)
        self.residual = target.flatten().clone()
        self.correlations = gradients.inner(target)
        self.noise = _NOISE * self.correlations.abs().max()
        self.taken = torch.zeros(len(gradients), dtype=torch.bool, device=target.device)
        self.count = self.steps = self._blocks = 0
        self._first: Tensor | None = None
        self._left = self.residual
        self._single = self.taken.new_zeros(1)

    def advance(self) -> bool:
        """Makes a block of steps; returns whether the pursuit has ended."""
        over = self.taken.new_zeros(1)
        for s in range(_BLOCK):
            over = self._step(s, over)
        self._inverse.addmm_((self._changes * self._scales[:, None]).T, self._changes)
        self._scales.zero_()
        self._blocks += 1
        self.steps += _BLOCK
        self.count = int(self.taken.sum())
        if self._blocks % _RENEW == 0 or over:
            self._renew()
        return bool(over)

    def result(self) -> tuple[Tensor, Tensor]:
        """Returns the held rows (m,) and their weights (m,) float64."""
        rows = self.taken.nonzero()[:, 0]
        if self._first is not None and len(rows) == 1 and self._single:
            return rows, self._first
        return rows, self._exact(rows, self.residual) / self.ridge

    def _step(self, s: int, over: Tensor) -> Tensor:
        """Drops the most negative weight if there is one, else adds the best candidate; returns whether it did neither.

        After the end a step changes nothing.
        """
        # As in CORDS, the second gradient is chosen by what the first one leaves when its weight has no ridge.
        second = self._first is not None and self._blocks == 0 and s == 1
        seen = self._left if second else self.residual
        rough = self.gradients.inner(seen.view_as(self.target)) if second else self.correlations
        best, take_row, lowest, drop_row = self._extremes(rough, seen)
        drop = (lowest < 0) & ~over & (not second)
        enough = (self.taken.sum() >= self.budget) | (seen.norm() <= self.floor) | (best <= self.noise)
        over = over | (~drop & enough)
        if second:
            self._single = over
        row = torch.where(drop, drop_row, take_row)
        gradient = self.gradients.rows(row).sum().flatten()
        if self._first is None:
            self._first = (gradient @ self.residual / (gradient @ gradient))[None]
            self._left = self.residual - self._first * gradient
        change = self._inverse @ gradient
        change += self._changes[:s].T @ (self._scales[:s] * (self._changes[:s] @ gradient))
        inner = gradient @ change
        scale = torch.where(over, 0, torch.where(drop, 1 / (1 - inner), -1 / (1 + inner)))
        self._changes[s], self._scales[s] = change, scale[0]
        self.residual = self.residual + scale * (gradient @ self.residual) * change
        self.taken = self.taken.index_copy(0, row, torch.where(over, self.taken.gather(0, row), ~drop))
        self.correlations = self.gradients.inner(self.residual.view_as(self.target))
        return over

    def _extremes(self, correlations: Tensor, direction: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Returns the largest product of a free row with a direction and its row, and the smallest of a held one.

        Each is (1,), in float64; without such a row, the largest is minus infinity and the smallest infinity.

        Args:
            correlations: (N,) the approximate products.
            direction: (C * (1 + E),).
        """
        size = min(_SHORTLIST, len(correlations))
        free = correlations.masked_fill(self.taken, -math.inf).topk(size).indices.sort().values
        held = correlations.masked_fill(~self.taken, math.inf).topk(size, largest=False).indices.sort().values
        exact = self._exact(torch.cat([free, held]), direction)
        best, first = exact[:size].masked_fill(self.taken.gather(0, free), -math.inf).max(0, keepdim=True)
        lowest, last = exact[size:].masked_fill(~self.taken.gather(0, held), math.inf).min(0, keepdim=True)
        return best, free.gather(0, first), lowest, held.gather(0, last)

    def _exact(self, rows: Tensor, direction: Tensor) -> Tensor:
        """Returns (m,) products of some rows with a direction, in float64."""
        direction = direction.view_as(self.target)
        return torch.cat([self.gradients.rows(part).double().inner(direction) for part in rows.split(_CHUNK)])

    def _renew(self) -> None:
        """Removes accumulated rounding from the residual: ``r <- r + P (ridge (b - r) - A A^T r)``."""
        rows = self.taken.nonzero()[:, 0]
        if len(rows) < 2:
            return
        explained = self.gradients.rows(rows).sum(self._exact(rows, self.residual)).flatten()
        error = self.ridge * (self.target.flatten() - self.residual) - explained
        self.residual = self.residual + self._inverse @ error
        self.correlations = self.gradients.inner(self.residual.view_as(self.target))
