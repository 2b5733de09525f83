"""The session of a run: its processes, its progress display, and its interruption."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
from accelerate import Accelerator

from robustcords.runtime.interruption import Context, Interruption
from robustcords.runtime.profiler import Profiler
from robustcords.runtime.progress import Display


def _silent() -> Display:
    return Display(visible=False)


@dataclass
class Session:
    """What every long piece of work is lent; by default silent, never interrupted, and not profiled.

    Attributes:
        accelerator: the processes, the device and the precision.
        display: where progress is shown.
        interruption: whether a signal came, or the time is over.
        profiler: records some training steps.

    Example:
        >>> session = Session(start("fp32"), Display())
    """

    accelerator: Accelerator
    display: Display = field(default_factory=_silent)
    interruption: Interruption = field(default_factory=Interruption)
    profiler: Profiler = field(default_factory=Profiler)

    @property
    def device(self) -> torch.device:
        """Where the model and its batches are."""
        device: torch.device = self.accelerator.device
        return device

    @property
    def watched(self) -> Context:
        """Makes the precision of a forward pass, having asked whether to stop."""
        return self.interruption.watched(self.accelerator.autocast)

    @contextmanager
    def restartable(self, label: str, save: Callable[[], None]) -> Iterator[Callable[[int, int], None]]:
        """Is a piece of work that a resumed run repeats from its beginning; gives what reports (done, total) of it.

        Args:
            label: of the work, for the display.
            save: writes a checkpoint; called before a stop leaves the work, and may not wait for other processes.

        Raises:
            Interrupted: a signal came, or the time is over; asked at every report.
        """
        with self.reported(label) as report, self.interruption.begun_again(save):
            yield report

    @contextmanager
    def reported(self, label: str) -> Iterator[Callable[[int, int], None]]:
        """Is a piece of work; gives what reports (done, total) of it, and asks at every report whether to stop.

        Args:
            label: of the work, for the display.

        Raises:
            Interrupted: a signal came, or the time is over.
        """
        with self.display.task(label) as update:

            def report(done: int, total: int) -> None:
                update(done, total)
                self.interruption.check()

            yield report
