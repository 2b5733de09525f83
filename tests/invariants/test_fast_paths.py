"""Training the fast ways ends where training the plain way does."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from support import small_run
from support.small_run import trainer, vector
from torch import Tensor, nn

from robustcords.attacks.pgd import PGD
from robustcords.engine import folding, inference
from robustcords.methods.efforts.base import Effort
from robustcords.methods.efforts.bullet import Bullet
from robustcords.methods.efforts.uniform import Uniform
from robustcords.threats.base import ThreatModel
from robustcords.training import trainer as training
from robustcords.training.trainer import Trainer

# Steps along the gradient itself: its sign would make much of every rounding.
SMOOTH = PGD(ThreatModel(norm="l2", epsilon=0.5), steps=3, step_size=0.2)


class Double(nn.Module):
    """Goes on in float64, in which rounding is too small for training to make much of it."""

    def forward(self, x: Tensor) -> Tensor:
        return x.double()


def network() -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(2)
        layers = [nn.Conv2d(1, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 8, 3), nn.BatchNorm2d(8), nn.ReLU()]
        return nn.Sequential(*layers, nn.Flatten(), nn.Linear(128, 3))


def trained(
    effort: type[Effort] = Uniform, *, double: bool = True, network: Callable[[], nn.Module] = network, **settings: Any
) -> Trainer:
    model = nn.Sequential(Double(), network().double()) if double else network()
    made = trainer(model=model, loss="trades", lr=0.05, settings=settings, attack=SMOOTH, effort=effort)
    made.fit()
    return made


def close(first: Trainer, second: Trainer) -> bool:
    return torch.allclose(vector(first), vector(second), rtol=1e-8, atol=1e-10)


@pytest.fixture
def plain(monkeypatch: pytest.MonkeyPatch) -> Trainer:
    with monkeypatch.context() as patch:
        patch.setattr(inference, "fold", lambda model: None)
        return trained()


def test_folded_batch_norms(plain: Trainer, monkeypatch: pytest.MonkeyPatch):
    folds: list[folding.Folded | None] = []
    monkeypatch.setattr(folding, "KNOWN", (*folding.KNOWN, __name__))
    monkeypatch.setattr(inference, "fold", lambda model: folds.append(folding.fold(model)) or folds[-1])
    assert close(trained(), plain)
    # Once to find out whether the network runs, and once for all of training.
    assert len(folds) == 2 and None not in folds


def test_channels_last(plain: Trainer):
    found = trained(memory_format="channels_last")
    convolutions = [value for value in found.model.parameters() if value.dim() == 4]
    assert all(value.is_contiguous(memory_format=torch.channels_last) for value in convolutions)
    assert close(found, plain)


def test_compiled(monkeypatch: pytest.MonkeyPatch):
    """With Bullet-Train, so that sub-batches of every size go through the compiled model."""
    small = partial(small_run.network, norm=True)
    expected = trained(Bullet, network=small)
    torch._dynamo.reset()
    monkeypatch.setattr(training, "compile_model", lambda model: model.compile(backend="aot_eager"))
    assert close(trained(Bullet, network=small, compile=True), expected)
    assert torch._dynamo.utils.counters["frames"]["ok"] > 0
    torch._dynamo.reset()


def test_bf16():
    """It rounds to 8 bits, so training goes nearly the same way."""
    start = vector(network())
    rounded, exact = (vector(trained(double=False, precision=name)) - start for name in ("bf16", "fp32"))
    assert 0.98 < float(torch.cosine_similarity(rounded, exact, dim=0)) < 1
