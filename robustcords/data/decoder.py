"""Encoded images, decoded on access."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import get_worker_info

from robustcords.data.decoding import other_size
from robustcords.data.on_disk import Reader
from robustcords.data.pixels import to_array
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
