"""A trace of a few training steps, and the operators that take most of their time."""

from __future__ import annotations

import itertools
import os
import tempfile
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import torch
from rich.table import Table
from torch.profiler import ProfilerActivity, profile, schedule

from robustcords.runtime.progress import Display, for_tables
from robustcords.storage.files import write_atomic

WARM_UP, STEPS = 3, 5
"""Steps that are let pass, as caches fill and kernels are chosen in them, and steps that are recorded after them."""

_SHOWN = 15


@dataclass(frozen=True)
class Operator:
    """Self time of one operator.

    Attributes:
        name: torch's, such as ``"aten::convolution_backward"``.
        calls: number of calls.
        seconds: on the CPU.
        gpu_seconds: of its kernels; 0 without a GPU.
    """

    name: str
    calls: int
    seconds: float
    gpu_seconds: float


class Profiler:
    """Records steps of the first epoch that is trained; a context manager around each epoch's steps.

    After `WARM_UP` steps it records up to `STEPS`, writes ``trace.json.gz`` (then ``trace-2.json.gz``, ...) in Chrome's
    trace format, and prints the operators that took the most time. Results are unaffected.

    Args:
        folder: for the trace, created if needed; None records nothing.
        device: whose kernels are recorded too if it is a CUDA device.
        display: for the table.
    """

    def __init__(
        self, folder: Path | None = None, device: torch.device | None = None, display: Display | None = None
    ) -> None:
        self.folder = folder
        self.on_gpu = device is not None and device.type == "cuda"
        self.display = display or Display(visible=False)
        self._profile: profile | None = None
        self._steps = 0

    def __enter__(self) -> Self:
        """Starts recording in the first epoch."""
        if self.folder is not None:
            activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if self.on_gpu else [])]
            if not self.on_gpu:  # or it tells of every start, and of the GPU that there is not, as of errors
                os.environ.setdefault("KINETO_LOG_LEVEL", "99")
            self._profile = profile(
                activities=activities, schedule=schedule(wait=WARM_UP - 1, warmup=1, active=STEPS, repeat=1)
            )
            self._profile.start()
        return self

    def __exit__(self, *_: object) -> None:
        """Stops recording, and reports the result."""
        if self._profile is None or self.folder is None:
            return
        done, self._profile = self._profile, None
        done.stop()
        if not self._steps:  # an epoch of which all steps had been taken before
            return
        recorded = min(self._steps - WARM_UP, STEPS)
        if recorded > 0:
            path = _write(done, self.folder)
            self.display.say(f"{path}: {recorded} training steps, after {WARM_UP} to warm up")
            print_operators(operators(done.key_averages()), self.display)
        else:
            self.display.say(f"no profile: {self._steps} steps are too few, as the first {WARM_UP} only warm up")
        self.folder = None

    def step(self) -> None:
        """Marks the end of a training step."""
        if self._profile is not None:
            self._steps += 1
            self._profile.step()
            if self._steps == WARM_UP + STEPS:
                self.__exit__()


def operators(averages: Iterable[Any]) -> list[Operator]:
    """Returns a profile's operators, sorted by descending self time: on the GPU if there is one.

    Args:
        averages: torch's ``profile.key_averages()``. Kernels are left out, as their time is counted for the operators
            that launched them, and so are named ranges.
    """
    found = [
        Operator(each.key, each.count, each.self_cpu_time_total / 1e6, each.self_device_time_total / 1e6)
        for each in averages
        if each.device_type.name == "CPU" and not each.is_user_annotation
    ]
    return sorted(found, key=lambda each: (each.gpu_seconds, each.seconds), reverse=True)


def print_operators(found: Sequence[Operator], display: Display) -> None:
    """Prints the first operators: a table on a terminal, plain columns elsewhere; percentages are of all operators.

    The table of torch's own ``profile.key_averages()`` counts the phases of a step as operators, in its rows and in its
    percentages, and is wider than a terminal.
    """
    if not display.visible:
        return
    console = for_tables(display.console)
    columns = {"": [each.seconds for each in found]}
    if any(each.gpu_seconds for each in found):
        columns["GPU "] = [each.gpu_seconds for each in found]
    table = Table(box=Table().box if console.is_terminal else None, pad_edge=console.is_terminal)
    table.add_column("operator")
    for name in ("calls", *(f"{where}{what}" for where in columns for what in ("seconds", "percent"))):
        table.add_column(name, justify="right")
    for number, each in enumerate(found[:_SHOWN]):
        shares = ((values[number], 100 * values[number] / (sum(values) or 1)) for values in columns.values())
        cells = (cell for value, share in shares for cell in (f"{value:.4f}", f"{share:.1f}"))
        table.add_row(each.name, str(each.calls), *cells)
    console.print(table)


def _write(done: profile, folder: Path) -> Path:
    """Writes the trace under the next free name, and returns its path."""
    folder.mkdir(exist_ok=True)
    names = itertools.chain(["trace.json.gz"], (f"trace-{number}.json.gz" for number in itertools.count(2)))
    path = next(folder / name for name in names if not (folder / name).exists())
    with tempfile.TemporaryDirectory() as scratch:
        made = Path(scratch) / path.name
        done.export_chrome_trace(str(made))
        write_atomic(path, made.read_bytes())
    return path
