"""A short training written out: the batches of a trainer, an attack that a test writes, and plain gradient descent."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from robustcords.data.images import ImageSet
from robustcords.losses.context import Moment
from robustcords.methods.base import Batch
from robustcords.selection.selector import everything
from robustcords.training.trainer import Trainer
from support.small_run import made_up, network, trainer

LR, MOMENTUM, BETA = 0.1, 0.9, {"trades": 6.0, "mart": 5.0}

Model = Callable[[Tensor], Tensor]
Attacked = Callable[[Model, Batch, Moment], Tensor]
"""The model, a batch and the moment to adversarial examples."""


def in_double(**options: int) -> ImageSet:
    """Returns made-up images in float64, so that rounding, of which a gradient's sign would make much, changes none."""
    images = made_up(**options)
    return ImageSet(images.images.double() / 255, images.labels, images.classes)


def untrained(**options: Any) -> Trainer:
    """Returns a trainer of a small network in float64."""
    return trainer(model=network().double(), train=in_double(), lr=LR, **options)


def value(loss: str, z: Tensor, z_adv: Tensor, y: Tensor) -> Tensor:
    """Returns a loss (B,) from its paper's formula."""
    if loss == "sat":
        return F.cross_entropy(z_adv, y, reduction="none")
    p, q, true = z.softmax(1), z_adv.softmax(1), F.one_hot(y, z.shape[1]).bool()
    apart = (p * (p.log() - q.log())).sum(1)
    if loss == "trades":
        return F.cross_entropy(z, y, reduction="none") + BETA[loss] * apart
    boosted = -q[true].log() - (1 - q.masked_fill(true, 0).amax(1)).log()
    return boosted + BETA[loss] * apart * (1 - p[true])


def objective(loss: str, z: Tensor, z_adv: Tensor, y: Tensor) -> Tensor:
    """Returns what a loss's attack maximises (B,)."""
    p, q = z.softmax(1), z_adv.softmax(1)
    return (p * (p.log() - q.log())).sum(1) if loss == "trades" else F.cross_entropy(z_adv, y, reduction="none")


def start(loss: str, batch: Batch, epsilon: float) -> Tensor:
    """Returns where a loss's attack starts: uniformly in the ball, or beside the image."""
    shape = batch.x.shape[1:]
    moved = (batch.noise.uniform(shape) * 2 - 1) * epsilon if loss == "sat" else 0.001 * batch.noise.normal(shape)
    return projected(batch.x + moved.double(), batch.x, epsilon)


def projected(x_adv: Tensor, x: Tensor, epsilon: float) -> Tensor:
    return x_adv.clamp(x - epsilon, x + epsilon).clamp(0, 1)


def gradient(loss: str, model: Model, x: Tensor, x_adv: Tensor, y: Tensor) -> Tensor:
    """Returns the gradient of the attack's objective by the adversarial examples."""
    with torch.no_grad():
        z = model(x)
    x_adv = x_adv.detach().requires_grad_()
    return torch.autograd.grad(objective(loss, z, model(x_adv), y).sum(), x_adv)[0]


def trained_by_hand(made: Trainer, loss: str, attacked: Attacked) -> Tensor:
    """Returns the weights after all epochs of SGD with momentum on a copy of a trainer's model."""
    model, epochs, size = copy.deepcopy(made.model), made.settings.epochs, len(made.train)
    parameters = list(model.parameters())
    velocity = [torch.zeros_like(parameter) for parameter in parameters]
    for epoch in range(epochs):
        batches = made.loader.order(epoch, everything(size))
        for step, positions in enumerate(batches):
            batch = made.loader.load(positions, everything(size), epoch)
            moment = Moment(epoch, step, (epoch + step / len(batches)) / epochs, epochs)
            x_adv = attacked(model, batch, moment)
            mean = value(loss, model(batch.x), model(x_adv), batch.y).mean()
            gradients = torch.autograd.grad(mean, parameters)
            with torch.no_grad():
                for parameter, moving, found in zip(parameters, velocity, gradients, strict=True):
                    parameter.sub_(LR * moving.mul_(MOMENTUM).add_(found))
    return torch.cat([parameter.detach().flatten() for parameter in parameters])


def weights(made: Trainer) -> Tensor:
    """Returns a trainer's weights in the order of `trained_by_hand`."""
    return torch.cat([parameter.detach().flatten() for parameter in made.model.parameters()])
