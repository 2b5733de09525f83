"""Torchvision's classification sets."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from pydantic import field_validator

from robustcords.data.base import DataSource, Splits
from robustcords.data.cache import cache_folder
from robustcords.data.catalogue import CLASSES, SETS
from robustcords.data.decoded_splits import splits
from robustcords.data.folder import Files, existing_folder, read_class_folders
from robustcords.data.folder_tree import files_below
from robustcords.data.parquet import ParquetConfig, read_parquet
from robustcords.data.rows import PAIRS, DatasetRows, Paths, Rows, message_of
from robustcords.data.sets import class_sets, parquet_sets
from robustcords.errors import UserError, nearest

_FOR_TABLES = ("image_column", "label_column")
_FILES = ("_image_files", "_images")
_FOR_FOLDERS = ("subset", "test_split", "test_fraction", *_FOR_TABLES)


class Vision(DataSource):
    """A classification set of torchvision, read from ``path`` or downloaded by torchvision.

    ``path`` is where it is read from: a folder of parquet files, of class folders, or torchvision's own files, which
    are downloaded there where they are missing. Left out, they are kept in the user's cache, see `cache_folder`.
    """

    class Config(ParquetConfig):
        """Options of torchvision's sets; those for sets, splits and columns are for folders at ``path``."""

        @field_validator("name")
        @classmethod
        def _is_known(cls, name: str) -> str:
            if name not in SETS:
                raise ValueError(f"unknown torchvision set {name!r}{nearest(name, SETS)}")
            return name

    config: Vision.Config

    def __init__(self, **options: Any) -> None:
        if usual := SETS.get(str(options.get("name"))):
            self.crop, self.flip = usual.crop, usual.flip
        super().__init__(**options)

    def files(self) -> Sequence[str] | None:
        """Returns all files below the folder that the set is read from; none before it is downloaded."""
        if self.config.path is not None:
            return files_below(existing_folder(self.config))
        folder = cache_folder() / self.config.name
        return files_below(folder) if folder.is_dir() else []

    def load(self) -> Splits:
        """Returns the decoded training and test sets."""
        if self.config.path is None:
            self._refuse("torchvision's own files", _FOR_FOLDERS)
            return self._read_torchvision(cache_folder() / self.config.name)
        folder = existing_folder(self.config)
        tables = parquet_sets(folder)
        own = None if any(getattr(self.config, key) for key in _FOR_FOLDERS) else self._opened(folder)
        if own and "." not in tables:
            return self._decoded(*own)  # also where class folders are: they are torchvision's, as ImageNet's
        if own:
            raise UserError(f"{folder}: holds parquet files and torchvision's own; name the folder of one of them")
        classes = class_sets(folder)
        if tables and (self.config.subset not in classes or self.config.subset in tables):
            return self._noted(read_parquet(folder, self.config), folder, tables)
        if classes:
            self._refuse("class folders", _FOR_TABLES)
            return self._noted(read_class_folders(folder, self.config), folder, classes)
        self._refuse("torchvision's own files", _FOR_FOLDERS)
        return self._read_torchvision(folder)

    def _noted(self, read: Splits, folder: Path, sets: Mapping[str, Mapping[str, object]]) -> Splits:
        """Returns what was read, with what says that it may be another set: where it is, or how many classes it has."""
        notes = read.notes
        count, known = len(read.train.classes), CLASSES.get(self.config.name)
        if known is not None and count != known:
            notes = (f"{folder}: has {count} classes, where {self.config.name} has {known}", *notes)
        if not (self.config.subset or "." in sets):
            name = next(name for name, splits in sets.items() if "train" in splits)
            notes = (f"{self.config.name} is read from {folder / name}", *notes)
        return replace(read, notes=notes)

    def _refuse(self, files: str, keys: Sequence[str]) -> None:
        """Checks that no option is set that means nothing to the files that are read."""
        if wrong := next((key for key in keys if getattr(self.config, key) is not None), None):
            raise UserError(f"data.{wrong}: does not apply to {files} of {self.config.name!r}; leave it out")

    def _read_torchvision(self, root: Path) -> Splits:
        with _alone(self.config.name):
            parts = [self._open(root, arguments) for arguments in SETS[self.config.name].splits]
        return self._decoded(*parts)

    def _opened(self, root: Path) -> list[Any] | None:
        """Returns torchvision's datasets if their files are all in a folder, and nothing has to be downloaded."""
        usual = SETS[self.config.name]
        try:
            with _alone(self.config.name):
                return [_construct(usual.cls, root, arguments) for arguments in usual.splits]
        except Exception:  # torchvision raises anything where files are missing or damaged; downloading says what
            return None

    def _decoded(self, train: Any, test: Any) -> Splits:
        usual = SETS[self.config.name]
        classes = _class_names(getattr(train, "classes", None), usual.first_label)
        return splits(self._rows(train, "training"), self._rows(test, "test"), classes, self.config)

    def _rows(self, part: Any, split: str) -> Rows:
        """Returns the rows of one of torchvision's datasets, with labels from 0."""
        name, first = f"{self.config.name}, {split} set", SETS[self.config.name].first_label
        rows = DatasetRows(name, len(part), torch.get_num_threads(), dataset=part, first_label=first)
        paths, labels = _paths_of(part), rows.labels()
        if not paths or labels is None or len(paths) != rows.count:
            return rows
        # Files are decoded here, as anywhere else, and a line on one of them names it.
        return Files(name, rows.count, rows.threads, files=Paths(paths), numbers=labels.long().numpy())

    def _open(self, root: Path, arguments: Mapping[str, Any]) -> Any:
        """Returns one of torchvision's datasets, downloaded if it is not at ``root``."""
        usual = SETS[self.config.name]
        try:
            return _construct(usual.cls, root, arguments)
        except Exception as error:
            problem = error
        if usual.download:
            try:
                root.mkdir(parents=True, exist_ok=True)
                return _construct(usual.cls, root, {**arguments, "download": True})
            except Exception as error:
                problem = error
        tried = "and downloading it failed" if usual.download else "and torchvision cannot download it"
        raise UserError(
            f"data {self.config.name!r}: not usable in {root}, {tried}: {message_of(problem)}; data.path can name a "
            "folder with torchvision's files, parquet files or class folders"
        ) from problem


