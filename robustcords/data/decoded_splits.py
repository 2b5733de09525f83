"""A training and a test set of splits that are not decoded yet, in memory or on disk, with the same classes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Annotated, Self

from pydantic import Field, model_validator

from robustcords.config.schema import Role
from robustcords.data.base import DataConfig, Splits
from robustcords.data.corrupt import readable
from robustcords.data.decoder import Decoder
from robustcords.data.decoding import decode, is_coloured, labels_of, numbered, other_size, shape_of
from robustcords.data.images import Images, ImageSet
from robustcords.data.on_disk import OnDisk
from robustcords.data.rows import Rows
from robustcords.data.split import stratified_split
from robustcords.data.storage import Storage, stays_on_disk, worker_count
from robustcords.errors import UserError, listed


class ImageConfig(DataConfig):
    """Options of data sets whose images may have any size.

    Attributes:
        image_size: side of the square, in pixels, that every image is resized and centre-cropped to; left out, images
            keep their size, which must be the same for all.
        resize: length, in pixels, that the shorter side is resized to before the centre is cropped, at least
            ``image_size``; left out, ``image_size``. Augmentations that crop themselves see the whole square of this
            side.
        storage: ``"memory"`` keeps the images in memory, ``"disk"`` reads them from disk when they are needed, and
            ``"auto"`` uses memory if they take at most a quarter of what is free. The results are the same.
        workers: number of processes that read images on disk ahead, for each process of the run; left out, one for each
            of its cores, at most 8. With 0 nothing is read ahead.
        skip_corrupt: skip images that cannot be read, with a warning that says how many, instead of stopping at the
            first one. Every image is decoded once more to find them.
    """

    image_size: Annotated[int, Field(ge=1, le=4096)] | None = None
    resize: Annotated[int, Field(ge=1, le=4096)] | None = None
    storage: Annotated[Storage, Role("computation", changeable=True)] = "auto"
    workers: Annotated[Annotated[int, Field(ge=0, le=256)] | None, Role("computation", changeable=True)] = None
    skip_corrupt: bool = False

    @model_validator(mode="after")
    def _room_for_the_centre(self) -> Self:
        if self.resize is not None and not 1 <= (self.image_size or 0) <= self.resize:
            given = "left out" if self.image_size is None else f"{self.image_size}"
            raise ValueError(f"resize = {self.resize} needs an image_size of at most that, and it is {given}")
        return self

    @property
    def frame(self) -> int | None:
        """Side of the square that images are decoded to; None where they keep their size."""
        return self.resize or self.image_size


def splits(
    train: Rows,
    test: Rows | float | None,
    classes: Sequence[str] | None = None,
    config: ImageConfig | None = None,
    notes: Sequence[str] = (),
) -> Splits:
    """Decodes a training and a test set; both get the same number of channels.

    Args:
        train: the training set.
        test: the test set; or the share of the training set that is taken for it, always the same images.
        classes: the classes' names; left out, they are the numbers from 0 to the largest training label, all of which
            have to occur. Classes with names may have no images, which is noted.
        config: how large images are made, and where they are kept; None for neither.
        notes: what else there is to say of these sets.

    Raises:
        UserError: an image or label cannot be used, sizes differ, a split is empty, there is only one class, or a
            class without a name has no images.
    """
    if config and config.skip_corrupt:
        return _without_corrupt(train, test, classes, config, notes)
    read = _reader([train, test] if isinstance(test, Rows) else [train], config)
    first = read(train, len(classes) if classes else None)
    if len(first.labels.unique()) < 2:
        raise UserError(f"{train.name}: every label is {int(first.labels[0])}; training needs at least two classes")
    first.classes = named = tuple(classes) if classes else numbered(train, first.labels)
    if not isinstance(test, Rows):
        return _parted(first, train, test or 0.0, notes)
    second = read(test, len(named))
    second.classes = named
    if first.shape[1:] != second.shape[1:]:
        raise UserError(other_size(test.where(0), second.shape, "the training images are", first.shape))
    channels = {first.shape[0], second.shape[0]}
    if len(channels) > 1 and channels != {1, 3}:
        raise UserError(f"{test.name}: {second.shape[0]} channels, but {first.shape[0]} in training")
    empty = (*_empty_classes(train.name, first), *_empty_classes(test.name, second))
    sets = [_widened(images, max(channels)) for images in (first, second)]
    return Splits(sets[0], sets[1], (*notes, *train.notes, *test.notes, *empty))


def _without_corrupt(
    train: Rows, test: Rows | float | None, classes: Sequence[str] | None, config: ImageConfig, notes: Sequence[str]
) -> Splits:
    """Returns what `splits` does of the images that can be read, with a warning about the others."""
    train, *lines = readable(train, config.frame)
    if isinstance(test, Rows):
        test, line = readable(test, config.frame)
        lines.append(line)
    found = splits(train, test, classes, config.model_copy(update={"skip_corrupt": False}), notes)
    return replace(found, warnings=tuple(line for line in lines if line))


def _reader(parts: Sequence[Rows], config: ImageConfig | None) -> Callable[[Rows, int | None], Images]:
    """Returns what reads each of some splits: into memory, or where images stay on disk, when they are asked for.

    It takes a split and the number of classes, where that is known.

    Raises:
        UserError: a split is empty, or cannot stay on disk as the recipe wants it to.
    """
    size = config.frame if config else None

    def in_memory(rows: Rows, classes: int | None) -> ImageSet:
        return ImageSet(*decode(rows, size, classes), ())

    if config is None or config.storage == "memory":
        return in_memory
    _, height, width = shape_of(parts[0], size)
    if not stays_on_disk(config.storage, sum(rows.count for rows in parts) * 3 * height * width):
        return in_memory
    if unknown := next((rows for rows in parts if rows.labels() is None), None):
        if config.storage == "auto":
            return in_memory
        raise UserError(f"{unknown.name}: data.storage = 'disk': its labels are not known before it is decoded")
    shape = (3 if any(map(is_coloured, parts)) else 1, height, width)

    def on_disk(rows: Rows, classes: int | None) -> OnDisk:
        if not rows.count:
            raise UserError(f"{rows.name}: there are no images in it")
        labels = labels_of(rows, classes)
        assert labels is not None
        return OnDisk(Decoder(rows, size, shape), labels, (), worker_count(config.workers))

    return on_disk


def _parted(images: Images, rows: Rows, fraction: float, notes: Sequence[str]) -> Splits:
    """Returns a training set with a part of it as the test set.

    Raises:
        UserError: there are too few images for that.
    """
    kept, held_out = stratified_split(images.labels, fraction, seed=0)
    if not len(held_out):
        raise UserError(f"{rows.name}: data.test_fraction = {fraction:g} of {len(images)} images is none")
    notes = (*notes, *rows.notes, *_empty_classes(rows.name, images))
    return Splits(images.subset(kept), images.subset(held_out), notes)


def _empty_classes(name: str, images: Images) -> tuple[str, ...]:
    """Returns a line that names the classes without images, where there are some."""
    counts = images.labels.bincount(minlength=len(images.classes)).tolist()
    empty = [label for label, count in zip(images.classes, counts, strict=True) if not count]
    return (f"{name}: {len(empty)} of {len(counts)} classes have no images ({listed(empty)})",) if empty else ()


def _widened(images: Images, channels: int) -> Images:
    """Returns a set with grey images repeated to this number of channels, where it has fewer."""
    if images.shape[0] == channels or not isinstance(images, ImageSet):
        return images
    return ImageSet(images.images.repeat(1, channels, 1, 1), images.labels, images.classes)
