"""Sheets of images for experiment trackers."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from robustcords.experiments.tracker_images import sheet
from robustcords.runtime.trackers import log_image


def test_a_sheet_has_every_image_whole():
    red, grey = torch.zeros(3, 32, 32), torch.full((1, 8, 8), 0.5)
    red[0] = 1
    made = sheet([("", [red, grey]), ("a caption", [grey, red]), ("", [red])], columns=2)
    assert made.dtype == np.uint8
    for color, images in (([255, 0, 0], 3), ([128, 128, 128], 2)):  # each is enlarged to 96 x 96
        assert (made == color).all(axis=2).sum() == images * 96 * 96
    assert sheet([("longer than its image is wide", [grey])], columns=5).shape[1] > 130


class Tracker(SimpleNamespace):
    """Keeps what it gets."""

    def log_images(self, values: dict[str, Any], step: int, **options: Any) -> None:
        self.got = values, step, options

    def log_artifact(self, path: str, folder: str) -> None:
        self.got = np.asarray(Image.open(path)), Path(path).name, folder


@pytest.mark.parametrize(
    ("name", "form"), [("tensorboard", lambda x: x[None]), ("wandb", lambda x: [x]), ("aim", lambda x: x)]
)
def test_trackers_get_an_image_in_the_form_that_accelerate_documents(name: str, form: Any):
    image, tracker = np.arange(24, dtype=np.uint8).reshape(2, 4, 3), Tracker(name=name)
    assert log_image(tracker, "images/kept", image, 7)  # type: ignore[arg-type]
    values, step, _ = tracker.got
    assert (step, list(values)) == (7, ["images/kept"])
    assert np.array_equal(values["images/kept"], form(image))


def test_mlflow_gets_a_file_and_trackers_without_images_say_so():
    image, tracker = np.arange(24, dtype=np.uint8).reshape(2, 4, 3), Tracker(name="mlflow")
    assert log_image(tracker, "images/kept", image, 7)  # type: ignore[arg-type]
    got, *place = tracker.got
    assert np.array_equal(got, image)
    assert place == ["kept.png", "images"]
    assert not log_image(Tracker(name="comet_ml"), "images/kept", image, 7)  # type: ignore[arg-type]
