"""Training images that selectors have kept and left out, for the report page."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from robustcords.data.images import Images
from robustcords.experiments import build
from robustcords.experiments.picture_addresses import address, chosen
from robustcords.recipe.recipe import Recipe, load
from robustcords.report.page import SelectedImages, Thumbnail
from robustcords.report.runs import Run
from robustcords.storage.selections import Selection

Labelled = tuple[str, Tensor]
"""A class, and an image of it: (C, H, W) in [0, 1]."""


def selected(name: str, run: Run, count: int, load_data: Callable[[Recipe], build.Data]) -> SelectedImages:
    """Returns images of a run's last selection, and of those of the training split that are not in it.

    Both are of different classes as far as there are enough; of those kept, those of a class with the largest weights.

    Args:
        name: what the page calls the run.
        run: with ``selections/``.
        count: images of either kind.
        load_data: loads a recipe's images.

    Raises:
        UserError: its recipe or its data cannot be used.
    """
    train, last = load_data(load(run.path / "recipe.toml", of_run=True)).train, run.selections[-1]
    heading = f"{name}, seed {run.seed}, selection of epoch {last.epoch + 1}"
    thumbnails = (
        [Thumbnail(label, address(pixels)) for label, pixels in part] for part in pixels_of(train, last, count)
    )
    return SelectedImages(heading, *thumbnails)


def pixels_of(train: Images, selection: Selection, count: int) -> tuple[list[Labelled], list[Labelled]]:
    """Returns images that a selection kept, and others of the training split; see `selected`.

    Args:
        train: the training split.
        selection: from it.
        count: images of either kind.
    """
    numbers = np.asarray(train.numbers)
    order = np.argsort(-selection.weights, kind="stable")
    places = {int(number): place for place, number in enumerate(numbers)}
    kept = [places[number] for number in selection.indices[order].tolist() if number in places]
    rest = np.flatnonzero(~np.isin(numbers, selection.indices))
    return _labelled(train, torch.tensor(kept), count), _labelled(train, torch.from_numpy(rest), count)


def _labelled(train: Images, rows: Tensor, count: int) -> list[Labelled]:
    if not len(rows):
        return []
    part = train.subset(rows)
    x, y = part.batch(chosen(part, count))
    return [(train.classes[label], pixels) for pixels, label in zip(x, y.tolist(), strict=True)]
