"""Gaussian noise on training images (after Rusak et al. 2020), from outside the package."""

from typing import Annotated

from pydantic import Field
from torch import Tensor

from robustcords import AfterCropFlip, CropFlipConfig, Noise


class Grain(AfterCropFlip):
    """Adds noise to images that have been cropped and flipped."""

    class Config(CropFlipConfig):
        """Options of Grain.

        Attributes:
            deviation: of the noise, in pixel space, >= 0.
        """

        name: str = "grain"
        deviation: Annotated[float, Field(ge=0)] = 0.1

    config: "Grain.Config"

    def change(self, x: Tensor, noise: Noise) -> Tensor:
        """Returns noisy images (B, C, H, W)."""
        return (x + self.config.deviation * noise.normal(x.shape[1:]).to(x.dtype)).clamp(0, 1)
