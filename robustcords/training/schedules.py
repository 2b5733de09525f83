"""Learning rate schedules."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor

from robustcords.config.schema import Component, ComponentConfig, Milestones, NotNegative, Share, milestones_passed

SCHEDULES = {
    "constant": "robustcords.training.schedules:Constant",
    "cosine": "robustcords.training.schedules:Cosine",
    "cyclic": "robustcords.training.schedules:Cyclic",
    "one-cycle": "robustcords.training.schedules:OneCycle",
    "step": "robustcords.training.schedules:MultiStep",
}


class ScheduleConfig(ComponentConfig):
    """Options that every schedule has.

    Attributes:
        warmup: number of epochs over which the learning rate is also multiplied by a line from 0 to 1. The line starts
            at 1 %, so that the first step is not lost.
    """

    warmup: NotNegative = 0.0


class Schedule(Component, ABC):
    """The learning rate over a run, as a factor of the optimiser's.

    A pure function of the moment, so that batch sizes, accumulation and resuming cannot change it. Subclasses write
    `shape`.
    """

    Config = ScheduleConfig
    config: ScheduleConfig

    def factor(self, epoch: float, epochs: float) -> float:
        """Returns the factor, in [0, 1], for the step that begins at a moment.

        Args:
            epoch: epochs that have passed, in [0, epochs]; step s of S in epoch e begins at ``e + s / S``.
            epochs: of the whole run; where it has so many steps instead, those of an ordinary epoch make one.
        """
        warmup = self.config.warmup
        line = max(epoch / warmup, 0.01) if epoch < warmup else 1.0
        return line * self.shape(epoch, epochs)

    def set_rates(self, optimizer: torch.optim.Optimizer, peaks: Sequence[float], epoch: float, epochs: float) -> None:
        """Sets an optimiser's learning rates for the step that begins at a moment, see `factor`.

        Args:
            optimizer: whose they are.
            peaks: of each of its groups, the rate at factor 1.
            epoch: epochs that have passed.
            epochs: of the whole run.
        """
        factor = self.factor(epoch, epochs)
        for group, peak in zip(optimizer.param_groups, peaks, strict=True):
            if isinstance(group["lr"], Tensor):  # compiled steps read their rate from it
                group["lr"].fill_(peak * factor)
            else:
                group["lr"] = peak * factor

    @abstractmethod
    def shape(self, epoch: float, epochs: float) -> float:
        """Returns the factor without warm-up."""


class Constant(Schedule):
    """The optimiser's learning rate throughout."""

    def shape(self, epoch: float, epochs: float) -> float:
        """Returns 1."""
        del epoch, epochs
        return 1.0


class MultiStep(Schedule):
    """The learning rate falls at milestones: by default at 75 and 90 of 100 epochs, as in TRADES' and MART's scripts.

    Their scripts count epochs from 1, and so lower it after 74 and 89 epochs; here 75 and 90 are complete.
    """

    class Config(ScheduleConfig):
        """Options of step.

        Attributes:
            milestones: shares of the run, in ascending order; the learning rate falls at the first epoch that begins at
                or after ``milestone * epochs``, or exactly at the milestone if the run has no whole number of epochs.
            gamma: factor at each milestone.
        """

        name: str = "step"
        milestones: Milestones = (0.75, 0.9)
        gamma: Share = 0.1

    config: MultiStep.Config

    def shape(self, epoch: float, epochs: float) -> float:
        """Returns gamma to the power of the milestones passed."""
        begun = math.floor(epoch) if float(epochs).is_integer() else epoch
        return self.config.gamma ** milestones_passed(self.config.milestones, begun, epochs)


class Cosine(Schedule):
    """Half a cosine from 1 down to the final factor (Loshchilov and Hutter 2017, Eq. 5, without restarts)."""

    class Config(ScheduleConfig):
        """Options of cosine.

        Attributes:
            final_factor: factor at the end of the half cosine, which starts at 1.
        """

        name: str = "cosine"
        final_factor: Annotated[float, Field(ge=0, le=1)] = 0.0

    config: Cosine.Config

    def shape(self, epoch: float, epochs: float) -> float:
        """Returns the cosine's height."""
        return _anneal(1.0, self.config.final_factor, epoch / epochs)


class OneCycle(Schedule):
    """Half a cosine up to the optimiser's learning rate and another one down (Smith and Topin 2018).

    The defaults and the shape are those of ``torch.optim.lr_scheduler.OneCycleLR``; the momentum stays what it is.
    """

    class Config(ScheduleConfig):
        """Options of one-cycle.

        Attributes:
            peak: share of the run at which the learning rate is highest.
            start_factor: factor at the start.
            final_factor: factor at the end.
        """

        name: str = "one-cycle"
        peak: Annotated[float, Field(gt=0, lt=1)] = 0.3
        start_factor: Share = 1 / 25
        final_factor: Annotated[float, Field(ge=0, le=1)] = 1 / 25 / 1e4

    config: OneCycle.Config

    def shape(self, epoch: float, epochs: float) -> float:
        """Returns the cycle's height."""
        progress, peak = epoch / epochs, self.config.peak
        if progress < peak:
            return _anneal(self.config.start_factor, 1.0, progress / peak)
        return _anneal(1.0, self.config.final_factor, (progress - peak) / (1 - peak))


class Cyclic(Schedule):
    """A straight line up to the optimiser's learning rate and another one down (Smith 2017), as in Wong et al. 2020.

    That is one cycle of ``torch.optim.lr_scheduler.CyclicLR``; fast adversarial training is mostly published with it.
    """

    class Config(ScheduleConfig):
        """Options of cyclic.

        Attributes:
            peak: share of the run at which the learning rate is highest.
            start_factor: factor at the start.
            final_factor: factor at the end.
        """

        name: str = "cyclic"
        peak: Annotated[float, Field(gt=0, lt=1)] = 0.5
        start_factor: Annotated[float, Field(ge=0, le=1)] = 0.0
        final_factor: Annotated[float, Field(ge=0, le=1)] = 0.0

    config: Cyclic.Config

    def shape(self, epoch: float, epochs: float) -> float:
        """Returns the line's height."""
        progress, peak = epoch / epochs, self.config.peak
        if progress < peak:
            return 1 - (1 - self.config.start_factor) * (1 - progress / peak)
        return 1 - (1 - self.config.final_factor) * (progress - peak) / (1 - peak)


def _anneal(start: float, end: float, progress: float) -> float:
    """Returns the height of half a cosine from start to end at a progress in [0, 1]."""
    return end + (start - end) * (1 + math.cos(math.pi * progress)) / 2
