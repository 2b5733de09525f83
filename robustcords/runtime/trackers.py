"""What experiment trackers get: every number of a table, each under a name of its own, and images."""

from __future__ import annotations

import importlib
import re
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from accelerate.tracking import GeneralTracker
from PIL import Image

_LONGEST = 100
"""Longer lists, such as the sizes of a thousand classes, are left to the files."""
_UNNAMEABLE = re.compile(r"[^\w\-. /]")
"""What MLflow has in no name."""


def figures(table: Any, name: str = "") -> dict[str, float]:
    """Returns the numbers in nested tables and lists, named by their keys, such as ``"seconds/attack"``.

    Args:
        table: of text to numbers, tables, lists and anything else, which is left out.
        name: what comes before its keys.
    """
    if type(table) in {int, float}:
        return {name: table}
    if isinstance(table, list):
        table = {str(number): each for number, each in enumerate(table)} if len(table) <= _LONGEST else {}
    if not isinstance(table, Mapping):
        return {}
    found: dict[str, float] = {}
    for key, value in table.items():
        own = _UNNAMEABLE.sub("_", str(key))
        found |= figures(value, f"{name}/{own}" if name else own)
    return found


def log_image(tracker: GeneralTracker, name: str, image: npt.NDArray[np.uint8], step: int) -> bool:
    """Gives an image to a tracker; returns whether it takes any: Comet's and DVCLive's, as Accelerate has them, do not.

    Args:
        tracker: one of Accelerate's.
        name: such as ``"images/kept"``.
        image: (H, W, 3).
        step: as for the numbers.
    """
    match tracker.name:
        case "tensorboard":
            tracker.log_images({name: image[None]}, step=step, dataformats="NHWC")
        case "wandb" | "swanlab":
            tracker.log_images({name: [image]}, step=step)
        case "aim" | "clearml":
            tracker.log_images({name: image}, step=step)
        case "trackio":
            tracker.log({name: importlib.import_module("trackio").Image(image)}, step=step)
        case "mlflow":
            with tempfile.TemporaryDirectory() as folder:
                path = Path(folder, f"{Path(name).name}.png")
                Image.fromarray(image).save(path)
                tracker.log_artifact(str(path), str(Path(name).parent))
        case _:
            return False
    return True
