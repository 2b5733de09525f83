"""How far training has come."""

from __future__ import annotations

import math
from dataclasses import dataclass, field


@dataclass
class Progress:
    """How far training has come; all of it is in every checkpoint.

    Attributes:
        epoch: the epoch that is running, from 0.
        step: optimiser steps done in it.
        steps: optimiser steps done altogether.
        loss: sum over the epoch's examples of weight times loss.
        weight: sum of the epoch's weights.
        skipped: the epoch's steps that were not taken, as gradients in float16 had overflown.
        counts: the epoch's examples by kind, where the adversary tells them apart.
        best: the highest validation PGD accuracy so far, or None.
    """

    epoch: int = 0
    step: int = 0
    steps: int = 0
    loss: float = 0.0
    weight: float = 0.0
    skipped: int = 0
    counts: dict[str, int] = field(default_factory=dict)
    best: float | None = None

    @property
    def place(self) -> str:
        """The last step that was taken, for a message."""
        return f"in epoch {self.epoch} after step {self.step - 1}"

    @property
    def mean_loss(self) -> float:
        """The epoch's weighted mean loss so far; NaN where no step has been taken."""
        return self.loss / self.weight if self.weight else math.nan
