"""GradAlign (Andriushchenko and Flammarion 2020), from outside: a loss with gradients by the images in it."""

from collections.abc import Mapping
from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from robustcords import SAT, LossConfig, LossContext


class GradAlign(SAT):
    """Cross-entropy, and ``weight * (1 - cos)`` between the gradients at an image and at a random point of its ball."""

    class Config(LossConfig):
        """Options of GradAlign.

        Attributes:
            weight: of the regularizer (lambda in the paper), >= 0.
        """

        name: str = "grad-align"
        weight: Annotated[float, Field(ge=0)] = 0.2

    config: "GradAlign.Config"

    def forward(self, model: nn.Module, views: Mapping[str, Tensor], y: Tensor, context: LossContext) -> Tensor:
        """Returns the loss (B,), differentiable twice."""
        x = views["adversarial"]
        beside = context.threat.uniform_start(x, context.noise)
        gradients = []
        for images in (x.detach().requires_grad_(), beside.detach().requires_grad_()):
            value = F.cross_entropy(model(images), y, reduction="sum")
            gradients.append(torch.autograd.grad(value, images, create_graph=True)[0].flatten(1))
        alignment = F.cosine_similarity(*gradients, dim=1)
        return super().forward(model, views, y, context) + self.config.weight * (1 - alignment)
