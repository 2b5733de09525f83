"""Images as the report page has them: which of a set, and how they are written into it."""

from __future__ import annotations

import base64
import io

import torch
from PIL import Image
from torch import Tensor

from robustcords.data.images import Images

_LARGEST = 96
"""Pixels of a picture's longer side; larger images are scaled down."""


def chosen(images: Images, count: int) -> Tensor:
    """Returns the rows of some images: the first of each class in turn, then the second of each, and so on."""
    labels = images.labels
    turn = torch.empty_like(labels)
    for label in labels.unique():
        of_class = (labels == label).nonzero().flatten()
        turn[of_class] = torch.arange(len(of_class))
    order = sorted(range(len(labels)), key=lambda row: (int(turn[row]), row))
    return torch.tensor(order[:count])


def picture(pixels: Tensor) -> Image.Image:
    """Returns an image (C, H, W) in [0, 1] in grey or colour, scaled down to a thumbnail if it is larger."""
    levels = pixels.mul(255).round().clamp(0, 255).to(torch.uint8)
    levels = levels[:3] if levels.shape[0] >= 3 else levels[:1]
    image = Image.fromarray(levels.permute(1, 2, 0).squeeze(-1).numpy())
    image.thumbnail((_LARGEST, _LARGEST))
    return image


def address(pixels: Tensor) -> str:
    """Returns an image (C, H, W) in [0, 1] as a ``data:`` address of a PNG."""
    stream = io.BytesIO()
    picture(pixels).save(stream, "PNG", optimize=True)
    return f"data:image/png;base64,{base64.b64encode(stream.getvalue()).decode()}"
