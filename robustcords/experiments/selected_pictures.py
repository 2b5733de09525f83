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
from robustcords.report.page import Selected, Thumbnail
from robustcords.report.runs import Run


def selected(name: str, run: Run, count: int, load_data: Callable[[Recipe], build.Data]) -> Selected:
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
    numbers = np.asarray(train.numbers)
    order = np.argsort(-last.weights, kind="stable")
    places = {int(number): place for place, number in enumerate(numbers)}
    kept = torch.tensor([places[number] for number in last.indices[order].tolist() if number in places])
    rest = torch.from_numpy(np.flatnonzero(~np.isin(numbers, last.indices)))
    heading = f"{name}, seed {run.seed}, selection of epoch {last.epoch + 1}"
    return Selected(heading, _thumbnails(train, kept, count), _thumbnails(train, rest, count))


def _thumbnails(train: Images, rows: Tensor, count: int) -> list[Thumbnail]:
    if not len(rows):
        return []
    part = train.subset(rows)
    x, y = part.batch(chosen(part, count))
    return [Thumbnail(train.classes[label], address(pixels)) for pixels, label in zip(x, y.tolist(), strict=True)]
