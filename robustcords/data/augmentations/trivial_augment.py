"""TrivialAugment."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from robustcords.data.augmentations.crop_flip import CropFlipConfig
from robustcords.data.augmentations.torchvision_transform import ImageByImage


class TrivialAugment(ImageByImage):
    """Crops and flips, and one random operation of random strength (Müller and Hutter 2021, the wide space).

    It is torchvision's ``v2.TrivialAugmentWide``.

    Example:
        >>> augmentation = TrivialAugment(crop=4, flip=True)
    """

    class Config(CropFlipConfig):
        """Options of TrivialAugment."""

        name: str = "trivial_augment"

    config: TrivialAugment.Config

    def transform(self) -> Callable[[Tensor], Tensor]:
        """Returns torchvision's transform."""
        from torchvision.transforms import v2

        transform: Callable[[Tensor], Tensor] = v2.TrivialAugmentWide()
        return transform
