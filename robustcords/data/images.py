"""`Images`, the interface of image sets, and `ImageSet`, those in memory."""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from functools import cached_property
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset

from robustcords.data.decoding import decode, numbered
from robustcords.data.rows import DatasetRows
from robustcords.errors import UserError

_RESIDENT_BYTES = 4 * 1024**3
_DIGESTED = 1024  # images whose pixels are read at a time for a digest


class Images(Dataset[tuple[Tensor, int]], ABC):
    """A set of labelled images, wherever their pixels are.

    A subclass sets `labels`, mostly `classes`, and writes `batch`; the rest follows. It is also a torch ``Dataset`` of
    ``(image, label)`` pairs, image (C, H, W) float32 in [0, 1], so that any code that wants a ``DataLoader`` can have
    one.

    Attributes:
        labels: (N,) int64 in [0, len(classes)), on the CPU.
    """

    labels: Tensor

    @cached_property
    def classes(self) -> tuple[str, ...]:
        """The classes' names; where nobody has set them, the labels' numbers."""
        return tuple(map(str, range(int(self.labels.max()) + 1)))

    @cached_property
    def shape(self) -> tuple[int, int, int]:
        """C, H and W of every image."""
        channels, height, width = self.first(1)[0].shape[1:]
        return channels, height, width

    @cached_property
    def numbers(self) -> Tensor:
        """(N,) int64 on the CPU, the images' rows in the set that this is a `subset` of; in a whole set from 0."""
        return torch.arange(len(self))

    @abstractmethod
    def batch(self, rows: Tensor, device: torch.device | str = "cpu") -> tuple[Tensor, Tensor]:
        """Returns some images and their labels.

        Args:
            rows: (B,) int64 on the CPU, in any order.
            device: where they are wanted.

        Returns:
            Images (B, C, H, W) float32 in [0, 1] that nothing else refers to, and labels (B,) int64, on the device.
        """

    def batches(self, parts: Sequence[Sequence[int]], device: torch.device | str) -> Iterator[tuple[Tensor, Tensor]]:
        """Yields what `batch` returns for each of several lists of rows; a set that can read ahead does."""
        return (self.batch(torch.tensor(rows, dtype=torch.int64), device) for rows in parts)

    def first(self, count: int, device: torch.device | str = "cpu") -> tuple[Tensor, Tensor]:
        """Returns the first so many images and labels, from the beginning again where there are fewer; see `batch`."""
        return self.batch(torch.arange(count) % len(self), device)

    def subset(self, rows: Tensor) -> Images:
        """Returns the set of these rows, in this order; `numbers` goes along. Pixels stay where they are.

        Args:
            rows: (n,) int64 on the CPU.
        """
        return Part(self, rows)

    def frames(self) -> Images:
        """Returns these images with all that is kept around them, for augmentations that crop; here there is no more.

        Rows, labels and `numbers` are those of this set; `shape` may be larger.
        """
        return self

    def resident(self, device: torch.device) -> Images:
        """Returns the set with its pixels on a device, where it can be moved there; here it cannot, and stays."""
        del device
        return self

    def fingerprint(self) -> str:
        """Returns a digest of the labels in their order, which tells this set from others.

        Pixels are left out: another version of a decoder may round them otherwise.
        """
        return hashlib.sha256(self.labels.numpy().tobytes()).hexdigest()

    def digest(self, rows: Tensor) -> str:
        """Returns a digest of some images' pixels, as they are stored, and labels.

        Args:
            rows: (n,) int64 on the CPU.
        """
        digest = hashlib.sha256()
        for number, part in enumerate(rows.split(_DIGESTED)):
            pixels = self.stored(part)
            if not number:
                digest.update(_title("images", pixels, len(rows)))
            digest.update(_bytes(pixels))
        labels = self.labels[rows]
        digest.update(_title("labels", labels, len(rows)))
        digest.update(_bytes(labels))
        return digest.hexdigest()

    def stored(self, rows: Tensor) -> Tensor:
        """Returns the pixels (B, C, H, W) of some rows as they are stored, where that is known."""
        return self.batch(rows)[0]

    def __len__(self) -> int:
        """Returns N."""
        return len(self.labels)

    def __getitem__(self, row: int) -> tuple[Tensor, int]:
        """Returns one image (C, H, W) in [0, 1] and its label."""
        return self.__getitems__([row])[0]

    def __getitems__(self, rows: Sequence[int]) -> list[tuple[Tensor, int]]:
        """Returns several images and labels; a torch ``DataLoader`` calls this once for a batch."""
        images, labels = self.batch(torch.as_tensor(rows))
        return list(zip(images.unbind(), labels.tolist(), strict=True))


