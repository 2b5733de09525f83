"""Gram matrices of gradients."""

from __future__ import annotations

from torch import Tensor

from robustcords.selection.gradients.factors import Gradients

_BLOCK = 256  # rows and columns computed at a time: what is being multiplied and added stays in the cache


def gram_matrix(gradients: Gradients, out: Tensor) -> Tensor:
    """Returns (N, N) products of all pairs, in the gradients' own precision, computing one half of them.

    Args:
        gradients: N gradients.
        out: (N, N) where they are written to.
    """
    size = len(gradients)
    parts = [slice(start, min(start + _BLOCK, size)) for start in range(0, size, _BLOCK)]
    rows = [gradients.rows(part) for part in parts]
    for i, left in enumerate(rows):
        for j in range(i, len(rows)):
            block = left.products(rows[j])
            out[parts[i], parts[j]] = block
            out[parts[j], parts[i]] = block.T
    return out
