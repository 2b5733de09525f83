"""The length of a run: epochs, steps, or a budget in time that is planned from measured costs."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from robustcords.config.schema import Stateful
from robustcords.errors import UserError
from robustcords.runtime import collectives
from robustcords.training.config import SHARES, TrainConfig
from robustcords.training.costs import Calendar, Costs
from robustcords.training.measuring import calendar, measure
from robustcords.training.state import Progress

if TYPE_CHECKING:
    from robustcords.training.trainer import Trainer

_MEASURED = 0.02
"""The share of a budget that steps are measured for."""
_LONGEST_S = 15.0
_SLOWEST = 2
"""No share has fewer than this part of the first one's batches: to run through a schedule in no time is of no use."""


class Length(Stateful):
    """How long a run is, and how much of it has passed.

    The settings fix it, or with a budget it is planned share by share, as what a batch costs changes over a run, for
    one with attack steps that depend on what the network has learned. Every schedule runs over the shares, each of
    which is the same part of it; so a recipe with the batches of all shares is the same run again.

    Args:
        settings: of the run.
        batches: of an ordinary epoch.

    Attributes:
        steps: batches of each share of the run that is known so far; None where the run has whole epochs.
        shares: how many shares there are.
        budget: seconds to train, with everything but evaluation; None where nothing is left to plan.
        costs: what is known of them; None before they are measured. Only the main process's count.
        on_plan: called with the batches of all shares so far whenever there is one more.

    Example:
        >>> Length(TrainConfig(steps=300), batches=40).epochs
        7.5
    """

    def __init__(self, settings: TrainConfig, batches: int) -> None:
        self.batches = batches
        self.budget = settings.budget.total_seconds() if settings.budget and not settings.planned else None
        steps = settings.steps or []
        self.steps = None if settings.epochs else [steps] if isinstance(steps, int) else list(steps)
        self.shares = SHARES if self.budget else len(self.steps or [0])
        self.costs: Costs | None = None
        self.on_plan: Callable[[list[int]], None] = lambda steps: None
        self._whole = settings.epochs or math.inf
        self._earlier: dict[str, float] = {}
        self._mark: dict[str, float] = {}

    @property
    def epochs(self) -> float:
        """The run's epochs: those that its steps come to; infinity before the first share is planned."""
        # By the first share alone, as that is known from the first step on, and the others are not.
        return self.steps[0] * self.shares / self.batches if self.steps else self._whole

    def passed(self, progress: Progress, part: float) -> float:
        """Returns the epochs that have passed when a part of the running one has, in [0, epochs]."""
        if self.steps is None:
            return progress.epoch + part
        before = 0
        for number, size in enumerate(self.steps):
            if progress.steps < before + size:
                return (number + (progress.steps - before) / size) / self.shares * self.epochs
            before += size
        return len(self.steps) / self.shares * self.epochs if self.steps else 0.0

    def share(self, progress: Progress, part: float) -> float:
        """Returns the share of the run that has passed when a part of the running epoch has."""
        return self.passed(progress, part) / self.epochs

    def label(self, progress: Progress) -> str:
        """Returns what the running epoch is called on the display."""
        number = f"epoch {progress.epoch + 1}"
        return f"{number}/{self.epochs}" if self.steps is None else f"{number} ({self.share(progress, 0.0):.0%})"

    def known(self, steps: int) -> bool:
        """Returns whether the length is known beyond so many steps, or ends there."""
        return self.steps is None or len(self.steps) == self.shares or steps < sum(self.steps)

    def ended(self, epochs: int, steps: int) -> bool:
        """Returns whether training is over when so many epochs are, and so many steps have been taken altogether."""
        if self.steps is None:
            return epochs >= self.epochs
        return len(self.steps) == self.shares and steps >= sum(self.steps)

    def begin(self, trainer: Trainer) -> None:
        """Measures what a run with a budget costs, once; all processes call it, after a checkpoint is restored.

        Raises:
            UserError: a budget is too short.
        """
        if (budget := self.budget) and self.costs is None:
            before = trainer.stopwatch.seconds()
            seconds = min(_MEASURED * budget, _LONGEST_S)
            self.costs = measure(trainer, seconds, lambda step: budget / step / self.batches)
            trainer.stopwatch.ascribe("planning", before)
            self.extend(trainer)
            trainer.session.display.say(
                f"train.budget: a batch takes {self.costs.step:.3g} s: about {self.epochs:.3g} epochs"
            )
        if trainer.selector and not trainer.progress.steps:
            trainer.selector.set_epochs(self.epochs)

    def extend(self, trainer: Trainer, left: int | None = None) -> None:
        """Plans how many batches follow, where that is not known; all processes call it.

        Args:
            trainer: that is before its next batch.
            left: batches that the running epoch has left; None where it has not begun.

        Raises:
            UserError: a budget is too short.
        """
        progress, watch = trainer.progress, trainer.stopwatch
        if self.steps is None or self.known(progress.steps):
            return
        watch.begin("planning")
        share = collectives.decide_together(lambda: self._plan(watch.seconds(), progress, calendar(trainer), left))
        self.steps.append(share)
        self.on_plan(list(self.steps))

    def add(self, seconds: Mapping[str, float]) -> None:
        """Notes what an epoch took, by phase and in ``"total"``."""
        for phase, value in seconds.items():
            self._earlier[phase] = self._earlier.get(phase, 0.0) + value

    def _plan(self, seconds: Mapping[str, float], progress: Progress, calendar: Calendar, left: int | None) -> int:
        """Returns how many batches the next share has.

        Args:
            seconds: what the running epoch has taken so far, by phase and in ``"total"``.
            progress: of the run.
            calendar: what comes when.
            left: see `extend`.
        """
        assert self.budget and self.costs and self.steps is not None  # measured before the first share
        so_far = {phase: self._earlier.get(phase, 0.0) + value for phase, value in seconds.items()}
        begun = progress.epoch + (left is not None)
        self._learn(so_far, calendar, steps=progress.steps, begun=begun, ended=progress.epoch)
        count = self.costs.fitting(self.budget - so_far["total"], calendar, progress.epoch, left)
        if not self.steps and count < SHARES:
            ends = sum(self.costs.after(progress.epoch, calendar, last=True).values())
            raise UserError(
                f"train.budget: {self.budget:g} s are too short: measuring took {so_far['total']:.1f} s, a batch "
                f"takes {self.costs.step:.2f} s, the work after the last one {ends:.1f} s, and at least "
                f"{SHARES} batches are needed"
            )
        fewest = self.steps[0] // _SLOWEST if self.steps else 1
        return max(count // (SHARES - len(self.steps)), fewest, 1)

    def _learn(self, seconds: Mapping[str, float], calendar: Calendar, **counts: int) -> None:
        """Replaces costs by what the last share has shown of them.

        Args:
            seconds: up to its end, by phase.
            calendar: what comes when.
            counts: of the steps, and of the epochs that have begun and ended, up to its end.
        """
        before, self._mark = self._mark, {**seconds, **counts}
        assert self.costs
        if before and (steps := counts["steps"] - int(before["steps"])):
            taken = {phase: value - before[phase] for phase, value in seconds.items()}
            begun, ended = (range(int(before[key]), counts[key]) for key in ("begun", "ended"))
            # Checkpoints by the clock are none of what the calendar expects, so their cost stays as it was.
            self.costs = self.costs.corrected(taken, steps, self.costs.around(calendar, begun, ended))

    def state_dict(self) -> dict[str, Any]:
        """Returns the plan, and all that it is made from."""
        costs = vars(self.costs) if self.costs else None
        return {"steps": self.steps, "costs": costs, "earlier": self._earlier, "mark": self._mark}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Takes back what `state_dict` gave; of two plans of one run the longer one is the later."""
        self.steps = max(self.steps or [], list(state["steps"]), key=len)
        self.costs = Costs(**state["costs"]) if state["costs"] else None
        self._earlier, self._mark = dict(state["earlier"]), dict(state["mark"])
