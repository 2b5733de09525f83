"""What a strategy picks from, and what it has picked."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from robustcords.errors import UserError
from robustcords.strategies.gradients import Gradients, LastLayerGradients

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


def checked(source: str, group: Group, rows: Tensor, weights: Tensor) -> Choice:
    """Returns what was picked from a group, on the CPU, after looking at it.

    Args:
        source: what picked it, for the message.
        group: what it was picked from.
        rows: (k,) what was picked.
        weights: (k,) with what weights.

    Raises:
        UserError: it is not as many unique rows as were asked for, with finite weights >= 0.
    """
    rows, weights, budget = torch.as_tensor(rows).cpu(), torch.as_tensor(weights).cpu(), group.budget
    problem = None
    if rows.shape != (budget,) or weights.shape != (budget,):
        problem = f"{len(rows)} rows and {len(weights)} weights where {budget} were asked for"
    elif len(rows.unique()) < budget or rows.min() < 0 or rows.max() >= len(group.gradients):
        problem = f"rows that are not unique and from 0 to {len(group.gradients) - 1}"
    elif not weights.isfinite().all() or weights.min() < 0:
        problem = "weights that are negative or not finite"
    if problem:
        raise UserError(f"{source} returned {problem}")
    return rows, weights


def of_class(gradients: LastLayerGradients | None, label: int) -> LastLayerGradients | None:
    """Returns those of a class; all, where there is none of it."""
    if gradients is None:
        return None
    same = gradients.labels == label
    return gradients.rows(same) if same.any() else gradients
