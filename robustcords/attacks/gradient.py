"""The base class of gradient attacks, with the choice of objective."""

from __future__ import annotations

from collections.abc import Callable
from typing import ClassVar, Literal

from torch import Tensor

from robustcords.attacks.base import Attack
from robustcords.config.schema import ComponentConfig
from robustcords.losses.base import Loss
from robustcords.losses.objective import Objective, cross_entropy_of, margin_of


class GradientAttackConfig(ComponentConfig):
    """Options of every gradient attack.

    Attributes:
        objective: what the attack maximises: ``"loss"``, the objective of the training loss, such as KL under TRADES;
            or, whatever the loss, ``"ce"``, cross-entropy, or ``"margin"``, ``max_{k != y} z_k - z_y`` (Carlini and
            Wagner 2017), both from a uniform start.
    """

    objective: Literal["loss", "ce", "margin"] = "loss"


class GradientAttack(Attack):
    """A gradient attack with a choice of objective."""

    Config: ClassVar[type[GradientAttackConfig]] = GradientAttackConfig
    config: GradientAttackConfig

    def objective_for(self, loss: Loss, y: Tensor, clean: Callable[[], Tensor]) -> Objective:
        """Returns the chosen objective; only ``"loss"`` asks the loss, and may compute clean logits."""
        if self.config.objective == "ce":
            return cross_entropy_of(y)
        return margin_of(y) if self.config.objective == "margin" else super().objective_for(loss, y, clean)
