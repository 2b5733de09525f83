"""Random crops and flips, in batches, where the images are."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import pad

from robustcords.rng import Noise

Augmentation = Callable[[Tensor, Noise], Tensor]
"""Changes images (B, C, H, W) at random, by noise that is keyed by example; shape and dtype stay."""


@dataclass(frozen=True)
class CropFlip:
    """Random crops and flips; see `augment`.

    Attributes:
        crop: pixels of padding, >= 0.
        flip: whether images are mirrored.

    Example:
        >>> images = CropFlip(crop=4, flip=True)(x, Noise(derive(seed, "augment", epoch), numbers))
    """

    crop: int = 0
    flip: bool = False

    def __call__(self, x: Tensor, noise: Noise) -> Tensor:
        """Returns images (B, C, H, W) cropped and flipped."""
        return augment(x, noise, self.crop, self.flip)


def augment(x: Tensor, noise: Noise, crop: int, flip: bool) -> Tensor:
    """Returns a batch with each image shifted at random, zeros moving in, and mirrored with probability 1/2.

    The same as padding with ``crop`` zeros on every side, cutting out an H x W window at a random place, and then
    flipping horizontally (He et al. 2016, section 4.2).

    Args:
        x: (B, C, H, W), any dtype and memory format; both are kept.
        noise: (B,) keyed by example, so an example's crop does not depend on the batch that it is in.
        crop: pixels of padding, >= 0; 0 leaves images in place.
        flip: whether images are mirrored.
    """
    if crop:
        height, width = x.shape[2:]
        top, left = noise.integers(2 * crop + 1, (2,)).unbind(1)
        # A view of every window there is, (B, C, 2 crop + 1, 2 crop + 1, H, W); only those picked are copied.
        windows = pad(x, (crop, crop, crop, crop)).unfold(2, height, 1).unfold(3, width, 1)
        x = windows[torch.arange(len(x), device=x.device), :, top, left]
    if flip:
        mirrored = noise.integers(2, (1, 1, 1), draw=1).bool()
        x = torch.where(mirrored, x.flip(3), x)
    return x
