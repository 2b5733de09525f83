"""Training without a defence."""

from __future__ import annotations

from torch import Tensor

from robustcords.losses.base import Loss


class Standard(Loss):
    """Cross-entropy on the images as they are: no attack, no robustness; what defences are compared with."""

    passes = ("clean",)

    def __call__(self, logits: list[Tensor], y: Tensor) -> Tensor:
        """Returns ``CE(z, y)`` (B,)."""
        return self.cross_entropy(logits[0], y)
