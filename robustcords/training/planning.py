"""The number of steps of a run: fixed by its settings or, with a budget, decided share by share."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from datetime import timedelta
from typing import TYPE_CHECKING

from robustcords.runtime import collectives
from robustcords.training.budget import Budget
from robustcords.training.config import TrainConfig
from robustcords.training.costs import Calendar
from robustcords.training.length import Length
from robustcords.training.measuring import measure
from robustcords.training.state import Progress

if TYPE_CHECKING:
    from robustcords.training.trainer import Trainer

_MEASURED = 0.02
"""The share of a budget that steps are measured for."""
_LONGEST_S = 15.0


class Planner:
    """Says how long a run is, and with a budget finds out.

    Args:
        settings: of the run.
        batches: of an ordinary epoch.

    Attributes:
        length: as far as it is known.
        budget: what plans it; None where nothing is left to plan.
        on_plan: called with the batches of all shares so far whenever there is one more, so that they are kept: a
            recipe with these is the same run again.
    """

    def __init__(self, settings: TrainConfig, batches: int) -> None:
        self.settings, self.batches = settings, batches
        self.budget: Budget | None = None
        if settings.budget and not settings.planned:
            self.budget = Budget(settings.budget.total_seconds(), list(settings.steps or ()))  # type: ignore[arg-type]
        self.on_plan: Callable[[list[int]], None] = lambda steps: None
        self.length = self._length()

    def _length(self) -> Length:
        steps = {"steps": list(self.budget.steps)} if self.budget else {}
        return Length.of(self.settings.model_copy(update=steps), self.batches)

    def passed(self, progress: Progress, part: float) -> tuple[float, float]:
        """Returns the epochs that have passed when a part of the running one has, and those of the run."""
        return self.length.passed(progress.epoch, part, progress.steps), self.length.epochs

    def share(self, progress: Progress, part: float) -> float:
        """Returns the share of the run that has passed when a part of the running epoch has."""
        passed, epochs = self.passed(progress, part)
        return passed / epochs

    def label(self, progress: Progress) -> str:
        """Returns what the running epoch is called on the display."""
        known = self.length.steps is None
        number = f"epoch {progress.epoch + 1}"
        return f"{number}/{self.length.epochs}" if known else f"{number} ({self.share(progress, 0.0):.0%})"

    def begin(self, trainer: Trainer) -> None:
        """Takes up the run where it is; all processes call it, after what a checkpoint has is restored.

        Raises:
            UserError: a budget is too short.
        """
        self.length, budget = self._length(), self.budget
        if budget and budget.costs is None and not self.length.ended(trainer.progress.epoch, trainer.progress.steps):
            before = trainer.stopwatch.seconds()
            budget.costs = measure(trainer, min(_MEASURED * budget.seconds, _LONGEST_S), self._epochs)
            trainer.stopwatch.ascribe("planning", before)
            self.extend(trainer)
            trainer.session.display.say(
                f"train.budget: a batch takes {budget.costs.step:.3g} s: about {self.length.epochs:.3g} epochs"
            )
        if trainer.selector and not trainer.progress.steps:
            trainer.selector.set_epochs(self.length.epochs)

    def extend(self, trainer: Trainer, left: int | None = None) -> None:
        """Settles how many batches follow, where that is not known; all processes call it.

        Args:
            trainer: that is before its next batch.
            left: batches that the running epoch has left; None where it has not begun.

        Raises:
            UserError: a budget is too short.
        """
        budget, progress = self.budget, trainer.progress
        if budget is None or self.length.known(progress.steps):
            return
        watch = trainer.stopwatch
        watch.begin("planning")
        share = collectives.decide_together(
            lambda: budget.plan(watch.seconds(), progress.steps, calendar(trainer, self.batches), progress.epoch, left)
        )
        if not collectives.is_main():
            budget.steps.append(share)
        self.length = self._length()
        self.on_plan(list(budget.steps))

    def _epochs(self, step: float) -> float:
        """Returns about how many epochs the run has, given the seconds of a batch."""
        return self.budget.seconds / step / self.batches if self.budget else self.length.epochs

    def note_epoch(self, seconds: Mapping[str, float]) -> None:
        """Notes what an epoch took, by phase."""
        if self.budget:
            self.budget.add(seconds)

    def expect(self, trainer: Trainer, phase: str) -> None:
        """Notes that something of a phase has been done that comes now and then."""
        if self.budget and self.budget.costs:
            costs, epoch = self.budget.costs, trainer.progress.epoch
            after = costs.after(epoch, calendar(trainer, self.batches), last=False)
            expected = {"selection": costs.selection, "checkpoint": costs.checkpoint, "validation": after["validation"]}
            self.budget.expect(**{phase: expected[phase]})


def calendar(trainer: Trainer, batches: int) -> Calendar:
    """Returns what comes when in a trainer's run.

    Args:
        trainer: of the run.
        batches: of an ordinary epoch.
    """
    every, selector = trainer.settings.checkpoint_every, trainer.selector
    return Calendar(
        batches,
        selects=selector.selects if selector else lambda epoch: False,
        due=lambda epoch, last: [each.name for each in trainer.callbacks if each.due(epoch, last=last)],
        checkpoint_every=every if isinstance(every, int) else None,
        checkpoint_seconds=every.total_seconds() if isinstance(every, timedelta) else math.inf,
    )
