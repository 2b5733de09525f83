"""NuAT: the nuclear norm of the change of a batch's logits."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor
from torch.nn import functional as F

from robustcords.config.schema import NotNegative
from robustcords.engine.precision import full_precision
from robustcords.losses.base import Loss, LossConfig
from robustcords.losses.context import Moment
from robustcords.losses.objective import Objective


class NuAT(Loss):
    """``CE(z, y) + lam * ||Z' - Z||_* / B``, for single-step attacks (Sriramanan et al. 2021).

    Z are the logits (B, classes) of the whole batch and ``||.||_*`` is the sum of singular values, so this is a loss of
    the batch: accumulation and several processes take the norm of each part. Its weight rises from 0 over training.
    The attack maximises the cross-entropy and the same term, from ``x + epsilon / 2`` times random signs.

    Example:
        >>> method = AdversarialTraining(NuAT(), PGD(ThreatModel(), steps=1, step_size=8 / 255))

    Attributes:
        weight: of the norm at the loss's moment of training; initially the final one.
        weight_in_attack: the same in the attack's objective.
    """

    class Config(LossConfig):
        """Options of NuAT.

        Attributes:
            lam: weight of the nuclear norm at the end of the ramp.
            ramp: share of the run over which the weight rises linearly from 0; with 0 it is constant.
            alternate: have every second attack maximise the cross-entropy alone, as in the authors' script.
        """

        name: str = "nuat"
        lam: NotNegative = 4.0
        ramp: Annotated[float, Field(ge=0, le=1)] = 1.0
        alternate: bool = False

    config: NuAT.Config
    batchwise = True
    requires = frozenset()

    def __init__(self, **options: object) -> None:
        super().__init__(**options)
        self.weight = self.weight_in_attack = self.config.lam

    def at(self, moment: Moment) -> NuAT:
        """Returns the loss with the norm's weight at a moment."""
        ramp, then = self.config.ramp, copy.copy(self)
        then.weight = self.config.lam * (min(1.0, moment.progress / ramp) if ramp else 1.0)
        then.weight_in_attack = 0.0 if self.config.alternate and moment.step % 2 == 0 else then.weight
        return then

    def from_logits(self, logits: Mapping[str, Tensor], y: Tensor) -> Tensor:
        """Returns the loss of every example (B,), each with its share of the norm."""
        clean, adversarial = logits["clean"], logits["adversarial"]
        return self.cross_entropy(clean, y) + self.weight * shares(clean, adversarial)

    def objective(self, y: Tensor, clean: Callable[[], Tensor]) -> Objective:
        """Returns the cross-entropy plus the norm; with weight 0 no clean logits are computed."""
        weight = self.weight_in_attack
        target = clean() if weight else None

        def value(logits: Tensor) -> Tensor:
            cross_entropy = F.cross_entropy(logits, y, reduction="none")
            return cross_entropy if target is None else cross_entropy + weight * shares(target, logits)

        return Objective(value, start="signs")


def shares(clean: Tensor, adversarial: Tensor) -> Tensor:
    """Returns every example's share of the nuclear norm of a batch's changes (B,): the norm divided by B.

    Args:
        clean: (B, classes) logits.
        adversarial: (B, classes) logits.
    """
    change = full_precision(adversarial) - full_precision(clean)
    norm: Tensor = torch.linalg.matrix_norm(change, ord="nuc")
    return (norm / len(change)).expand(len(change))
