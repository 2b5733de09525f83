"""Time by phase."""

from __future__ import annotations

import time
from collections.abc import Mapping

import torch
from torch.profiler import record_function

TRAINING = ("data", "attack", "update", "communication", "averaging")
"""The phases of a training step."""

PHASES = (*TRAINING, "selection", "validation", "checkpoint", "logging", "planning")


class Stopwatch:
    """Divides wall-clock time into phases: all time counts towards the phase that was begun last.

    So phases do not nest, and add up to the total. In a trace of torch's profiler each phase is a named range.

    Args:
        device: a CUDA device is synchronised at the end of each phase, so that work is counted where it was launched.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._range: record_function | None = None
        self.restart("logging")

    def restart(self, phase: str) -> None:
        """Restarts the clock in one of `PHASES`."""
        self._phase = phase
        self._phases = dict.fromkeys(PHASES, 0.0)
        self._earlier = 0.0
        self._start = self._counted = time.perf_counter()

    def add(self, seconds: dict[str, float]) -> None:
        """Adds the `seconds` of an interrupted epoch."""
        for phase in PHASES:
            self._phases[phase] += seconds.get(phase, 0.0)  # 0.1 planned nothing
        self._earlier += seconds["total"]

    def ascribe(self, phase: str, since: Mapping[str, float]) -> None:
        """Assigns the time since an earlier result of `seconds` to one of `PHASES`, and continues in it."""
        self.begin(phase)
        earlier = {each: since[each] for each in PHASES}
        spent = sum(self._phases.values()) - sum(earlier.values())
        self._phases = earlier | {phase: earlier[phase] + spent}

    def add_to(self, phase: str, seconds: float) -> None:
        """Adds time from before the clock was started to a phase."""
        self.add(dict.fromkeys(PHASES, 0.0) | {phase: seconds, "total": seconds})

    def begin(self, phase: str) -> None:
        """Begins one of `PHASES`, which ends the previous one."""
        self._count()
        self._phase = phase
        if self._range:
            self._range.__exit__(None, None, None)
            self._range = None
        # A trace starts and ends while something is logged, and the ranges in it have to be whole.
        if phase != "logging":
            self._range = record_function(phase)
            self._range.__enter__()

    def seconds(self) -> dict[str, float]:
        """Returns seconds by phase, including the current one, and ``"total"``."""
        self._count()
        return {"total": self._earlier + self._counted - self._start, **self._phases}

    def lap(self) -> dict[str, float]:
        """Returns `seconds` and restarts the clock at the same instant, in the current phase."""
        seconds = self.seconds()
        self._phases = dict.fromkeys(PHASES, 0.0)
        self._earlier = 0.0
        self._start = self._counted
        return seconds

    def _count(self) -> None:
        """Adds the time since the last count to the current phase."""
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)
        now = time.perf_counter()
        self._phases[self._phase] += now - self._counted
        self._counted = now