class Part(Images):
    """Some rows of a set, which the pixels are read from.

    Args:
        whole: the set.
        rows: (n,) int64 on the CPU, of the set.
    """

    def __init__(self, whole: Images, rows: Tensor) -> None:
        self.whole, self.rows = whole, rows
        self.labels, self.classes, self.numbers = whole.labels[rows], whole.classes, whole.numbers[rows]

    @cached_property
    def shape(self) -> tuple[int, int, int]:
        """C, H and W of every image."""
        return self.whole.shape

    def batch(self, rows: Tensor, device: torch.device | str = "cpu") -> tuple[Tensor, Tensor]:
        """Returns images and labels of some rows, on a device."""
        return self.whole.batch(self.rows[rows], device)

    def batches(self, parts: Sequence[Sequence[int]], device: torch.device | str) -> Iterator[tuple[Tensor, Tensor]]:
        """Yields images and labels of several lists of rows."""
        return self.whole.batches([self.rows[list(rows)].tolist() for rows in parts], device)

    def frames(self) -> Images:
        """Returns these rows of what the set keeps around its images."""
        return Part(self.whole.frames(), self.rows)

    def stored(self, rows: Tensor) -> Tensor:
        """Returns the pixels of some rows as they are stored."""
        return self.whole.stored(self.rows[rows])


class ImageSet(Images):
    """A whole set of images in memory.

    Args:
        images: (N, C, H, W) uint8, or floats in [0, 1], which are given as they are.
        labels: (N,) int64 in [0, len(classes)).
        classes: the classes' names.
        numbers: (N,) int64, the images' rows in the set that they were taken from; left out, from 0.

    Attributes:
        images: as given; on a device, where `resident` has moved them there.
    """

    def __init__(self, images: Tensor, labels: Tensor, classes: tuple[str, ...], numbers: Tensor | None = None) -> None:
        self.images, self.labels, self.classes = images, labels.cpu(), classes
        self._near = labels.to(images.device)
        if numbers is not None:
            self.numbers = numbers

    @cached_property
    def shape(self) -> tuple[int, int, int]:
        """C, H and W of every image."""
        channels, height, width = self.images.shape[1:]
        return channels, height, width

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
        name = type(dataset).__name__
        if not (hasattr(dataset, "__len__") and hasattr(dataset, "__getitem__")):
            raise UserError(f"{name}: not a map-style dataset; it needs __len__ and __getitem__")
        rows = DatasetRows(name, len(dataset), dataset=dataset)
        names: Any = getattr(dataset, "classes", None) if classes is None else classes
        given = names.tolist() if hasattr(names, "tolist") else names  # an array's truth value is nobody's
        images, labels = decode(rows, None, len(given) if given else None)
        return cls(images, labels, tuple(map(str, given)) if given else numbered(rows, labels))

    def batch(self, rows: Tensor, device: torch.device | str = "cpu") -> tuple[Tensor, Tensor]:
        """Returns images (B, C, H, W) float32 in [0, 1] and labels (B,) of some rows, on a device."""
        rows = rows.to(self.images.device)
        images = self.images[rows].to(device, non_blocking=True)
        images = images.float().div_(255) if images.dtype == torch.uint8 else images
        return images, self._near[rows].to(device, non_blocking=True)

    def subset(self, rows: Tensor) -> ImageSet:
        """Returns the set of these rows, in this order; their pixels are copied."""
        return ImageSet(self.stored(rows), self.labels[rows], self.classes, self.numbers[rows])

    def resident(self, device: torch.device) -> ImageSet:
        """Returns the set with its pixels on a device, where they take no more than 4 GiB; they stay otherwise."""
        return self.to(device) if self.images.nbytes <= _RESIDENT_BYTES else self

    def to(self, device: torch.device | str) -> ImageSet:
        """Returns the set with its pixels on a device."""
        return ImageSet(self.images.to(device), self.labels, self.classes, self.numbers)

    def stored(self, rows: Tensor) -> Tensor:
        """Returns the pixels of some rows as they are stored."""
        return self.images[rows.to(self.images.device)]


def check_images(what: str, given: object) -> None:
    """Checks that images are `Images`, and not another torch ``Dataset`` or a loader.

    Raises:
        UserError: they are not.
    """
    if not isinstance(given, Images):
        raise UserError(
            f"{what}: a {type(given).__name__}, expected Images; ImageSet.from_dataset makes them of a Dataset"
        )


def _title(name: str, tensor: Tensor, count: int) -> bytes:
    return f"{name} {tensor.dtype} {(count, *tensor.shape[1:])};".encode()


def _bytes(tensor: Tensor) -> memoryview:
    return tensor.cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data
