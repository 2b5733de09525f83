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
    """Steps that differ from one example of a batch to the next.

    Its tensors are on the CPU, so that no accelerator has to be waited for to know which examples are done.

    Attributes:
        steps: (B,) int64, >= 1.
        step_size: (B,) float64, >= 0, in the threat's norm.
        patience: (B,) int64, >= 0: an example stops where it is as soon as a step would begin at a point at which it is
            misclassified, and so many have begun at such points before (Zhang et al. 2020, Algorithm 1). None for
            steps that nothing stops.
        y: (B,) int64 labels, by which examples are misclassified; where the images are.
        rise: >= 0: an example stops where it is as soon as a step would begin at a point at which what is maximised is
            no more than this share above what it was where the step before began. None for no such end.
    """

    steps: Tensor
    step_size: Tensor
    patience: Tensor | None
    y: Tensor
    rise: float | None = None


class Remaining:
    """The examples of a batch that are still being attacked: a smaller batch each time that some of them are done.

    Args:
        x: (B, C, H, W) the images as they are.
        objectives: what is maximised, for whichever examples remain.
        pace: of each example.

    Attributes:
        x: (k, C, H, W) the images of those that remain.
        x_adv: (k, C, H, W) where they are now; at first the images.
        objective: for them.
        step_size: theirs: one number where all have the same, else (k, 1, 1, 1).
    """

    x: Tensor
    x_adv: Tensor
    objective: Objective
    step_size: float | Tensor

    def __init__(self, x: Tensor, objectives: Objectives, pace: Pace) -> None:
        self._images, self._found, self._objectives, self._pace = x, x.clone(), objectives, pace
        self._patience = None if pace.patience is None else pace.patience.to(x.device)
        self._values = None if pace.rise is None else torch.full((len(x),), -torch.inf, device=x.device)
        self._take(torch.arange(len(x)))

    def __len__(self) -> int:
        return len(self._rows)

    def begin(self, step: int) -> None:
        """Leaves out the examples that have no such step any more.

        Args:
            step: from 0.
        """
        self._keep(self._pace.steps[self._rows] > step)

    def stop(self, logits: Tensor, gradient: Tensor) -> Tensor:
        """Leaves out the examples that need no further step; returns the gradient of the others.

        These are the misclassified ones whose patience is at its end, and those whose objective has ceased to rise.

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
        """Returns (B, C, H, W): where each example was when it was left out, or is now."""
        self._found[self._rows.to(self._found.device)] = self.x_adv
        return self._found

    def _keep(self, going: Tensor) -> None:
        """Leaves out the examples for which ``going`` (k,) bool is not so, where they are now."""
        if not going.all():
            self.end()
            self._take(self._rows[going])

    def _take(self, rows: Tensor) -> None:
        """Makes some rows of the batch, in its order, those that remain."""
        everyone = len(rows) == len(self._images)
        there: slice | Tensor = slice(None) if everyone else rows.to(self._images.device)
        self._rows, self.x, self.x_adv = rows, self._images[there], self._found[there]
        if not len(rows):
            return
        self.objective = self._objectives(rows.to(self._images.device))
        sizes = self._pace.step_size[rows]
        alike = bool((sizes == sizes[0]).all())
        self.step_size = float(sizes[0]) if alike else sizes.to(self.x).view(-1, 1, 1, 1)
