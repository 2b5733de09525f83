"""The cost of a run's phases in seconds, and the number of batches that fit in a time."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field, replace

EVENTS = ("selection", "validation", "checkpoint")
"""The phases of what comes now and then, besides the batches."""


@dataclass(frozen=True)
class Calendar:
    """What comes when in a run.

    Attributes:
        batches: of an ordinary epoch.
        selects: whether a subset is selected at the start of an epoch.
        due: the callbacks that are called after an epoch, which may be the last one, by their names.
        checkpoint_every: epochs between checkpoints; None where they come by the clock.
        checkpoint_seconds: between checkpoints that come by the clock; infinity where there are none.
    """

    batches: int
    selects: Callable[[int], bool]
    due: Callable[[int, bool], list[str]]
    checkpoint_every: int | None = 1
    checkpoint_seconds: float = math.inf


@dataclass(frozen=True)
class Costs:
    """Seconds that the parts of a run take.

    Attributes:
        step: a batch, with everything that comes with it, and its part of what comes with an epoch.
        selection: one selection.
        callbacks: one call of each measured callback after an epoch, by name.
        checkpoint: writing one.
        phases: what ``step`` consists of, by phase.
    """

    step: float
    selection: float = 0.0
    callbacks: dict[str, float] = field(default_factory=dict)
    checkpoint: float = 0.0
    phases: dict[str, float] = field(default_factory=dict)

    def before(self, epoch: int, calendar: Calendar) -> float:
        """Returns the seconds of what comes before an epoch's first batch."""
        return self.selection if calendar.selects(epoch) else 0.0

    def after(self, epoch: int, calendar: Calendar, *, last: bool) -> dict[str, float]:
        """Returns the seconds of what comes after an epoch's last batch, by phase."""
        every = calendar.checkpoint_every
        saved = last or (every is not None and (epoch + 1) % every == 0)
        return {
            "validation": sum(self.callbacks.get(name, 0.0) for name in calendar.due(epoch, last)),
            "checkpoint": self.checkpoint if saved else 0.0,
        }

    def fitting(self, seconds: float, calendar: Calendar, epoch: int, left: int | None = None) -> int:
        """Returns how many batches there is time for, such that what comes after the last one is over in time.

        Args:
            seconds: that are left.
            calendar: what comes when.
            epoch: that is running, or is to begin.
            left: batches that it has left; None where it has not begun.
        """
        # Checkpoints by the clock come in the middle of everything: time passes the faster for them.
        step = self.step * (1 + self.checkpoint / calendar.checkpoint_seconds)
        steps, room = 0, seconds
        if left is None:
            left, room = calendar.batches, room - self.before(epoch, calendar)
        while True:
            most = (room - sum(self.after(epoch, calendar, last=True).values())) / step
            if most < left:
                return steps + max(0, math.floor(most))
            steps += left
            room -= left * step + sum(self.after(epoch, calendar, last=False).values())
            epoch, left = epoch + 1, calendar.batches
            room -= self.before(epoch, calendar)

    def total(self, steps: int, calendar: Calendar) -> dict[str, float]:
        """Returns the seconds of a run of so many batches, by ``"training"``, ``"selection"`` and the like."""
        spent = {"training": steps * self.step, **dict.fromkeys(EVENTS, 0.0)}
        for epoch in range(math.ceil(steps / calendar.batches)):
            spent["selection"] += self.before(epoch, calendar)
            last = (epoch + 1) * calendar.batches >= steps
            for phase, seconds in self.after(epoch, calendar, last=last).items():
                spent[phase] += seconds
        spent["checkpoint"] += sum(spent.values()) / calendar.checkpoint_seconds * self.checkpoint
        return spent

    def scaled(self, **factors: float) -> Costs:
        """Returns the costs with those of some phases, such as ``selection``, multiplied by a factor."""
        by_name = {name: value * factors.get("validation", 1.0) for name, value in self.callbacks.items()}
        selection, checkpoint = (factors.get(phase, 1.0) for phase in ("selection", "checkpoint"))
        return replace(
            self,
            selection=self.selection * selection,
            callbacks=by_name,
            checkpoint=self.checkpoint * checkpoint,
        )
