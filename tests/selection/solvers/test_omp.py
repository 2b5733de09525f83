from __future__ import annotations

from dataclasses import dataclass, field
from itertools import pairwise

import pytest
import torch
from support.cases import cases
from support.small_problem import factors

from robustcords.selection.gradients.factors import MeanGradients
from robustcords.selection.solvers import omp, pursuit
from robustcords.selection.solvers.gram import gram_matrix
from robustcords.selection.solvers.omp import Problem
from robustcords.selection.solvers.pursuit import Pursuit

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
    from robustcords.selection import _cords  # noqa: F401, I001  # makes cords importable
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


def start(gradients, budget, ridge, tolerance=0.0, screen=10**6):
    exact, target = gradients.double(), gradients.sum()
    gram = gram_matrix(exact, exact.labels.new_empty((len(exact), len(exact)), dtype=torch.float64))
    return Pursuit(
        gram[None],
        exact.inner(target)[None],
        torch.tensor([len(exact)]),
        torch.tensor([budget]),
        target.norm()[None],
        ridge=ridge,
        tolerance=tolerance,
        screen=screen,
    )


def held(built):
    return frozenset(built.atoms[0, built.held[0]].tolist())


def walk(monkeypatch, gradients, budget, ridge, picks):
    """Makes some picks of our pursuit one by one, each with the prunings that follow it."""
    monkeypatch.setattr(pursuit, "BLOCK", 1)
    built = start(gradients, budget, ridge)
    path = Path([(int(built.atoms[0, 0]), held(built))])
    while not built.done.all() and (len(path.picks) < picks or built.weights.min() < 0):
        before = held(built)
        built.advance()
        for atom in held(built) - before:
            path.picks.append((atom, held(built)))
        if held(built) < before:
            path.picks[-1] = (path.picks[-1][0], held(built))
    return built, path


GRID = [
    # n, C, E, terms, k, lambda
    (120, 3, 20, 1, 60, 0.0),
    (120, 3, 20, 1, 60, 0.5),
    (200, 10, 16, 2, 60, 0.0),
    (200, 10, 16, 2, 60, 5.0),
    (300, 4, 32, 2, 100, 0.0),
    (300, 4, 32, 2, 100, 0.01),
    (300, 2, 40, 1, 25, 0.5),
    (600, 10, 64, 2, 200, 0.5),
]


@pytest.mark.parametrize(
    ("seed", "grid"), [(0, GRID[:-1]), *(pytest.param(seed, GRID, marks=pytest.mark.slow) for seed in range(3))]
)
def test_follows_cords_pick_for_pick(monkeypatch, record_property, seed, grid):
    covered, dropped = [], 0
    for count, classes, width, terms, budget, ridge in grid:
        gradients = factors(count, classes, width, terms, seed)
        _, path = upstream(monkeypatch, gradients, budget, ridge)
        rank = (classes - 1) * (width + 1)
        if ridge == 0:  # beyond the rank of the gradients both follow rounding
            path.picks = [pick for pick in path.picks if len(pick[1]) < rank]
        picks = len(path.picks)
        built, ours = walk(monkeypatch, gradients, budget, ridge, picks)
        assert ours.picks == path.picks
        expected, _ = upstream(monkeypatch, gradients, picks, ridge)
        spread = torch.zeros(count, dtype=torch.float64)
        spread[built.atoms[0, built.held[0]]] = built.weights[0, built.held[0]]
        torch.testing.assert_close(spread, expected, rtol=1e-5, atol=1e-5 * float(expected.max()))
        covered.append(picks)
        dropped += sum(not {*before, atom} <= after for (_, before), (atom, after) in pairwise(path.picks))
    print(f"seed {seed}: picks covered {covered}, {dropped} of which pruned")
    record_property("picks covered", covered)
    assert min(covered) >= 20
    assert dropped > 0


SCREENS = [(8, 32, 20), (8, 32, 60), (1, 5, 17), (50, 64, 33)]


