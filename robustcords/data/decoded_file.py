"""Files of decoded images: 8-bit pixels, labels and checksums of a training and a test set, as safetensors.

Each image has a checksum, and the header, the labels and these checksums together have one. Images are written one
after the other, so that none but a few are in memory, and are read by their places. That is what a memory map does, but
a file that has been cut short is an error here, where there it ends the process.
"""

from __future__ import annotations

import json
import math
import os
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from robustcords.data.images import Images
from robustcords.data.on_disk import Reader
from robustcords.errors import UserError
from robustcords.runtime.progress import Update
from robustcords.runtime.signals import UNFINISHED

PARTS = ("train", "test")
_NUMBERS = ("labels", "checks")
_AT_ONCE = 256  # images that are read and written at a time
_LONGEST_HEADER = 64 * 1024**2
_CHECKSUM = "checksum"


@dataclass(frozen=True)
class Block:
    """A tensor in a file.

    Attributes:
        shape: of the tensor.
        start: its first byte in the file.
    """

    shape: tuple[int, ...]
    start: int


@dataclass(frozen=True)
class DecodedFile:
    """A whole file.

    Attributes:
        path: where it is.
        about: texts that were written along.
        blocks: its tensors by name.
        numbers: labels and checksums (N,) int64, by name.
    """

    path: Path
    about: dict[str, str]
    blocks: dict[str, Block]
    numbers: dict[str, NDArray[np.int64]]

    @classmethod
    def open(cls, path: Path) -> DecodedFile:
        """Returns a file, of which all but the images has been read.

        Raises:
            OSError, ValueError, KeyError, TypeError, AttributeError: it is not there, not whole, or not of this form.
        """
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            header = json.loads(file.read(min(length, _LONGEST_HEADER)))
            whole = os.fstat(file.fileno()).st_size
            found = bytearray(file.read(header[f"{PARTS[0]}.images"]["data_offsets"][0]))
        if header["__metadata__"].pop(_CHECKSUM) != _checksum(header, found):
            raise ValueError(f"{path}: damaged")
        about = header.pop("__metadata__")
        blocks = {
            name: Block(tuple(each["shape"]), 8 + length + each["data_offsets"][0]) for name, each in header.items()
        }
        if whole != 8 + length + max(each["data_offsets"][1] for each in header.values()):
            raise ValueError(f"{path}: not whole")
        numbers = {
            name: np.frombuffer(found, np.int64, blocks[name].shape[0], blocks[name].start - 8 - length)
            for name in (f"{part}.{what}" for part in PARTS for what in _NUMBERS)
        }
        return cls(path, about, blocks, numbers)

    def pixels(self, part: str) -> DecodedPixels:
        """Returns what reads the images of a part."""
        return DecodedPixels(self.path, self.blocks[f"{part}.images"], self.numbers[f"{part}.checks"])


class DecodedPixels(Reader):
    """Reads images of a file of decoded ones.

    Args:
        path: the file.
        block: of the images (N, C, H, W).
        checks: (N,) checksums of the images.
    """

    def __init__(self, path: Path, block: Block, checks: NDArray[np.int64]) -> None:
        self.path, self.block, self.checks = path, block, checks
        channels, height, width = block.shape[1:]
        self.shape = channels, height, width
        self.how = f"are read from {path}"
        # Open for as long as it is needed, also by workers: another run may put another file in its place.
        self._file = path.open("rb", buffering=0)

    def __reduce__(self) -> tuple[type[DecodedPixels], tuple[Any, ...]]:
        """Opens the file anew in a process that is no fork of this one."""
        return DecodedPixels, (self.path, self.block, self.checks)

    def read(self, rows: Sequence[int]) -> Tensor:
        """Returns images (B, C, H, W) uint8.

        Raises:
            UserError: the file is damaged, or has been cut short, or the disk fails.
        """
        found = torch.empty((len(rows), *self.shape), dtype=torch.uint8)
        size = math.prod(self.shape)
        if hasattr(os, "posix_fadvise"):  # the disk gets all of them to do at once, and not one after the other
            for row in sorted(rows):
                os.posix_fadvise(self._file.fileno(), self.block.start + row * size, size, os.POSIX_FADV_WILLNEED)
        for place, row in enumerate(rows):
            image = found[place].numpy().reshape(-1).data
            try:
                read = os.preadv(self._file.fileno(), [image], self.block.start + row * size)
            except OSError as error:
                raise UserError(f"{self.path}: image {row} cannot be read ({error.strerror})") from error
            if read != size or zlib.crc32(image) != self.checks[row]:
                raise UserError(f"{self.path}: damaged at image {row}; delete it to have it decoded again")
        return found

    def all(self) -> Tensor:
        """Returns all images (N, C, H, W) uint8.

        Raises:
            UserError: as `read`.
        """
        found = torch.empty(self.block.shape, dtype=torch.uint8)
        for rows in torch.arange(len(found)).split(_AT_ONCE):
            found[rows[0] : rows[-1] + 1] = self.read(rows.tolist())
        return found