def _paths_of(part: Any) -> list[str]:
    """Returns the paths of a set of files, by any of the names that torchvision has for them; none for other sets."""
    paths = next((found for name in _FILES if (found := getattr(part, name, None))), ())
    if pairs := next((found for name in PAIRS if (found := getattr(part, name, None))), None):
        paths = [path for path, _ in pairs]
    return [str(path) for path in paths] if all(isinstance(path, str | Path) for path in paths) else []


def _construct(cls: str, root: Path, arguments: Mapping[str, Any]) -> Any:
    from torchvision import datasets

    # Torchvision prints the mirrors that it tries.
    with contextlib.redirect_stdout(io.StringIO()):
        return getattr(datasets, cls)(root, **arguments)


@contextlib.contextmanager
def _alone(name: str) -> Iterator[None]:
    """Lets one process of this machine at a time look for, and download, a set."""
    from filelock import FileLock

    with contextlib.ExitStack() as stack:
        # Where the cache cannot be written there is no lock, and nothing is downloaded into it either.
        with contextlib.suppress(OSError):
            cache_folder().mkdir(parents=True, exist_ok=True)
            stack.enter_context(FileLock(cache_folder() / f"{name}.lock"))
        yield


def _class_names(classes: Sequence[Any] | None, first_label: int) -> list[str] | None:
    """Returns torchvision's class names as strings; ImageNet's are tuples of synonyms."""
    if classes is None:
        return None
    return [", ".join(name) if isinstance(name, tuple) else str(name) for name in classes[first_label:]]
