"""Images in memory, and what every source of images shares."""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any

import torch
from pydantic import Field
from torch import Tensor
from torch.utils.data import Dataset

from robustcords.config import Component, ComponentConfig


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

    def subset(self, rows: Tensor) -> ImageSet:
        """Returns the set of these rows, in this order."""
        return ImageSet(self.images[rows], self.labels[rows], self.classes)

    def to(self, device: torch.device | str) -> ImageSet:
        """Returns the set with images and labels on a device."""
        return ImageSet(self.images.to(device), self.labels.to(device), self.classes)


def _unit(images: Tensor) -> Tensor:
    return images.float().div_(255) if images.dtype == torch.uint8 else images


@dataclass(frozen=True)
class Splits:
    """What a source gives.

    Attributes:
        train: the whole training set.
        test: the test set.
        notes: what a person should know of how they were read, a line each.
    """

    train: ImageSet
    test: ImageSet
    notes: tuple[str, ...] = ()


class DataConfig(ComponentConfig):
    """Options that every data set has.

    Attributes:
        path: where ``name`` is read from: a folder of parquet files, of class folders, or torchvision's root. Left out,
            the source's own place.
        validation_fraction: share of the training set that is held out, stratified by class, in [0, 1).
        crop: pixels of zero padding for random crops; left out, what is usual for the data set.
        flip: random horizontal flips; left out, what is usual for the data set.
    """

    path: Annotated[str, Field(min_length=1)] | None = None
    validation_fraction: Annotated[float, Field(ge=0, lt=1)] = 0.1
    crop: Annotated[int, Field(ge=0, le=64)] | None = None
    flip: bool | None = None


class DataSource(Component, ABC):
    """A place that images come from.

    Attributes:
        crop: the usual padding for random crops.
        flip: whether random flips are usual.
    """

    Config = DataConfig
    config: DataConfig
    crop: int = 0
    flip: bool = False

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.crop = self.crop if self.config.crop is None else self.config.crop
        self.flip = self.flip if self.config.flip is None else self.config.flip

    @abstractmethod
    def load(self) -> Splits:
        """Returns the decoded training and test sets.

        Raises:
            UserError: the images cannot be found or read; the message names the file and row.
        """
