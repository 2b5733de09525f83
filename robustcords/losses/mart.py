"""MART."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace

import torch
from torch import Tensor
from torch.nn import functional as F

from robustcords.config.schema import NotNegative
from robustcords.engine.precision import full_precision
from robustcords.losses.base import Loss, LossConfig
from robustcords.losses.objective import Objective
from robustcords.losses.trades import kl_divergence


class MART(Loss):
    """Misclassification-aware adversarial training (Wang et al. 2020, Eq. 9 to 11).

    ``BCE(p', y) + beta * KL(p || p') * (1 - p_y)`` with the boosted cross-entropy
    ``BCE = -log p'_y - log(1 - max_{k != y} p'_k)``. Nothing is detached in the update. The attack maximises the
    cross-entropy, from ``x + 0.001 N(0, 1)``.

    The second logarithm is computed as ``logsumexp(z') - logsumexp(z' without the strongest wrong class)``, which is
    the same number and stays finite where the authors' script adds 1e-4 inside it.

    Example:
        >>> method = AdversarialTraining(MART(beta=5.0), PGD(threat))
    """

    class Config(LossConfig):
        """Options of MART.

        Attributes:
            beta: weight of the misclassification-aware term (lambda in the MART paper).
        """

        name: str = "mart"
        beta: NotNegative = 5.0

    config: MART.Config

    def from_logits(self, logits: Mapping[str, Tensor], y: Tensor) -> Tensor:
        """Returns the loss (B,) of clean and adversarial logits."""
        clean, adversarial = full_precision(logits["clean"]), full_precision(logits["adversarial"])
        true = F.one_hot(y, clean.shape[1]).bool()
        strongest_wrong = adversarial.masked_fill(true, -float("inf")).argmax(dim=1)
        others = adversarial.scatter(1, strongest_wrong.unsqueeze(1), -float("inf"))
        # Of a single class there are no others to be taken for, so that the second logarithm is that of 1.
        margin = adversarial.logsumexp(dim=1) - others.logsumexp(dim=1) if true.shape[1] > 1 else 0.0
        boosted = self.cross_entropy(adversarial, y) + margin
        log_p = F.log_softmax(clean, dim=1).gather(1, y.unsqueeze(1)).squeeze(1)
        wrong = -torch.expm1(log_p)
        return boosted + self.config.beta * kl_divergence(clean, adversarial) * wrong

    def objective(self, y: Tensor, clean: Callable[[], Tensor]) -> Objective:
        """Returns cross-entropy, from close to the image."""
        return replace(super().objective(y, clean), start="gaussian")
