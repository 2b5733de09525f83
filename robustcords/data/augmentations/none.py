"""No augmentation."""

from __future__ import annotations

from typing import ClassVar

from torch import Tensor

from robustcords.config.requirements import GEOMETRY
from robustcords.data.augmentations.base import Augmentation, AugmentationConfig
from robustcords.data.augmentations.geometry import Geometry
from robustcords.rng import Noise


class NoAugmentation(Augmentation):
    """Images as they are in the data set."""

    class Config(AugmentationConfig):
        """No options."""

        name: str = "none"

    provides: ClassVar[frozenset[str]] = Augmentation.provides | {GEOMETRY}

    def __call__(self, x: Tensor, noise: Noise) -> Tensor:
        """Returns the images."""
        del noise
        return x

    def geometry(self, noise: Noise) -> Geometry:
        """Returns the identity."""
        return Geometry(noise)
