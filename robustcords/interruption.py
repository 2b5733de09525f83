"""Stopping a run when it is asked to: after the current step, with a checkpoint."""

from __future__ import annotations

import math
import signal
import threading
import time
from collections.abc import Sequence
from datetime import timedelta
from types import FrameType

import torch

from robustcords import processes
from robustcords.errors import Interrupted

SAME_S = 2.0
"""Signals within so many seconds are one request: what a terminal sends to all, a launcher also hands on."""


class Interruption:
    """Notes SIGINT and SIGTERM while its context lasts; a later second one of either ends the process the usual way.

    Args:
        time_limit: from now on, after which to stop as well; None for none.

    Attributes:
        requested: the number of the signal that came, or 0.
    """

    def __init__(self, time_limit: timedelta | None = None) -> None:
        self.requested = 0
        self._deadline = time.monotonic() + time_limit.total_seconds() if time_limit else math.inf
        self._since = 0.0
        self._before: dict[int, object] = {}

    def __enter__(self) -> Interruption:
        """Installs the handlers, where this is the thread that may."""
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                self._before[number] = signal.signal(number, self._note)
        return self

    def __exit__(self, *_: object) -> None:
        """Puts the earlier handlers back."""
        for number, handler in self._before.items():
            signal.signal(number, handler)  # type: ignore[arg-type]
        self._before.clear()

    def _note(self, number: int, _frame: FrameType | None) -> None:
        now = time.monotonic()
        if not self.requested:
            self.requested, self._since = number, now
        elif now - self._since > SAME_S:
            self.__exit__()
            signal.raise_signal(number)

    def reasons(self) -> list[int]:
        """Returns what speaks for stopping in this process: whether a signal came, and whether the time is over."""
        return [int(self.requested > 0), int(time.monotonic() >= self._deadline)]

    def verdict(self, reasons: Sequence[float]) -> Interrupted | None:
        """Returns what stops all processes, or None.

        Args:
            reasons: of one process, or their sums over all.
        """
        signalled, overdue = reasons
        if signalled:
            return Interrupted(self.requested or signal.SIGTERM)
        return Interrupted(None) if overdue else None

    def check(self) -> None:
        """Raises what stops the run, if there is a reason to.

        Raises:
            Interrupted: a signal came, or the time is over.
        """
        if error := self.verdict(self.reasons()):
            raise error

    def check_together(self, device: torch.device | str = "cpu") -> None:
        """Stops all processes if there is a reason to in any; each has to call this at the same point.

        Raises:
            Interrupted: a signal came, or the time is over.
        """
        if error := self.verdict(processes.sum_over(self.reasons(), device)):
            raise error
