"""The base class of augmentations that follow random crops and flips."""

from __future__ import annotations

from abc import abstractmethod
from typing import Any, ClassVar

from torch import Tensor

from robustcords.data.augmentations.base import Augmentation, AugmentationConfig
from robustcords.data.augmentations.crop_flip import CropFlip, CropFlipConfig, usual
from robustcords.data.base import DataSource
from robustcords.rng import Noise, derive


class AfterCropFlip(Augmentation):
    """Changes images that have been cropped and flipped. Subclasses write `change`; their ``Config`` has the options.

    Args:
        options: the fields of ``Config``, ``crop`` and ``flip`` among them.
    """

    Config: ClassVar[type[AugmentationConfig]] = CropFlipConfig
    config: Any

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.crop_flip = CropFlip(crop=self.config.crop, flip=self.config.flip)

    @classmethod
    def resolved(cls, config: Any, source: DataSource) -> Any:
        """Returns the options, crops and flips that are left out as is usual for the data set."""
        return usual(config, source)

    def __call__(self, x: Tensor, noise: Noise) -> Tensor:
        """Returns images (B, C, H, W), cropped, flipped, and then changed."""
        return self.change(self.crop_flip(x, noise), Noise(derive(noise.seed, "change"), noise.keys))

    @abstractmethod
    def change(self, x: Tensor, noise: Noise) -> Tensor:
        """Returns images (B, C, H, W) in [0, 1] of the same shape and dtype.

        Args:
            x: (B, C, H, W) in [0, 1], cropped and flipped.
            noise: (B,) keyed by example.
        """
