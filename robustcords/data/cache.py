"""Decoded images, kept between runs: one file of 8-bit pixels for each data set, in the user's cache folder.

A file is used for as long as the files that it was decoded from have the sizes and times that they had, and is written
under a lock and renamed when it is whole, so that several runs at a time decode a set once. Images that stay on disk
are read out of it.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import math
import os
import shutil
from collections.abc import Iterable, Iterator
from pathlib import Path

import torch
from filelock import FileLock, Timeout

from robustcords.data.base import DataSource, Splits
from robustcords.data.decoded_file import PARTS, DecodedFile, write
from robustcords.data.decoded_splits import ImageConfig
from robustcords.data.images import Images, ImageSet
from robustcords.data.on_disk import OnDisk, on_disk
from robustcords.data.storage import in_units, stays_on_disk, worker_count
from robustcords.errors import UserError
from robustcords.runtime.progress import Display, Update

VARIABLE = "ROBUSTCORDS_CACHE"
"""The environment variable that names another folder."""
_VERSION = 5
"""Of the files, and of what decoding makes of an image: another one is decoded anew."""
_NOT_THE_IMAGES = {"path", "validation_fraction", "train_limit", "cache", "storage", "workers"}
"""Options that decoding does not depend on; where the files are is told by these themselves."""
_LARGE = 1024**3  # bytes; where images of fewer are is not worth a line
_SPARE = 256 * 1024**2  # bytes that are left free on the disk
_MOMENT = 2.0  # seconds that another process may look for the file without this one saying that it waits


def cache_folder() -> Path:
    """Returns where downloads and decoded images are kept.

    That is ``$ROBUSTCORDS_CACHE``, or ``robustcords`` in ``$XDG_CACHE_HOME``, or else in ``~/.cache``.
    """
    own, configured = Path(os.environ.get(VARIABLE, "")), Path(os.environ.get("XDG_CACHE_HOME", ""))
    if own.is_absolute():
        return own
    return (configured if configured.is_absolute() else Path.home() / ".cache") / "robustcords"


def read(source: DataSource, display: Display | None = None) -> Splits:
    """Returns what a source loads, from the cache where that has it, and else decoded and kept there.

    Args:
        source: of the images.
        display: for progress, as images on disk may take hours to decode; left out, there is none.

    Raises:
        UserError: as `DataSource.load`, or images are to stay on disk, and it has no room for them decoded. That images
            in memory cannot be kept is no error.
    """
    files = source.files() if source.config.cache else None
    if files is None:
        return source.load()
    path, display = _path(source), display or Display(visible=False)
    with _alone(path, display):
        # Of the files before they are decoded: one that changes meanwhile is decoded again by the next run.
        fingerprint = _fingerprint(source, files)
        found = _kept(path, fingerprint, source)
        if found is None:
            found = source.load()
            if not files:  # it has downloaded them
                fingerprint = _fingerprint(source, source.files() or [])
            try:
                with display.task("decoding images") as update:
                    _keep(path, fingerprint, found, update)
            except OSError as error:
                _refuse_unwritable(source, path, found, error)
            else:
                found = (_kept(path, fingerprint, source) if on_disk(found.train) else None) or found
        return found


def note_of_place(source: DataSource, splits: Splits) -> str | None:
    """Returns a line on where the images are, unless that is in memory and they take little of it."""
    size, stays = _size(splits), on_disk(splits.train)
    if not (stays or (size >= _LARGE and isinstance(source.config, ImageConfig))):
        return None
    count, where = len(splits.train) + len(splits.test), stays.reader.how if stays else "are in memory"
    return f"data {source.config.name!r}: {count:,} images, {in_units(size)} decoded, {where}"


def _size(splits: Splits) -> int:
    """Returns the bytes that all images take decoded."""
    return sum(len(images) * math.prod(images.shape) for images in (splits.train, splits.test) if len(images))


def _refuse_unwritable(source: DataSource, path: Path, splits: Splits, error: OSError) -> None:
    """Refuses images on disk that cannot be kept there decoded, where a recipe wants them to be.

    Raises:
        UserError: it does.
    """
    if getattr(source.config, "storage", None) == "disk" and on_disk(splits.train):
        raise UserError(
            f"data.storage = 'disk': {path.parent}: {in_units(_size(splits))} of decoded images cannot be written "
            f"({error.strerror}); {VARIABLE} names another folder, and data.cache = false decodes them as they are read"
        ) from error


def _path(source: DataSource) -> Path:
    """Returns the file of a data set: one for each place, with each way of reading it."""
    place = [source.config.path and str(Path(source.config.path).expanduser().resolve()), _options(source)]
    digest = hashlib.sha256(json.dumps(place).encode(errors="backslashreplace")).hexdigest()[:16]
    name = "".join(letter if letter.isalnum() else "_" for letter in Path(source.config.name).name)[:40]
    return cache_folder() / "decoded" / f"{name}-{digest}.safetensors"


def _options(source: DataSource) -> str:
    return source.config.model_dump_json(exclude=_NOT_THE_IMAGES)


def _fingerprint(source: DataSource, files: Iterable[str | Path]) -> str:
    """Returns a digest of what the decoded images depend on: the options, and the files' names, sizes and times.

    Names are those below the folder, which one recipe may name in another way than the next.
    """
    digest = hashlib.sha256(f"{_VERSION} {type(source).__qualname__} {_options(source)}".encode())
    folder = str(Path(source.config.path or source.config.name).expanduser())
    for file in files:
        try:
            about = os.stat(file)  # noqa: PTH116 -- files may be a million
            told = f"{about.st_size} {about.st_mtime_ns}"
        except OSError as error:  # a link to nothing; what reads the images says so, or skips it
            told = str(error.errno)
        digest.update(f"{str(file).removeprefix(folder)} {told}\n".encode(errors="backslashreplace"))
    return digest.hexdigest()


def _kept(path: Path, fingerprint: str, source: DataSource) -> Splits | None:
    """Returns what a file has; None where it is not there, not whole, or of other images."""
    try:
        file = DecodedFile.open(path)
        if file.about.get("fingerprint") != fingerprint:
            return None
        told = json.loads(file.about["told"])
        classes, notes, warnings = (tuple(told[key]) for key in ("classes", "notes", "warnings"))
        size = sum(math.prod(file.blocks[f"{part}.images"].shape) for part in PARTS)
        config = source.config
        workers = None
        if isinstance(config, ImageConfig) and stays_on_disk(config.storage, size):
            workers = worker_count(config.workers)
        sets: list[Images] = []
        for part in PARTS:
            pixels, labels = file.pixels(part), torch.from_numpy(file.numbers[f"{part}.labels"])
            if workers is None:
                sets.append(ImageSet(pixels.all(), labels, classes))
            else:
                sets.append(OnDisk(pixels, labels, classes, workers))
    except (OSError, UserError, ValueError, KeyError, TypeError, AttributeError):
        return None
    return Splits(sets[0], sets[1], notes, warnings)


def _keep(path: Path, fingerprint: str, splits: Splits, update: Update) -> None:
    """Writes what was decoded, or is decoded now, where that is pixels of 8 bits.

    Raises:
        OSError: there is no room, or the folder may not be written to.
        UserError: an image cannot be decoded.
    """
    sets = (splits.train, splits.test)
    if not all(on_disk(each) or (isinstance(each, ImageSet) and each.images.dtype == torch.uint8) for each in sets):
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    path.with_suffix(".part").unlink(missing_ok=True)  # of a process that was killed
    if _size(splits) + _SPARE > shutil.disk_usage(path.parent).free:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    told = json.dumps({"classes": splits.train.classes, "notes": splits.notes, "warnings": splits.warnings})
    write(path, sets, {"fingerprint": fingerprint, "told": told}, update)


@contextlib.contextmanager
def _alone(path: Path, display: Display) -> Iterator[None]:
    """Lets one process of this machine at a time look for a file and make it; another says that it waits."""
    lock = FileLock(path.with_suffix(".lock"))
    with contextlib.ExitStack() as stack:
        with contextlib.suppress(OSError):  # a cache that cannot be written is none
            path.parent.mkdir(parents=True, exist_ok=True)
            try:
                lock.acquire(timeout=_MOMENT)
            except Timeout:
                display.say(f"waiting for another process, which is decoding the same images into {path}")
                lock.acquire()
            stack.callback(lock.release)
        yield
