"""The data set of a ``DataLoader`` as `Images`."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import cached_property
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Subset, default_collate

from robustcords.data.images import Images, Part

_READ = 256  # rows that are read at a time for their labels


def images_of(loader: DataLoader[Any]) -> Images:
    """Returns a loader's data set as `Images`, with the same rows.

    `Images`, and a torch ``Subset`` of them, provide batches themselves, unless the loader has a custom collation; any
    other data set is read through the loader's workers.
    """
    dataset = loader.dataset
    if loader.collate_fn is default_collate:
        if isinstance(dataset, Images):
            return dataset
        if type(dataset) is Subset and isinstance(dataset.dataset, Images):
            return Part(dataset.dataset, torch.as_tensor(dataset.indices, dtype=torch.int64))
    return LoadedImages(loader)


class LoadedImages(Images):
    """Any map-style data set, read through the workers and the collation of a loader of it.

    The global generator is not used.

    Args:
        loader: of (images, labels, ...); its own batching is ignored.

    Attributes:
        labels: the data set's own, or read from it at first use (`labels_of`).
    """

    def __init__(self, loader: DataLoader[Any]) -> None:
        self.loader = loader

    def __len__(self) -> int:
        """Returns N."""
        return len(self.loader.dataset)  # type: ignore[arg-type]

    @cached_property
    def labels(self) -> Tensor:  # type: ignore[override]  # read when it is asked for, and set by none
        """(N,) int64."""
        return self.labels_of([rows.tolist() for rows in torch.arange(len(self)).split(_READ)])

    def labels_of(self, parts: Sequence[Sequence[int]]) -> Tensor:
        """Returns the labels (n,) of several lists of rows: the data set's own, or by reading those rows."""
        dataset = self.loader.dataset
        known = getattr(dataset, "labels", getattr(dataset, "targets", None))
        if known is None:
            return torch.cat([y for _, y in self.batches(parts, "cpu")])
        return torch.as_tensor(known).cpu()[[row for rows in parts for row in rows]]

    def batch(self, rows: Tensor, device: torch.device | str = "cpu") -> tuple[Tensor, Tensor]:
        """Returns images and labels of some rows, on a device."""
        return next(self.batches([rows.tolist()], device))

    def batches(self, parts: Sequence[Sequence[int]], device: torch.device | str) -> Iterator[tuple[Tensor, Tensor]]:
        """Yields images and labels of several lists of rows, prefetched by the loader's workers."""
        loader = self.loader
        part = DataLoader(
            loader.dataset,
            batch_sampler=[list(rows) for rows in parts],
            collate_fn=loader.collate_fn,
            num_workers=loader.num_workers,
            pin_memory=loader.pin_memory,
            worker_init_fn=loader.worker_init_fn,
            generator=torch.Generator(),
        )
        for x, y, *_ in part:
            yield x.to(device), y.view(-1).to(device)
