"""Images in memory."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset


@dataclass(frozen=True)
class ImageSet(Dataset[tuple[Tensor, int]]):
    """A whole set of images in memory.

    It is also a torch ``Dataset`` of ``(image, label)`` pairs, image (C, H, W) float32 in [0, 1], so that any code that
    wants a ``DataLoader`` can have one.

    Attributes:
        images: (N, C, H, W) uint8, or float32 in [0, 1].
        labels: (N,) int64 in [0, len(classes)).
        classes: the classes' names.
    """

    images: Tensor
    labels: Tensor
    classes: tuple[str, ...]

    @classmethod
    def from_dataset(cls, dataset: Any, classes: Sequence[str] | None = None) -> ImageSet:
        """Reads a whole dataset into memory.

        Args:
            dataset: a map-style torch ``Dataset`` of pairs (image, label). An image is a PIL image or a uint8 tensor
                (kept as uint8), or a float tensor in [0, 1] (kept as float32, four times the memory); tensors are
                (C, H, W).
            classes: the classes' names; left out, ``dataset.classes`` or else the labels' numbers.

        Raises:
            UserError: an image or label cannot be used, or sizes differ; the message names the row. Floats outside
                [0, 1] are refused: normalisation belongs in the model.
        """
        from robustcords.data.decoding import from_dataset

        return from_dataset(dataset, classes)

    def __len__(self) -> int:
        """Returns N."""
        return len(self.labels)

    def fingerprint(self) -> str:
        """Returns a digest of the labels in their order, which tells this set from others.

        Pixels are left out: another version of a decoder may round them otherwise.
        """
        return hashlib.sha256(self.labels.numpy(force=True).tobytes()).hexdigest()

    def __getitem__(self, row: int) -> tuple[Tensor, int]:
        """Returns one image (C, H, W) in [0, 1] and its label."""
        return _unit(self.images[row]), int(self.labels[row])

    def __getitems__(self, rows: Sequence[int]) -> list[tuple[Tensor, int]]:
        """Returns several images and labels; a torch ``DataLoader`` calls this once for a batch."""
        images, labels = self.batch(torch.as_tensor(rows))
        return list(zip(images.unbind(), labels.tolist(), strict=True))

    def batch(self, rows: Tensor, device: torch.device | str = "cpu") -> tuple[Tensor, Tensor]:
        """Returns images (B, C, H, W) float32 in [0, 1] and labels (B,) of some rows, on a device."""
        rows = rows.to(self.labels.device)
        return _unit(self.images[rows].to(device, non_blocking=True)), self.labels[rows].to(device, non_blocking=True)

    def first(self, count: int, device: torch.device | str = "cpu") -> tuple[Tensor, Tensor]:
        """Returns the first so many images and labels, from the beginning again where there are fewer; see `batch`."""
        return self.batch(torch.arange(count) % len(self), device)

    def subset(self, rows: Tensor) -> ImageSet:
        """Returns the set of these rows, in this order."""
        return ImageSet(self.images[rows], self.labels[rows], self.classes)

    def to(self, device: torch.device | str) -> ImageSet:
        """Returns the set with images and labels on a device."""
        return ImageSet(self.images.to(device), self.labels.to(device), self.classes)


def _unit(images: Tensor) -> Tensor:
    return images.float().div_(255) if images.dtype == torch.uint8 else images
