"""The candidates that a strategy selects from."""

from __future__ import annotations

from dataclasses import dataclass, replace

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


def without_hard_tail(group: Group, losses: Tensor, share: float) -> tuple[Group, Tensor]:
    """Returns a group without the candidates of highest loss, and the remaining rows.

    Training on the hardest examples hurts robustness (Kaufmann et al. 2022, "Efficient Adversarial Training with Data
    Pruning", https://arxiv.org/abs/2207.00694).

    Args:
        group: N candidates, of which ``group.budget`` are to be picked.
        losses: (N,) of the candidates.
        share: of the candidates to drop, rounded down, in [0, 1); fewer if too few would remain.

    Returns:
        The group of the remaining candidates, in order, and their rows (n,) in the given group.
    """
    count = max(group.budget, len(losses) - int(share * len(losses)))
    rows = losses.argsort(stable=True)[:count].sort().values
    return replace(group, gradients=group.gradients.rows(rows)), rows
