"""RandAugment."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated

from pydantic import Field
from torch import Tensor

from robustcords.data.augmentations.crop_flip import CropFlipConfig
from robustcords.data.augmentations.torchvision_transform import ImageByImage


class RandAugment(ImageByImage):
    """Crops and flips, and several random operations of one strength (Cubuk et al. 2020).

    It is torchvision's ``v2.RandAugment``.

    Example:
        >>> augmentation = RandAugment(crop=4, flip=True, magnitude=9)
    """

    class Config(CropFlipConfig):
        """Options of RandAugment.

        Attributes:
            operations: number of operations applied one after the other (N in the paper).
            magnitude: strength of the operations (M in the paper).
        """

        name: str = "rand_augment"
        operations: Annotated[int, Field(ge=1, le=14)] = 2
        magnitude: Annotated[int, Field(ge=0, le=30)] = 9

    config: RandAugment.Config

    def transform(self) -> Callable[[Tensor], Tensor]:
        """Returns torchvision's transform."""
        from torchvision.transforms import v2

        transform: Callable[[Tensor], Tensor] = v2.RandAugment(self.config.operations, self.config.magnitude)
        return transform
