"""Images on disk, read on access; the next batches are prefetched by worker processes."""

from __future__ import annotations

import os
import signal
import threading
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler
from torch.utils.data._utils import signal_handling

from robustcords.data.images import Images, Part
from robustcords.errors import RunError, UserError

Pixels = tuple[Tensor, str | None]
"""Images (B, C, H, W) uint8; or why one of them cannot be read, in which case these mean nothing."""


class Reader(Dataset[Pixels], ABC):
    """Reads images by their rows. Worker processes get a copy, so it can be pickled.

    Attributes:
        shape: C, H and W of every image.
        how: where from, for a line: "10 images ...".
    """

    how: str
    shape: tuple[int, int, int]

    @abstractmethod
    def read(self, rows: Sequence[int]) -> Tensor:
        """Returns images (B, C, H, W) uint8, which nothing else refers to.

        Raises:
            UserError: one cannot be read; the line names it.
        """

    def __getitem__(self, rows: Sequence[int]) -> Pixels:
        """Returns what `read` does, or its error: a ``DataLoader`` would print a worker's with its traceback."""
        try:
            return self.read(rows), None
        except UserError as error:
            return torch.empty(0), str(error)


class _Plan(Sampler[list[int]]):
    """The batches that a loader reads next."""

    def __init__(self) -> None:
        self.parts: Sequence[Sequence[int]] = ()

    def __iter__(self) -> Iterator[list[int]]:
        return (list(rows) for rows in self.parts)


class OnDisk(Images):
    """A set of images that are read when they are asked for.

    `batch` reads in the caller's process. `batches` reads ahead in workers, which are started when they are first
    needed, and stay.

    Args:
        reader: of the pixels.
        labels: (N,) int64.
        classes: the classes' names.
        workers: how many processes read ahead; with 0 nothing is read ahead.
    """

    def __init__(self, reader: Reader, labels: Tensor, classes: tuple[str, ...], workers: int) -> None:
        self.reader, self.labels, self.classes, self.workers = reader, labels, classes, workers
        self.shape = reader.shape
        self._loader: DataLoader[Pixels] | None = None
        self._plan, self._turn = _Plan(), 0

    def batch(self, rows: Tensor, device: torch.device | str = "cpu") -> tuple[Tensor, Tensor]:
        """Returns images (B, C, H, W) float32 in [0, 1] and labels (B,) of some rows, on a device."""
        return self._given(self.reader.read(rows.tolist()), rows, device)

    def batches(self, parts: Sequence[Sequence[int]], device: torch.device | str) -> Iterator[tuple[Tensor, Tensor]]:
        """Yields images and labels of several lists of rows, which workers read ahead.

        Raises:
            UserError: an image cannot be read.
            RunError: a worker has died.
        """
        done = 0
        while done < len(parts):
            # Workers serve one caller at a time. One that finds them taken by another begins again where it was.
            self._turn = turn = self._turn + 1
            for pixels in self._ahead(parts[done:], torch.device(device)):
                rows = torch.tensor(parts[done], dtype=torch.int64)
                done += 1
                yield self._given(pixels, rows, device)
                if self._turn != turn:
                    break

    def _ahead(self, parts: Sequence[Sequence[int]], device: torch.device) -> Iterator[Tensor]:
        if not self.workers:
            yield from map(self.reader.read, parts)
            return
        self._plan.parts = parts
        try:
            with _deaths_wait():
                reading = iter(self._reading(device))
            for pixels, problem in reading:
                if problem is not None:
                    raise UserError(problem)
                yield pixels
        except (RuntimeError, OSError, EOFError) as error:
            if isinstance(error, RuntimeError) and "DataLoader worker (pid" not in str(error):
                raise
            self._loader = None
            text = " ".join(str(error).split()) or type(error).__name__
            raise RunError(
                f"a process that reads images has died ({text}); data.workers = 0 works without them"
            ) from error

    def _reading(self, device: torch.device) -> DataLoader[Pixels]:
        if self._loader is None:
            self._loader = DataLoader(
                self.reader,
                batch_size=None,
                sampler=self._plan,
                num_workers=self.workers,
                collate_fn=_as_it_is,
                pin_memory=device.type == "cuda",
                worker_init_fn=_begin,
                generator=torch.Generator(),  # of its own: none is drawn from the global one
                persistent_workers=True,
            )
        return self._loader

    def _given(self, pixels: Tensor, rows: Tensor, device: torch.device | str) -> tuple[Tensor, Tensor]:
        x = pixels.to(device, non_blocking=True).float().div_(255)
        return x, self.labels[rows].to(device, non_blocking=True)

    def stored(self, rows: Tensor) -> Tensor:
        """Returns the pixels of some rows as they are stored."""
        return self.reader.read(rows.tolist())


@contextmanager
def _deaths_wait() -> Iterator[None]:
    """Removes torch's handler of SIGCHLD, which raises an error wherever the run is when a worker dies.

    A death is noticed without it when the next images are expected from that worker. Torch sets its handler once per
    process, so one that an earlier loader has set is removed too.
    """
    if threading.current_thread() is not threading.main_thread() or not hasattr(signal, "SIGCHLD"):
        yield
        return
    before = signal.getsignal(signal.SIGCHLD)
    yield
    of_torch = getattr(before, "__module__", None) == signal_handling.__name__
    signal.signal(signal.SIGCHLD, signal.SIG_DFL if of_torch else before)


def on_disk(images: Images) -> OnDisk | None:
    """Returns the set on disk that images are, or are a part of; None for others."""
    while isinstance(images, Part):
        images = images.whole
    return images if isinstance(images, OnDisk) else None


def _as_it_is(pixels: Any) -> Any:
    return pixels


def _begin(number: int) -> None:
    """Has a worker end when it is told to, and not by what is meant for the run: that stops between two steps."""
    del number
    if hasattr(os, "setpgrp"):
        os.setpgrp()
    for name in (signal.SIGINT, signal.SIGTERM):
        signal.signal(name, signal.SIG_DFL)
