"""Where the time goes."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

import torch

PHASES = ("attack", "update", "selection", "data", "validation", "checkpoint")


class Stopwatch:
    """Seconds spent in named phases, and altogether.

    Args:
        device: a CUDA device is waited for at the end of each phase, so that work is counted where it was asked for.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self.restart()

    def restart(self, seconds: dict[str, float] | None = None) -> None:
        """Starts over, or goes on from `seconds` that an interrupted epoch had used."""
        self._phases = dict.fromkeys(PHASES, 0.0)
        self._earlier = 0.0
        if seconds is not None:
            self._phases.update({name: seconds[name] for name in PHASES})
            self._earlier = seconds["total"]
        self._start = time.perf_counter()

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Counts the time of a block towards one of `PHASES`; phases do not nest."""
        start = time.perf_counter()
        try:
            yield
        finally:
            if self._device.type == "cuda":
                torch.cuda.synchronize(self._device)
            self._phases[name] += time.perf_counter() - start

    def seconds(self) -> dict[str, float]:
        """Returns seconds by phase, and ``"total"`` by the wall clock."""
        return {"total": self._earlier + time.perf_counter() - self._start, **self._phases}
