"""Excludes the candidates with the highest losses."""

from __future__ import annotations

from dataclasses import replace

from torch import Tensor

from robustcords.selection.gradients.candidates import Group


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
