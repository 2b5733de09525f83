"""Images in one folder per class."""

from __future__ import annotations

import os
from pathlib import Path

import torch

from robustcords.data.base import DataConfig, DataSource, Splits
from robustcords.data.decoding import CHUNK, ImageConfig, Rows, splits
from robustcords.errors import UserError, printable

_TEST_NAMES = ("test", "validation", "valid", "val")
_NO_IMAGES = {"thumbs.db", "desktop.ini"}


class Folder(DataSource):
    """Class folders: ``train/CLASS/...`` and ``test/CLASS/...`` (or validation, valid, val where there is no test).

    Classes are numbered in the alphabetical order of the training folders. Every file below a class folder, at any
    depth, has to be an image; hidden files, Thumbs.db and desktop.ini are passed over. Nothing is cropped or flipped
    unless asked.
    """

    Config = ImageConfig
    config: ImageConfig

    def load(self) -> Splits:
        """Returns the decoded training and test sets."""
        return read_class_folders(existing_folder(self.config), self.config.image_size)


def existing_folder(config: DataConfig) -> Path:
    """Returns the folder that ``path``, or else ``name``, names.

    Raises:
        UserError: there is nothing at the path, or something else.
    """
    key, place = ("name", config.name) if config.path is None else ("path", config.path)
    try:
        folder = Path(place).expanduser()
    except RuntimeError:
        raise UserError(f"data.{key}: {place!r}: there is no such user") from None
    if not folder.is_dir():
        raise UserError(f"data.{key}: {place!r} {'is not a folder' if folder.exists() else 'does not exist'}")
    return folder


def has_class_folders(folder: Path) -> bool:
    """Returns whether a folder has the layout that `read_class_folders` reads."""
    train = folder / "train"
    return train.is_dir() and any(child.is_dir() and not child.name.startswith(".") for child in train.iterdir())


def read_class_folders(folder: Path, image_size: int | None) -> Splits:
    """Returns the decoded sets of a folder of class folders.

    Raises:
        UserError: a split is missing, a class has no images or is not in training, or a file cannot be decoded.
    """
    present = _folders(folder)
    test = next((name for name in _TEST_NAMES if name in present), None)
    if "train" not in present or test is None:
        missing = "train" if "train" not in present else "test (nor validation, valid, val)"
        raise UserError(f"{folder}: there is no folder {missing}; it holds: {', '.join(present) or 'no folders'}")
    classes = _folders(folder / "train")
    names = [printable(name) for name in classes]
    return splits(_rows(folder / "train", classes), _rows(folder / test, classes), names, image_size)


def _folders(folder: Path) -> list[str]:
    return sorted(child.name for child in folder.iterdir() if child.is_dir() and not child.name.startswith("."))


def _rows(folder: Path, classes: list[str]) -> Rows:
    """Returns a split's files, in the order of the classes and of the files' names."""
    present = _folders(folder)
    if unknown := [name for name in present if name not in classes]:
        raise UserError(f"{folder / unknown[0]}: there is no such class in training (classes: {', '.join(classes)})")
    numbers = {name: number for number, name in enumerate(classes)}
    files = [(file, numbers[name]) for name in present for file in _files(folder / name)]
    chunks = (files[start : start + CHUNK] for start in range(0, len(files), CHUNK))
    return Rows(
        str(folder), len(files), chunks, lambda row: str(files[row][0]), lambda item: item, torch.get_num_threads()
    )


def _files(folder: Path) -> list[Path]:
    """Returns the images of one class."""
    found = []
    for parent, below, names in os.walk(folder, onerror=_raise, followlinks=True):
        _refuse_circle(Path(parent), below)
        found += [Path(parent, name) for name in names if not name.startswith(".") and name.lower() not in _NO_IMAGES]
    if not found:
        raise UserError(f"{folder}: there are no images of this class")
    return sorted(found)


def _raise(error: OSError) -> None:
    raise error


def _refuse_circle(parent: Path, below: list[str]) -> None:
    """Checks that no folder in a folder leads back to one above: following two such links would never end."""
    for name in below:
        inner = parent / name
        if inner.is_symlink() and parent.resolve().is_relative_to(inner.resolve()):
            raise UserError(f"{inner}: a link to a folder that it is in itself")
