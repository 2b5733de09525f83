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
    """The environment of long-running work; by default silent, never interrupted, and not profiled.

    Attributes:
        accelerator: the processes, the device and the precision.
        display: for progress.
        interruption: signals and the time limit.
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
        """The device of the model and its batches."""
        device: torch.device = self.accelerator.device
        return device

    @property
    def watched(self) -> Context:
        """Returns the autocast context of a forward pass, after checking for an interruption."""
        return self.interruption.watched(self.accelerator.autocast)

    @contextmanager
    def restartable(self, label: str, save: Callable[[], None]) -> Iterator[Callable[[int, int], None]]:
        """Restartable section, which a resumed run repeats; yields a function that reports (done, total).

        Args:
            label: of the work, for the display.
            save: writes a checkpoint; called before a stop leaves the section, and may not wait for other processes.

        Raises:
            Interrupted: a signal was received, or the time limit has passed; checked at every report.
        """
        with self.reported(label) as report, self.interruption.begun_again(save):
            yield report

    @contextmanager
    def reported(self, label: str) -> Iterator[Callable[[int, int], None]]:
        """Context of a task; yields a function that reports (done, total), and checks for an interruption.

        Args:
            label: of the work, for the display.

        Raises:
            Interrupted: a signal was received, or the time limit has passed.
        """
        with self.display.task(label) as update:

            def report(done: int, total: int) -> None:
                update(done, total)
                self.interruption.check()

            yield report
