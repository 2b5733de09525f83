"""The candidates that a strategy selects from."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from robustcords.selection.gradients.factors import Gradients, LastLayerGradients

Choice = tuple[Tensor, Tensor]
"""Places (k,) int64 among the candidates or all examples, and their weights (k,); on the CPU."""


@dataclass(frozen=True)
class Group:
    """Some candidates, and how many of them to pick.

    Attributes:
        number: of the group, from 0; of a class, its label.
        gradients: of the N candidates.
        validation: gradients of the validation examples that belong to them, or None.
        budget: k, from 1 to N.
    """

    number: int
    gradients: Gradients
    validation: LastLayerGradients | None
    budget: int


def of_class(gradients: LastLayerGradients | None, label: int) -> LastLayerGradients | None:
    """Returns those of a class; all, where there is none of it."""
    if gradients is None:
        return None
    same = gradients.labels == label
    return gradients.rows(same) if same.any() else gradients
