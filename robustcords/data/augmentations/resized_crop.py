"""RandomResizedCrop: random crops of random size, resized, as is usual for photographs."""

from __future__ import annotations

import math
from typing import Annotated, Any

import torch
from pydantic import Field, field_validator
from torch import Tensor

from robustcords.data.augmentations.base import Augmentation, AugmentationConfig
from robustcords.data.base import DataSource
from robustcords.data.images import Images
from robustcords.rng import Noise

_ATTEMPTS = 10  # torchvision's

Shares = Annotated[list[Annotated[float, Field(gt=0, le=1)]], Field(min_length=2, max_length=2)]
Ratios = Annotated[list[Annotated[float, Field(gt=0, le=100)]], Field(min_length=2, max_length=2)]


class ResizedCrop(Augmentation):
    """A rectangle of random area and shape is cut out, resized to a square, and flipped (Szegedy et al. 2015).

    The rectangle is drawn as torchvision's ``RandomResizedCrop`` draws it: area uniform, logarithm of width over height
    uniform, the first of ten such draws that fits in, at a uniform place; where none does, the largest one in the
    centre of a shape that is allowed. It is resized as torchvision resizes tensors (bilinear, antialiased), where the
    images are and for all of a batch at once.

    Crops are taken from the full frames if the set keeps them (``data.resize``, `robustcords.data.center_crop`), and
    otherwise from the images. ``size`` defaults to that of the images, ``flip`` to what is usual for the data set, or
    False.

    Example:
        >>> ResizedCrop(size=28, flip=True)(torch.rand(4, 3, 32, 32), noise).shape
        torch.Size([4, 3, 28, 28])
    """

    class Config(AugmentationConfig):
        """Options of resized crops.

        Attributes:
            scale: smallest and largest share of the area that is cut out.
            ratio: smallest and largest ratio of width to height.
            flip: random horizontal flips; left out, the data set's usual value: true if a mirrored image belongs to the
                same class.
            size: side of the resized square in pixels; left out, ``data.image_size``, or else the size of the images. A
                run accepts no other value.
        """

        name: str = "resized_crop"
        scale: Shares = Field(default=[0.08, 1.0])
        ratio: Ratios = Field(default=[3 / 4, 4 / 3])
        flip: bool | None = None
        size: Annotated[int, Field(ge=1, le=4096)] | None = None

        @field_validator("scale", "ratio")
        @classmethod
        def _in_order(cls, pair: list[float]) -> list[float]:
            if pair[0] > pair[1]:
                raise ValueError(f"the smallest value comes first, and {pair[0]:g} is larger than {pair[1]:g}")
            return pair

    config: ResizedCrop.Config

    @classmethod
    def resolved(cls, config: Any, source: DataSource) -> Any:
        """Returns the options, with the flips that are usual for the data set and its images' size."""
        flip = source.flip if config.flip is None else config.flip
        return config.model_copy(
            update={"flip": flip, "size": config.size or getattr(source.config, "image_size", None)}
        )

    def takes(self, images: Images) -> Images:
        """Returns the whole frames."""
        return images.frames()

    def __call__(self, x: Tensor, noise: Noise) -> Tensor:
        """Returns crops (B, C, size, size) of images (B, C, H, W) in [0, 1]."""
        top, left, height, width = self.boxes((x.shape[2], x.shape[3]), noise).unbind(1)
        rows, columns = (self.config.size or length for length in x.shape[2:])
        vertical = _weights(top, height, x.shape[2], rows)
        horizontal = _weights(left, width, x.shape[3], columns)
        if self.config.flip:
            mirrored = noise.integers(2, (1, 1), draw=2).bool()
            horizontal = torch.where(mirrored, horizontal.flip(1), horizontal)
        vertical, horizontal = vertical.to(x.dtype), horizontal.to(x.dtype)
        shrunk = torch.einsum("brh,bchw->bcrw", vertical, x)
        return torch.einsum("bcrw,bsw->bcrs", shrunk, horizontal).clamp_(0, 1)

    def boxes(self, size: tuple[int, int], noise: Noise) -> Tensor:
        """Returns the rectangles (B, 4) int64 that are cut out: first row, first column, height and width.

        Args:
            size: H and W of the frames.
            noise: (B,) keyed by example.
        """
        whole = torch.tensor(size, device=noise.keys.device)
        area, shape = noise.uniform((2, _ATTEMPTS)).double().unbind(1)
        area = math.prod(size) * _between(self.config.scale, area)
        shape = _between([math.log(ratio) for ratio in self.config.ratio], shape).exp()
        drawn = torch.stack([(area / shape).sqrt(), (area * shape).sqrt()], dim=2).round().long()  # (B, attempts, 2)
        fits = ((drawn > 0) & (drawn <= whole)).all(dim=2)
        first = fits.long().argmax(dim=1)
        sides = torch.where(
            fits.any(dim=1, keepdim=True), drawn[torch.arange(len(drawn)), first], self._largest(size, whole.device)
        )
        room = whole - sides
        place = (noise.uniform((2,), draw=1) * (room + 1)).long().clamp(max=room)
        return torch.cat([torch.where(fits.any(dim=1, keepdim=True), place, room // 2), sides], dim=1)

    def _largest(self, size: tuple[int, int], device: torch.device) -> Tensor:
        """Returns height and width (2,) of the largest rectangle of an allowed shape in a frame."""
        height, width = size
        low, high = self.config.ratio
        if width / height < low:
            height = round(width / low)
        elif width / height > high:
            width = round(height * high)
        return torch.tensor([height, width], device=device)


def _between(ends: list[float], share: Tensor) -> Tensor:
    return ends[0] + (ends[1] - ends[0]) * share


def _weights(first: Tensor, length: Tensor, size: int, wanted: int) -> Tensor:
    """Returns the share (B, wanted, size) of each pixel of a line in each pixel of a part of it that is resized.

    A triangle, as wide as two of the pixels that it is about, whether those are of the part or of the result.

    Args:
        first: (B,) where the part begins.
        length: (B,) of the part.
        size: of the line.
        wanted: length of the result.
    """
    first, length = (values.view(-1, 1, 1).double() for values in (first, length))
    scale = length / wanted
    centres = (torch.arange(wanted, device=first.device).view(1, -1, 1) + 0.5) * scale
    places = torch.arange(size, device=first.device) + 0.5 - first
    weights = (1 - (places - centres).abs() / scale.clamp(min=1)).clamp(min=0) * ((places > 0) & (places < length))
    return weights / weights.sum(dim=2, keepdim=True)
