"""Adversarial weight perturbation (Wu et al. 2020), from outside the package, around any method."""

from collections.abc import Mapping
from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor

from robustcords import Batch, Step, StepAround, Wrapper, WrapperConfig


class AWP(Wrapper):
    """Has a method compute its gradients at weights that are moved, layer by layer, to where the loss is higher."""

    class Config(WrapperConfig):
        """Options of AWP.

        Attributes:
            gamma: how far, as a share of a layer's own length, >= 0.
        """

        name: str = "awp"
        gamma: Annotated[float, Field(ge=0)] = 0.005

    config: "AWP.Config"

    def around(self, step: Step) -> Step:
        """Returns the step at moved weights."""
        return Moved(step, self.config.gamma)


class Moved(StepAround):
    """Moves the weights before a loss is computed, and back once it has been differentiated."""

    def __init__(self, step: Step, gamma: float) -> None:
        super().__init__(step)
        self.gamma = gamma
        self.before: list[tuple[Tensor, Tensor]] = []

    def losses(self, views: Mapping[str, Tensor], batch: Batch, rows: slice) -> Tensor:
        """Returns the loss (b,) at the moved weights."""
        layers = [parameter for parameter in self.model.parameters() if parameter.requires_grad and parameter.dim() > 1]
        images = {name: x.detach() for name, x in views.items()}
        gradients = torch.autograd.grad(super().losses(images, batch, rows).mean(), layers)
        self.before = [(parameter, parameter.detach().clone()) for parameter in layers]
        with torch.no_grad():
            for parameter, gradient in zip(layers, gradients, strict=True):
                parameter.add_(self.gamma * parameter.norm() * gradient / (gradient.norm() + 1e-12))
        return super().losses(views, batch, rows)

    def backward(self, losses: Tensor, batch: Batch, rows: slice) -> None:
        """Adds the gradient there to the parameters' ``.grad``, and moves them back."""
        super().backward(losses, batch, rows)
        with torch.no_grad():
            for parameter, value in self.before:
                parameter.copy_(value)
