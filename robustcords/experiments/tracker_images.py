"""The report page's images as experiment trackers get them: sheets with captions."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor, nn

from robustcords.errors import one_line
from robustcords.experiments.adversarial_pictures import attacked
from robustcords.experiments.build import Data, load_weights
from robustcords.experiments.picture_addresses import picture
from robustcords.experiments.selected_pictures import pixels_of
from robustcords.recipe.recipe import Recipe
from robustcords.runtime.session import Session
from robustcords.runtime.trackers import log_image
from robustcords.storage.run_directory import RunDirectory
from robustcords.storage.selections import Selection, load_selections
from robustcords.training.trainer import Trainer

_COUNT = 10
"""Images on a sheet."""
_SIDE, _LINE, _GAP = 96, 14, 4
"""Pixels: an image's longer side, at least half of which it fills; a caption; and the space between."""


def log_images(directory: RunDirectory, recipe: Recipe, images: Data, trainer: Trainer, work: Session) -> None:
    """Gives a run's images to its trackers; what cannot be shown is a note, never an error.

    Args:
        directory: of the run.
        recipe: of the run.
        images: of the run.
        trainer: which has trained.
        work: with the trackers.
    """
    try:
        selections = load_selections(directory.path / "selections")
        load_weights(trainer.model, directory.weights("last"))
        made = sheets(trainer.model, images, recipe, selections, work.device)
        for tracker in work.accelerator.trackers:
            if not all(log_image(tracker, name, image, trainer.progress.epoch) for name, image in made.items()):
                work.display.say(f"note: {tracker.name} gets numbers and no images")
    except Exception as error:
        work.display.say(f"note: trackers get no images: {one_line(error)}")


def sheets(
    model: nn.Module, images: Data, recipe: Recipe, selections: Sequence[Selection], device: torch.device
) -> dict[str, npt.NDArray[np.uint8]]:
    """Returns images (H, W, 3) by name: test images under attack, and what the last selection kept and left out.

    Args:
        model: of the run.
        images: of the run.
        recipe: of the run.
        selections: of the run; none without a selector.
        device: the model's.
    """
    cells = [
        (f"{each.label}: predicted {each.predicted}, attacked {each.attacked}", each.pixels)
        for each in attacked(model, images.test, recipe, _COUNT, device)
    ]
    made = {"images/test_clean_adversarial_difference": sheet(cells, columns=2)}
    if selections:
        kept, left_out = pixels_of(images.train, selections[-1], _COUNT)
        for name, part in (("kept", kept), ("left_out", left_out)):
            if part:
                made[f"images/selection_{name}"] = sheet([(label, [pixels]) for label, pixels in part], columns=5)
    return made


def sheet(cells: Sequence[tuple[str, Sequence[Tensor]]], columns: int) -> npt.NDArray[np.uint8]:
    """Returns one image (H, W, 3) of many: in each cell a caption, and below it images side by side.

    Args:
        cells: at least one; a caption, and images (C, H, W) in [0, 1].
        columns: of cells.
    """
    font = ImageFont.load_default(size=_LINE - 4)
    drawn = [(caption, [_enlarged(picture(pixels)) for pixels in images]) for caption, images in cells]
    contents = [(sum(image.width + _GAP for image in images), font.getlength(caption)) for caption, images in drawn]
    width = _GAP + math.ceil(max(map(max, contents)))
    height = _LINE + _GAP + max(image.height for _, images in drawn for image in images)
    whole = Image.new("RGB", (width * min(columns, len(drawn)), height * math.ceil(len(drawn) / columns)), "white")
    pen = ImageDraw.Draw(whole)
    for number, (caption, images) in enumerate(drawn):
        left, top = _GAP + number % columns * width, number // columns * height
        pen.text((left, top), caption, "black", font)
        for image in images:
            whole.paste(image, (left, top + _LINE))
            left += image.width + _GAP
    return np.asarray(whole)


def _enlarged(image: Image.Image) -> Image.Image:
    """Returns a small image with each pixel as a square, as many times as fit."""
    times = max(1, _SIDE // max(image.size))
    return image.resize((image.width * times, image.height * times), Image.Resampling.NEAREST)
