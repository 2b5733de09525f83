"""Non-negative orthogonal matching pursuit on products of gradients.

The problem is ``min || sum_S w_i g_i - b ||^2 + lam ||w||^2`` over w >= 0 and ``|S| <= k`` (Killamsetty et al. 2021,
Alg. 2; Li et al. 2023, Eq. 6). The path is the one of CORDS' ``OrthogonalMP_REG_Parallel_V1``: take the gradient that
correlates most with the residual, solve, drop the most negative weight and solve again while there is one. It differs
where that solver goes wrong: a held gradient is never taken again, and the search goes on until k are held or none
correlates positively.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor

from robustcords.strategies.cholesky import SUSPENDED, GrowingCholesky
from robustcords.strategies.gradients import Gradients
from robustcords.strategies.products import FactorProducts, Floats, GramProducts, Indices, Products

_SHORTLIST = 16  # candidates whose correlation is computed again in float64
_NOISE = 1e-12  # a correlation below this share of the largest one at the start is rounding
_PATIENCE = 4  # picks, as a multiple of k, after which dropping and taking is held to go round in circles
_LARGEST_GRAM = 12_000  # gradients whose Gram matrix is kept (1.2 GB)


def match(
    gradients: Gradients, target: Tensor, budget: int, *, ridge: float, tolerance: float
) -> tuple[Tensor, Tensor]:
    """Returns the gradients whose weighted sum comes near a target, and their weights.

    Where the pursuit ends early (the rank is reached, the residual is below the tolerance, or no gradient points the
    target's way any more), the other places go to the gradients that correlate most with what is left, with weight 0:
    any other weight would move the sum away from the one that was found.

    Args:
        gradients: N candidates.
        target: (C, 1 + E) the direction to match.
        budget: k, from 1 to N.
        ridge: lam >= 0, in units of a squared gradient.
        tolerance: stop where the residual's length is below this share of the target's.

    Returns:
        Rows (k,) int64, unique, and weights (k,) float64, >= 0, on the CPU.
    """
    target = target.double()
    capacity = budget + SUSPENDED + 1
    products: Products = (
        GramProducts(gradients, target, capacity)
        if len(gradients) <= _LARGEST_GRAM
        else FactorProducts(gradients, target)
    )
    pursuit = Pursuit(products, capacity, ridge, float(target.norm()))
    for _ in range(_PATIENCE * budget):
        if pursuit.count == budget or pursuit.residual <= tolerance * pursuit.norm:
            break
        candidate = pursuit.best()
        if candidate is None:
            break
        pursuit.take(candidate)
    rows, weights = pursuit.held()
    missing = budget - len(rows)
    if missing:
        rows = np.concatenate([rows, pursuit.runners_up(missing)])
        weights = np.concatenate([weights, np.zeros(missing)])
    return torch.from_numpy(rows), torch.from_numpy(weights)


class Pursuit:
    """The state of a matching pursuit.

    Args:
        products: of the gradients and the target.
        capacity: the largest number of gradients in the factor, suspended ones included.
        ridge: lam.
        norm: the target's length.

    Attributes:
        norm: as given.
        count: how many gradients are held.
        residual: the length of what their weighted sum leaves of the target.
    """

    def __init__(self, products: Products, capacity: int, ridge: float, norm: float) -> None:
        self.norm = self.residual = norm
        self._products = products
        self._factor = GrowingCholesky(capacity, ridge)
        self._atoms: Indices = np.zeros(capacity, dtype=np.int64)
        self._places: dict[int, int] = {}
        self._weights: Floats = np.zeros(0)
        self._dependent = np.zeros(len(products.target), dtype=bool)
        self._noise = _NOISE * float(np.abs(products.target).max())
        self._single = True

    @property
    def count(self) -> int:
        """How many gradients are held."""
        return self._factor.size - len(self._factor.suspended)

    def held(self) -> tuple[Indices, Floats]:
        """Returns the held gradients and their weights."""
        atoms = self._atoms[: self._factor.size]
        free = np.ones(len(atoms), dtype=bool)
        free[self._factor.suspended] = False
        return atoms[free], np.maximum(self._weights[free], 0)

    def best(self) -> int | None:
        """Returns the gradient that correlates most with the residual; None where none does positively."""
        candidates = self.runners_up(_SHORTLIST)
        candidates = np.sort(candidates[~self._dependent[candidates]])  # equal ones: the first
        if not len(candidates):
            return None
        exact = self._products.exact(candidates, self._atoms[: self._factor.size], self._weights)
        first = int(exact.argmax())
        return int(candidates[first]) if exact[first] > self._noise else None

    def runners_up(self, count: int) -> Indices:
        """Returns up to ``count`` gradients that are not held, those that correlate most with the residual first.

        Those that were found to depend on held ones come after all others.
        """
        correlations = self._products.correlations(self._atoms[: self._factor.size], self._weights)
        taken = self.held()[0]
        # The two bounds differ, so that a tie never lets a held one in before a dependent one.
        correlations[torch.from_numpy(self._dependent)] = torch.finfo(correlations.dtype).min
        correlations[torch.from_numpy(taken)] = -math.inf
        order: Indices = correlations.topk(min(count, len(correlations) - len(taken))).indices.numpy()
        return order

    def take(self, atom: int) -> None:
        """Holds a gradient, solves, and drops the most negative weight until there is none."""
        if not self._enter(atom):
            self._dependent[atom] = True
            return
        if self._single:
            # As in CORDS, the first weight is found without the ridge, which counts from the second on.
            self._single = False
            self._weights = self._products.target[[atom]] / self._products.diagonal[atom]
            self._measure(0.0)
            return
        self._weights = self._factor.solution()
        while self._weights.min() < 0:
            if self._factor.full:
                self._compact()
            else:
                self._factor.suspend(int(self._weights.argmin()))
            self._weights = self._factor.solution()
        self._measure(self._factor.ridge)

    def _enter(self, atom: int) -> bool:
        """Frees a suspended gradient or appends a new one; returns False where it depends on those that are held."""
        if atom in self._places:
            self._factor.resume(self._places[atom])
            return True
        while True:
            m = self._factor.size
            column = self._products.column(atom, self._atoms[:m])
            if self._factor.append(column, self._products.diagonal[atom], self._products.target[atom]):
                break
            if not self._factor.suspended:
                return False
            self._compact()  # perhaps it depends on suspended ones alone
        self._products.append(atom)
        self._atoms[m] = atom
        self._places[atom] = m
        return True

    def _compact(self) -> None:
        atoms = self._atoms
        places = self._factor.compact(
            lambda kept: self._products.block(atoms[kept]), lambda kept: self._products.target[atoms[kept]]
        )
        self._products.keep(places)
        self._weights = self._weights[places]
        self._atoms[: len(places)] = atoms[places]
        self._places = {int(atom): place for place, atom in enumerate(self._atoms[: len(places)])}

    def _measure(self, ridge: float) -> None:
        """Finds the residual's length from ``(G + ridge I) w = c``, which spares a product with G."""
        right = self._products.target[self._atoms[: self._factor.size]]
        square = self.norm**2 - float(self._weights @ right) - ridge * float(self._weights @ self._weights)
        self.residual = math.sqrt(max(square, 0.0))
