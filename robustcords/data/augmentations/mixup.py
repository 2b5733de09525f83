"""Mixup."""

from __future__ import annotations

from torch import Tensor

from robustcords.data.augmentations.mixing import Mixing, MixingConfig
from robustcords.rng import Noise


class MixUp(Mixing):
    """Crops and flips, and weighted means of two images and of their labels (Zhang et al. 2018).

    ``lambda x + (1 - lambda) x'`` with lambda from Beta(alpha, alpha).

    Example:
        >>> augmentation = MixUp(crop=4, flip=True, alpha=0.2)
    """

    class Config(MixingConfig):
        """Options of mixup."""

        name: str = "mixup"

    config: MixUp.Config

    def mix(self, x: Tensor, partners: Tensor, share: Tensor, noise: Noise) -> tuple[Tensor, Tensor]:
        """Returns the means (B, C, H, W), and the shares as they are."""
        del noise
        own = share.to(x.device, x.dtype).view(-1, 1, 1, 1)
        return own * x + (1 - own) * partners, share
