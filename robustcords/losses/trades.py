"""TRADES."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from torch import Tensor
from torch.nn import functional as F

from robustcords.config.schema import NotNegative
from robustcords.engine.precision import full_precision
from robustcords.losses.base import Loss, LossConfig
from robustcords.losses.objective import Objective


def kl_divergence(target: Tensor, logits: Tensor) -> Tensor:
    """Returns ``KL(softmax(target) || softmax(logits))`` per example (B,), in float32, from logits (B, classes).

    In log space throughout, so a probability that underflows to zero contributes zero and not NaN.
    """
    log_p, log_q = (F.log_softmax(full_precision(z), dim=1) for z in (target, logits))
    return F.kl_div(log_q, log_p, reduction="none", log_target=True).sum(dim=1)


class TRADES(Loss):
    """``CE(z, y) + beta * KL(p || p')`` (Zhang et al. 2019, Eq. 5). Neither term is detached in the update.

    The attack maximises ``KL(p || p')`` with p of the clean images fixed; it starts at ``x + 0.001 N(0, 1)``, since the
    gradient is zero at x itself.

    Example:
        >>> method = AdversarialTraining(TRADES(beta=6.0), PGD(threat))
    """

    class Config(LossConfig):
        """Options of TRADES.

        Attributes:
            beta: weight of the robustness term (1 / lambda in the TRADES paper).
        """

        name: str = "trades"
        beta: NotNegative = 6.0

    config: TRADES.Config
    relative_to_clean = True
    requires = frozenset()

    def from_logits(self, logits: Mapping[str, Tensor], y: Tensor) -> Tensor:
        """Returns the loss (B,) of clean and adversarial logits."""
        clean, adversarial = logits["clean"], logits["adversarial"]
        return self.cross_entropy(clean, y) + self.config.beta * kl_divergence(clean, adversarial)

    def objective(self, y: Tensor, clean: Callable[[], Tensor]) -> Objective:
        """Returns ``KL(p || p')`` of the adversarial logits, from close to the image."""
        target = clean().detach()
        return Objective(lambda logits: kl_divergence(target, logits), start="gaussian", relative_to_clean=True)
