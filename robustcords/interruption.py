"""Stopping a run when it is asked to: after the current step, with a checkpoint."""

from __future__ import annotations

import signal
import threading
import time
from types import FrameType

import torch

from robustcords import processes
from robustcords.errors import Interrupted

SAME_S = 2.0
"""Signals within so many seconds are one request: what a terminal sends to all, a launcher also hands on."""


class Interruption:
    """Notes SIGINT and SIGTERM while its context lasts; a later second one of either ends the process the usual way.

    Attributes:
        requested: the number of the signal that came, or 0.
    """

    def __init__(self) -> None:
        self.requested = 0
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

    def check(self) -> None:
        """Raises what stops the run, if a signal came.

        Raises:
            Interrupted: with the signal's number.
        """
        if self.requested:
            raise Interrupted(self.requested)

    def check_together(self, device: torch.device | str = "cpu") -> None:
        """Stops all processes if a signal came to any; each has to call this at the same point.

        Raises:
            Interrupted: with the signal's number.
        """
        if processes.sum_over([int(self.requested > 0)], device)[0]:
            raise Interrupted(self.requested or signal.SIGTERM)
