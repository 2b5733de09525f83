"""Partitions of the data and of the budget: by example, class, batch or share."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

from torch import Tensor
from torch.utils.data import DataLoader

from robustcords.errors import UserError
from robustcords.selection.loaded import LoadedImages, images_of


def batches_of(loader: DataLoader[Any]) -> list[list[int]]:
    """Returns the rows of the loader's data set in each of its batches.

    Raises:
        UserError: the loader makes no batches of numbered rows, has none, or does not go through its rows in order.
    """
    if loader.batch_sampler is None:
        raise UserError("selection needs a loader that makes batches: DataLoader(dataset, batch_size=...)")
    batches = [list(batch) for batch in loader.batch_sampler]
    rows = [row for batch in batches for row in batch]
    if not rows:
        raise UserError("selection needs at least one example, and the loader has none")
    if any(later <= earlier for earlier, later in pairwise(rows)):
        raise UserError("selection needs a loader that goes through its data set in order: shuffle=False")
    return batches


def rows_of(loader: DataLoader[Any]) -> list[int]:
    """Returns the rows of the loader's data set, in the order of its batches.

    Raises:
        UserError: as `batches_of`.
    """
    return [row for batch in batches_of(loader) for row in batch]


def labels_of(loader: DataLoader[Any]) -> Tensor:
    """Returns the labels (N,) of a loader's examples in its order: the data set's own, or by reading them."""
    images = images_of(loader)
    if isinstance(images, LoadedImages):
        return images.labels_of(batches_of(loader))
    return images.labels[rows_of(loader)]


def check_budget(budget: int, size: int) -> None:
    """Checks that a budget can be selected.

    Raises:
        UserError: it is not from 1 to the number of examples.
    """
    if not 1 <= budget <= size:
        raise UserError(f"budget {budget}: the loader has {size} examples, so 1 to {size} can be selected")
