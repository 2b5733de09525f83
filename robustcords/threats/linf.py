"""The l-infinity ball."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import torch
from torch import Tensor

from robustcords.config.requirements import CUBE
from robustcords.rng import Noise
from robustcords.threats.base import ThreatModel


class Linf(ThreatModel):
    """``max |delta_j| <= epsilon`` (Madry et al. 2018).

    Example:
        >>> threat = Linf(epsilon=8 / 255)
    """

    norm: str = "linf"
    largest: ClassVar[float] = 1.0
    autoattack_norm: ClassVar[str | None] = "Linf"
    provides: ClassVar[frozenset[str]] = frozenset({CUBE})

    @classmethod
    def radius_name(cls) -> str:
        """Returns how messages call a radius or step."""
        return "an l-infinity radius or step"

    def diameter(self, shape: Sequence[int]) -> float:
        """Returns 1, whatever the size."""
        del shape
        return 1.0

    def project(self, x_adv: Tensor, x: Tensor) -> Tensor:
        """Returns ``x_adv`` clipped to ``x - epsilon`` and ``x + epsilon``, and to [0, 1]."""
        return torch.minimum(torch.maximum(x_adv, x - self.epsilon), x + self.epsilon).clamp_(*self.bounds)

    def ascend(self, x_adv: Tensor, gradient: Tensor, step_size: float | Tensor) -> Tensor:
        """Returns a step along the gradient's sign (Li et al. 2023, Eq. 2)."""
        return x_adv + step_size * gradient.sign()

    def uniform_start(self, x: Tensor, noise: Noise) -> Tensor:
        """Returns points with every pixel drawn uniformly from its interval."""
        delta = (noise.uniform(x.shape[1:]) * 2 - 1) * self.epsilon
        return self.project(x + delta.to(x.dtype), x)
