"""Steps and step size of each example of a batch, and which examples are still under attack."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from robustcords.losses.objective import Objective

Objectives = Callable[[Tensor | slice], Objective]
"""Rows of a batch, (k,) int64 or a slice, to what is maximised for these examples."""


@dataclass(frozen=True)
class Pace:
    """Number of steps and step size of each example of a batch.

    The tensors are on the CPU, so that deciding which examples are done needs no synchronisation with an accelerator.

    Attributes:
        steps: (B,) int64, >= 1.
        step_size: (B,) float64, >= 0, in the threat's norm.
        patience: (B,) int64, >= 0: number of steps that may begin at misclassified points before an example stops
            (Zhang et al. 2020, Algorithm 1). None for no early stopping.
        y: (B,) int64 labels, on the images' device.
        rise: >= 0: an example stops once its objective has risen by no more than this share since the step before. None
            for no such criterion.
    """

    steps: Tensor
    step_size: Tensor
    patience: Tensor | None
    y: Tensor
    rise: float | None = None


class Remaining:
    """The examples of a batch that are still under attack; the batch shrinks as examples finish.

    Args:
        x: (B, C, H, W) clean images.
        objectives: rows of the batch to their objective.
        pace: of each example.

    Attributes:
        x: (k, C, H, W) clean images of the remaining examples.
        x_adv: (k, C, H, W) their current iterates, initially the images.
        objective: of the remaining examples.
        step_size: one number if all are the same, else (k, 1, 1, 1).
    """

    x: Tensor
    x_adv: Tensor
    objective: Objective
    step_size: float | Tensor

    def __init__(self, x: Tensor, objectives: Objectives, pace: Pace) -> None:
        self._images, self._iterates, self._objectives, self._pace = x, x.clone(), objectives, pace
        self._patience = None if pace.patience is None else pace.patience.to(x.device)
        self._values = None if pace.rise is None else torch.full((len(x),), -torch.inf, device=x.device)
        self._take(torch.arange(len(x)))

    def __len__(self) -> int:
        return len(self._rows)

    def begin(self, step: int) -> None:
        """Drops the examples that do not take this step.

        Args:
            step: counted from 0.
        """
        self._keep(self._pace.steps[self._rows] > step)

    def stop(self, logits: Tensor, gradient: Tensor) -> Tensor:
        """Drops the examples that meet a stopping criterion; returns the gradient of the others.

        Misclassified ones stop when their patience is used up, others when their objective no longer rises.

        Args:
            logits: (k, classes) at `x_adv`.
            gradient: (k, C, H, W) there.
        """
        if self._patience is None and self._values is None:
            return gradient
        rows = self._rows.to(logits.device)
        going = torch.ones(len(rows), dtype=torch.bool, device=logits.device)
        if self._patience is not None:
            wrong = logits.argmax(dim=1) != self._pace.y[rows]
            going &= ~(wrong & (self._patience[rows] == 0))
            self._patience[rows] -= wrong.long()
        if self._values is not None:
            before, now = self._values[rows], self.objective.value(logits).to(self._values.dtype)
            # Before the first step nothing is known: -inf, which everything is above.
            going &= (now - before > (self._pace.rise or 0.0) * before.abs()) | before.isinf()
            self._values[rows] = now
        going = going.cpu()
        self._keep(going)
        return gradient if going.all() else gradient[going]

    def end(self) -> Tensor:
        """Returns the last iterate of every example (B, C, H, W)."""
        self._iterates[self._rows.to(self._iterates.device)] = self.x_adv
        return self._iterates

    def _keep(self, going: Tensor) -> None:
        """Drops the examples that are False in ``going`` (k,) bool, after storing their iterates."""
        if not going.all():
            self.end()
            self._take(self._rows[going])

    def _take(self, rows: Tensor) -> None:
        """Sets the remaining examples to some rows of the batch, in ascending order."""
        everyone = len(rows) == len(self._images)
        there: slice | Tensor = slice(None) if everyone else rows.to(self._images.device)
        self._rows, self.x, self.x_adv = rows, self._images[there], self._iterates[there]
        if not len(rows):
            return
        self.objective = self._objectives(rows.to(self._images.device))
        sizes = self._pace.step_size[rows]
        alike = bool((sizes == sizes[0]).all())
        self.step_size = float(sizes[0]) if alike else sizes.to(self.x).view(-1, 1, 1, 1)
