"""Centre crops of a set, with the full images kept for augmentations that crop themselves."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from robustcords.data.images import Images


class CenterCropped(Images):
    """The centre of each image of a set of larger ones, its frames: what is seen of photographs in evaluation.

    Validation, selection, evaluation and most augmentations see the centres. An augmentation that crops by itself asks
    for the `frames`.

    Args:
        whole: the frames, (C, H, W) with H and W at least ``side``.
        side: height and width of the centre.

    Example:
        >>> import torch
        >>> from robustcords import ImageSet
        >>> from robustcords.data.center_crop import CenterCropped
        >>> frames = ImageSet(torch.rand(4, 3, 32, 32), torch.arange(4) % 2, ("cat", "dog"))
        >>> images = CenterCropped(frames, 28)
        >>> images.shape, images.frames().shape
        ((3, 28, 28), (3, 32, 32))
    """

    def __init__(self, whole: Images, side: int) -> None:
        self.whole, self.side = whole, side
        self.labels, self.classes, self.numbers = whole.labels, whole.classes, whole.numbers
        channels, *self._frame = whole.shape
        self.shape = channels, side, side

    def batch(self, rows: Tensor, device: torch.device | str = "cpu") -> tuple[Tensor, Tensor]:
        """Returns the centres (B, C, side, side) of some images, and their labels, on a device."""
        x, y = self.whole.batch(rows, device)
        return self._centre(x), y

    def batches(self, parts: Sequence[Sequence[int]], device: torch.device | str) -> Iterator[tuple[Tensor, Tensor]]:
        """Yields the centres and labels of several lists of rows."""
        return ((self._centre(x), y) for x, y in self.whole.batches(parts, device))

    def subset(self, rows: Tensor) -> CenterCropped:
        """Returns the set of these rows, in this order, frames and all."""
        return CenterCropped(self.whole.subset(rows), self.side)

    def frames(self) -> Images:
        """Returns the whole images."""
        return self.whole

    def resident(self, device: torch.device) -> CenterCropped:
        """Returns the set with its frames on a device, where they can be moved there."""
        return CenterCropped(self.whole.resident(device), self.side)

    def stored(self, rows: Tensor) -> Tensor:
        """Returns the centres of some images as they are stored."""
        return self._centre(self.whole.stored(rows))

    def _centre(self, x: Tensor) -> Tensor:
        top, left = ((length - self.side) // 2 for length in self._frame)
        return x[:, :, top : top + self.side, left : left + self.side].contiguous()
