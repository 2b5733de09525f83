"""The candidates that a strategy selects from."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from robustcords.selection.gradients.factors import Gradients, LastLayerGradients

Picked = tuple[Tensor, Tensor]
"""Places (k,) int64 among the candidates or all examples, and their weights (k,); on the CPU."""


@dataclass(frozen=True)
class Group:
    """Some candidates, and the number to pick.

    Attributes:
        number: of the group, from 0; for a class, its label.
        gradients: of the N candidates.
        validation: gradients of the validation examples that belong to them, or None.
        budget: k, from 1 to N.
    """

    number: int
    gradients: Gradients
    validation: LastLayerGradients | None
    budget: int


def of_class(gradients: LastLayerGradients | None, label: int) -> LastLayerGradients | None:
    """Returns the gradients of a class; all if it has none."""
    if gradients is None:
        return None
    same = gradients.labels == label
    return gradients.rows(same) if same.any() else gradients
