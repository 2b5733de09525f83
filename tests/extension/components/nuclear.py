"""A nuclear-norm regularizer (after Sriramanan et al. 2021), from outside: a loss with a term of the whole batch."""

from collections.abc import Callable, Mapping
from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor
from torch.nn import functional as F

from robustcords import Loss, LossConfig, Objective


class Nuclear(Loss):
    """``CE(z, y)``, and equal shares of ``weight * ||p' - p||_*``, the nuclear norm of all the batch's changes.

    The attack maximises the cross-entropy and the same norm.
    """

    batchwise = True

    class Config(LossConfig):
        """Options of Nuclear.

        Attributes:
            weight: of the norm (lambda in the paper), >= 0.
        """

        name: str = "nuclear"
        weight: Annotated[float, Field(ge=0)] = 4.0

    config: "Nuclear.Config"

    def from_logits(self, logits: Mapping[str, Tensor], y: Tensor) -> Tensor:
        """Returns the loss (B,)."""
        return self.cross_entropy(logits["clean"], y) + self._shares(logits["clean"], logits["adversarial"])

    def objective(self, y: Tensor, clean: Callable[[], Tensor]) -> Objective:
        """Returns the cross-entropy and the norm, from a uniform start."""
        target = clean()
        return Objective(lambda z: F.cross_entropy(z, y, reduction="none") + self._shares(target, z))

    def _shares(self, clean: Tensor, adversarial: Tensor) -> Tensor:
        change = adversarial.softmax(dim=1) - clean.softmax(dim=1)
        norm = torch.linalg.matrix_norm(change, ord="nuc")
        return (self.config.weight * norm / len(change)).expand(len(change))
