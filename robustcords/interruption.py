"""Stopping a run when it is asked to: after the current step, with a checkpoint."""

from __future__ import annotations

import signal
import threading
from types import FrameType

from robustcords.errors import Interrupted


class Interruption:
    """Notes SIGINT and SIGTERM while its context lasts; a second one of either ends the process the usual way.

    Attributes:
        requested: the number of the signal that came, or 0.
    """

    def __init__(self) -> None:
        self.requested = 0
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
        self.requested = number
        self.__exit__()

    def check(self) -> None:
        """Raises what stops the run, if a signal came.

        Raises:
            Interrupted: with the signal's number.
        """
        if self.requested:
            raise Interrupted(self.requested)
