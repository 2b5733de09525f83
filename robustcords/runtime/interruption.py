"""Stopping a run on request: after the current step, with a checkpoint."""

from __future__ import annotations

import math
import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from datetime import timedelta
from types import FrameType

import torch

from robustcords.errors import Interrupted
from robustcords.runtime import collectives, signals

Context = Callable[[], AbstractContextManager[object]]
"""Makes the context of a forward pass."""


class Interruption:
    """Records SIGINT and SIGTERM inside its context; a later second signal ends the process as usual.

    Args:
        time_limit: from now, after which to stop as well; None for none.

    Attributes:
        requested: number of the received signal, or 0.
    """

    def __init__(self, time_limit: timedelta | None = None) -> None:
        self.requested = 0
        self._deadline = time.monotonic() + time_limit.total_seconds() if time_limit else math.inf
        self._since = 0.0
        self._before: dict[int, object] = {}

    def __enter__(self) -> Interruption:
        """Installs the handlers, if this is the main thread."""
        if threading.current_thread() is threading.main_thread():
            for number in signals.NUMBERS:
                self._before[number] = signal.signal(number, self._note)
        return self

    def __exit__(self, *_: object) -> None:
        """Restores the earlier handlers; after a signal only for the next one, as copies of it may still arrive."""
        if not self.requested:
            self._put_back()

    def _put_back(self) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)  # type: ignore[arg-type]
        self._before.clear()

    def _note(self, number: int, _frame: FrameType | None) -> None:
        now = time.monotonic()
        if not self.requested:
            self.requested, self._since = number, now
        elif now - self._since > signals.SAME_S:
            self._put_back()
            signal.raise_signal(number)

    def follow(self, other: Interrupted) -> None:
        """Stops because another process received a signal."""
        if other.number:
            self.requested = self.requested or other.number
        else:
            self._deadline = -math.inf

    def reasons(self) -> list[int]:
        """Returns this process's reasons to stop: whether a signal was received, and whether the time is over."""
        return [int(self.requested > 0), int(time.monotonic() >= self._deadline)]

    def verdict(self, reasons: Sequence[float]) -> Interrupted | None:
        """Returns the error that stops all processes, or None.

        Args:
            reasons: of one process, or their sums over all.
        """
        signalled, overdue = reasons
        if signalled:
            return Interrupted(self.requested or signal.SIGTERM)
        return Interrupted(None) if overdue else None

    def check(self) -> None:
        """Stops the run if there is a reason to.

        Raises:
            Interrupted: a signal was received, or the time limit has passed.
        """
        if error := self.verdict(self.reasons()):
            raise error

    def watched(self, autocast: Context) -> Context:
        """Returns an ``autocast`` that calls `check` before making the context of a forward pass."""

        def checked() -> AbstractContextManager[object]:
            self.check()
            return autocast()

        return checked

    @contextmanager
    def begun_again(self, save: Callable[[], None]) -> Iterator[None]:
        """Restartable section: a stop may leave it at any `check`; a resumed run repeats it.

        Processes may be at different points in it: when one stops, the others are notified, or fail.

        Args:
            save: called before a stop leaves the section; may not wait for other processes.

        Raises:
            Interrupted: a signal was received, or the time limit has passed.
        """
        try:
            yield
        except (Interrupted, RuntimeError) as error:
            stop = self._found_within(1.0 if collectives.world_size() > 1 else 0.0)
            if stop is None:
                raise
            save()
            raise stop from error

    def _found_within(self, seconds: float) -> Interrupted | None:
        """Returns the error that stops all processes, or None after a timeout, as a notification may take a moment."""
        end = time.monotonic() + seconds
        while not (error := self.verdict(self.reasons())) and time.monotonic() < end:
            time.sleep(0.01)
        return error

    def check_together(self, device: torch.device | str = "cpu") -> None:
        """Stops all processes if any has a reason to; a collective call.

        Raises:
            Interrupted: a signal was received, or the time limit has passed.
        """
        if error := self.verdict(collectives.sum_over(self.reasons(), device)):
            raise error
