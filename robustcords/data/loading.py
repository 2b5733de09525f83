"""Checks of the images that a source returns, before a run depends on them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from robustcords.data import cache
from robustcords.data.base import DataSource, Splits
from robustcords.data.center_crop import CenterCropped
from robustcords.data.decoded_splits import ImageConfig
from robustcords.data.decoding import label_gaps
from robustcords.data.images import Images
from robustcords.errors import UserError, is_own, kind_of, one_line
from robustcords.runtime.progress import Display


def loaded(source: DataSource, display: Display | None = None) -> Splits:
    """Returns what a source loads, after looking at it: all labels, and the pixels of two images of each set.

    Both sets are numbered from 0, whatever they were a subset of: the training set is what numbers are the rows of.

    Args:
        source: of the images.
        display: for progress; left out, there is none.

    Raises:
        UserError: it cannot be read, or is not what `Splits` and `Images` promise; the line names what is wrong.
    """
    name = f"data {source.config.name!r}"
    load = f"{name}: {type(source).__name__}.load"
    try:
        splits: Any = cache.read(source, display)
    except UserError:
        raise
    except OSError as error:
        reason = f"{error.filename}: {error.strerror}" if error.filename and error.strerror else str(error)
        raise UserError(f"{name}: cannot be read: {reason}") from error
    except Exception as error:
        if is_own(type(source).__module__):
            raise
        raise UserError(f"{load} failed: {one_line(error)}") from error
    if not isinstance(splits, Splits):
        raise UserError(f"{load} returned {kind_of(splits)}, expected Splits(train, test)")
    for part in ("train", "test"):
        if problem := _problem(getattr(splits, part)):
            raise UserError(f"{load} returned a {part} set whose {problem}")
    if problem := _problem_of_training(splits.train):
        raise UserError(f"{load} returned a train set whose {problem}")
    for what in ("classes", "shape") if len(splits.test) else ():
        of_train, of_test = getattr(splits.train, what), getattr(splits.test, what)
        if of_train != of_test:
            raise UserError(f"{load} returned sets of different {what}: {_short(of_train)} and {_short(of_test)}")
    note = cache.note_of_place(source, splits)
    return _centred(replace(splits, notes=(*splits.notes, note)) if note else splits, source)


def _centred(splits: Splits, source: DataSource) -> Splits:
    """Returns the centres of what was decoded larger than it is seen."""
    side = source.config.image_size if isinstance(source.config, ImageConfig) and source.config.resize else None
    if side is None:
        return splits
    return replace(splits, train=CenterCropped(splits.train, side), test=CenterCropped(splits.test, side))


def _problem(images: Any) -> str | None:
    """Numbers a set from 0; returns what is wrong with it, or None."""
    if not isinstance(images, Images):
        return f"type is {kind_of(images)}, expected an Images"
    if not hasattr(images, "labels"):
        return "labels are not set"
    try:
        if problem := _problem_of_labels(images):
            return problem
        images.numbers = torch.arange(len(images))  # what the checks below go by
        return next(_problems(images), None)
    except UserError:
        raise
    except Exception as error:
        return f"images cannot be read: {one_line(error)}"


def _problem_of_training(images: Images) -> str | None:
    """Returns why a set, which is one as far as it goes, cannot be trained on, or None."""
    if not len(images):
        return "length is 0, expected at least one image"
    count = len(images.classes)
    unnamed = images.classes == tuple(map(str, range(count)))
    if unnamed and (gaps := label_gaps(images.labels, count)):
        return f"{gaps}: number the classes from 0 on without gaps, or name them all in its classes"
    return None


def _problem_of_labels(images: Images) -> str | None:
    """Returns why labels are not those of a set, or None."""
    labels: Any = images.labels
    if not isinstance(labels, Tensor):
        return f"labels are {kind_of(labels)}, expected a tensor"
    if labels.dtype != torch.int64 or labels.shape != (len(images),) or labels.device.type != "cpu":
        given = f"{labels.dtype} of shape {tuple(labels.shape)} on {labels.device}"
        return f"labels are {given}, expected torch.int64 of shape ({len(images)},) on cpu"
    return None


def _problems(images: Images) -> Iterator[str]:
    """Yields what is wrong with a numbered set. What comes later may fail for what comes first."""
    if not len(images):
        return
    labels, classes, shape = images.labels, images.classes, images.shape
    if not (isinstance(classes, tuple) and all(isinstance(name, str) for name in classes)):
        yield f"classes are {_short(classes)}, expected a tuple of names"
    if labels.min() < 0 or labels.max() >= len(classes):
        yield f"labels go from {int(labels.min())} to {int(labels.max())}, expected 0 to {len(classes) - 1}"
    if not (isinstance(shape, tuple) and len(shape) == 3 and all(type(size) is int for size in shape)):
        yield f"shape is {_short(shape)}, expected three whole numbers: C, H, W"
    yield from _problems_of_batches(images)


def _problems_of_batches(images: Images) -> Iterator[str]:
    """Yields what is wrong with a batch of the last image and the first."""
    labels, shape = images.labels, images.shape
    rows = torch.tensor([len(images) - 1, 0])
    x, y = images.batch(rows, "cpu")
    expected = (2, *shape)
    if not isinstance(x, Tensor) or x.shape != expected or x.dtype != torch.float32:
        found = f"{x.dtype} of shape {tuple(x.shape)}" if isinstance(x, Tensor) else kind_of(x)
        yield f"batch gives {found}, expected torch.float32 of shape {expected}"
    if not (x.min() >= 0 and x.max() <= 1):
        yield f"batch gives pixels from {float(x.min()):g} to {float(x.max()):g}, expected [0, 1]"
    if not isinstance(y, Tensor) or not torch.equal(y, labels[rows]):
        yield f"batch gives labels {_short(y)}, expected {_short(labels[rows])}"
    if not torch.equal(images.batch(rows[1:], "cpu")[0], x[1:]):
        yield "batch gives another image for a row that it is asked for alone"
    if not torch.equal(images.subset(rows).numbers, rows):
        yield "subset does not carry its rows' numbers along"


def _short(value: object) -> str:
    text = " ".join(repr(value).split())
    return text if len(text) <= 60 else f"{text[:57]}..."
