"""Adv-CRAIG."""

from __future__ import annotations

import warnings
from importlib.util import find_spec
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from robustcords.errors import UserError
from robustcords.selection.gradient_based import AdversarialStrategy
from robustcords.selection.gradient_based_config import AdversarialConfig
from robustcords.selection.gradients.factors import Gradients

_REMEDY = "`pip install submodlib-py` (it has wheels for CPython 3.11 and 3.12, on Linux x86-64 and macOS)"

if find_spec("submodlib") is None:
    raise UserError(f"selector 'adv-craig' needs submodlib, which is not installed: {_REMEDY}")

Similarity = NDArray[np.float32]
Optimizer = Literal["LazyGreedy", "NaiveGreedy", "StochasticGreedy", "LazierThanLazyGreedy"]

_LARGEST = 20_000  # candidates; their similarities take 1.6 GB here, and as much again in submodlib
_BLOCK = 1024  # rows of the similarity that are computed at a time
_MISS = 0.01  # stochastic optimizers: the share of the best that Mirzasoleiman et al. 2015 lose in expectation


class AdvCRAIGStrategy(AdversarialStrategy):
    """Keeps the medoids of the adversarial gradients, weighted by the sizes of their clusters.

    CRAIG (Mirzasoleiman, Bilmes and Leskovec 2020) at adversarial examples: facility location, ``sum_i max_{j in S}
    s_ij`` with ``s_ij = max_{u,v} ||g_u - g_v|| - ||g_i - g_j||``, maximised greedily by submodlib (Kaushal et al.
    2022). A kept example's weight is the number of candidates that it is most similar to; where several are equally
    similar, the one that was picked first counts. Weights of a group add up to its number of candidates.

    It is no subclass of CORDS' ``CRAIGStrategy``, which needs apricot; that class squares the distance, the paper does
    not.
    """

    class Config(AdversarialConfig):
        """Options of Adv-CRAIG.

        Attributes:
            optimizer: submodlib's optimizer: ``"NaiveGreedy"`` recomputes all gains at each pick, which takes minutes
                for a class; ``"LazyGreedy"`` makes the same picks but recomputes only gains that may be the largest;
                ``"StochasticGreedy"`` takes the best of a random sample each time, and ``"LazierThanLazyGreedy"`` does
                so lazily.
            linear_layer: use the gradients of the last layer's weight and bias; otherwise those of its bias alone.
        """

        name: str = "adv-craig"
        optimizer: Optimizer = "LazyGreedy"
        linear_layer: bool = True

    @classmethod
    def refuse_too_large(cls, config: Any, candidates: int, entries: int) -> None:
        """Checks that the candidates' similarity matrix fits into memory."""
        if candidates > _LARGEST:
            raise UserError(
                f"selector 'adv-craig' compares all pairs of its candidates, at most {_LARGEST:,}, and has "
                f'{candidates:,} here: set selector.granularity = "per_class", or "per_batch"'
            )

    def pick(self, gradients: Gradients, budget: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Returns the medoids in the order of selection, and the sizes of their clusters.

        Raises:
            UserError: the similarity matrix does not fit into memory, or submodlib cannot be imported.
        """
        self.refuse_too_large(self.config, len(gradients), 0)
        kernel = similarity(gradients)
        rows = facility_location(kernel, budget, self.config.optimizer, generator)
        return torch.from_numpy(rows), torch.from_numpy(cluster_sizes(kernel, rows))


def similarity(gradients: Gradients) -> Similarity:
    """Returns (N, N), the largest distance of two gradients minus the distance of each pair.

    Distances are computed in float64 from the factors' products, ``|g_i|^2 + |g_j|^2 - 2 <g_i, g_j>``, and kept in
    float32, which is what submodlib computes with.
    """
    size = len(gradients)
    distances = np.empty((size, size), dtype=np.float32)
    blocks = [slice(start, min(start + _BLOCK, size)) for start in range(0, size, _BLOCK)]
    for number, rows in enumerate(blocks):
        left = gradients.rows(rows).double()
        for columns in blocks[number:]:
            right = gradients.rows(columns).double()
            squares = left.squared_norms().unsqueeze(1) + right.squared_norms() - 2 * left.products(right)
            block = squares.clamp_(min=0).sqrt_().float().cpu().numpy()
            distances[rows, columns] = block
            distances[columns, rows] = block.T
    np.fill_diagonal(distances, 0)  # rounding leaves the root of what is lost in the subtraction
    np.subtract(distances.max(), distances, out=distances)
    return distances


def facility_location(
    kernel: Similarity, budget: int, optimizer: Optimizer, generator: torch.Generator
) -> NDArray[np.int64]:
    """Returns the rows (k,) that greedily maximise ``sum_i max_{j in S} kernel_ij``, in the order of selection.

    submodlib's stochastic optimizers seed C's generator with a constant, so the candidates are shuffled for their
    samples to depend on the seed.

    Args:
        kernel: (N, N) similarities, symmetric, >= 0.
        budget: k, from 1 to N.
        optimizer: submodlib's name.
        generator: of the shuffling.
    """
    size = len(kernel)
    if budget == size:  # submodlib refuses it
        return np.arange(size)
    try:
        from submodlib import FacilityLocationFunction
    except ImportError as error:
        raise UserError(f"selector 'adv-craig': submodlib cannot be imported ({error}): {_REMEDY}") from error
    order = None
    if optimizer in {"StochasticGreedy", "LazierThanLazyGreedy"}:
        order = torch.randperm(size, generator=generator).numpy()
        kernel = kernel[np.ix_(order, order)]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # submodlib looks for SciPy's classes at an old place
        function = FacilityLocationFunction(n=size, mode="dense", separate_rep=False, sijs=kernel)
    picked = function.maximize(budget, optimizer=optimizer, epsilon=_MISS, show_progress=False)
    rows = np.array([row for row, _ in picked], dtype=np.int64)
    return rows if order is None else order[rows]


def cluster_sizes(kernel: Similarity, rows: NDArray[np.int64]) -> NDArray[np.int64]:
    """Returns (k,), the number of candidates that are most similar to each of some rows; ties go to the first.

    Args:
        kernel: (N, N) similarities.
        rows: (k,).
    """
    nearest = [kernel[start : start + _BLOCK, rows].argmax(axis=1) for start in range(0, len(kernel), _BLOCK)]
    return np.bincount(np.concatenate(nearest), minlength=len(rows))
