"""Batched shifts and flips on the images' device, and their inverses."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor
from torch.nn.functional import pad

from robustcords.rng import Noise


@dataclass(frozen=True)
class Geometry:
    """Shifts each image of a batch at random, zeros moving in, and mirrors it with probability 1/2.

    `apply` is the same as padding with ``crop`` zeros on every side, cutting out an H x W window at a random place, and
    then flipping horizontally (He et al. 2016, section 4.2). What it does is drawn when it is first asked for.

    A method that keeps something for each pixel of each image, such as the perturbations of ATAS, keeps it in the frame
    of the image as it is in the data set. ``batch.geometry`` takes it to the frame of ``batch.x`` and back::

        numbers = batch.noise.keys.cpu()
        start = batch.geometry.apply(kept[numbers].to(batch.x.device))
        delta = attack(batch.x + start) - batch.x
        kept[numbers] = batch.geometry.undo(delta, into=kept[numbers].to(delta.device)).cpu()

    Such a method declares ``requires = frozenset({GEOMETRY})`` (`robustcords.config.requirements`), and then no batch's
    geometry is None.

    Attributes:
        noise: (B,) keyed by example, so an example's crop does not depend on the batch that it is in.
        crop: pixels of padding, >= 0; 0 leaves images in place.
        flip: whether images are mirrored.
    """

    noise: Noise
    crop: int = 0
    flip: bool = False

    def __getitem__(self, rows: Tensor | slice) -> Geometry:
        """Returns the geometry of some rows."""
        return Geometry(self.noise[rows], self.crop, self.flip)

    def apply(self, x: Tensor) -> Tensor:
        """Returns a batch with each image, or whatever belongs to its pixels, cropped and flipped.

        Args:
            x: (B, C, H, W), any dtype and memory format; both are kept.
        """
        return self._mirror(self._shift(x))

    def undo(self, x: Tensor, into: Tensor | None = None) -> Tensor:
        """Returns a batch with each pixel back where `apply` took it from.

        Args:
            x: (B, C, H, W), as `apply` returns it.
            into: (B, C, H, W), what the pixels are that had moved out of the window; None for zeros.
        """
        found = self._shift(self._mirror(x), back=True)
        if into is None:
            return found
        inside = self._shift(torch.ones_like(x[:, :1], dtype=torch.bool), back=True)
        return torch.where(inside, found, into)

    @cached_property
    def _corners(self) -> Tensor:
        """(B, 2) int64 in [0, 2 crop], the first row and column of each window in the padded image."""
        return self.noise.integers(2 * self.crop + 1, (2,))

    @cached_property
    def _mirrored(self) -> Tensor:
        """(B, 1, 1, 1) bool."""
        return self.noise.integers(2, (1, 1, 1), draw=1).bool()

    def _shift(self, x: Tensor, *, back: bool = False) -> Tensor:
        if not self.crop:
            return x
        height, width = x.shape[2:]
        top, left = (2 * self.crop - self._corners if back else self._corners).unbind(1)
        # A view of every window there is, (B, C, 2 crop + 1, 2 crop + 1, H, W); only those picked are copied.
        windows = pad(x, [self.crop] * 4).unfold(2, height, 1).unfold(3, width, 1)
        return windows[torch.arange(len(x), device=x.device), :, top, left]

    def _mirror(self, x: Tensor) -> Tensor:
        return torch.where(self._mirrored, x.flip(3), x) if self.flip else x
