"""Time by phase."""

from __future__ import annotations

import time
from collections.abc import Mapping
from itertools import pairwise
from typing import Any

import torch
from torch.profiler import record_function

TRAINING = ("data", "attack", "update", "communication", "averaging")
"""The phases of a training step."""

PHASES = (*TRAINING, "selection", "validation", "checkpoint", "logging", "planning")


class Stopwatch:
    """Divides wall-clock time into phases: all time counts towards the phase that was begun last.

    So phases do not nest, and add up to the total. In a trace of torch's profiler each phase is a named range.

    Args:
        device: on a CUDA device, phases begin when its work so far is done, so that work is counted where it was
            launched. Events on its stream mark these moments; the device is waited for only when seconds are read.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._range: record_function | None = None
        self.restart("logging")

    def restart(self, phase: str) -> None:
        """Restarts the clock in one of `PHASES`."""
        self._phases = dict.fromkeys(PHASES, 0.0)
        self._begun = [(phase, self._now())]

    def add(self, seconds: Mapping[str, float]) -> None:
        """Adds seconds by phase from before the clock was started, such as those of an interrupted epoch."""
        for phase in PHASES:
            self._phases[phase] += seconds.get(phase, 0.0)

    def ascribe(self, phase: str, since: Mapping[str, float]) -> None:
        """Assigns the time since an earlier result of `seconds` to one of `PHASES`, and continues in it."""
        self.begin(phase)
        spent = self.seconds()["total"] - since["total"]
        self._phases = {each: since[each] + spent * (each == phase) for each in PHASES}

    def begin(self, phase: str) -> None:
        """Begins one of `PHASES`, which ends the previous one."""
        self._begun.append((phase, self._now()))
        if self._range:
            self._range.__exit__(None, None, None)
            self._range = None
        # A trace starts and ends while something is logged, and the ranges in it have to be whole.
        if phase != "logging":
            self._range = record_function(phase)
            self._range.__enter__()

    def seconds(self) -> dict[str, float]:
        """Returns seconds by phase, including the current one, and ``"total"``."""
        current, _ = self._begun[-1]
        self._begun.append((current, self._now()))
        if cuda := self._device.type == "cuda":
            torch.cuda.synchronize(self._device)
        for (phase, start), (_, end) in pairwise(self._begun):
            self._phases[phase] += start.elapsed_time(end) / 1000 if cuda else end - start
        del self._begun[:-1]
        return {"total": sum(self._phases.values()), **self._phases}

    def lap(self) -> dict[str, float]:
        """Returns `seconds` and restarts the clock at the same instant, in the current phase."""
        seconds = self.seconds()
        self._phases = dict.fromkeys(PHASES, 0.0)
        return seconds

    def _now(self) -> Any:
        """Returns the moment: seconds, or on a CUDA device an event at the end of its work so far."""
        if self._device.type != "cuda":
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)
        event.record(torch.cuda.current_stream(self._device))
        return event
