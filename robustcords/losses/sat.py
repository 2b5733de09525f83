"""Standard adversarial training (SAT): cross-entropy of adversarial examples."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor
from torch.nn import functional as F

from robustcords.losses.base import Loss


class SAT(Loss):
    """Cross-entropy on adversarial examples (Madry et al. 2018; Li et al. 2023, Eq. 1).

    Example:
        >>> method = AdversarialTraining(SAT(label_smoothing=0.1), PGD(threat))
    """

    views = ("adversarial",)
    requires = frozenset()

    def from_logits(self, logits: Mapping[str, Tensor], y: Tensor) -> Tensor:
        """Returns ``CE(z', y)`` (B,)."""
        return self.cross_entropy(logits["adversarial"], y)


def targets_of(loss: Loss, y: Tensor, classes: int) -> Tensor | None:
    """Returns what a loss's gradient in the logits is the softmax minus, (B, classes); None where it is something else.

    A subclass of `SAT` may compute anything.
    """
    if type(loss) is not SAT:
        return None
    smoothing = loss.config.label_smoothing
    return F.one_hot(y, classes).double() * (1 - smoothing) + smoothing / classes
