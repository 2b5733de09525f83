"""What the adversary may do: how far it may move an image, and in which norm."""

from __future__ import annotations

from typing import ClassVar, Literal

import torch
from pydantic import ValidationInfo, field_validator
from torch import Tensor

from robustcords.config.schema import Radius, Table, refuse_beyond_range
from robustcords.rng import Noise

_TINY = 1e-12  # keeps a division by the norm of a zero gradient finite


class ThreatModel(Table):
    """The allowed perturbations: ``||delta||_p <= epsilon`` with ``x + delta`` in [0, 1] (Li et al. 2023, Eq. 1).

    Attributes:
        norm: ``"linf"`` or ``"l2"``, over all pixels and channels of one image.
        epsilon: the radius in pixel space, where 1 is the whole range of a pixel; at most 1 under l-infinity.
        bounds: the range of a pixel. Normalisation is the model's first layer, so this is always [0, 1].
    """

    norm: Literal["linf", "l2"] = "linf"
    epsilon: Radius = 8 / 255
    bounds: ClassVar[tuple[float, float]] = (0.0, 1.0)

    @field_validator("epsilon")
    @classmethod
    def _in_range(cls, epsilon: float, info: ValidationInfo) -> float:
        if info.data.get("norm") == "linf":
            refuse_beyond_range(epsilon)
        return epsilon

    def project(self, x_adv: Tensor, x: Tensor) -> Tensor:
        """Returns the point of the allowed set around ``x`` next to ``x_adv`` (for l2: ball first, then box).

        Args:
            x_adv: (B, C, H, W) any values.
            x: (B, C, H, W) in [0, 1].
        """
        low, high = self.bounds
        if self.norm == "linf":
            return torch.minimum(torch.maximum(x_adv, x - self.epsilon), x + self.epsilon).clamp_(low, high)
        delta = x_adv - x
        # Clipping to the box afterwards only shortens delta, since x itself is inside, so the result stays in the ball.
        return (x + delta * (self.epsilon / _norms(delta)).clamp(max=1.0)).clamp_(low, high)

    def ascend(self, x_adv: Tensor, gradient: Tensor, step_size: float) -> Tensor:
        """Returns ``x_adv`` moved by one step of steepest ascent in this norm, not projected.

        Sign of the gradient for linf (Li et al. 2023, Eq. 2), gradient over its length for l2 (Madry et al. 2018).

        Args:
            x_adv: (B, C, H, W).
            gradient: (B, C, H, W) of the attack's objective.
            step_size: length of the step in this norm, in pixel space.
        """
        if self.norm == "linf":
            return x_adv + step_size * gradient.sign()
        # The gradient of a confident prediction is so small that its square underflows: scaled first, it has a length.
        peak = gradient.flatten(1).abs().amax(dim=1).clamp(min=torch.finfo(gradient.dtype).tiny)
        scaled = gradient / peak.view(-1, 1, 1, 1)
        return x_adv + step_size * (scaled / _norms(scaled))

    def uniform_start(self, x: Tensor, noise: Noise) -> Tensor:
        """Returns (B, C, H, W) points drawn uniformly from the ball around ``x``, inside [0, 1].

        For l2 the direction is a normal vector's and the radius is ``epsilon * u ** (1 / d)``.
        """
        shape = x.shape[1:]
        if self.norm == "linf":
            delta = (noise.uniform(shape) * 2 - 1) * self.epsilon
        else:
            direction = noise.normal(shape)
            radius = noise.uniform((1, 1, 1), draw=1) ** (1 / shape.numel())
            delta = direction * (self.epsilon * radius / _norms(direction))
        return self.project(x + delta.to(x.dtype), x)

    def gaussian_start(self, x: Tensor, noise: Noise, deviation: float = 0.001) -> Tensor:
        """Returns ``x + deviation * N(0, 1)``, projected: the start of TRADES (Zhang et al. 2019) and MART."""
        return self.project(x + deviation * noise.normal(x.shape[1:]).to(x.dtype), x)


def _norms(delta: Tensor) -> Tensor:
    """Returns (B, 1, 1, 1): each image's l2 norm, never zero."""
    norms: Tensor = torch.linalg.vector_norm(delta.flatten(1), dim=1)
    return norms.clamp(min=_TINY).view(-1, 1, 1, 1)
