"""Random crops and flips."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar

from pydantic import Field
from torch import Tensor

from robustcords.config.requirements import GEOMETRY
from robustcords.data.augmentations.base import Augmentation, AugmentationConfig
from robustcords.data.augmentations.geometry import Geometry
from robustcords.data.base import DataSource
from robustcords.rng import Noise


class CropFlipConfig(AugmentationConfig):
    """Options of crops and flips, alone or before something else.

    Attributes:
        crop: pixels of zero padding for random crops; left out, the data set's usual value: 4 for most of torchvision's
            sets, 0 for digits, MNIST and its relatives, folders and hub ids.
        flip: random horizontal flips; left out, the data set's usual value: true if a mirrored image belongs to the
            same class.
    """

    crop: Annotated[int, Field(ge=0, le=64)] | None = None
    flip: bool | None = None


class CropFlip(Augmentation):
    """Random crops from the zero-padded image, and horizontal flips (He et al. 2016, section 4.2).

    Left out, ``crop`` is 0 and ``flip`` False where no data set says what is usual.

    Example:
        >>> x = CropFlip(crop=4, flip=True)(x, noise)
    """

    class Config(CropFlipConfig):
        """Options of crops and flips."""

        name: str = "crop_flip"

    config: CropFlip.Config
    provides: ClassVar[frozenset[str]] = Augmentation.provides | {GEOMETRY}

    @classmethod
    def resolved(cls, config: Any, source: DataSource) -> Any:
        """Returns the options, those that are left out as is usual for the data set."""
        return usual(config, source)

    def __call__(self, x: Tensor, noise: Noise) -> Tensor:
        """Returns images (B, C, H, W) cropped and flipped."""
        return self.geometry(noise).apply(x)

    def geometry(self, noise: Noise) -> Geometry:
        """Returns where pixels move to."""
        return Geometry(noise, self.config.crop or 0, bool(self.config.flip))


def usual(config: Any, source: DataSource) -> Any:
    """Returns a `CropFlipConfig` with what is left out as is usual for a data set."""
    left_out = {key: getattr(source, key) for key in ("crop", "flip") if getattr(config, key) is None}
    return config.model_copy(update=left_out)
