from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import pytest
import torch
from small_problem import factors

from robustcords.strategies import cholesky, omp
from robustcords.strategies.cholesky import GrowingCholesky
from robustcords.strategies.products import GramProducts

CASES = [(120, 2, 5, 1), (200, 3, 8, 1), (200, 10, 16, 2), (300, 4, 32, 2)]


@dataclass
class Path:
    """What a solver held after each of its picks, up to where upstream first takes what it holds already."""

    picks: list[tuple[int, frozenset[int]]] = field(default_factory=list)
    went_astray: bool = False


class RecordingTorch:
    """torch, as the upstream solver sees it, with a note of its picks (argmax) and prunings (argmin)."""

    def __init__(self):
        self.events = []

    def __getattr__(self, name):
        return getattr(torch, name)

    def argmax(self, values):
        self.events.append(("take", int(torch.argmax(values))))
        return torch.argmax(values)

    def argmin(self, values):
        self.events.append(("drop", int(torch.argmin(values))))
        return torch.argmin(values)


def upstream(monkeypatch, gradients, budget, ridge, tolerance=1e-100):
    """Runs the installed solver, and returns its weights (N,) and its path."""
    from robustcords.strategies import _cords  # noqa: F401, I001  # makes cords importable
    from cords.selectionstrategies.helpers import omp_solvers

    recorder = RecordingTorch()
    dense = gradients.dense()
    with monkeypatch.context() as patch:
        patch.setattr(omp_solvers, "torch", recorder)
        weights = omp_solvers.OrthogonalMP_REG_Parallel_V1(
            dense.T, dense.sum(0), tol=tolerance, nnz=budget, positive=True, lam=ridge, device=torch.device("cpu")
        )
    path, held = Path(), []
    for kind, value in recorder.events:
        if kind == "drop":
            held.pop(value)
            path.picks[-1] = (path.picks[-1][0], frozenset(held))
        elif value in held:
            path.went_astray = True
            break
        else:
            held.append(value)
            path.picks.append((value, frozenset(held)))
    return weights.double(), path


def residual(gradients, rows, weights, target=None):
    dense = gradients.dense().double()
    target = dense.sum(0) if target is None else target
    return ((weights.double() @ dense[rows] - target).norm() / target.norm()).item()


def walk(gradients, budget, ridge, picks):
    """Makes some picks of our pursuit one by one."""
    target = gradients.sum()
    capacity = budget + cholesky.SUSPENDED + 1
    pursuit = omp.Pursuit(GramProducts(gradients, target, capacity), capacity, ridge, float(target.norm()))
    path = Path()
    for _ in range(picks):
        candidate = pursuit.best()
        if candidate is None:
            break
        pursuit.take(candidate)
        path.picks.append((candidate, frozenset(pursuit.held()[0].tolist())))
    return pursuit, path


@pytest.mark.parametrize("suspended", [2, 48])
@pytest.mark.parametrize("ridge", [0.0, 0.5])
@pytest.mark.parametrize("seed", [0, 1])
def test_follows_cords_pick_for_pick(monkeypatch, ridge, seed, suspended):
    monkeypatch.setattr(cholesky, "SUSPENDED", suspended)
    covered, dropped, finished = [], 0, 0
    for count, classes, width, terms in CASES:
        gradients = factors(count, classes, width, terms, seed)
        budget = 60
        expected, path = upstream(monkeypatch, gradients, budget, ridge)
        rank = (classes - 1) * (width + 1)
        if ridge == 0:  # beyond the rank of the gradients both follow rounding
            path.picks = [pick for pick in path.picks if len(pick[1]) < rank]
        pursuit, ours = walk(gradients, budget, ridge, len(path.picks))
        assert ours.picks == path.picks
        covered.append(len(path.picks))
        dropped += sum(
            1
            for (_, before), (atom, after) in zip(path.picks, path.picks[1:], strict=False)
            if not before | {atom} <= after
        )
        if not path.went_astray and len(path.picks) == budget:
            rows, weights = pursuit.held()
            spread = torch.zeros(count, dtype=torch.float64)
            spread[torch.from_numpy(rows)] = torch.from_numpy(weights)
            torch.testing.assert_close(spread, expected, rtol=1e-5, atol=1e-5 * float(expected.max()))
            finished += 1
    print(f"picks covered: {covered}, of which {dropped} pruned")
    assert max(covered) >= 20
    assert dropped > 0
    assert finished > 0


