"""Torchvision's transforms, which take one image and draw from the global generator, applied to a batch."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable

import torch
from torch import Tensor

from robustcords.data.augmentations.after_crop_flip import AfterCropFlip
from robustcords.engine.modes import torch_seeded
from robustcords.rng import Noise


class ImageByImage(AfterCropFlip):
    """Crops and flips, and one of torchvision's transforms. Subclasses write `transform`.

    The global generator is seeded for each example and given back as it was. Images go through the transform one by
    one, on the CPU and as 8-bit integers: that costs a good part of a millisecond an image (docs/methods.md has
    figures), and pixels of floating-point data sets are rounded to a 255th.
    """

    @abstractmethod
    def transform(self) -> Callable[[Tensor], Tensor]:
        """Returns what changes an image (C, H, W), uint8, drawing from torch's global generator."""

    def change(self, x: Tensor, noise: Noise) -> Tensor:
        """Returns the images (B, C, H, W), each transformed by itself."""
        transform, changed = self.transform(), torch.empty(x.shape, dtype=torch.uint8)
        pixels, seeds = (x * 255).round().to(torch.uint8).cpu(), noise.seeds().tolist()
        with torch_seeded(0):
            for row, seed in enumerate(seeds):
                torch.default_generator.manual_seed(seed)
                changed[row] = transform(pixels[row])
        return changed.to(x.device).to(x.dtype).div_(255)
