"""Encoded images, decoded on access."""

from __future__ import annotations

import math
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import chain
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import get_worker_info

from robustcords.data.on_disk import Reader
from robustcords.data.pixels import channels_of, to_array, to_label
from robustcords.data.rows import Rows
from robustcords.errors import UserError


class Decoder(Reader):
    """Decodes rows of a split.

    Args:
        rows: the split.
        size: side of the square that every image is made; None for images of one size.
        shape: C, H and W of every image; with three channels, grey ones are repeated in each.
    """

    how = "stay on disk, and are decoded when they are read"

    def __init__(self, rows: Rows, size: int | None, shape: tuple[int, int, int]) -> None:
        self.rows, self.size, self.shape = rows, size, shape

    def read(self, rows: Sequence[int]) -> Tensor:
        """Returns images (B, C, H, W) uint8; in a worker with one thread, elsewhere with as many as the split may have.

        Raises:
            UserError: one cannot be read, or has another size; the line names it.
        """
        items = self.rows.items(rows)
        found = torch.empty((len(rows), *self.shape), dtype=torch.uint8)
        pixels = found.numpy()

        def decode(places: range) -> None:
            for place in places:
                pixels[place] = self._decoded(rows[place], items[place])

        threads = 1 if get_worker_info() else min(self.rows.threads, len(rows))
        if threads > 1:
            with ThreadPoolExecutor(threads) as pool:
                list(pool.map(decode, (range(first, len(rows), threads) for first in range(threads))))
        else:
            decode(range(len(rows)))
        return found

    def _decoded(self, row: int, item: Any) -> NDArray[Any]:
        """Returns an image (C or 1, H, W)."""
        with self.rows.blamed(row):
            image = to_array(self.rows.read(item)[0], self.size)
        if image.shape[1:] != self.shape[1:]:
            raise UserError(other_size(self.rows.where(row), image.shape, "others are", self.shape))
        if image.dtype != np.uint8 or len(image) not in {1, self.shape[0]}:
            raise UserError(f"{self.rows.where(row)}: has {len(image)} channels of {image.dtype}, others have not")
        return image


def shape_of(rows: Rows, size: int | None) -> tuple[int, int, int]:
    """Returns C, H and W of a split's first image.

    Raises:
        UserError: there is none, or it cannot be read.
    """
    if not rows.count:
        raise UserError(f"{rows.name}: there are no images in it")
    with rows.blamed(0):
        channels, height, width = to_array(rows.read(rows.items([0])[0])[0], size).shape
    return channels, height, width


def is_coloured(rows: Rows) -> bool:
    """Returns whether any image of a split has colours; all are looked at, if need be, but only at their beginning.

    Raises:
        UserError: one cannot be read.
    """
    for row, item in enumerate(chain.from_iterable(rows.chunks())):
        with rows.blamed(row):
            if channels_of(rows.read(item)[0]) > 1:
                return True
    return False


def labels_of(rows: Rows, classes: int | None) -> Tensor | None:
    """Returns the labels (N,) int64 of a split, where they are known without decoding it.

    Raises:
        UserError: one cannot be used.
    """
    known = rows.labels()
    if known is None:
        return None
    labels = []
    if isinstance(known, Tensor):
        if known.dtype == torch.int64 and len(known) and known.min() >= 0 and known.max() < (classes or math.inf):
            return known
        known = known.tolist()
    for row, label in enumerate(known):
        try:
            labels.append(to_label(label, classes))
        except ValueError as error:
            raise UserError(f"{rows.where(row)}: {error}") from error
    return torch.tensor(labels, dtype=torch.int64)


def other_size(where: str, shape: Sequence[int], others: str, expected: Sequence[int]) -> str:
    """Returns what to say of an image whose size is not that of others."""
    sizes = [f"{width} x {height}" for height, width in (shape[-2:], expected[-2:])]
    return f"{where}: the image is {sizes[0]} pixels, {others} {sizes[1]}; set data.image_size to make all one size"