@pytest.mark.parametrize("ridge", [0.0, 0.5])
@pytest.mark.parametrize("budget", [1, 2, 40, 100])
@pytest.mark.parametrize("case", CASES)
def test_residual_is_at_most_that_of_the_weights_cords_returns(monkeypatch, case, budget, ridge):
    gradients = factors(*case)
    expected, _ = upstream(monkeypatch, gradients, budget, ridge)
    rows, weights = omp.match(gradients, gradients.sum(), budget, ridge=ridge, tolerance=0.0)
    theirs = residual(gradients, slice(None), expected)
    # CORDS' weights are float32: below 1e-6 it is their rounding that is compared.
    assert residual(gradients, rows, weights) <= theirs * (1 + 1e-6) + 1e-6
    assert len(rows.unique()) == budget
    assert (weights >= 0).all()


def test_ridge_solution_on_the_rows_that_are_held():
    gradients = factors(300, 4, 32, 2)
    rows, weights = omp.match(gradients, gradients.sum(), 150, ridge=0.5, tolerance=0.0)
    dense = gradients.dense()
    gram = dense[rows] @ dense[rows].T + 0.5 * torch.eye(150, dtype=torch.float64)
    expected = torch.linalg.solve(gram, dense[rows] @ dense.sum(0))
    torch.testing.assert_close(weights, expected, rtol=1e-6, atol=1e-9)


def test_fill_beyond_the_rank_has_weight_0_and_does_not_raise_the_residual():
    gradients = factors(100, 2, 5, 1)  # rank 6
    rows, weights = omp.match(gradients, gradients.sum(), 50, ridge=0.0, tolerance=1e-6)
    held = weights > 0
    assert held.sum() <= 6
    assert residual(gradients, rows, weights) == residual(gradients, rows[held], weights[held]) < 1e-6
    assert len(rows.unique()) == 50


def test_tolerance_ends_the_pursuit():
    gradients = factors(200, 3, 8, 1)
    target = gradients.sum()
    rows, weights = omp.match(gradients, target, 100, ridge=0.0, tolerance=0.1)
    count = int((weights > 0).sum())
    assert residual(gradients, rows, weights) <= 0.1
    fewer, those = omp.match(gradients, target, count - 1, ridge=0.0, tolerance=0.1)
    assert residual(gradients, fewer, those) > 0.1


def test_factors_alone_give_what_the_gram_matrix_gives(monkeypatch):
    gradients = factors(300, 4, 32, 2)
    expected = omp.match(gradients, gradients.sum(), 60, ridge=0.5, tolerance=0.0)
    monkeypatch.setattr(omp, "_LARGEST_GRAM", 0)
    found = omp.match(gradients, gradients.sum(), 60, ridge=0.5, tolerance=0.0)
    assert torch.equal(found[0], expected[0])
    torch.testing.assert_close(found[1], expected[1], rtol=1e-7, atol=1e-9)


def test_float32_gradients_are_matched_as_well():
    exact = factors(300, 4, 32, 2)
    gradients = type(exact)(
        tuple(part.float() for part in exact.deltas), tuple(part.float() for part in exact.features), exact.labels
    )
    found = omp.match(gradients, gradients.sum(), 60, ridge=0.5, tolerance=0.0)
    expected = omp.match(exact, exact.sum(), 60, ridge=0.5, tolerance=0.0)
    assert residual(exact, *found) <= residual(exact, *expected) * 1.05


def test_a_target_that_no_gradient_points_to_gives_weights_0():
    gradients = factors(30, 3, 8, 1)
    rows, weights = omp.match(gradients, -gradients.sum(), 5, ridge=0.5, tolerance=0.0)
    dense = gradients.dense()
    assert (dense @ dense.sum(0) > 0).all()
    assert not weights.any()
    assert len(rows.unique()) == 5


