"""Random rectangles in images."""

from __future__ import annotations

import torch
from torch import Tensor


def inside(size: tuple[int, int], top: Tensor, bottom: Tensor, left: Tensor, right: Tensor) -> Tensor:
    """Returns which pixels (B, 1, H, W) of an image are in a rectangle, which may reach beyond the image.

    Args:
        size: H and W.
        top: (B,) int64, the first row.
        bottom: (B,) the row after the last.
        left: (B,) the first column.
        right: (B,) the column after the last.
    """
    rows, columns = (torch.arange(length, device=top.device) for length in size)
    vertical = (rows >= top.unsqueeze(1)) & (rows < bottom.unsqueeze(1))
    horizontal = (columns >= left.unsqueeze(1)) & (columns < right.unsqueeze(1))
    return (vertical.unsqueeze(2) & horizontal.unsqueeze(1)).unsqueeze(1)
