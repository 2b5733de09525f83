from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from support.cases import cases
from torch import nn
from torch.optim import lr_scheduler

from robustcords.config.registry import find
from robustcords.training.optimizers import OPTIMIZERS, SGD, AdamW
from robustcords.training.schedules import SCHEDULES, Constant, Cosine, Cyclic, MultiStep, OneCycle, Schedule


@pytest.fixture
def parameter() -> nn.Parameter:
    return nn.Parameter(torch.tensor([1.0, -2.0, 0.5], dtype=torch.float64))


GRADIENTS = np.random.default_rng(0).normal(size=(6, 3))


def train(parameter: nn.Parameter, optimizer: torch.optim.Optimizer) -> np.ndarray:
    for gradient in GRADIENTS:
        parameter.grad = torch.as_tensor(gradient)
        optimizer.step()
    return parameter.detach().numpy()


@pytest.mark.parametrize("nesterov", [False, True])
@pytest.mark.parametrize("momentum", [0.5, 0.9])
def test_sgd_is_momentum_with_decay_in_the_gradient(parameter: nn.Parameter, momentum: float, nesterov: bool) -> None:
    w, velocity = parameter.detach().numpy().copy(), np.zeros(3)
    for gradient in GRADIENTS:
        g = gradient + 0.01 * w
        velocity = momentum * velocity + g
        w = w - 0.2 * (g + momentum * velocity if nesterov else velocity)
    optimizer = SGD(lr=0.2, momentum=momentum, nesterov=nesterov, weight_decay=0.01).build([parameter])
    np.testing.assert_allclose(train(parameter, optimizer), w, rtol=1e-12)


def test_adamw_decays_apart_from_the_gradient(parameter: nn.Parameter) -> None:
    w, m, v = parameter.detach().numpy().copy(), np.zeros(3), np.zeros(3)
    for t, g in enumerate(GRADIENTS, start=1):
        m, v = 0.8 * m + 0.2 * g, 0.95 * v + 0.05 * g**2
        w = w * (1 - 0.01 * 0.3) - 0.01 * (m / (1 - 0.8**t)) / (np.sqrt(v / (1 - 0.95**t)) + 1e-6)
    optimizer = AdamW(lr=0.01, betas=[0.8, 0.95], eps=1e-6, weight_decay=0.3).build([parameter])
    np.testing.assert_allclose(train(parameter, optimizer), w, rtol=1e-12)


def test_defaults_of_optimisers(parameter: nn.Parameter) -> None:
    sgd, adamw = SGD().build([parameter]).defaults, AdamW().build([parameter]).defaults
    assert (sgd["lr"], sgd["momentum"], sgd["nesterov"], sgd["weight_decay"]) == (0.1, 0.9, False, 5e-4)
    assert (adamw["lr"], tuple(adamw["betas"]), adamw["eps"], adamw["weight_decay"]) == (1e-3, (0.9, 0.999), 1e-8, 1e-2)


