"""BatchNorm on several processes as on one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from support.ranks import joined
from support.small_run import fitted, network, vector
from torch import Tensor, nn

from robustcords.training.averaging import AveragingConfig
from robustcords.training.sync_batchnorm import SyncBatchNorm

SHARES = (5, 2)
"""Rows of the two processes."""
CASES: list[tuple[Any, dict[str, Any], tuple[int, ...]]] = [
    (nn.BatchNorm1d, {}, ()),
    (nn.BatchNorm2d, {"momentum": None}, (4, 2)),
    (nn.BatchNorm2d, {"affine": False, "track_running_stats": False}, (2, 2)),
    (nn.BatchNorm3d, {"eps": 0.5}, (2, 1, 2)),
]
RUN: dict[str, Any] = {"loss": "trades", "settings": {"averaging": AveragingConfig(decay=0.5), "sync_batchnorm": True}}


def norm(case: int) -> nn.Module:
    """Returns a BatchNorm with parameters that are not 0 and 1."""
    kind, options, _ = CASES[case]
    module: nn.Module = kind(3, **options).double()
    with torch.no_grad():
        for end, parameter in enumerate(module.parameters(), 2):
            parameter.copy_(torch.linspace(-1, end, 3))
    return module


def images(case: int) -> Tensor:
    shape = (sum(SHARES), 3, *CASES[case][2])
    return 2 * torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(case)) + 5


def differentiated(module: nn.Module, x: Tensor, weights: Tensor) -> dict[str, Any]:
    """Returns the output, first and second derivatives of a loss of it, and the statistics that are kept."""
    x = x.clone().requires_grad_()
    y = module(x)
    loss = (y.flatten(1).pow(3).sum(dim=1) * weights).sum()
    of_x, *of_parameters = torch.autograd.grad(loss, [x, *module.parameters()], create_graph=True)
    (second,) = torch.autograd.grad(of_x.pow(2).sum(), x)
    return {
        "rows": [y.detach(), of_x.detach(), second],
        "sums": [gradient.detach() for gradient in of_parameters],
        "same": list(module.buffers()),
    }


def process(rank: int, folder: Path) -> None:
    weights = torch.arange(1.0, 8.0).double().split(SHARES)[rank]
    with SyncBatchNorm():
        found = [differentiated(norm(case), images(case).split(SHARES)[rank], weights) for case in range(len(CASES))]
        low = nn.BatchNorm1d(3)(images(0).split(SHARES)[rank].bfloat16())
    torch.save((found, low), folder / f"operation-{rank}.pt")
    torch.save(vector(fitted(model=network(norm=True), **RUN)), folder / f"run-{rank}.pt")


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("two")
    joined(process, 2, folder)
    return folder


def test_it_is_batchnorm_of_all_images_with_its_derivatives(two: Path):
    (parts, low), (others, _) = (torch.load(two / f"operation-{rank}.pt") for rank in range(2))
    for case, (first, other) in enumerate(zip(parts, others, strict=True)):
        whole = differentiated(norm(case), images(case), torch.arange(1.0, 8.0).double())
        torch.testing.assert_close(
            [torch.cat(pair) for pair in zip(first["rows"], other["rows"], strict=True)], whole["rows"]
        )
        torch.testing.assert_close(
            [sum(pair) for pair in zip(first["sums"], other["sums"], strict=True)], whole["sums"]
        )
        torch.testing.assert_close(first["same"], whole["same"])
        torch.testing.assert_close(other["same"], whole["same"])
    expected = nn.BatchNorm1d(3)(images(0).bfloat16().float())[: SHARES[0]]
    assert low.dtype == torch.bfloat16
    torch.testing.assert_close(low, expected.bfloat16())


def test_two_processes_train_as_one(two: Path):
    one = vector(fitted(model=network(norm=True), **RUN))
    for rank in range(2):
        torch.testing.assert_close(torch.load(two / f"run-{rank}.pt"), one, rtol=1e-4, atol=1e-6)


def test_eval_mode_and_other_functions_are_as_ever():
    module, x = norm(0).eval(), images(0)
    with SyncBatchNorm():
        assert torch.equal(module(x), norm(0).eval()(x))
        assert torch.equal(x.relu(), torch.relu(images(0)))
