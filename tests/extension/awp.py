"""Adversarial weight perturbation (Wu et al. 2020), from outside the package."""

from collections.abc import Mapping
from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor

from robustcords import AdversarialTraining, Batch, MethodConfig, Step, StepReport


class AWP(AdversarialTraining):
    """Minimises the loss at weights that are moved, layer by layer, to where it is higher."""

    class Config(MethodConfig):
        """Options of AWP.

        Attributes:
            gamma: how far, as a share of a layer's own length, >= 0.
        """

        name: str = "awp"
        gamma: Annotated[float, Field(ge=0)] = 0.005

    config: "AWP.Config"

    def step(self, step: Step, batch: Batch) -> StepReport:
        """Attacks, moves the weights, computes their gradient there, and moves them back before they are updated."""
        views, counts = self.views(step, batch)
        step.phase("update")
        for rows in step.micro_batches(batch):
            moved = self._move(step, views, batch, rows)
            step.backward(step.losses(views, batch, rows), batch, rows)
            with torch.no_grad():
                for parameter, before in moved:
                    parameter.copy_(before)
        step.optimizer_step()
        return StepReport(counts)

    def _move(self, step: Step, views: Mapping[str, Tensor], batch: Batch, rows: slice) -> list[tuple[Tensor, Tensor]]:
        layers = [parameter for parameter in step.model.parameters() if parameter.requires_grad and parameter.dim() > 1]
        gradients = torch.autograd.grad(step.losses(views, batch, rows).mean(), layers)
        moved = []
        with torch.no_grad():
            for parameter, gradient in zip(layers, gradients, strict=True):
                moved.append((parameter, parameter.clone()))
                parameter.add_(self.config.gamma * parameter.norm() * gradient / (gradient.norm() + 1e-12))
        return moved
