"""How a loader's examples and a budget are divided: rows, labels, batches, shares."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader

from robustcords.errors import UserError


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


def fetch(loader: DataLoader[Any], batches: list[list[int]]) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """Yields rows (B,), images (B, C, H, W) and labels (B,) of some of a loader's batches.

    They come through the loader's own workers and collation, and draw nothing from the global generator.
    """
    part = DataLoader(
        loader.dataset,
        batch_sampler=batches,
        collate_fn=loader.collate_fn,
        num_workers=loader.num_workers,
        pin_memory=loader.pin_memory,
        worker_init_fn=loader.worker_init_fn,
        generator=torch.Generator(),
    )
    for rows, (x, y, *_) in zip(batches, part, strict=True):
        yield torch.tensor(rows), x, y.view(-1)


def labels_of(loader: DataLoader[Any]) -> Tensor:
    """Returns the labels (N,) of a loader's examples in its order: the data set's own, or by reading them."""
    batches = batches_of(loader)
    known = getattr(loader.dataset, "labels", getattr(loader.dataset, "targets", None))
    if known is None:
        return torch.cat([y for _, _, y in fetch(loader, batches)]).cpu()
    return torch.as_tensor(known).cpu()[[row for batch in batches for row in batch]]


def check_budget(budget: int, size: int) -> None:
    """Checks that a budget can be selected.

    Raises:
        UserError: it is not from 1 to the number of examples.
    """
    if not 1 <= budget <= size:
        raise UserError(f"budget {budget}: the loader has {size} examples, so 1 to {size} can be selected")
