"""Adversarial weight perturbation (AWP), around any method."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor, nn

from robustcords.config.schema import NotNegative
from robustcords.methods.base import Batch, Step
from robustcords.methods.wrapper import StepAround, Wrapper, WrapperConfig


class AWP(Wrapper):
    """Adversarial weight perturbation (Wu et al. 2020, Alg. 1): gradients at weights perturbed to a higher loss.

    Each tensor of weights with more than one dimension moves by ``gamma * ||w|| * g / ||g||``, where g is the gradient
    of the loss on the same adversarial batch; the update's gradient is taken there, and the weights move back before
    the optimizer's step. g is that of the whole global batch, so that neither processes nor accumulation change it.
    BatchNorm's statistics are those of the passes at the moved weights alone.

    Args:
        inner: the method that computes the gradients.
        options: the fields of `Config`, without ``inner``.

    Example:
        >>> method = AWP(AdversarialTraining(TRADES(), PGD(ThreatModel())), gamma=0.005, warmup=10)
    """

    class Config(WrapperConfig):
        """Options of AWP.

        Attributes:
            gamma: size of the perturbation of a weight tensor, relative to its norm. Wu et al. use 0.01 with standard
                adversarial training and 0.005 with TRADES.
            warmup: number of epochs before weights are first perturbed.
        """

        name: str = "awp"
        gamma: NotNegative = 0.005
        warmup: Annotated[int, Field(ge=0)] = 0

    config: AWP.Config

    def around(self, step: Step) -> Step:
        """Returns a step at perturbed weights; during the warm-up the step itself."""
        if not self.config.gamma or step.moment.epoch < self.config.warmup:
            return step
        return PerturbedStep(step, self.config.gamma)


class PerturbedStep(StepAround):
    """A step that iterates the micro-batches twice: for the gradient to ascend, and at the perturbed weights.

    Args:
        step: the wrapped step.
        gamma: size of the perturbation of a weight tensor, relative to its norm.
    """

    def __init__(self, step: Step, gamma: float) -> None:
        super().__init__(step)
        self.gamma = gamma
        self._searching = False

    def micro_batches(self, batch: Batch) -> Iterator[slice]:
        """Yields the rows of all micro-batches, perturbs the weights, yields them again and restores the weights."""
        layers = [weight for weight in self.model.parameters() if weight.requires_grad and weight.dim() > 1]
        with self.without_statistics(), _gradients_kept(self.model):
            self._searching = True
            yield from self.step.micro_batches(batch)
            self._searching = False
            moves = [ascent(layer, layer.grad, self.gamma) for layer in layers]
        with _moved(layers, moves):
            yield from self.step.micro_batches(batch)

    def losses(self, views: Mapping[str, Tensor], batch: Batch, rows: slice) -> Tensor:
        """Returns the loss (b,) of some rows; images get a gradient at the perturbed weights only."""
        if self._searching:
            views = {name: x.detach() for name, x in views.items()}
        return super().losses(views, batch, rows)


@torch.no_grad()
def ascent(weight: Tensor, gradient: Tensor | None, gamma: float) -> Tensor:
    """Returns the perturbation of a weight tensor: ``gamma * ||w|| * g / ||g||``.

    It is zero if the gradient is, or if float16 overflowed.

    Args:
        weight: of any shape.
        gradient: of the same shape, at any scale.
        gamma: norm of the perturbation, relative to that of the weights.
    """
    if gradient is None:
        return torch.zeros_like(weight)
    length = gradient.norm()
    usable = length.isfinite() & (length > 0)
    return torch.where(usable, gradient, 0.0) * torch.where(usable, gamma * weight.norm() / length, 0.0)


@contextmanager
def _gradients_kept(model: nn.Module) -> Iterator[None]:
    """Context without accumulated gradients; restores them on exit."""
    gradients = [(parameter, parameter.grad) for parameter in model.parameters()]
    for parameter, _ in gradients:
        parameter.grad = None
    try:
        yield
    finally:
        for parameter, gradient in gradients:
            parameter.grad = gradient


@contextmanager
def _moved(weights: list[nn.Parameter], moves: list[Tensor]) -> Iterator[None]:
    """Context with perturbed weights; restores them bit for bit on exit."""
    before = [weight.detach().clone() for weight in weights]
    with torch.no_grad():
        for weight, move in zip(weights, moves, strict=True):
            weight.add_(move)
    try:
        yield
    finally:
        with torch.no_grad():
            for weight, value in zip(weights, before, strict=True):
                weight.copy_(value)
