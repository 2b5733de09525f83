"""Standard training: cross-entropy of clean images."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from robustcords.losses.base import Loss


class Standard(Loss):
    """Cross-entropy on clean images: no attack and no robustness; the reference for clean accuracy."""

    views = ("clean",)
    requires = frozenset()

    def from_logits(self, logits: Mapping[str, Tensor], y: Tensor) -> Tensor:
        """Returns ``CE(z, y)`` (B,)."""
        return self.cross_entropy(logits["clean"], y)
