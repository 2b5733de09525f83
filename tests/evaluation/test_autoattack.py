from __future__ import annotations

import contextlib
import logging
import random
import sys

import numpy as np
import pytest
import torch
from pyautoattack import AutoAttack
from pyautoattack.square import SquareAttack
from support.cases import cases
from torch import Tensor, nn

from robustcords.evaluation.attacks import autoattack

pytestmark = pytest.mark.usefixtures("brief")


def network(classes: int, channels: int = 1, size: int = 5) -> nn.Module:
    torch.manual_seed(classes)
    body = nn.Sequential(nn.Flatten(), nn.Linear(channels * size * size, 8), nn.Tanh(), nn.Dropout(0.9))
    return nn.Sequential(body, nn.Linear(8, classes)).eval()


def always_first(x: Tensor) -> Tensor:
    """A classifier of images of any size, to which all are of class 0."""
    return x.flatten(1)[:, :3] * 0 + torch.tensor([2.0, 1.0, 0.0])


def images(model: nn.Module, count: int, channels: int = 1, size: int = 5) -> tuple[Tensor, Tensor]:
    x = torch.rand((count, channels, size, size), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        y = model(x).argmax(1)
    return x, y


@cases(
    ("version", "norm", "classes", "pixels", "name", "attacks"),
    [
        ("standard", "Linf", 10, 32, "standard", "apgd-ce apgd-t fab-t square"),
        ("standard", "Linf", 100, 32, "standard", "apgd-ce apgd-t fab-t square"),
        ("standard", "Linf", 9, 32, "standard (8 target classes)", "apgd-ce apgd-t fab-t square"),
        ("standard", "Linf", 4, 32, "standard (3 target classes)", "apgd-ce apgd-t fab-t square"),
        ("standard", "Linf", 3, 32, "standard (without apgd-t, 2 target classes)", "apgd-ce fab-t square"),
        ("standard", "Linf", 2, 32, "standard (without apgd-t, 1 target class)", "apgd-ce fab-t square"),
        ("standard", "L2", 10, 4, "standard (without square)", "apgd-ce apgd-t fab-t"),
        ("standard", "L1", 10, 32, "standard", "apgd-ce apgd-t fab-t square"),
        ("standard", "L1", 10, 12, "standard (without square)", "apgd-ce apgd-t fab-t"),
        ("rand", "Linf", 3, 32, "rand", "apgd-ce apgd-dlr"),
        ("rand", "Linf", 2, 32, "rand (without apgd-dlr)", "apgd-ce"),
        ("plus", "Linf", 10, 32, "plus", "apgd-ce apgd-dlr fab square apgd-t fab-t"),
        ("plus", "L2", 2, 32, "plus (without apgd-dlr and apgd-t, 1 target class)", "apgd-ce fab square fab-t"),
    ],
)
def test_variants(version: str, norm: str, classes: int, pixels: int, name: str, attacks: str):
    variant = autoattack.variant(version, norm, classes, (pixels, pixels))
    assert (variant.name, variant.attacks) == (name, tuple(attacks.split()))
    assert variant.targets == min(9, classes - 1)


@cases(
    ("classes", "norm", "epsilon", "size"),
    [(2, "Linf", 0.2, 5), (3, "L2", 0.4, 4), (4, "Linf", 0.05, 5), (7, "L1", 1.5, 4)],
)
def test_equals_pyautoattack_called_directly(classes: int, norm: str, epsilon: float, size: int):
    model = network(classes, size=size)
    x, y = images(model, 12, size=size)
    y[0] = (y[0] + 1) % classes
    variant = autoattack.variant("standard", norm, classes, (size, size))
    withstood, _ = autoattack.run(model, x, y, norm=norm, epsilon=epsilon, version="standard", seed=5)

    logging.getLogger("auto-attack").setLevel(logging.ERROR)
    frozen = network(classes, size=size).requires_grad_(False)
    direct = AutoAttack(frozen, norm=norm, eps=epsilon, version="standard", seed=5)
    direct.attacks_to_run = list(variant.attacks)
    direct.apgd_targeted.n_target_classes = min(classes - 1, 5 if norm == "L1" else 9)
    direct.fab.n_target_classes = classes - 1
    _, predicted = direct.run_standard_evaluation(x, y, batch_size=len(x))

    robust = withstood == len(variant.attacks)
    assert torch.equal(robust, predicted == y)
    assert 0 < robust.sum() < len(x) - 1, "the radius does not tell examples apart"
    assert withstood[0] == 0


@pytest.mark.parametrize("norm", ["L2", "L1"])
def test_square_is_run_on_the_sizes_that_it_can_be(norm: str):
    squares = [(side, side) for side in (4, 5, 7, 9, 11, 12, 14, 15, 19, 20, 24, 28, 32)]
    others = [(17, 24), (24, 17), (12, 10), (10, 12), (40, 5), (24, 3), (3, 24), (64, 32), (25, 33)]
    fitting = set()
    for size in (*squares, *others):
        attacker = SquareAttack(always_first, norm=norm, eps=1e-4, n_queries=1, seed=0, device="cpu")
        with torch.random.fork_rng(devices=[]), contextlib.suppress(RuntimeError, ZeroDivisionError):
            attacker.perturb(torch.rand(1, 1, *size), torch.zeros(1, dtype=torch.int64))
            fitting.add(size)
        assert autoattack.square_fits(norm, size) == (size in fitting), size
    assert {(32, 32), (40, 5), (24, 3)} < fitting
    assert not {(24, 24), (17, 24), (3, 24)} & fitting
    assert autoattack.square_fits("Linf", (4, 4))


@cases("classes", range(2, 11))
def test_any_number_of_classes_runs_with_one_example_left(classes: int):
    model = network(classes, channels=3, size=4)
    x, y = images(model, 3, channels=3, size=4)
    y[:2] = (y[:2] + 1) % classes
    # l2 on 4 by 4 pixels leaves Square out, whose 5,000 queries are the slow part.
    variant = autoattack.variant("standard", "L2", classes, (4, 4))
    withstood, warnings = autoattack.run(model, x, y, norm="L2", epsilon=1e-4, version="standard", seed=0)
    assert withstood.tolist() == [0, 0, len(variant.attacks)]
    assert warnings == []


def test_nothing_left_to_attack():
    model = network(3)
    x, y = images(model, 4)
    withstood, warnings = autoattack.run(model, x, (y + 1) % 3, norm="Linf", epsilon=0.1, version="standard", seed=0)
    assert withstood.tolist() == [0, 0, 0, 0]
    assert warnings == []


def test_a_large_radius_breaks_everything():
    model = network(5, size=4)
    x, y = images(model, 6, size=4)
    withstood, _ = autoattack.run(model, x, y, norm="L2", epsilon=4.0, version="standard", seed=0)
    assert (withstood < 3).all()


def test_leaves_no_trace(capfd: pytest.CaptureFixture[str]):
    model = network(3, size=4)
    x, y = images(model, 4, size=4)
    model.train()
    before = torch.get_rng_state(), np.random.get_state()[1].copy(), random.getstate(), sys.gettrace()
    x_before = x.clone()
    results = [autoattack.run(model, x, y, norm="L2", epsilon=0.05, version="standard", seed=3)[0] for _ in range(2)]
    assert torch.equal(*results)
    assert torch.equal(torch.get_rng_state(), before[0])
    assert np.array_equal(np.random.get_state()[1], before[1])
    assert random.getstate() == before[2]
    assert sys.gettrace() is before[3]
    assert all(module.training for module in model.modules())
    assert all(parameter.grad is None and parameter.requires_grad for parameter in model.parameters())
    assert torch.equal(x, x_before)
    assert capfd.readouterr() == ("", "")


def test_warnings_are_returned_and_not_printed(capfd: pytest.CaptureFixture[str]):
    class Randomised(nn.Module):
        """Logits with noise of their own."""

        def __init__(self) -> None:
            super().__init__()
            self.net = network(3)

        def forward(self, x: Tensor) -> Tensor:
            logits: Tensor = self.net(x)
            return logits + torch.randn_like(logits) * 0.01

    x, y = images(network(3), 4)
    _, warnings = autoattack.run(Randomised(), x, y, norm="Linf", epsilon=1.0, version="standard", seed=0)
    assert any("randomized defense" in text for text in warnings)
    assert len(warnings) == len(set(warnings))
    assert capfd.readouterr() == ("", "")


def test_logits_that_are_no_numbers_are_wrong():
    model = nn.Sequential(nn.Flatten(), nn.Linear(25, 3))
    nn.init.constant_(model[1].weight, float("nan"))
    x = torch.rand((2, 1, 5, 5), generator=torch.Generator().manual_seed(0))
    y = torch.zeros(2, dtype=torch.int64)
    assert autoattack.run(model, x, y, norm="Linf", epsilon=0.1, version="standard", seed=0)[0].tolist() == [0, 0]


def test_square_is_reported_where_it_matters():
    assert autoattack.square_warning({"apgd-ce": 0.5, "fab-t": 0.5, "square": 0.499}) == []
    assert "5.00%" in autoattack.square_warning({"apgd-ce": 0.6, "fab-t": 0.5, "square": 0.45})[0]
    assert autoattack.square_warning({"apgd-ce": 0.6, "apgd-dlr": 0.5}) == []
