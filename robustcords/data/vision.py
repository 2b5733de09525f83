"""Torchvision's classification sets."""

from __future__ import annotations

import contextlib
import io
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from pydantic import field_validator

from robustcords.data.base import DataSource, Splits
from robustcords.data.catalogue import SETS
from robustcords.data.decoding import Rows, dataset_rows, message_of, splits
from robustcords.data.folder import existing_folder, has_class_folders, read_class_folders
from robustcords.data.parquet import ParquetConfig, parquet_files, read_parquet
from robustcords.errors import UserError, nearest


class Vision(DataSource):
    """Any set of `robustcords.data.catalogue.SETS`, by name.

    ``path`` is where it is read from: a folder of parquet files, of class folders, or torchvision's own files, which
    are downloaded there where they are missing. Left out, they are kept in the user's cache, see `cache_folder`.
    """

    class Config(ParquetConfig):
        """Options of torchvision's sets; those for columns are for parquet files at ``path``."""

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

    def load(self) -> Splits:
        """Returns the decoded training and test sets."""
        if self.config.path is None:
            return self._read_torchvision(cache_folder() / self.config.name)
        folder = existing_folder(self.config)
        if parquet_files(folder):
            return read_parquet(folder, self.config)
        if has_class_folders(folder):
            return read_class_folders(folder, self.config.image_size)
        return self._read_torchvision(folder)

    def _read_torchvision(self, root: Path) -> Splits:
        name = self.config.name
        with _alone(name):
            train, test = (self._open(root, arguments) for arguments in SETS[name].splits)
        classes = _class_names(getattr(train, "classes", None), SETS[name].first_label)
        return splits(self._rows(train, "training"), self._rows(test, "test"), classes, self.config.image_size)

    def _rows(self, part: Any, split: str) -> Rows:
        """Returns the rows of one of torchvision's datasets, with labels from 0."""
        rows = dataset_rows(part, f"{self.config.name}, {split} set", torch.get_num_threads())
        first = SETS[self.config.name].first_label

        def read(row: int) -> tuple[Any, Any]:
            picture, label = rows.read(row)
            return picture, label - first

        return replace(rows, read=read) if first else rows

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


def cache_folder() -> Path:
    """Returns where downloads are kept: ``robustcords`` in ``$XDG_CACHE_HOME``, or else in ``~/.cache``."""
    configured = Path(os.environ.get("XDG_CACHE_HOME", ""))
    return (configured if configured.is_absolute() else Path.home() / ".cache") / "robustcords"


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
