"""Splits that are not decoded yet: their length, and how a row is read."""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from robustcords.errors import UserError

CHUNK = 1024
"""Rows that are held encoded at once."""

_LABELS = ("targets", "labels", "_labels")
PAIRS = ("samples", "_samples", "imgs")
"""Attributes of torchvision's datasets with pairs of a path and a label."""


@dataclass(frozen=True)
class Rows(ABC):
    """A split that is not decoded yet. Worker processes get a copy, so it can be pickled.

    Attributes:
        name: what to call it in messages.
        count: number of rows.
        threads: how many threads may read and decode.
        notes: what a person should know of how they are read, a line each.
    """

    name: str
    count: int
    threads: int = 1
    notes: tuple[str, ...] = ()

    @abstractmethod
    def items(self, rows: Sequence[int]) -> Sequence[Any]:
        """Returns some rows as they are stored, in any order, such as the paths of their files."""

    def chunks(self) -> Iterator[Sequence[Any]]:
        """Yields all `items` in order, some at a time."""
        for start in range(0, self.count, CHUNK):
            yield self.items(range(start, min(start + CHUNK, self.count)))

    def read(self, item: Any) -> tuple[Any, Any]:
        """Returns an item's picture (see `robustcords.data.pixels.to_array`) and label."""
        picture, label = item
        return picture, label

    def where(self, row: int) -> str:
        """Names a row (counted from 0) in messages."""
        return f"{self.name}, row {row}"

    @contextmanager
    def blamed(self, row: int) -> Iterator[None]:
        """Is work on a row, whose every failure is the fault of the file that a decoder was given.

        Raises:
            UserError: it failed; the line names the row.
        """
        with failing(lambda: self.where(row)):
            yield

    def labels(self) -> Sequence[Any] | Tensor | None:
        """Returns the labels of all rows, where they are known without reading the pictures."""
        return None


@dataclass(frozen=True)
class DatasetRows(Rows):
    """The rows of a map-style dataset of (picture, label) pairs.

    Attributes:
        dataset: which.
        first_label: the number of the first class.
    """

    dataset: Any = None
    first_label: int = 0

    def items(self, rows: Sequence[int]) -> Sequence[int]:
        """Returns the rows themselves: what a dataset does for one may take a thread of its own."""
        return rows

    def read(self, item: int) -> tuple[Any, Any]:
        """Returns what the dataset gives."""
        pair = self.dataset[item]
        if not (isinstance(pair, tuple | list) and len(pair) == 2):
            raise ValueError("the dataset does not give pairs (image, label)")
        picture, label = pair
        return picture, label - self.first_label if self.first_label else label

    def labels(self) -> Tensor | None:
        """Returns the labels that torchvision's sets keep, by any of the names that they have there."""
        found = next((value for name in _LABELS if (value := getattr(self.dataset, name, None)) is not None), None)
        if found is None:
            pairs = next((value for name in PAIRS if (value := getattr(self.dataset, name, None)) is not None), None)
            found = None if pairs is None else [label for _, label in pairs]
        if found is None or len(found) != self.count:
            return None
        return torch.as_tensor(found) - self.first_label


@contextmanager
def failing(where: Callable[[], str]) -> Iterator[None]:
    """Is work on what somebody gave, whose every failure is the fault of that.

    Args:
        where: returns what the line begins with; only called where it fails.

    Raises:
        UserError: it failed.
    """
    try:
        yield
    except Exception as error:
        raise UserError(f"{where()}: {message_of(error)}") from error


def message_of(error: BaseException) -> str:
    """Returns an exception's message on one line, at most 300 characters; its type where it has none."""
    return " ".join(str(error).split())[:300] or type(error).__name__


class Paths(Sequence[str]):
    """Paths in one block of memory: a list of a million strings would be copied into every worker process by and by.

    Args:
        names: the paths.
    """

    def __init__(self, names: Sequence[str]) -> None:
        encoded = [os.fsencode(name) for name in names]
        self._ends = np.cumsum([len(name) for name in encoded], dtype=np.int64)
        self._bytes = b"".join(encoded)

    def __len__(self) -> int:
        """Returns how many there are."""
        return len(self._ends)

    def __getitem__(self, row: Any) -> Any:
        """Returns one path."""
        start = self._ends[row - 1] if row else 0
        return os.fsdecode(self._bytes[start : self._ends[row]])
