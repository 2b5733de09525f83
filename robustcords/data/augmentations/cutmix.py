"""CutMix."""

from __future__ import annotations

import torch
from torch import Tensor

from robustcords.data.augmentations.boxes import inside
from robustcords.data.augmentations.mixing import Mixing, MixingConfig
from robustcords.rng import Noise


class CutMix(Mixing):
    """Crops and flips, and a rectangle of each image is another image's, with as large a share of the label (Yun 2019).

    With lambda from Beta(alpha, alpha), the rectangle has ``sqrt(1 - lambda)`` of the image's height and width, and a
    centre that is uniform over the image; what reaches beyond the edge is cut off. The label's shares are those of the
    pixels (Yun et al. 2019, Eq. 1 and 2, and their script, as to rounding).

    Example:
        >>> augmentation = CutMix(crop=4, flip=True)
    """

    class Config(MixingConfig):
        """Options of CutMix."""

        name: str = "cutmix"

    config: CutMix.Config

    def mix(self, x: Tensor, partners: Tensor, share: Tensor, noise: Noise) -> tuple[Tensor, Tensor]:
        """Returns images (B, C, H, W) with a rectangle of their partners, and their own shares of the pixels (B,)."""
        edges = []
        for draw, length in enumerate(x.shape[2:], 3):
            centre, half = noise.integers(length, draw=draw), (length * (1 - share).sqrt()).long() // 2
            edges += [(centre - half).clamp(min=0), (centre + half).clamp(max=length)]
        top, bottom, left, right = edges
        area = (bottom - top) * (right - left)
        box = inside((x.shape[2], x.shape[3]), *torch.stack(edges).to(x.device))
        return torch.where(box, partners, x), 1 - area.double() / (x.shape[2] * x.shape[3])