@cases(
    ("name", "options"),
    [
        ("sgd", {"lr": 0.0}),
        ("sgd", {"lr": math.inf}),
        ("sgd", {"lr": math.nan}),
        ("sgd", {"lr": "0.1"}),
        ("sgd", {"momentum": 1.0}),
        ("sgd", {"momentum": 0.0, "nesterov": True}),
        ("sgd", {"weight_decay": -1e-4}),
        ("sgd", {"betas": [0.9, 0.99]}),
        ("adamw", {"betas": [0.9]}),
        ("adamw", {"betas": [0.9, 1.0]}),
        ("adamw", {"eps": 0.0}),
    ],
)
def test_impossible_optimisers(name: str, options: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        find("optimizer", name)(**options)


@cases(
    ("name", "options"),
    [
        ("constant", {"warmup": -1.0}),
        ("constant", {"warmup": math.inf}),
        ("constant", {"gamma": 0.1}),
        ("step", {"milestones": [0.9, 0.75]}),
        ("step", {"milestones": [0.5, 0.5]}),
        ("step", {"milestones": [75]}),
        ("step", {"gamma": 0.0}),
        ("cosine", {"final_factor": 1.5}),
        ("one-cycle", {"peak": 0.0}),
        ("one-cycle", {"peak": 1.0}),
        ("one-cycle", {"start_factor": 0.0}),
        ("cyclic", {"peak": 1.0}),
        ("cyclic", {"final_factor": -0.1}),
    ],
)
def test_impossible_schedules(name: str, options: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        find("schedule", name)(**options)


def test_every_name_is_its_class() -> None:
    assert [find("optimizer", name)(name=name).config.name for name in OPTIMIZERS] == list(OPTIMIZERS)
    assert [find("schedule", name)(name=name).config.name for name in SCHEDULES] == list(SCHEDULES)


def torchs_rates(make: Any, steps: int) -> list[float]:
    """The learning rates of torch's scheduler, from a learning rate of 1."""
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=1.0)
    scheduler = make(optimizer)
    rates = []
    for _ in range(steps):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    return rates


@cases("epochs", [10, 37, 100])
@cases("milestones", [[0.75, 0.9], [0.55, 0.7], []])
def test_step_is_torchs_multistep(epochs: int, milestones: list[float]) -> None:
    schedule = MultiStep(milestones=milestones, gamma=0.2)
    whole = [math.ceil(round(milestone * epochs, 6)) for milestone in milestones]
    expected = torchs_rates(lambda optimizer: lr_scheduler.MultiStepLR(optimizer, whole, gamma=0.2), epochs)
    for within in (0.0, 0.3, 390 / 391):
        assert [schedule.factor(epoch + within, epochs) for epoch in range(epochs)] == pytest.approx(expected)


def test_step_defaults_fall_after_75_and_90_of_100_epochs() -> None:
    factors = [MultiStep().factor(epoch, 100) for epoch in (0, 74.99, 75, 89.99, 90, 99.99)]
    assert factors == pytest.approx([1, 1, 0.1, 0.1, 0.01, 0.01])


@pytest.mark.parametrize("final", [0.0, 0.1])
def test_cosine_is_torchs(final: float) -> None:
    epochs, per_epoch = 5, 7
    total = epochs * per_epoch
    expected = torchs_rates(lambda optimizer: lr_scheduler.CosineAnnealingLR(optimizer, total, eta_min=final), total)
    schedule = Cosine(final_factor=final)
    factors = [schedule.factor(step / per_epoch, epochs) for step in range(total)]
    assert factors == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("share", [0.3, 0.5])
def test_one_cycle_is_torchs(share: float) -> None:
    # Torch's cycle goes from step 0 to step total - 1 with the peak at step share * total - 1.
    epochs, total = 4, 40
    expected = torchs_rates(
        lambda optimizer: lr_scheduler.OneCycleLR(
            optimizer, 1.0, total, pct_start=share, div_factor=20.0, final_div_factor=100.0, cycle_momentum=False
        ),
        total - 1,
    )
    schedule = OneCycle(peak=(share * total - 1) / (total - 1), start_factor=1 / 20, final_factor=1 / 2000)
    factors = [schedule.factor(epochs * step / (total - 1), epochs) for step in range(total - 1)]
    assert factors == pytest.approx(expected, abs=1e-12)
    assert schedule.factor(epochs, epochs) == pytest.approx(1 / 2000)


def test_one_cycle_defaults_are_torchs() -> None:
    schedule = OneCycle()
    assert [schedule.factor(epoch, 10) for epoch in (0, 3, 10)] == pytest.approx([1 / 25, 1, 1 / 25 / 1e4])


@cases(("share", "start"), [(0.5, 0.0), (0.4, 0.0), (0.4, 0.1)])
def test_cyclic_is_one_of_torchs_cycles(share: float, start: float) -> None:
    epochs, total = 4, 40
    expected = torchs_rates(
        lambda optimizer: lr_scheduler.CyclicLR(
            optimizer, start, 1.0, share * total, (1 - share) * total, cycle_momentum=False
        ),
        total,
    )
    schedule = Cyclic(peak=share, start_factor=start, final_factor=start)
    factors = [schedule.factor(epochs * step / total, epochs) for step in range(total)]
    assert factors == pytest.approx(expected, abs=1e-12)
    assert schedule.factor(epochs, epochs) == pytest.approx(start)


@cases("schedule", [Constant(warmup=2.5), Cosine(warmup=2.5), MultiStep(warmup=2.5, milestones=[0.1])])
def test_warm_up_multiplies_by_a_straight_line(schedule: Schedule) -> None:
    plain = type(schedule)(**{**schedule.config.options(), "warmup": 0.0})
    for epoch in (0.025, 0.5, 1.0, 2.0, 2.4999, 2.5, 3.0, 9.0):
        expected = min(epoch / 2.5, 1.0) * plain.factor(epoch, 10)
        assert schedule.factor(epoch, 10) == pytest.approx(expected)
    assert schedule.factor(0.0, 10) == pytest.approx(0.01)


@cases("name", SCHEDULES)
@cases("warmup", [0.0, 1.0, 50.0])
def test_factors_stay_in_range(name: str, warmup: float) -> None:
    schedule = find("schedule", name)(name=name, warmup=warmup)
    factors = [schedule.factor(step / 17, 9) for step in range(9 * 17)]
    assert all(0 < factor <= 1 for factor in factors[name == "cyclic" :]), "whose cycle begins at 0"
