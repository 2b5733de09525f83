"""Decoded images, kept between runs: one file of 8-bit pixels for each data set, in the user's cache folder.

A file is used for as long as the files that it was decoded from have the sizes and times that they had, and is written
under a lock and renamed when it is whole, so that several runs at a time decode a set once.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path

import torch
from filelock import FileLock
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from robustcords.data.base import DataSource, Splits
from robustcords.data.images import ImageSet

VARIABLE = "ROBUSTCORDS_CACHE"
"""The environment variable that names another folder."""
_VERSION = 2
"""Of the files, and of what decoding makes of an image: another one is decoded anew."""
_NOT_THE_IMAGES = {"path", "validation_fraction", "train_limit", "cache"}
"""Options that decoding does not depend on; where the files are is told by these themselves."""
_PARTS = ("train", "test")


def cache_folder() -> Path:
    """Returns where downloads and decoded images are kept.

    That is ``$ROBUSTCORDS_CACHE``, or ``robustcords`` in ``$XDG_CACHE_HOME``, or else in ``~/.cache``.
    """
    own, configured = Path(os.environ.get(VARIABLE, "")), Path(os.environ.get("XDG_CACHE_HOME", ""))
    if own.is_absolute():
        return own
    return (configured if configured.is_absolute() else Path.home() / ".cache") / "robustcords"


def read(source: DataSource) -> Splits:
    """Returns what a source loads, from the cache where that has it, and else decoded and kept there.

    Raises:
        UserError: as `DataSource.load`. That the cache cannot be read or written is no error.
    """
    files = source.files() if source.config.cache else None
    if files is None:
        return source.load()
    path = _path(source)
    with _alone(path):
        found = _kept(path, _fingerprint(source, files))
        if found is None:
            found = source.load()
            files = source.files() or []  # now, as it may have downloaded them
            with contextlib.suppress(OSError, SafetensorError):
                _keep(path, _fingerprint(source, files), found)
        return found


def _path(source: DataSource) -> Path:
    """Returns the file of a data set: one for each place, with each way of reading it."""
    place = [source.config.path and str(Path(source.config.path).expanduser().resolve()), _options(source)]
    digest = hashlib.sha256(json.dumps(place).encode(errors="backslashreplace")).hexdigest()[:16]
    name = "".join(letter if letter.isalnum() else "_" for letter in Path(source.config.name).name)[:40]
    return cache_folder() / "decoded" / f"{name}-{digest}.safetensors"


def _options(source: DataSource) -> str:
    return source.config.model_dump_json(exclude=_NOT_THE_IMAGES)


def _fingerprint(source: DataSource, files: Iterable[Path]) -> str:
    """Returns a digest of what the decoded images depend on: the options, and the files' names, sizes and times."""
    digest = hashlib.sha256(f"{_VERSION} {type(source).__qualname__} {_options(source)}".encode())
    for file in files:
        about = file.stat()
        digest.update(f"{file} {about.st_size} {about.st_mtime_ns}\n".encode(errors="backslashreplace"))
    return digest.hexdigest()


def _kept(path: Path, fingerprint: str) -> Splits | None:
    """Returns what a file has; None where it is not there, not whole, or of other images."""
    try:
        with safe_open(path, framework="pt") as file:
            about = file.metadata() or {}
            if about.get("fingerprint") != fingerprint:
                return None
            told = json.loads(about["told"])
            classes = tuple(told["classes"])
            train, test = (
                ImageSet(file.get_tensor(f"{part}.images"), file.get_tensor(f"{part}.labels"), classes)
                for part in _PARTS
            )
    except (OSError, SafetensorError, ValueError, KeyError, TypeError):
        return None
    return Splits(train, test, tuple(told["notes"]))


def _keep(path: Path, fingerprint: str, splits: Splits) -> None:
    """Writes what was decoded, where that is pixels of 8 bits in memory.

    Raises:
        OSError: there is no room, or the folder may not be written to.
    """
    tensors: dict[str, Tensor] = {}
    for part in _PARTS:
        images = getattr(splits, part)
        if not isinstance(images, ImageSet) or images.images.dtype != torch.uint8:
            return
        tensors |= {f"{part}.images": images.images.contiguous(), f"{part}.labels": images.labels}
    told = json.dumps({"classes": splits.train.classes, "notes": splits.notes})
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=path.parent, prefix=".") as folder:
        whole = Path(folder) / path.name
        save_file(tensors, whole, {"fingerprint": fingerprint, "told": told})
        with whole.open("rb") as file:
            os.fsync(file.fileno())
        whole.replace(path)


@contextlib.contextmanager
def _alone(path: Path) -> Iterator[None]:
    """Lets one process of this machine at a time look for a file and make it."""
    with contextlib.ExitStack() as stack:
        with contextlib.suppress(OSError):  # a cache that cannot be written is none
            path.parent.mkdir(parents=True, exist_ok=True)
            stack.enter_context(FileLock(path.with_suffix(".lock")))
        yield
