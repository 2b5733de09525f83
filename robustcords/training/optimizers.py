"""Optimizers."""

from __future__ import annotations

import inspect
from abc import ABC, abstractmethod
from collections.abc import Iterable
from typing import Annotated, Self

import torch
from pydantic import Field, model_validator
from torch import nn
from torch.nn.parameter import is_lazy

from robustcords.config.schema import Component, ComponentConfig, NotNegative
from robustcords.engine import contracts
from robustcords.errors import UserError
from robustcords.models.base import name_of

OPTIMIZERS = {
    "adamw": "robustcords.training.optimizers:AdamW",
    "sgd": "robustcords.training.optimizers:SGD",
}

Positive = Annotated[float, Field(gt=0, le=1e30)]  # float32 holds it, as the weights do
Decay = Annotated[float, Field(ge=0, lt=1)]


class Optimizer(Component, ABC):
    """How weights are updated. Weight decay acts on all parameters, as in the scripts of TRADES and MART."""

    @abstractmethod
    def build(self, parameters: Iterable[nn.Parameter]) -> torch.optim.Optimizer:
        """Returns torch's optimiser over these parameters; its learning rate is the schedule's peak."""


class SGD(Optimizer):
    """Stochastic gradient descent with momentum, as ``torch.optim.SGD``."""

    class Config(ComponentConfig):
        """Options of SGD.

        Attributes:
            lr: learning rate: the schedule's peak.
            momentum: momentum of the gradient.
            nesterov: Nesterov momentum (Sutskever et al. 2013), which needs ``momentum`` above 0.
            weight_decay: l2 penalty, added to the gradient of every parameter.
        """

        name: str = "sgd"
        lr: Positive = 0.1
        momentum: Decay = 0.9
        nesterov: bool = False
        weight_decay: NotNegative = 5e-4

        @model_validator(mode="after")
        def _nesterov_has_momentum(self) -> Self:
            if self.nesterov and not self.momentum:
                raise ValueError("nesterov = true needs a momentum above 0")
            return self

    config: SGD.Config

    def build(self, parameters: Iterable[nn.Parameter]) -> torch.optim.SGD:
        """Returns ``torch.optim.SGD``."""
        return torch.optim.SGD(parameters, **self.config.options())


class AdamW(Optimizer):
    """Adam with decoupled weight decay (Loshchilov and Hutter 2019), as ``torch.optim.AdamW``."""

    class Config(ComponentConfig):
        """Options of AdamW.

        Attributes:
            lr: learning rate: the schedule's peak.
            betas: decay rates of the running means of the gradient and of its square.
            eps: constant added to the denominator.
            weight_decay: decoupled weight decay of every parameter: a step of learning rate 1 takes off this share of a
                weight.
        """

        name: str = "adamw"
        lr: Positive = 1e-3
        betas: Annotated[tuple[Decay, ...], Field(min_length=2, max_length=2, strict=False)] = (0.9, 0.999)
        eps: Positive = 1e-8
        weight_decay: NotNegative = 1e-2

    config: AdamW.Config

    def build(self, parameters: Iterable[nn.Parameter]) -> torch.optim.AdamW:
        """Returns ``torch.optim.AdamW``."""
        return torch.optim.AdamW(parameters, **self.config.options())


def rates(optimizer: torch.optim.Optimizer) -> list[float]:
    """Returns the learning rate of each group, which may be a tensor too."""
    return [float(group["lr"]) for group in optimizer.param_groups]


def trainable(model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    """Checks that an optimizer's steps train a model.

    Parameters may be frozen, and an optimizer may have others besides, such as a loss's own.

    Raises:
        UserError: a parameter has no size yet, or none requires a gradient; the optimizer is that of another model, or
            its step is to compute the loss itself.
    """
    if any(map(is_lazy, model.parameters())):
        raise UserError(
            f"{name_of(model)}: it has parameters without a size, as nn.LazyLinear has before it has seen images: call "
            "the model once, and then make the optimizer"
        )
    closure = inspect.signature(optimizer.step).parameters.get("closure")
    if closure and closure.default is closure.empty:
        raise UserError(
            f"optimizer {contracts.title(optimizer)}: its step needs a closure that computes the loss again, which "
            "training does not give it"
        )
    trained = {id(parameter) for parameter in model.parameters() if parameter.requires_grad}
    if not trained:
        raise UserError(f"{name_of(model)}: no parameter requires a gradient, so there is nothing to train")
    stepped = {id(parameter) for group in optimizer.param_groups for parameter in group["params"]}
    own = {id(parameter) for parameter in model.parameters()}
    # A head that was replaced after the optimizer was made: the old one is stepped, the new one never.
    if not trained & stepped or (stepped - own and trained - stepped):
        raise UserError(
            f"optimizer {contracts.title(optimizer)}: {len(stepped - own)} of its {len(stepped)} parameters are not "
            f"the model's, and {len(trained - stepped)} of the model's {len(trained)} are not among them: create it "
            "from model.parameters(), after any layer is replaced"
        )
