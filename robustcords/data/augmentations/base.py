"""The base class of augmentations: the interface between the loader and an augmentation."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any, ClassVar

from torch import Tensor

from robustcords.config.requirements import HARD_LABELS
from robustcords.config.schema import Component, ComponentConfig
from robustcords.data.augmentations.geometry import Geometry
from robustcords.data.base import DataSource
from robustcords.data.images import Images
from robustcords.rng import Noise


class AugmentationConfig(ComponentConfig):
    """Options that every augmentation has: none but its name."""


class Augmentation(Component, ABC):
    """Changes training images at random. Subclasses write `__call__`.

    Everything random comes from the noise, which is keyed by example, so that an example is augmented alike whatever
    batch or process it is in, and anew in every epoch.

    Example:
        >>> images = CropFlip(crop=4, flip=True)(x, Noise(derive(seed, "augment", epoch), numbers))
    """

    Config: ClassVar[type[AugmentationConfig]] = AugmentationConfig
    provides: ClassVar[frozenset[str]] = frozenset({HARD_LABELS})

    @classmethod
    def resolved(cls, config: Any, source: DataSource) -> Any:
        """Returns the options with those filled in that follow from the data set where they are left out.

        Here nothing follows.
        """
        del source
        return config

    def takes(self, images: Images) -> Images:
        """Returns what is augmented to stand for the images of a set: here these images themselves.

        An augmentation that crops takes their `robustcords.Images.frames`.
        """
        return images

    @abstractmethod
    def __call__(self, x: Tensor, noise: Noise) -> Tensor:
        """Returns images (B, C, H, W) in [0, 1] of the set's shape and of the dtype of ``x``, which stays as it is.

        Args:
            x: (B, C, H, W) in [0, 1], of what it `takes`.
            noise: (B,) keyed by example, another in every epoch.
        """

    def geometry(self, noise: Noise) -> Geometry | None:
        """Returns where `__call__` with this noise moves pixels to, if that is all it does; here None.

        An augmentation that returns a geometry provides `robustcords.config.requirements.GEOMETRY`.
        """
        del noise
        return None