@pytest.mark.parametrize(
    ("seed", "screens", "ridge"),
    [
        (0, SCREENS[:2], 0.0),
        (0, SCREENS[2:], 0.5),
        *(pytest.param(seed, SCREENS, ridge, marks=pytest.mark.slow) for seed in (0, 1) for ridge in (0.0, 0.5)),
    ],
)
def test_screened_blocks_pick_what_looking_at_everything_picks(monkeypatch, screens, ridge, seed):
    gradients = factors(300, 4, 32, 2, seed)
    expected = omp.match(Problem(gradients, gradients.sum(), 80), ridge=ridge, tolerance=0.0)
    plainly = dict(zip(expected[0].tolist(), expected[1].tolist(), strict=True))
    for plain, block, screen in screens:
        monkeypatch.setattr(pursuit, "_PLAIN", plain)
        monkeypatch.setattr(pursuit, "BLOCK", block)
        built = start(gradients, 80, ridge, screen=screen)
        while not built.done.all():
            built.advance()
        assert built.discarded > 0
        found = dict(zip(built.atoms[0, built.held[0]].tolist(), built.weights[0, built.held[0]].tolist(), strict=True))
        assert found == pytest.approx({row: weight for row, weight in plainly.items() if weight}, rel=1e-6)


@pytest.mark.parametrize("ridge", [0.0, 0.5])
def test_problems_side_by_side_are_solved_as_each_alone(monkeypatch, ridge):
    sizes = [(200, 60), (120, 60), (120, 1), (40, 40), (3, 2)]
    problems = [
        Problem(group, group.sum(), budget)
        for seed, (count, budget) in enumerate(sizes)
        for group in [factors(count, 4, 16, 2, seed)]
    ]
    problems.append(Problem(problems[0].gradients, -problems[0].target, 7))  # nothing points there
    alone = omp.match_all(problems, ridge=ridge, tolerance=1e-3)
    monkeypatch.setattr(omp, "_batches", lambda given: [list(given)])
    together = omp.match_all(problems, ridge=ridge, tolerance=1e-3)
    for (rows, weights), (expected_rows, expected_weights) in zip(together, alone, strict=True):
        order, expected_order = rows.argsort(), expected_rows.argsort()
        assert torch.equal(rows[order], expected_rows[expected_order])
        torch.testing.assert_close(weights[order], expected_weights[expected_order], rtol=1e-7, atol=1e-9)


@pytest.mark.parametrize("ridge", [0.0, 0.5])
@pytest.mark.parametrize("budget", [1, 2, 40, 100])
@pytest.mark.parametrize("case", CASES)
def test_residual_is_at_most_that_of_the_weights_cords_returns(monkeypatch, case, budget, ridge):
    gradients = factors(*case)
    expected, _ = upstream(monkeypatch, gradients, budget, ridge)
    rows, weights = omp.match(Problem(gradients, gradients.sum(), budget), ridge=ridge, tolerance=0.0)
    theirs = residual(gradients, slice(None), expected)
    # CORDS' weights are float32: below 1e-6 it is their rounding that is compared.
    assert residual(gradients, rows, weights) <= theirs * (1 + 1e-6) + 1e-6
    assert len(rows.unique()) == budget
    assert (weights >= 0).all()


def test_ridge_solution_on_the_rows_that_are_held():
    gradients = factors(300, 4, 32, 2)
    rows, weights = omp.match(Problem(gradients, gradients.sum(), 150), ridge=0.5, tolerance=0.0)
    dense = gradients.dense()
    gram = dense[rows] @ dense[rows].T + 0.5 * torch.eye(150, dtype=torch.float64)
    expected = torch.linalg.solve(gram, dense[rows] @ dense.sum(0))
    torch.testing.assert_close(weights, expected, rtol=1e-6, atol=1e-9)


