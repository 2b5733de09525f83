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
            for number in signals.NUMBERS:
                self._before[number] = signal.signal(number, self._note)
        return self

    def __exit__(self, *_: object) -> None:
        """Puts the earlier handlers back: after a signal only for the next one, as copies of it may be on their way."""
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
        """Stops as another process has been asked to."""
        if other.number:
            self.requested = self.requested or other.number
        else:
            self._deadline = -math.inf

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

    def watched(self, autocast: Context) -> Context:
        """Returns a maker of the contexts that ``autocast`` makes for forward passes, which first does `check`."""

        def checked() -> AbstractContextManager[object]:
            self.check()
            return autocast()

        return checked

    @contextmanager
    def begun_again(self, save: Callable[[], None]) -> Iterator[None]:
        """Is work that a resumed run does again from its beginning, which a stop may leave at any `check`.

        Several processes are not at the same point in it: one that stops leaves the others to be notified, or to fail.

        Args:
            save: is called before the work is left for a stop; may not wait for other processes.

        Raises:
            Interrupted: a signal came, or the time is over.
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
        """Returns what stops all processes, or None if nothing does by then: word of another one may take a moment."""
        end = time.monotonic() + seconds
        while not (error := self.verdict(self.reasons())) and time.monotonic() < end:
            time.sleep(0.01)
        return error

    def check_together(self, device: torch.device | str = "cpu") -> None:
        """Stops all processes if there is a reason to in any; each has to call this at the same point.

        Raises:
            Interrupted: a signal came, or the time is over.
        """
        if error := self.verdict(collectives.sum_over(self.reasons(), device)):
            raise error
