"""Class folders: images in one folder a class."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from robustcords.data.base import DataConfig, DataSource, Splits
from robustcords.data.decoded_splits import splits
from robustcords.data.folder_tree import files_below, paths_below, walk
from robustcords.data.rows import Paths, Rows
from robustcords.data.sets import FolderConfig, choose, class_sets
from robustcords.errors import UserError, listed, printable


class Folder(DataSource):
    """Class folders: ``train/CLASS/...`` and ``test/CLASS/...`` (or validation, valid, val where there is no test).

    ``CLASS/...`` alone is a training split.

    Classes are numbered in the alphabetical order of the training folders. Every file below a class folder, at any
    depth, has to be an image; hidden files (see `robustcords.data.folder_tree.is_hidden`) are skipped. If a folder
    holds several such sets, ``subset`` names one. Images are neither cropped nor flipped by default.
    """

    Config = FolderConfig
    config: FolderConfig

    def files(self) -> Sequence[str] | None:
        """Returns all files below the folder."""
        return files_below(existing_folder(self.config))

    def load(self) -> Splits:
        """Returns the decoded training and test sets."""
        return read_class_folders(existing_folder(self.config), self.config)


@dataclass(frozen=True)
class Files(Rows):
    """A split of which every row is a file.

    Attributes:
        files: their paths.
        numbers: (N,) the labels.
    """

    files: Sequence[str] = ()
    numbers: NDArray[np.int64] = field(default_factory=lambda: np.empty(0, np.int64))

    def items(self, rows: Sequence[int]) -> list[tuple[Path, int]]:
        """Returns paths and labels."""
        return [(Path(self.files[row]), int(self.numbers[row])) for row in rows]

    def where(self, row: int) -> str:
        """Returns the file."""
        return str(self.files[row])

    def labels(self) -> Tensor:
        """Returns those of the class folders."""
        return torch.from_numpy(self.numbers)


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


def read_class_folders(folder: Path, config: FolderConfig) -> Splits:
    """Returns the decoded sets of a folder of class folders.

    Raises:
        UserError: a split is missing, there are several that could be meant, a class has no images or is not in
            training, or a file cannot be decoded.
    """
    sets = class_sets(folder)
    if not sets:
        present = listed(_folders(folder)) or "no folders"
        raise UserError(f"{folder}: there are no class folders train/CLASS; it holds: {present}")
    chosen = choose(folder, sets, config)
    train = _only(chosen.train, "train")
    test = _only(chosen.test, chosen.test_split) if chosen.test else None
    classes = _folders(train)
    whole = (f"{folder}: the folders in it are the classes ({listed(classes)})",) if train == folder else ()
    notes = (*whole, *chosen.notes, *_loose(train), *(_loose(test) if test else ()), *_nested(train, classes))
    names = [printable(name) for name in classes]
    tested = _rows(test, classes) if test else config.test_fraction
    return splits(_rows(train, classes), tested, names, config, notes)


def _only(places: Sequence[Path], split: str) -> Path:
    """Returns the one folder of a split."""
    if len(places) > 1:
        raise UserError(
            f"{places[0].parent}: holds several folders of the {split} split "
            f"({', '.join(place.name for place in places)}); remove those that should not be used"
        )
    return places[0]


def _folders(folder: Path) -> list[str]:
    return next(walk(folder))[1]


def _rows(folder: Path, classes: list[str]) -> Rows:
    """Returns a split's files, in the order of the classes and of the files' names."""
    present = _folders(folder)
    if unknown := [name for name in present if name not in classes]:
        raise UserError(f"{folder / unknown[0]}: there is no such class in training (classes: {listed(classes)})")
    numbers = {name: number for number, name in enumerate(classes)}
    files = [_files(folder / name) for name in present]
    labels = np.repeat(np.array([numbers[name] for name in present], dtype=np.int64), [*map(len, files)])
    names = Paths([*chain.from_iterable(files)])
    return Files(str(folder), len(names), torch.get_num_threads(), files=names, numbers=labels)


def _files(folder: Path) -> list[str]:
    """Returns the images of one class, sorted by the names of folders, and then of files."""
    found = sorted(paths_below(folder), key=lambda path: path.replace(os.sep, "\0"))
    if not found:
        raise UserError(f"{folder}: there are no images of this class")
    return found


def _loose(folder: Path) -> tuple[str, ...]:
    """Returns a line on the files of a split that are in no class folder, and so are not read."""
    names = next(walk(folder))[2]
    return (f"{folder}: {len(names)} files in no class folder are skipped ({listed(names)})",) if names else ()


def _nested(folder: Path, classes: list[str]) -> tuple[str, ...]:
    """Returns a line where the folders in the class folders look like the classes that were meant."""
    insides = (next(walk(folder / name))[1:] for name in classes)
    inner, loose = next(insides)
    if loose or len(inner) < 2 or any(names or below != inner for below, names in insides):
        return ()
    return (f"{folder}: the classes are {listed(classes)}; the folders in each of them ({listed(inner)}) are not",)
