"""Drawing without repetition: the probabilities, and that sums with inverse weights are unbiased."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from support.cases import cases

from robustcords.selection.solvers.systematic import drawn_by_size, inclusion_probabilities, systematic_sample

SIZES = {
    "uneven": torch.rand(23, generator=torch.Generator().manual_seed(1), dtype=torch.float64) ** 3 + 1e-3,
    "some certain": torch.tensor([50.0, 0.1, 3.0, 0.2, 40.0, 0.3, 0.1, 2.0, 0.2, 0.4]),
    "equal": torch.ones(9),
    "one large": torch.tensor([1e6, 1.0, 1.0, 1.0]),
}


def by_bisection(sizes: np.ndarray, budget: int) -> np.ndarray:
    """min(1, c p) with the c that makes it add up to the budget, found by halving."""
    low, high = 0.0, budget / sizes.min()
    for _ in range(200):
        middle = (low + high) / 2
        low, high = (middle, high) if np.minimum(1, middle * sizes).sum() < budget else (low, middle)
    return np.minimum(1, high * sizes)


@cases("name", SIZES)
def test_probabilities_are_by_size_at_most_1_and_add_up(name: str):
    sizes = SIZES[name].double()
    for budget in range(1, len(sizes) + 1):
        found = inclusion_probabilities(sizes, budget).numpy()
        np.testing.assert_allclose(found, by_bisection(sizes.numpy(), budget), rtol=1e-8)
        assert found.sum() == pytest.approx(budget, rel=1e-12)


@cases("name", SIZES)
@cases("budget", [1, 3, 4])
def test_weighted_sums_are_unbiased_over_all_starts(name: str, budget: int):
    """What is chosen changes only where a start passes the end of an interval, so the mean over starts is a sum."""
    probabilities = inclusion_probabilities(SIZES[name], budget)
    values = torch.randn(len(probabilities), generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    rest = probabilities[probabilities < 1 - 1e-9]
    edges = torch.cat([torch.tensor([0.0, 1.0], dtype=torch.float64), rest.cumsum(0) % 1]).sort().values
    total, share = 0.0, torch.zeros(len(probabilities), dtype=torch.float64)
    for low, high in zip(edges[:-1].tolist(), edges[1:].tolist(), strict=True):
        if high - low < 1e-12:
            continue
        rows = systematic_sample(probabilities, (low + high) / 2)
        assert len(rows.unique()) == budget
        total += (high - low) * float((values[rows] / probabilities[rows]).sum())
        share[rows] += high - low
    assert total == pytest.approx(float(values.sum()), rel=1e-9)
    torch.testing.assert_close(share, probabilities, rtol=0, atol=1e-11)


def test_a_draw_has_the_budget_and_the_weights_of_its_probabilities():
    sizes = SIZES["uneven"]
    drawn = [drawn_by_size(sizes, 9, torch.Generator().manual_seed(seed)) for seed in (1, 1, 2)]
    assert torch.equal(drawn[0][0], drawn[1][0])
    assert set(drawn[0][0].tolist()) != set(drawn[2][0].tolist())
    for rows, weights in drawn:
        assert len(rows.unique()) == 9
        np.testing.assert_allclose(weights.numpy(), 1 / by_bisection(sizes.numpy(), 9)[rows.numpy()], rtol=1e-8)


def test_neighbours_can_be_drawn_together():
    """In a fixed order two neighbours with probability 1/2 or less never are."""
    pairs = [set(drawn_by_size(torch.ones(6), 2, torch.Generator().manual_seed(n))[0].tolist()) for n in range(60)]
    assert {0, 1} in pairs
