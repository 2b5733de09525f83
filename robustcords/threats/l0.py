"""The l0 ball: at most epsilon changed pixels."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from robustcords.config.schema import Radius
from robustcords.rng import Noise
from robustcords.threats.base import ThreatModel

_FURTHEST = 1000.0
"""Ranges of a pixel that a step goes at most."""


class L0(ThreatModel):
    """At most epsilon pixels differ, in all their channels and by any amount (Croce and Hein 2019, PGD-0).

    The radius is a number of pixels, not of channels: https://arxiv.org/abs/1909.05040.

    Attributes:
        epsilon: the radius: a whole number of pixels.

    Example:
        >>> attack = PGD(L0(epsilon=10), steps=10)
    """

    norm: str = "l0"
    epsilon: Radius = 10.0

    @classmethod
    def radius_name(cls) -> str:
        """Returns how messages call a radius or step."""
        return "an l0 radius or step"

    @classmethod
    def check_radius(cls, value: float) -> None:
        """Checks that a radius is a number of pixels.

        Raises:
            ValueError: it has a fraction.
        """
        if not float(value).is_integer():
            raise ValueError("an l0 radius is a whole number of pixels")

    @classmethod
    def nearest_radius(cls, value: float) -> float:
        """Returns the nearest number of pixels, at least 1."""
        return float(max(1, round(value))) if math.isfinite(value) else value

    def diameter(self, shape: Sequence[int]) -> float:
        """Returns the number of pixels."""
        return float(math.prod(shape[1:]))

    def project(self, x_adv: Tensor, x: Tensor) -> Tensor:
        """Returns the image nearest to ``x_adv`` in the ball and in the box.

        The pixels that keep their change, clipped to the box, are those with the largest
        ``|delta|^2 - |delta - clipped|^2``; ties go to the first, row by row.
        """
        clipped = x_adv.clamp(*self.bounds)
        change = clipped - x
        gain = (change * (2 * (x_adv - x) - change)).sum(1).flatten(1)
        return torch.where(_first(gain, int(self.epsilon)).view_as(x[:, :1]), clipped, x)

    def ascend(self, x_adv: Tensor, gradient: Tensor, step_size: float | Tensor) -> Tensor:
        """Returns a step along the gradient, scaled so that ``step_size`` pixels cross the whole range of a pixel.

        Other pixels move in proportion. Croce and Hein divide by the gradient's l1 norm and multiply by a length to
        tune; here that length follows from the number of pixels, the unit of radii and steps under l0.
        """
        peaks = gradient.abs().amax(1).flatten(1)
        longest = peaks.sort(dim=1, descending=True).values
        steps = torch.as_tensor(step_size, device=peaks.device).view(-1, 1).expand(len(peaks), 1)
        last = longest.gather(1, (steps.ceil().long() - 1).clamp(0, peaks.shape[1] - 1))
        # Where hardly a pixel has a gradient, those that have stay finite.
        scale = last.maximum(longest[:, :1] / _FURTHEST).clamp(min=torch.finfo(peaks.dtype).tiny)
        return x_adv + gradient / torch.where(steps > 0, scale, torch.inf).view(-1, 1, 1, 1)

    def uniform_start(self, x: Tensor, noise: Noise) -> Tensor:
        """Returns images with epsilon pixels, drawn at random, replaced by random colours."""
        pixels = _first(noise.uniform(x.shape[2:], draw=1).flatten(1), int(self.epsilon))
        return torch.where(pixels.view_as(x[:, :1]), noise.uniform(x.shape[1:]).to(x.dtype), x)


def _first(values: Tensor, count: int) -> Tensor:
    """Returns a mask (B, n) of the ``count`` largest of each row's values (B, n); of all if there are fewer."""
    order = values.sort(dim=1, descending=True, stable=True).indices[:, :count]
    return torch.zeros_like(values, dtype=torch.bool).scatter(1, order, True)
