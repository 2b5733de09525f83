"""The base class of augmentations that mix pairs of images: partners, mixing weights, and two labels an image."""

from __future__ import annotations

from abc import abstractmethod
from typing import Annotated, ClassVar

import torch
from pydantic import Field
from scipy.special import betaincinv
from torch import Tensor
from torch.nn.functional import one_hot

from robustcords.data.augmentations.after_crop_flip import AfterCropFlip
from robustcords.data.augmentations.base import AugmentationConfig
from robustcords.data.augmentations.crop_flip import CropFlipConfig
from robustcords.engine import contracts
from robustcords.rng import Noise


class MixingConfig(CropFlipConfig):
    """Options of augmentations that mix images.

    Attributes:
        alpha: the first image's share is drawn from Beta(alpha, alpha): 1 is uniform, and with smaller values most
            mixed images are close to one of the two.
        probability: share of images that are mixed. Yun et al. use 0.5 for CIFAR.
    """

    alpha: Annotated[float, Field(gt=0, le=1000)] = 1.0
    probability: Annotated[float, Field(ge=0, le=1)] = 1.0


class Mixing(AfterCropFlip):
    """Crops and flips images, and mixes each with another one of the global batch. Subclasses write `mix`.

    The other images are a permutation of the batch. Labels become shares of the classes, (B, classes); losses, methods
    and efforts that require hard labels are refused. Every example draws a share of its own, where the authors of
    CutMix and mixup draw one for a batch: the gradient has the same mean and less noise.

    A selection that asks for augmented images gets them cropped and flipped, and not mixed.
    """

    Config: ClassVar[type[AugmentationConfig]] = MixingConfig
    provides: ClassVar[frozenset[str]] = frozenset()
    config: MixingConfig

    def change(self, x: Tensor, noise: Noise) -> Tensor:
        """Returns the images: before they are mixed, nothing but crops and flips happens to them."""
        del noise
        return x

    @abstractmethod
    def mix(self, x: Tensor, partners: Tensor, share: Tensor, noise: Noise) -> tuple[Tensor, Tensor]:
        """Returns mixed images (B, C, H, W) in [0, 1], and the first images' part in them (B,), in [0, 1].

        Args:
            x: (B, C, H, W) in [0, 1], cropped and flipped.
            partners: (B, C, H, W) to mix them with.
            share: (B,) of the first image that was drawn, float64, on the CPU.
            noise: (B,) keyed by example, on the CPU.
        """

    def partners(self, noise: Noise) -> Tensor:
        """Returns the position of each example's partner (B,) int64: a permutation, drawn for the global batch.

        Args:
            noise: (B,) of all examples of the global batch.
        """
        return noise.uniform(()).argsort(stable=True)

    def mixed(
        self, images: tuple[Tensor, Tensor], labels: tuple[Tensor, Tensor], classes: int, noise: Noise
    ) -> tuple[Tensor, Tensor]:
        """Returns mixed images (B, C, H, W), and their labels (B, classes), of the same dtype, each row of sum 1.

        Args:
            images: (B, C, H, W) twice: examples and their partners.
            labels: (B,) int64 of both.
            classes: how many there are.
            noise: (B,) keyed by example, on the CPU.

        Raises:
            UserError: `mix` returns anything but such images and shares.
        """
        x, partners = images
        uniform = noise.uniform((), draw=1).double()
        share = torch.from_numpy(betaincinv(self.config.alpha, self.config.alpha, uniform.numpy()))
        # Left alone are images that are mixed with a share of 1.
        share = torch.where(noise.uniform((), draw=2) < self.config.probability, share, 1.0)
        source = f"augmentation {contracts.title(self)}: mix"
        made, share = contracts.pair(source, self.mix(x, partners, share, noise))
        made = contracts.numbers(source, made, x.shape, x.dtype)
        own = contracts.numbers(source, share, x.shape[:1]).to(x.device, x.dtype).unsqueeze(1)
        first, second = (one_hot(y, classes).to(x.dtype) for y in labels)
        return made, own * first + (1 - own) * second