def test_fill_beyond_the_rank_has_weight_0_and_does_not_raise_the_residual():
    gradients = factors(100, 2, 5, 1)  # rank 6
    rows, weights = omp.match(Problem(gradients, gradients.sum(), 50), ridge=0.0, tolerance=1e-6)
    held = weights > 0
    assert held.sum() <= 6
    assert residual(gradients, rows, weights) == residual(gradients, rows[held], weights[held]) < 1e-6
    assert len(rows.unique()) == 50


def test_tolerance_ends_the_pursuit():
    gradients = factors(200, 3, 8, 1)
    target = gradients.sum()
    rows, weights = omp.match(Problem(gradients, target, 100), ridge=0.0, tolerance=0.1)
    count = int((weights > 0).sum())
    assert residual(gradients, rows, weights) <= 0.1
    fewer, those = omp.match(Problem(gradients, target, count - 1), ridge=0.0, tolerance=0.1)
    assert residual(gradients, fewer, those) > 0.1


def test_factors_alone_give_what_the_gram_matrix_gives(monkeypatch):
    gradients = factors(300, 4, 32, 2)
    expected = omp.match(Problem(gradients, gradients.sum(), 60), ridge=0.5, tolerance=0.0)
    monkeypatch.setattr(omp, "_LARGEST_GRAM", 0)
    found = omp.match(Problem(gradients, gradients.sum(), 60), ridge=0.5, tolerance=0.0)
    assert set(found[0].tolist()) == set(expected[0].tolist())
    order, expected_order = found[0].argsort(), expected[0].argsort()
    torch.testing.assert_close(found[1][order], expected[1][expected_order], rtol=1e-7, atol=1e-9)


def test_float32_gradients_are_matched_as_well():
    exact = factors(300, 4, 32, 2)
    gradients = type(exact)(
        tuple(part.float() for part in exact.deltas), tuple(part.float() for part in exact.features), exact.labels
    )
    found = omp.match(Problem(gradients, gradients.sum(), 60), ridge=0.5, tolerance=0.0)
    expected = omp.match(Problem(exact, exact.sum(), 60), ridge=0.5, tolerance=0.0)
    assert residual(exact, *found) <= residual(exact, *expected) * 1.05


def test_a_target_that_no_gradient_points_to_gives_weights_0():
    gradients = factors(30, 3, 8, 1)
    rows, weights = omp.match(Problem(gradients, -gradients.sum(), 5), ridge=0.5, tolerance=0.0)
    dense = gradients.dense()
    assert (dense @ dense.sum(0) > 0).all()
    assert not weights.any()
    assert len(rows.unique()) == 5


@pytest.mark.parametrize("ridge", [0.0, 0.5])
def test_equal_gradients_are_never_held_twice_over(ridge):
    gradients = factors(10, 3, 8, 1).rows(torch.arange(10).repeat(3))
    rows, weights = omp.match(Problem(gradients, gradients.sum(), 25), ridge=ridge, tolerance=0.0)
    assert len(rows.unique()) == 25
    assert residual(gradients, rows, weights) < (1e-6 if ridge == 0 else 0.05)


@pytest.mark.parametrize("largest_gram", [0, 12_000])
@pytest.mark.parametrize("seed", [*range(4), *(pytest.param(seed, marks=pytest.mark.slow) for seed in range(4, 10))])
def test_gradients_that_are_almost_equal_fill_the_budget_once_each(monkeypatch, seed, largest_gram):
    monkeypatch.setattr(omp, "_LARGEST_GRAM", largest_gram)
    noise = torch.Generator().manual_seed(seed)
    equal = factors(6, 3, 8, 1, seed).rows(torch.arange(6).repeat(6))
    features = equal.features[0] + 1e-8 * torch.randn(equal.features[0].shape, generator=noise, dtype=torch.float64)
    gradients = type(equal)(equal.deltas, (features,), equal.labels)
    target = factors(1, 3, 8, 1, seed + 1000).sum()  # no weighted sum of them, so there is always something left
    shorter, those = omp.match(Problem(gradients, target, 20), ridge=0.0, tolerance=0.0)
    expected = residual(gradients, shorter, those, target.view(-1))
    for budget in (35, 36):
        rows, weights = omp.match(Problem(gradients, target, budget), ridge=0.0, tolerance=0.0)
        assert len(rows) == len(rows.unique()) == budget
        assert residual(gradients, rows, weights, target.view(-1)) == pytest.approx(expected, rel=1e-6)


