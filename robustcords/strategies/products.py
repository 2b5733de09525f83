"""What matching pursuit asks of gradients: their products with each other and with a target."""

from __future__ import annotations

from abc import ABC, abstractmethod

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from robustcords.strategies.gradients import Gradients

Floats = NDArray[np.float64]
Indices = NDArray[np.int64]

_BLOCK = 1024  # rows and columns of the Gram matrix that are computed at a time
_REFRESH = 32  # passes after which all correlations are computed again in float64


class Products(ABC):
    """What the pursuit knows of N gradients and of a target b: products, and those of the gradients it holds.

    Attributes:
        target: (N,) float64 ``<g_i, b>``.
        diagonal: (N,) float64 ``<g_i, g_i>``.
    """

    target: Floats
    diagonal: Floats

    @abstractmethod
    def column(self, atom: int, held: Indices) -> Floats:
        """Returns (m,) float64 ``<g_atom, g_j>`` for j in held."""

    @abstractmethod
    def block(self, held: Indices) -> Floats:
        """Returns (m, m) float64 products of the held gradients."""

    @abstractmethod
    def append(self, atom: int) -> None:
        """Takes note that a gradient is held from now on, after the others."""

    @abstractmethod
    def keep(self, places: Indices) -> None:
        """Takes note that only those at some places of the order of holding still are."""

    @abstractmethod
    def correlations(self, held: Indices, weights: Floats) -> Tensor:
        """Returns (N,) ``<g_i, b - sum_j weights_j g_j>``, roughly: float32 is enough."""

    @abstractmethod
    def exact(self, candidates: Indices, held: Indices, weights: Floats) -> Floats:
        """Returns the same for a few candidates, in float64."""


class GramProducts(Products):
    """Products from the whole Gram matrix: for up to some thousands of gradients, such as those of one class.

    Correlations come from one pass over a float32 copy of the held columns. The pass carries only what changed since
    they were last computed in float64, so its rounding is relative to that change and not to b.

    Args:
        gradients: N gradients.
        target: (C, 1 + E) the direction b.
        capacity: the largest number that is ever held at a time.
    """

    def __init__(self, gradients: Gradients, target: Tensor, capacity: int) -> None:
        exact = gradients.double()
        self.gram = gram_matrix(exact).cpu().numpy()
        self.target = exact.inner(target).cpu().numpy()
        self.diagonal = self.gram.diagonal().copy()
        self._columns = torch.empty((capacity, len(gradients)))
        self._held = 0
        self._base = torch.from_numpy(self.target).float()
        self._base_weights: Floats = np.zeros(capacity)
        self._age = 0

    def column(self, atom: int, held: Indices) -> Floats:
        """Returns part of a row of the Gram matrix."""
        part: Floats = self.gram[atom, held]
        return part

    def block(self, held: Indices) -> Floats:
        """Returns part of the Gram matrix."""
        part: Floats = self.gram[np.ix_(held, held)]
        return part

    def append(self, atom: int) -> None:
        """Copies a column."""
        self._columns[self._held] = torch.from_numpy(self.gram[atom])
        self._base_weights[self._held] = 0
        self._held += 1

    def keep(self, places: Indices) -> None:
        """Closes the gaps, and forgets the float64 correlations, which counted what has gone."""
        self._columns[: len(places)] = self._columns[torch.from_numpy(places)]
        self._held = len(places)
        self._age = _REFRESH

    def correlations(self, held: Indices, weights: Floats) -> Tensor:
        """Returns float32 correlations."""
        self._age += 1
        if self._age >= _REFRESH:
            spread = np.zeros(len(self.target))
            spread[held] = weights
            self._base = torch.from_numpy(self.target - self.gram @ spread).float()
            self._base_weights[: len(held)] = weights
            self._age = 0
        change = torch.from_numpy(weights - self._base_weights[: len(held)]).float()
        return torch.addmv(self._base, self._columns[: len(held)].T, change, alpha=-1)

    def exact(self, candidates: Indices, held: Indices, weights: Floats) -> Floats:
        """Returns float64 correlations."""
        found: Floats = self.target[candidates] - self.gram[np.ix_(candidates, held)] @ weights
        return found


class FactorProducts(Products):
    """Products from the factors: for any number of gradients, without a matrix of N times N.

    A correlation costs a product of all factors with the residual, a column one with all held ones.

    Args:
        gradients: N gradients.
        target: (C, 1 + E) the direction b.
    """

    def __init__(self, gradients: Gradients, target: Tensor) -> None:
        self.gradients = gradients
        self._b = target
        parts = [gradients.rows(slice(start, start + _BLOCK)).double() for start in range(0, len(gradients), _BLOCK)]
        self.target = torch.cat([part.inner(target) for part in parts]).cpu().numpy()
        self.diagonal = torch.cat([part.squared_norms() for part in parts]).cpu().numpy()
        self._residual = target

    def _rows(self, rows: Indices) -> Gradients:
        return self.gradients.rows(torch.from_numpy(rows))

    def column(self, atom: int, held: Indices) -> Floats:
        """Returns products with one gradient, written out as a direction."""
        direction = self._rows(np.array([atom])).sum()
        parts = [self._rows(held[i : i + _BLOCK]).double().inner(direction) for i in range(0, len(held), _BLOCK)]
        return torch.cat(parts).cpu().numpy() if parts else np.zeros(0)

    def block(self, held: Indices) -> Floats:
        """Returns the Gram matrix of the held ones."""
        return gram_matrix(self._rows(held).double()).cpu().numpy()

    def append(self, atom: int) -> None:
        """Keeps nothing."""

    def keep(self, places: Indices) -> None:
        """Keeps nothing."""

    def correlations(self, held: Indices, weights: Floats) -> Tensor:
        """Returns correlations with the residual, which is formed in float64."""
        self._residual = self._b - self._rows(held).sum(torch.from_numpy(weights))
        return self.gradients.inner(self._residual).cpu()

    def exact(self, candidates: Indices, held: Indices, weights: Floats) -> Floats:
        """Returns float64 correlations with the residual of the last call of `correlations`."""
        return self._rows(candidates).double().inner(self._residual).cpu().numpy()


def gram_matrix(gradients: Gradients) -> Tensor:
    """Returns (N, N) products of all pairs, in the gradients' own precision, computing one half of them."""
    size = len(gradients)
    parts = [slice(start, min(start + _BLOCK, size)) for start in range(0, size, _BLOCK)]
    gram: Tensor | None = None
    for i, rows in enumerate(parts):
        left = gradients.rows(rows)
        for columns in parts[i:]:
            block = left.products(gradients.rows(columns))
            gram = block.new_empty((size, size)) if gram is None else gram
            gram[rows, columns] = block
            gram[columns, rows] = block.T
    assert gram is not None
    return gram
