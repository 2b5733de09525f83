from __future__ import annotations

import copy
import warnings
from typing import Any

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from support.cases import cases
from torch import Tensor, nn

from robustcords.training.averaging import Averaging
from robustcords.training.config import AveragingConfig, TrainConfig


class Net(nn.Module):
    """BatchNorm's statistics, a whole-number buffer, a truth-value buffer, a mask and one that is not saved."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(3, 2)
        self.bn = nn.BatchNorm1d(2)
        self.register_buffer("index", torch.tensor([1, 5, 7]))
        self.register_buffer("mask", torch.tensor([True, False]))
        self.register_buffer("table", torch.tensor([3, 1]), persistent=False)
        self.register_buffer("causal", torch.tensor([0.0, -torch.inf]), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.bn(self.fc(x))


def change(model: Net, step: int) -> None:
    """What a training step does to a model."""
    numbers = torch.Generator().manual_seed(step)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=numbers))
    model.train()(torch.randn(8, 3, generator=numbers))


def floats(model: nn.Module) -> dict[str, np.ndarray]:
    state = model.state_dict().items()
    return {key: value.double().numpy().copy() for key, value in state if value.is_floating_point()}


def run(config: AveragingConfig, steps: int = 10) -> tuple[Net, Averaging, list[dict[str, np.ndarray]]]:
    model = Net()
    averaging = Averaging(model, config)
    history = []
    for step in range(steps):
        change(model, step)
        averaging.update((step + 1) / steps)
        history.append(floats(model))
    return model, averaging, history


def assert_equal(model: nn.Module, expected: dict[str, np.ndarray]) -> None:
    for key, value in floats(model).items():
        np.testing.assert_allclose(value, expected[key], rtol=1e-5, atol=1e-6, err_msg=key)


@cases("start", [0.0, 0.5])
@cases("decay", [0.0, 0.6, 0.99])
def test_ema_of_weights_and_statistics(decay: float, start: float) -> None:
    _, averaging, history = run(AveragingConfig(kind="ema", decay=decay, start=start))
    expected: dict[str, np.ndarray] = {}
    for step, now in enumerate(history):
        if (step + 1) / len(history) >= start:
            expected = {key: decay * expected.get(key, value) + (1 - decay) * value for key, value in now.items()}
    assert_equal(averaging.model, expected)


@pytest.mark.parametrize("start", [0.0, 0.75])
def test_swa_is_the_mean_from_the_start_on(start: float) -> None:
    _, averaging, history = run(AveragingConfig(kind="swa", start=start))
    taken = [now for step, now in enumerate(history) if (step + 1) / len(history) >= start]
    assert_equal(averaging.model, {key: np.mean([now[key] for now in taken], axis=0) for key in taken[0]})


@pytest.mark.parametrize("start", [0.0, 0.3])
def test_an_ema_that_warms_up_keeps_less_at_first(start: float) -> None:
    _, averaging, history = run(AveragingConfig(decay=0.3, warmup=True, start=start), steps=20)
    expected: dict[str, np.ndarray] = {}
    taken = [now for step, now in enumerate(history) if (step + 1) / len(history) >= start]
    for n, now in enumerate(taken):
        decay = min(0.3, (1 + n) / (10 + n)) if n else 0.0
        expected = {key: decay * expected.get(key, value) + (1 - decay) * value for key, value in now.items()}
    assert_equal(averaging.model, expected)


@pytest.mark.parametrize("kind", ["ema", "swa"])
def test_statistics_may_be_copied(kind: Any) -> None:
    model, averaging, history = run(AveragingConfig(kind=kind, decay=0.6, start=0.0, statistics="copied"))
    for name, buffer in model.named_buffers():
        assert torch.equal(averaging.model.get_buffer(name), buffer)
    averaged = floats(averaging.model)
    assert not np.allclose(averaged["fc.weight"], history[-1]["fc.weight"])
    other = run(AveragingConfig(kind=kind, decay=0.6, start=0.0))[1].model
    np.testing.assert_array_equal(averaged["fc.weight"], floats(other)["fc.weight"])


@pytest.mark.parametrize("kind", ["ema", "swa"])
def test_scripted_parts_are_averaged_too(kind: Any) -> None:
    with warnings.catch_warnings(action="ignore", category=FutureWarning):  # torch's, of torch.jit.script
        model = nn.Sequential(torch.jit.script(nn.Linear(3, 2)))
    averaging = Averaging(model, AveragingConfig(kind=kind, decay=0.5, start=0.0))
    for value in (1.0, 3.0):
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.fill_(value)
        averaging.update(1.0)
    averaged = list(averaging.model.parameters())
    assert all(parameter.is_leaf and bool((parameter == 2).all()) for parameter in averaged)


@pytest.mark.parametrize("kind", ["ema", "swa"])
def test_whole_numbers_and_masks_are_copied(kind: Any) -> None:
    model, averaging, _ = run(AveragingConfig(kind=kind, start=0.0))
    averaged = averaging.model
    assert averaged is not model
    assert averaged.bn.num_batches_tracked == 10
    assert averaged.index.tolist() == [1, 5, 7]
    assert averaged.mask.tolist() == [True, False]
    assert averaged.table.tolist() == [3, 1]
    assert averaged.causal.tolist() == [0, -torch.inf]


def test_before_the_start_the_model_is_the_raw_one() -> None:
    model = Net()
    averaging = Averaging(model, AveragingConfig(kind="swa", start=0.5))
    averaging.update(0.49)
    assert averaging.model is model
    averaging.update(0.5)
    assert averaging.model is not model


def test_the_model_in_training_is_left_alone() -> None:
    model, averaging, history = run(AveragingConfig(decay=0.9))
    assert_equal(model, history[-1])
    assert not np.allclose(floats(averaging.model)["fc.weight"], history[-1]["fc.weight"])


@cases("kind", ["ema", "swa"])
@cases("stop", [2, 6])
def test_going_on_from_a_state_is_going_on(kind: Any, stop: int) -> None:
    config = AveragingConfig(kind=kind, decay=0.8, start=0.4, warmup=True)
    _, uninterrupted, _ = run(config)
    model = Net()
    averaging = Averaging(model, config)
    for step in range(stop):
        change(model, step)
        averaging.update((step + 1) / 10)
    state, weights = copy.deepcopy(averaging.state_dict()), copy.deepcopy(model.state_dict())
    assert all(isinstance(value, Tensor) for value in state.values())
    model = Net()
    model.load_state_dict(weights)
    averaging = Averaging(model, config)
    averaging.load_state_dict(state)
    for step in range(stop, 10):
        change(model, step)
        averaging.update((step + 1) / 10)
    for key, value in uninterrupted.model.state_dict().items():
        assert torch.equal(averaging.model.state_dict()[key], value), key


def test_defaults() -> None:
    assert (AveragingConfig().kind, AveragingConfig().decay, AveragingConfig().start) == ("ema", 0.999, 0.0)
    assert AveragingConfig(kind="ema").start == 0.0
    assert AveragingConfig(kind="swa").start == 0.75
    assert AveragingConfig(kind="swa", start=0.5).start == 0.5
    config = AveragingConfig(kind="swa")
    assert AveragingConfig(**config.model_dump()) == config
    assert TrainConfig(averaging={"kind": "swa"}).averaging == config  # type: ignore[arg-type]


@cases(
    "options",
    [
        {"kind": "mean"},
        {"kind": ["ema"]},
        {"kind": {}},
        {"decay": 1.0},
        {"decay": -0.1},
        {"start": 1.0},
        {"start": "0.5"},
        {"begin": 0.5},
    ],
)
def test_impossible_options(options: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        AveragingConfig(**options)
