"""Training steps of a method in float64, on batches that a test makes, without the loop around them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from robustcords.engine.inference import Inference
from robustcords.losses.context import Moment
from robustcords.methods.base import Batch, Method
from robustcords.rng import Noise
from robustcords.runtime.accelerator import start
from robustcords.training.config import TrainConfig
from robustcords.training.step import LoopStep

LR, MOMENTUM, DECAY = 0.1, 0.9, 5e-4
CLASSES = 3


def network(*, norm: bool = False) -> nn.Sequential:
    """A smooth convolutional network of 4 x 4 images, the same one every time."""
    with torch.random.fork_rng():
        torch.manual_seed(1)
        middle = [nn.BatchNorm2d(4)] if norm else []
        return nn.Sequential(
            nn.Conv2d(2, 4, 3, padding=1), *middle, nn.Softplus(), nn.Flatten(), nn.Linear(64, CLASSES)
        ).double()


def batches(count: int = 4, sizes: Sequence[int] = (6, 6, 6, 5)) -> list[Batch]:
    """Batches of random images and labels, with weights that differ; some pixels are black or white."""
    numbers, made = torch.Generator().manual_seed(3), []
    for number in range(count):
        size = sizes[number % len(sizes)]
        x = torch.rand(size, 2, 4, 4, generator=numbers, dtype=torch.float64).mul(1.2).sub(0.1).clamp(0, 1)
        y = torch.randint(CLASSES, (size,), generator=numbers)
        weights = torch.rand(size, generator=numbers, dtype=torch.float64) + 0.5
        made.append(Batch(x, y, weights, Noise(number, torch.arange(size)), float(weights.sum())))
    return made


def weighted(losses: Tensor, batch: Batch) -> Tensor:
    """The weighted mean that training minimises."""
    return (losses * batch.weights).sum() / batch.total


def optimizer(model: nn.Module) -> torch.optim.SGD:
    return torch.optim.SGD(model.parameters(), lr=LR, momentum=MOMENTUM, weight_decay=DECAY)


def loop_step(model: nn.Module, method: Method, **settings: Any) -> LoopStep:
    config = TrainConfig(precision="fp32", **settings)
    accelerator = start(config.precision, config.accumulation)
    inference = Inference(model, accelerator.autocast)
    return LoopStep(
        model.train(),
        method,
        optimizer(model),
        accelerator,
        config,
        inference=inference,
        phase=lambda _: None,
        seed=0,
    )


def train(method: Method, model: nn.Module, given: Sequence[Batch] | None = None, **settings: Any) -> list[float]:
    """Has a method train on batches, two an epoch; returns the losses that are reported."""
    given = batches() if given is None else given
    step, losses = loop_step(model, method, **settings), []
    for number, batch in enumerate(given):
        step.begin(Moment(number // 2, number % 2, number / len(given)))
        method.step(step, batch)
        step.end()
        losses.append(step.share)
    return losses


def same(one: nn.Module, other: nn.Module, atol: float = 1e-9) -> None:
    """Weights and buffers of two networks are equal to 1e-9."""
    for name, value in one.state_dict().items():
        torch.testing.assert_close(
            other.state_dict()[name], value, rtol=0, atol=atol, msg=lambda m, n=name: f"{n}: {m}"
        )
