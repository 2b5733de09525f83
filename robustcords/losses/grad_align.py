"""GradAlign: aligned input gradients within the ball."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from robustcords.config.requirements import CUBE, SECOND_DERIVATIVES
from robustcords.config.schema import NotNegative, filled_in
from robustcords.engine.precision import full_precision
from robustcords.errors import UserError
from robustcords.losses.base import Loss, LossConfig
from robustcords.losses.context import LossContext


class GradAlign(Loss):
    """Cross-entropy and gradient alignment, for single-step attacks (Andriushchenko and Flammarion 2020, section 5).

    ``CE(z', y) + lam * (1 - cos(g(x), g(x + eta)))`` with g the gradient of the cross-entropy by the image and eta
    uniform in the ball. An example whose gradient is zero at one of the points has no second term. The gradient at x is
    held fixed, as in the authors' script; ``both = true`` differentiates it too, as the formula has it. Both passes are
    in train mode. Selection goes by the cross-entropy alone.

    Example:
        >>> method = AdversarialTraining(GradAlign(lam=0.2), FGSM(ThreatModel(), random_start="none"))
    """

    class Config(LossConfig):
        """Options of GradAlign.

        Attributes:
            lam: weight of the alignment term; left out, the authors' ``0.02 * 10^(epsilon / (8/255))`` under
                l-infinity, which is 0.2 at 8/255, and 2 from 16/255 on, their largest radius.
            both: also differentiate the gradient at the image, as in the paper's formula, which costs one more double
                backward pass; otherwise it is held fixed, as in the authors' script.
        """

        name: str = "grad_align"
        lam: NotNegative | None = None
        both: bool = False

    config: GradAlign.Config
    requires: ClassVar[frozenset[str]] = frozenset({SECOND_DERIVATIVES})

    @classmethod
    def resolved(cls, config: GradAlign.Config, threat: Any) -> GradAlign.Config:
        """Returns the options with a weight.

        Raises:
            UserError: none is given, and the norm is not l-infinity.
        """
        if config.lam is not None:
            return config
        if CUBE not in threat.provides:
            raise UserError(
                f'[loss] lam is missing: what "{config.name}" takes without it is for threat.norm = "linf", not '
                f'"{threat.norm}"'
            )
        return config.model_copy(update={"lam": 0.02 * 10 ** (min(threat.epsilon, 16 / 255) * 255 / 8)})

    def from_logits(self, logits: Mapping[str, Tensor], y: Tensor) -> Tensor:
        """Returns ``CE(z', y)`` (B,)."""
        return self.cross_entropy(logits["adversarial"], y)

    def forward(self, model: nn.Module, views: Mapping[str, Tensor], y: Tensor, context: LossContext) -> Tensor:
        """Returns the loss (B,), whose gradient takes a double backward pass."""
        x = views["clean"]
        noisy = context.threat.uniform_start(x, context.noise)
        at_image = input_gradients(model, x, y, differentiable=self.config.both)
        misaligned = misalignment(at_image, input_gradients(model, noisy, y))
        lam = filled_in(self.resolved(self.config, context.threat).lam)
        return self.cross_entropy(model(views["adversarial"]), y) + lam * misaligned


def input_gradients(model: nn.Module, x: Tensor, y: Tensor, *, differentiable: bool = True) -> Tensor:
    """Returns the gradient of every example's cross-entropy with respect to its image (B, C, H, W).

    Args:
        model: in any mode; in train mode during training.
        x: (B, C, H, W).
        y: (B,).
        differentiable: whether it has a graph.
    """
    x = x.detach().requires_grad_()
    total = F.cross_entropy(full_precision(model(x)), y, reduction="sum")
    return torch.autograd.grad(total, x, create_graph=differentiable)[0]


def misalignment(first: Tensor, second: Tensor) -> Tensor:
    """Returns ``1 - cos`` of the angle between two gradients of each example (B,); 0 where one of them is zero."""
    first, second = first.flatten(1), second.flatten(1)
    lengths = first.norm(dim=1) * second.norm(dim=1)
    there = lengths > 0
    cosine = (first * second).sum(dim=1) / torch.where(there, lengths, 1.0)
    return torch.where(there, 1 - cosine, 0.0)
