"""Cutout."""

from __future__ import annotations

from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor

from robustcords.data.augmentations.after_crop_flip import AfterCropFlip
from robustcords.data.augmentations.boxes import inside
from robustcords.data.augmentations.crop_flip import CropFlipConfig
from robustcords.rng import Noise


class Cutout(AfterCropFlip):
    """Crops and flips, and a square of each image is painted over (DeVries and Taylor 2017).

    The square's centre is uniform over the image, so that part of it may lie outside. The authors paint with 0 after
    normalisation, which is the mean of the data; here, in pixel space, the middle of the range takes that place.

    Example:
        >>> augmentation = Cutout(crop=4, flip=True, size=8)
    """

    class Config(CropFlipConfig):
        """Options of Cutout.

        Attributes:
            size: side of the square in pixels. DeVries and Taylor use 16 for CIFAR-10 and 8 for CIFAR-100.
            fill: pixel value that the square is filled with.
        """

        name: str = "cutout"
        size: Annotated[int, Field(ge=1)] = 16
        fill: Annotated[float, Field(ge=0, le=1)] = 0.5

    config: Cutout.Config

    def change(self, x: Tensor, noise: Noise) -> Tensor:
        """Returns images (B, C, H, W) with a square of each painted over."""
        height, width = x.shape[2:]
        row, column = noise.integers(height), noise.integers(width, draw=1)
        first, size = self.config.size // 2, self.config.size
        square = inside((height, width), row - first, row - first + size, column - first, column - first + size)
        return torch.where(square, torch.full_like(x[:1, :1, :1, :1], self.config.fill), x)