def write(path: Path, sets: Sequence[Images], about: dict[str, str], update: Update) -> None:
    """Writes the images and labels of a training and a test set.

    The file is there when it is whole. What an earlier process left of it is written over, so that there is one part of
    a file at most; the caller sees to it that no other process writes at the same time.

    Args:
        path: the file.
        sets: of 8-bit images.
        about: texts to keep along.
        update: is told how many images have been written.

    Raises:
        OSError: there is no room, or the folder may not be written to.
        UserError: an image cannot be read.
    """
    shapes = {f"{part}.{what}": (len(images),) for part, images in zip(PARTS, sets, strict=True) for what in _NUMBERS}
    images_of = {f"{part}.images": images for part, images in zip(PARTS, sets, strict=True)}
    header: dict[str, Any] = {"__metadata__": about}
    end = 0
    for name, shape in (*shapes.items(), *((name, (len(each), *each.shape)) for name, each in images_of.items())):
        kind, width = ("U8", 1) if name in images_of else ("I64", 8)
        header[name] = {
            "dtype": kind,
            "shape": list(shape),
            "data_offsets": [end, end := end + width * math.prod(shape)],
        }
    unfinished = path.with_suffix(".part")
    UNFINISHED.add(str(unfinished))
    try:
        with unfinished.open("wb") as file:
            # What precedes the pixels is written last, as it has their checksums.
            file.seek(len(_beginning(header, b"")) + sum(8 * shape[0] for shape in shapes.values()))
            checks = dict(zip((f"{part}.checks" for part in PARTS), _write_pixels(file, sets, update), strict=True))
            labels = {f"{part}.labels": images.labels.numpy() for part, images in zip(PARTS, sets, strict=True)}
            file.seek(0)
            file.write(_beginning(header, b"".join((labels | checks)[name].tobytes() for name in shapes)))
            file.flush()
            os.fsync(file.fileno())
        unfinished.replace(path)
    except BaseException:
        unfinished.unlink(missing_ok=True)
        raise
    finally:
        UNFINISHED.discard(str(unfinished))


def _write_pixels(file: Any, sets: Sequence[Images], update: Update) -> Iterator[NDArray[np.int64]]:
    """Writes all images of some sets; yields the checksums of each set's."""
    done, count = 0, sum(map(len, sets))
    for images in sets:
        checks = []
        for rows in torch.arange(len(images)).split(_AT_ONCE):
            for image in images.stored(rows).contiguous().numpy():
                checks.append(zlib.crc32(image))
                file.write(image.data)
            update(done := done + len(rows), count)
        yield np.array(checks, dtype=np.int64)


def _beginning(header: dict[str, Any], numbers: bytes) -> bytes:
    """Returns what precedes the pixels: the header, with a checksum of itself and of the numbers, and these."""
    about = {**header["__metadata__"], _CHECKSUM: _checksum(header, numbers)}
    text = json.dumps({**header, "__metadata__": about}).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text + numbers


def _checksum(header: dict[str, Any], numbers: bytes | bytearray) -> str:
    return f"{zlib.crc32(numbers, zlib.crc32(json.dumps(header).encode())):08x}"
