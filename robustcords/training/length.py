"""The length of training in epochs or batches, and the progress at a step."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Self

from robustcords.training.config import SHARES, TrainConfig


@dataclass(frozen=True)
class Length:
    """The length of a run: a pure function of its settings, so that schedules are the same resumed and run again.

    Attributes:
        epochs: of the run; with ``steps`` what these come to, by the number of steps of an ordinary epoch.
        steps: batches of each share of the run that is known so far; None where the run has whole epochs.
        shares: how many shares there are, each the same part of every schedule.

    Example:
        >>> Length.of(TrainConfig(steps=300), batches=40).epochs
        7.5
    """

    epochs: float
    steps: tuple[int, ...] | None = None
    shares: int = 1

    @classmethod
    def of(cls, settings: TrainConfig, batches: int) -> Self:
        """Returns the length that settings say; of one with a budget, as far as it has been planned.

        Args:
            settings: of the run.
            batches: of an ordinary epoch.
        """
        if settings.epochs:
            return cls(settings.epochs)
        steps = (settings.steps,) if isinstance(settings.steps, int) else tuple(settings.steps or ())
        shares = len(steps) if settings.planned else SHARES
        # By the first share alone, as that is known from the first step on, and the others are not.
        return cls(steps[0] * shares / batches if steps else math.inf, steps, shares)

    def passed(self, epoch: int, part: float, steps: int) -> float:
        """Returns the epochs that have passed, in [0, epochs].

        Args:
            epoch: that is running, from 0.
            part: of it that is done, in [0, 1].
            steps: that have been taken altogether.
        """
        if self.steps is None:
            return epoch + part
        if not self.steps:
            return 0.0
        before = 0
        for number, size in enumerate(self.steps):
            if steps < before + size:
                return (number + (steps - before) / size) / self.shares * self.epochs
            before += size
        return len(self.steps) / self.shares * self.epochs

    def known(self, steps: int) -> bool:
        """Returns whether the length is known beyond so many steps, or ends there."""
        return self.steps is None or len(self.steps) == self.shares or steps < sum(self.steps)

    def ended(self, epoch: int, steps: int) -> bool:
        """Returns whether training is over.

        Args:
            epoch: how many epochs are over.
            steps: how many have been taken altogether.
        """
        if self.steps is None:
            return epoch >= self.epochs
        return len(self.steps) == self.shares and steps >= sum(self.steps)
