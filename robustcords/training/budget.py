"""Training within a time budget: steps for each share of the run, from measured costs.

What a batch costs changes over a run, as with attack steps that depend on what a network has learned, and so it is
settled share by share. Every schedule runs over the shares, each of which is the same part of it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from robustcords.config.schema import Stateful
from robustcords.errors import UserError
from robustcords.runtime.stopwatch import TRAINING
from robustcords.training.config import SHARES
from robustcords.training.costs import EVENTS, Calendar, Costs

_SLOWEST = 2
"""No share has fewer than this part of the first one's batches: to run through a schedule in no time is of no use."""


class Budget(Stateful):
    """Plans a run that has a time to train; only the main process's plans count.

    Args:
        seconds: to train, with everything but evaluation.
        steps: batches of the shares that are planned already.

    Attributes:
        costs: what is known of them; None before they have been measured.
    """

    def __init__(self, seconds: float, steps: list[int] | None = None) -> None:
        self.seconds = seconds
        self.steps = list(steps or ())
        self.costs: Costs | None = None
        self._earlier: dict[str, float] = {}
        self._mark: dict[str, float] = {}
        self._expected = dict.fromkeys(EVENTS, 0.0)

    def expect(self, **seconds: float) -> None:
        """Notes that something has been done, and what it was expected to take, by phase."""
        for phase, value in seconds.items():
            self._expected[phase] += value

    def add(self, seconds: Mapping[str, float]) -> None:
        """Notes what an epoch took, by phase and in ``"total"``."""
        for phase, value in seconds.items():
            self._earlier[phase] = self._earlier.get(phase, 0.0) + value

    def plan(self, seconds: Mapping[str, float], steps: int, calendar: Calendar, epoch: int, left: int | None) -> int:
        """Returns how many batches the next share has.

        Args:
            seconds: what the running epoch has taken so far, by phase and in ``"total"``.
            steps: batches so far.
            calendar: what comes when.
            epoch: that is running, or is to begin.
            left: batches that it has left; None where it has not begun.

        Raises:
            UserError: the budget is too short for a run.
        """
        so_far = {phase: self._earlier.get(phase, 0.0) + value for phase, value in seconds.items()}
        self._learn({phase: value - self._mark.get(phase, 0.0) for phase, value in so_far.items()}, steps)
        assert self.costs is not None  # measured before the first share
        room = self.seconds - so_far["total"]
        count = self.costs.fitting(room, calendar, epoch, left)
        if not self.steps and count < SHARES:
            ends = sum(self.costs.after(epoch, calendar, last=True).values())
            raise UserError(
                f"train.budget: {self.seconds:g} s are too short: measuring took {so_far['total']:.1f} s, a batch "
                f"takes {self.costs.step:.2f} s, what comes after the last one {ends:.1f} s, and there have to "
                f"be {SHARES} batches"
            )
        share = count // (SHARES - len(self.steps))
        share = max(share, self.steps[0] // _SLOWEST if self.steps else 1, 1)
        self.steps.append(share)
        self._mark = {**so_far, "steps": float(steps)}
        self._expected = dict.fromkeys(EVENTS, 0.0)
        return share

    def _learn(self, seconds: Mapping[str, float], steps: int) -> None:
        """Replaces costs by what the last share has shown of them.

        Args:
            seconds: what it took, by phase.
            steps: batches up to its end.
        """
        taken = steps - int(self._mark.get("steps", 0))
        if self.costs is None or not taken or not self._mark:
            return
        of_steps = {phase: seconds.get(phase, 0.0) / taken for phase in (*TRAINING, "logging")}
        factors = {phase: seconds.get(phase, 0.0) / value for phase, value in self._expected.items() if value}
        measured = self.costs.scaled(**factors)
        self.costs = Costs(
            sum(of_steps.values()), measured.selection, measured.callbacks, measured.checkpoint, of_steps
        )

    def state_dict(self) -> dict[str, Any]:
        """Returns the plan, and all that it is made from."""
        costs = vars(self.costs) if self.costs else None
        around = {"earlier": self._earlier, "mark": self._mark, "expected": self._expected}
        return {"steps": self.steps, "costs": costs, **around}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Takes back what `state_dict` gave; of two plans of one run the longer one is the later."""
        self.steps = max(self.steps, list(state["steps"]), key=len)
        self.costs = Costs(**state["costs"]) if state["costs"] else None
        self._earlier, self._mark, self._expected = (dict(state[key]) for key in ("earlier", "mark", "expected"))
