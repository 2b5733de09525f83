"""A Cholesky factor that gains and loses rows."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray
from scipy.linalg import blas, lapack

Floats = NDArray[np.float64]
Indices = NDArray[np.int64]

SUSPENDED = 48
"""Unknowns that can be suspended before the factor has to be made anew."""
_DEPENDENT = 1e-13  # a pivot below this share of its diagonal is rounding


class GrowingCholesky:
    """Solves ``(G + ridge I) x = c`` for a symmetric G that grows by a row at a time and whose unknowns come and go.

    The factor ``R^T R = G + ridge I`` is packed column by column, so a new unknown appends m + 1 numbers and each
    triangular solve reads half a matrix. To drop an unknown is to *suspend* it: it stays in the factor, and solutions
    are held at ``x_p = 0`` by taking their component along ``R^-T e_p`` away, at O(m) each; `compact` makes a factor
    without the suspended ones, which is needed only once every `SUSPENDED` times.

    Args:
        capacity: the largest number of unknowns, suspended ones included.
        ridge: added to the diagonal.

    Attributes:
        size: m, the number of unknowns in the factor, suspended ones included.
        suspended: places of those that are held at 0.
    """

    def __init__(self, capacity: int, ridge: float) -> None:
        self.ridge = ridge
        self.size = 0
        self.suspended: list[int] = []
        self._packed: Floats = np.empty(capacity * (capacity + 1) // 2)
        self._forward: Floats = np.empty(capacity)
        self._normals: Floats = np.empty((capacity, SUSPENDED))

    @property
    def full(self) -> bool:
        """Whether no more unknowns can be suspended before `compact`."""
        return len(self.suspended) == SUSPENDED

    def append(self, column: Floats, diagonal: float, right: float) -> bool:
        """Adds an unknown, unless it depends linearly on the others.

        Args:
            column: (m,) G's entries with the unknowns so far.
            diagonal: G's own entry.
            right: c's entry.

        Returns:
            Whether it was added.
        """
        m = self.size
        row = self._solve(column, transposed=True)
        square = diagonal + self.ridge - row @ row
        if not square > _DEPENDENT * (diagonal + self.ridge):
            return False
        pivot = np.sqrt(square)
        end = m * (m + 1) // 2
        self._packed[end : end + m] = row
        self._packed[end + m] = pivot
        self._forward[m] = (right - row @ self._forward[:m]) / pivot
        count = len(self.suspended)
        self._normals[m, :count] = -(row @ self._normals[:m, :count]) / pivot
        self.size += 1
        return True

    def suspend(self, place: int) -> None:
        """Holds an unknown at 0."""
        unit = np.zeros(self.size)
        unit[place] = 1
        self._normals[: self.size, len(self.suspended)] = self._solve(unit, transposed=True)
        self.suspended.append(place)

    def resume(self, place: int) -> None:
        """Lets a suspended unknown go free again."""
        gap, last = self.suspended.index(place), len(self.suspended) - 1
        self._normals[: self.size, gap] = self._normals[: self.size, last]
        self.suspended[gap] = self.suspended[last]
        self.suspended.pop()

    def solution(self) -> Floats:
        """Returns (m,) the solution among those with 0 for the suspended unknowns."""
        forward = self._forward[: self.size]
        if self.suspended:
            normals = self._normals[: self.size, : len(self.suspended)]
            share = np.linalg.lstsq(normals.T @ normals, normals.T @ forward, rcond=None)[0]
            forward = forward - normals @ share
        x = self._solve(forward, transposed=False)
        x[self.suspended] = 0
        return x

    def compact(self, block: Callable[[Indices], Floats], right: Callable[[Indices], Floats]) -> Indices:
        """Makes the factor anew without the suspended unknowns.

        Args:
            block: gives G's entries for the places that stay.
            right: gives c's entries for them.

        Returns:
            (m',) the places that stay, in order.
        """
        places = np.setdiff1d(np.arange(self.size), self.suspended)
        matrix = block(places)
        matrix[np.diag_indices_from(matrix)] += self.ridge
        # A Fortran-ordered view of the symmetric matrix spares LAPACK a copy.
        factor, status = lapack.dpotrf(matrix.T, lower=0, overwrite_a=1)
        if status:
            raise np.linalg.LinAlgError("the products of the held gradients are not positive definite")
        packed, _ = lapack.dtrttp(factor, uplo="U")
        self._packed[: len(packed)] = packed
        self.size = len(places)
        self.suspended.clear()
        self._forward[: self.size] = self._solve(right(places), transposed=True)
        return places

    def _solve(self, right: Floats, *, transposed: bool) -> Floats:
        """Returns ``R^-T right`` or ``R^-1 right``."""
        m = self.size
        if m == 0:
            return np.zeros(0)
        solved: Floats = blas.dtpsv(m, self._packed[: m * (m + 1) // 2], right, trans=int(transposed))
        return solved