def test_what_depends_on_held_ones_comes_last():
    gradients = factors(6, 3, 8, 1).rows(torch.tensor([0, 0, 1, 1, 2, 3, 4, 5]))
    target = gradients.rows(slice(0, 7)).sum() + factors(1, 3, 8, 1, 1000).sum()  # so that something is always left
    rows, weights = omp.match(Problem(gradients, target, 8), ridge=0.0, tolerance=0.0)
    assert sorted(rows.tolist()) == list(range(8))
    held = set(rows[weights > 0].tolist())
    assert len(held & {0, 1}) == len(held & {2, 3}) == 1
    assert set(rows[-2:].tolist()) == {0, 1, 2, 3} - held


@cases("ridge", [0.0, 1e-6, 0.5])
def test_an_ill_conditioned_problem_is_matched_to_rounding(ridge):
    base = factors(200, 4, 16, 2)
    features = tuple(h * torch.logspace(0, -6, h.shape[1], dtype=h.dtype) for h in base.features)
    gradients = type(base)(base.deltas, features, base.labels)
    rows, weights = omp.match(Problem(gradients, gradients.sum(), 60), ridge=ridge, tolerance=0.0)
    held, kept = rows[weights > 0], weights[weights > 0]
    dense = gradients.dense()
    left = dense[held] @ (kept @ dense[held] - dense.sum(0)) + ridge * kept
    assert left.abs().max() < 1e-7 * (dense @ dense.sum(0)).abs().max()
    if ridge == 0:
        assert residual(gradients, rows, weights) < 1e-5


@pytest.mark.parametrize("ridge", [0.0, 1e-6])
@pytest.mark.parametrize("largest_gram", [0, 12_000])
def test_going_round_in_circles_ends_with_a_solution(monkeypatch, largest_gram, ridge):
    # Gradients of few dimensions and a target outside of their cone: what is dropped is taken again, for ever.
    monkeypatch.setattr(omp, "_LARGEST_GRAM", largest_gram)
    gradients, target = factors(60, 10, 1, 1, 757), 2 * factors(30, 10, 1, 1, 758).sum()
    found = {
        budget: residual(
            gradients,
            *omp.match(Problem(gradients, target, budget), ridge=ridge, tolerance=0.0),
            torch.cat([target[:, 0], target[:, 1:].flatten()]),
        )
        for budget in (1, 3, 5, 20)
    }
    assert max(found[5], found[20]) < found[1] < 1


def test_a_first_pick_that_is_dropped_leaves_its_weight_behind(monkeypatch):
    values = torch.tensor([[10.0, 10.0], [1.0, 0.0], [0.0, 0.0]], dtype=torch.float64)
    gradients = MeanGradients(values.view(3, 1, 2))
    target = torch.tensor([[1.0, -0.1]], dtype=torch.float64)
    expected = omp.match(Problem(gradients, target, 2), ridge=1e-3, tolerance=0.0)
    monkeypatch.setattr(omp, "_LARGEST_GRAM", 0)
    found = omp.match(Problem(gradients, target, 2), ridge=1e-3, tolerance=0.0)
    assert torch.equal(found[0], expected[0])
    torch.testing.assert_close(found[1], expected[1])
    assert found[1][0] == pytest.approx(1 / 1.001)


def test_weights_may_be_changed_in_place_by_a_subclass():
    gradients = factors(30, 3, 8, 1)
    _, weights = omp.match(Problem(gradients, gradients.sum(), 5), ridge=0.5, tolerance=0.0)
    total = float(weights.sum())
    weights /= weights.sum()
    assert weights.sum() == pytest.approx(1)
    assert total > 1


def test_no_problems_have_no_solutions():
    assert omp.match_all([], ridge=0.5, tolerance=0.0) == []
