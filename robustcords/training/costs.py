"""The cost of a run's phases in seconds, and the number of batches that fit in a time."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from robustcords.runtime.stopwatch import TRAINING


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

    def around(self, calendar: Calendar, begun: range, ended: range, last: int | None = None) -> dict[str, float]:
        """Returns the seconds of what comes before and after epochs, by phase.

        Args:
            calendar: what comes when.
            begun: the epochs that begin.
            ended: the epochs that end.
            last: which of them is the run's last one, if it is among them.
        """
        after = [self.after(epoch, calendar, last=epoch == last) for epoch in ended]
        ends = {phase: sum(seconds[phase] for seconds in after) for phase in ("validation", "checkpoint")}
        return {"selection": sum(self.before(epoch, calendar) for epoch in begun), **ends}

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
        """Returns the seconds of a run of so many batches, at least 1, by phase, with ``"training"`` for batches."""
        epochs = range(math.ceil(steps / calendar.batches))
        spent = {"training": steps * self.step, **self.around(calendar, epochs, epochs, last=epochs[-1])}
        spent["checkpoint"] += sum(spent.values()) / calendar.checkpoint_seconds * self.checkpoint
        return spent

    def corrected(self, seconds: Mapping[str, float], steps: int, expected: Mapping[str, float]) -> Costs:
        """Returns the costs that a part of a run has had.

        Args:
            seconds: what it took, by phase.
            steps: its batches, at least 1.
            expected: what was expected to come around them, by phase.
        """
        phases = {phase: seconds[phase] / steps for phase in (*TRAINING, "logging")}
        factors = {phase: seconds[phase] / value if value else 1.0 for phase, value in expected.items()}
        return Costs(
            sum(phases.values()),
            self.selection * factors["selection"],
            {name: value * factors["validation"] for name, value in self.callbacks.items()},
            self.checkpoint * factors["checkpoint"],
            phases,
        )