@pytest.mark.parametrize("ridge", [0.0, 0.5])
def test_equal_gradients_are_never_held_twice_over(ridge):
    gradients = factors(10, 3, 8, 1).rows(torch.arange(10).repeat(3))
    rows, weights = omp.match(gradients, gradients.sum(), 25, ridge=ridge, tolerance=0.0)
    assert len(rows.unique()) == 25
    assert residual(gradients, rows, weights) < (1e-6 if ridge == 0 else 0.05)


@pytest.mark.parametrize("largest_gram", [0, 12_000])
@pytest.mark.parametrize("seed", range(10))
def test_gradients_that_are_almost_equal_fill_the_budget_once_each(monkeypatch, seed, largest_gram):
    monkeypatch.setattr(omp, "_LARGEST_GRAM", largest_gram)
    noise = torch.Generator().manual_seed(seed)
    equal = factors(6, 3, 8, 1, seed).rows(torch.arange(6).repeat(6))
    features = equal.features[0] + 1e-8 * torch.randn(equal.features[0].shape, generator=noise, dtype=torch.float64)
    gradients = type(equal)(equal.deltas, (features,), equal.labels)
    target = factors(1, 3, 8, 1, seed + 1000).sum()  # no weighted sum of them, so there is always something left
    shorter, those = omp.match(gradients, target, 20, ridge=0.0, tolerance=0.0)
    expected = residual(gradients, shorter, those, target.view(-1))
    for budget in (35, 36):
        rows, weights = omp.match(gradients, target, budget, ridge=0.0, tolerance=0.0)
        assert len(rows) == len(rows.unique()) == budget
        assert residual(gradients, rows, weights, target.view(-1)) == pytest.approx(expected, rel=1e-6)


def test_what_is_held_never_comes_back_and_what_depends_on_it_comes_last():
    gradients = factors(6, 3, 8, 1).rows(torch.tensor([0, 0, 1, 1, 2, 3, 4, 5]))
    pursuit, _ = walk(gradients, 8, 0.0, 0)
    for row in (0, 1, 2, 3, 4):  # 1 and 3 depend on 0 and 2
        pursuit.take(row)
    assert sorted(pursuit.held()[0].tolist()) == [0, 2, 4]
    ranked = pursuit.runners_up(8).tolist()
    assert sorted(ranked[:3]) == [5, 6, 7]
    assert sorted(ranked[3:]) == [1, 3]
    for row in (5, 6, 7):
        pursuit.take(row)
    assert pursuit.best() is None, "all that is left depends on what is held"


def test_growing_cholesky_solves_what_dense_algebra_solves():
    source = np.random.default_rng(0)
    root = source.normal(size=(12, 20))
    gram, right = root @ root.T, source.normal(size=12)
    factor = GrowingCholesky(capacity=12, ridge=0.1)
    places: list[int] = []

    def check(free):
        places_free = [place for place, unknown in enumerate(places) if unknown in free]
        x = factor.solution()
        expected = np.linalg.solve(gram[np.ix_(free, free)] + 0.1 * np.eye(len(free)), right[free])
        np.testing.assert_allclose(x[places_free], expected, rtol=1e-9)
        assert np.abs(x).sum() == np.abs(x[places_free]).sum()

    for unknown in range(6):
        assert factor.append(gram[unknown, places], gram[unknown, unknown], right[unknown])
        places.append(unknown)
    check([0, 1, 2, 3, 4, 5])
    factor.suspend(1)
    factor.suspend(4)
    check([0, 2, 3, 5])
    assert factor.append(gram[6, places], gram[6, 6], right[6])
    places.append(6)
    check([0, 2, 3, 5, 6])
    factor.resume(1)
    check([0, 1, 2, 3, 5, 6])
    kept = factor.compact(lambda rows: gram[np.ix_(rows, rows)], lambda rows: right[rows])
    places = [places[place] for place in kept]
    assert places == [0, 1, 2, 3, 5, 6]
    check(places)


def test_growing_cholesky_refuses_a_dependent_unknown():
    factor = GrowingCholesky(capacity=3, ridge=0.0)
    assert factor.append(np.zeros(0), 4.0, 1.0)
    assert not factor.append(np.array([4.0]), 4.0, 1.0)
    assert factor.size == 1
