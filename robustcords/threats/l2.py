"""The l2 ball."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import ClassVar

import torch
from torch import Tensor

from robustcords.config.requirements import L2_DISTANCES
from robustcords.rng import Noise
from robustcords.threats.base import ThreatModel

_TINY = 1e-12  # keeps a division by the norm of a zero gradient finite


class L2(ThreatModel):
    """``sqrt(sum delta_j^2) <= epsilon`` (Madry et al. 2018).

    Example:
        >>> threat = L2(epsilon=0.5)
    """

    norm: str = "l2"
    autoattack_norm: ClassVar[str | None] = "L2"
    provides: ClassVar[frozenset[str]] = frozenset({L2_DISTANCES})

    @classmethod
    def radius_name(cls) -> str:
        """Returns how messages call a radius or step."""
        return "an l2 radius or step"

    def diameter(self, shape: Sequence[int]) -> float:
        """Returns the square root of the number of pixels and channels."""
        return math.sqrt(math.prod(shape))

    def project(self, x_adv: Tensor, x: Tensor) -> Tensor:
        """Returns ``x_adv`` scaled into the ball, then clipped to the box."""
        delta = x_adv - x
        # Clipping to the box afterwards only shortens delta, since x itself is inside, so the result stays in the ball.
        return (x + delta * (self.epsilon / _norms(delta)).clamp(max=1.0)).clamp_(*self.bounds)

    def ascend(self, x_adv: Tensor, gradient: Tensor, step_size: float | Tensor) -> Tensor:
        """Returns a step along the normalised gradient (Madry et al. 2018)."""
        # The gradient of a confident prediction is so small that its square underflows: scaled first, it has a length.
        peak = gradient.flatten(1).abs().amax(dim=1).clamp(min=torch.finfo(gradient.dtype).tiny)
        scaled = gradient / peak.view(-1, 1, 1, 1)
        return x_adv + step_size * (scaled / _norms(scaled))

    def uniform_start(self, x: Tensor, noise: Noise) -> Tensor:
        """Returns points in the direction of a normal vector, at a radius of ``epsilon * u ** (1 / d)``."""
        shape = x.shape[1:]
        direction = noise.normal(shape)
        radius = noise.uniform((1, 1, 1), draw=1) ** (1 / shape.numel())
        delta = direction * (self.epsilon * radius / _norms(direction))
        return self.project(x + delta.to(x.dtype), x)


def _norms(delta: Tensor) -> Tensor:
    """Returns (B, 1, 1, 1): each image's l2 norm, never zero."""
    norms: Tensor = torch.linalg.vector_norm(delta.flatten(1), dim=1)
    return norms.clamp(min=_TINY).view(-1, 1, 1, 1)
