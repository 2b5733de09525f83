"""Decoding: a whole split to one array, once, with errors that name the file or row.

A data set in which every image is grey has one channel; any other has three, and its grey images are repeated in each
(`robustcords.data.pixels` says what counts as grey).
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from itertools import chain
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from robustcords.data.pixels import channels_of, to_array, to_label
from robustcords.data.rows import Rows
from robustcords.errors import UserError, listed

_WITHOUT_NAMES = "classes without names are numbered from 0 without gaps"

_BLOCK = 64  # rows that a thread takes at once: enough to hide the cost of handing work over


def decode(rows: Rows, size: int | None, classes: int | None) -> tuple[Tensor, Tensor]:
    """Returns images (N, C, H, W) and labels (N,) of a split."""
    if not rows.count:
        raise UserError(f"{rows.name}: there are no images in it")
    images: NDArray[Any] | None = None
    labels = np.empty(rows.count, dtype=np.int64)
    for row, (image, label) in enumerate(_read(rows, size, classes)):
        labels[row] = label
        if images is None:
            images = np.empty((rows.count, *image.shape), dtype=image.dtype)
        elif len(image) == 3 and images.shape[1] == 1:
            images = np.repeat(images, 3, axis=1)
        _check(rows, row, image, images)
        images[row] = image
    return torch.from_numpy(images), torch.from_numpy(labels)


def _check(rows: Rows, row: int, image: NDArray[Any], images: NDArray[Any]) -> None:
    """Refuses an image that does not fit in with those before it."""
    if image.shape[1:] != images.shape[2:]:
        raise UserError(other_size(rows.where(row), image.shape, "those before it are", images.shape))
    if len(image) != images.shape[1] and (len(image), images.shape[1]) != (1, 3):
        raise UserError(f"{rows.where(row)}: {len(image)} channels, but {images.shape[1]} in the images before it")
    if image.dtype != images.dtype:
        raise UserError(f"{rows.where(row)}: {image.dtype} pixels, but {images.dtype} in the images before it")


def _read(rows: Rows, size: int | None, classes: int | None) -> Iterator[tuple[NDArray[Any], int]]:
    """Yields every row's image (C, H, W) and label, in order."""
    start = 0
    with ThreadPoolExecutor(rows.threads) as pool:
        for chunk in rows.chunks():
            blocks = range(0, len(chunk), _BLOCK)
            read = partial(_read_block, rows, size, classes)
            # One thread means the caller's own: not every dataset may be read from another.
            parts = (map if rows.threads == 1 else pool.map)(
                read, (start + at for at in blocks), (chunk[at : at + _BLOCK] for at in blocks)
            )
            for part in parts:
                yield from part
            start += len(chunk)


def _read_block(
    rows: Rows, size: int | None, classes: int | None, start: int, block: Sequence[Any]
) -> list[tuple[NDArray[Any], int]]:
    """Returns consecutive rows' images and labels."""
    done = []
    for row, item in enumerate(block, start):
        with rows.blamed(row):
            picture, label = rows.read(item)
            done.append((to_array(picture, size), to_label(label, classes)))
    return done


def shape_of(rows: Rows, size: int | None) -> tuple[int, int, int]:
    """Returns C, H and W of a split's first image.

    Raises:
        UserError: there is none, or it cannot be read.
    """
    if not rows.count:
        raise UserError(f"{rows.name}: there are no images in it")
    (item,) = rows.items([0])
    with rows.blamed(0):
        channels, height, width = to_array(rows.read(item)[0], size).shape
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


def label_gaps(labels: Tensor, classes: int = 0) -> str | None:
    """Returns which labels (N,) no image has, below the largest one or the number of classes; None where all occur."""
    missing = [str(label) for label, count in enumerate(labels.bincount(minlength=classes).tolist()) if not count]
    span = f"labels go from {int(labels.min())} to {int(labels.max())}"
    return f"{span}, and no image has {listed(missing)}" if missing else None


def numbered(rows: Rows, labels: Tensor) -> tuple[str, ...]:
    """Returns the names of classes that have none: their numbers.

    Raises:
        UserError: a number below the largest label does not occur: its class would be an empty one.
    """
    largest = int(labels.max())
    if largest >= len(labels):
        where = rows.where(int(labels.argmax()))
        raise UserError(
            f"{where}: the label {largest} is out of range: {_WITHOUT_NAMES}, and there are {len(labels)} images"
        )
    if gaps := label_gaps(labels):
        raise UserError(
            f"{rows.name}: {gaps}: {_WITHOUT_NAMES}; renumber the labels, or name the classes (in parquet as Hugging "
            "Face's ClassLabel, in Python as classes=)"
        )
    return tuple(map(str, range(largest + 1)))
