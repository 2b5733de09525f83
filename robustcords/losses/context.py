"""The context of a loss: threat, moment of training and a keyed generator."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from robustcords.rng import Noise


@dataclass(frozen=True)
class Moment:
    """Where training is.

    Attributes:
        epoch: from 0.
        step: in the epoch, from 0.
        progress: share of the whole run that has passed, in [0, 1).
        epochs: of the whole run; where its budget is a time, as many as fit into it.
    """

    epoch: int
    step: int
    progress: float
    epochs: float = 1.0

    @property
    def passed(self) -> int:
        """How many whole epochs of the run have passed, by `progress`: what a plan for the run goes by."""
        return math.floor(self.progress * self.epochs + 1e-9)


@dataclass(frozen=True)
class LossContext:
    """What a loss receives besides the model, the images and their labels.

    Attributes:
        threat: the run's threat model, a `robustcords.threats.base.ThreatModel`; None if unknown.
        moment: where training is.
        noise: for whatever the loss draws, keyed by example; another in every step.
    """

    threat: Any
    moment: Moment
    noise: Noise
