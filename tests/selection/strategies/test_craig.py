from __future__ import annotations

import importlib
import itertools
import sys
from types import ModuleType

import numpy as np
import pytest
import torch
from support.cases import cases
from support.small_problem import Problem, factors

from robustcords.config.registry import find
from robustcords.errors import UserError
from robustcords.losses.sat import SAT
from robustcords.selection import _cords

pytest.importorskip("submodlib", reason="there are no wheels of submodlib for this Python")
from robustcords.selection.strategies.adv_craig import AdvCRAIGStrategy, cluster_sizes, facility_location, similarity

OPTIMIZERS = ["LazyGreedy", "NaiveGreedy", "StochasticGreedy", "LazierThanLazyGreedy"]
STOCHASTIC = ["StochasticGreedy", "LazierThanLazyGreedy"]


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def built(problem, *, context=None, **options):
    return AdvCRAIGStrategy.from_context(AdvCRAIGStrategy.Config(**options), context or problem.context())


def reference_similarity(dense):
    """The paper's, from gradients written out: the largest distance minus the distance."""
    rows = dense.double().numpy()
    distances = np.linalg.norm(rows[:, None] - rows[None], axis=2)
    return distances.max() - distances


def check_greedy(kernel, rows, sizes):
    """Every row has the largest gain given those before it, and the sizes are those of the rows' clusters.

    Two examples that nothing else is near gain the same, whichever is picked, so the last picks are often not the only
    right ones. Returns how many were.
    """
    covered, decided = np.zeros(len(kernel)), 0
    rounding = 1e-6 * kernel.sum(axis=0).max()
    for place, row in enumerate(rows):
        gains = np.maximum(kernel - covered[:, None], 0).sum(axis=0)
        others = np.delete(gains, rows[: place + 1])
        assert gains[row] >= others.max() - rounding
        decided += gains[row] > others.max() + rounding
        covered = np.maximum(covered, kernel[:, row])
    nearest = [max(range(len(rows)), key=lambda place: kernel[row, rows[place]]) for row in range(len(kernel))]
    assert list(sizes) == [nearest.count(place) for place in range(len(rows))]
    return decided


SHAPES = [(60, 3, 5, 1), (80, 10, 16, 2), (50, 4, 1, 2)]


@cases("shape", SHAPES)
def test_similarity_from_factors_is_that_of_gradients_written_out(shape):
    gradients = factors(*shape)
    expected = reference_similarity(gradients.dense())
    assert similarity(gradients) == pytest.approx(expected, abs=1e-6 * expected.max())
    means = gradients.means([10] * (shape[0] // 10))
    expected = reference_similarity(means.dense())
    assert similarity(means) == pytest.approx(expected, abs=1e-6 * expected.max())


def test_similarity_of_more_gradients_than_a_block():
    gradients = factors(1300, 3, 4, 2)
    expected = reference_similarity(gradients.dense())
    np.testing.assert_allclose(similarity(gradients), expected, rtol=0, atol=1e-6 * expected.max())


@pytest.fixture
def cords_craig(monkeypatch):
    """CORDS' class. Only its solver uses apricot, so an empty module does; its loader's order is made the given one."""
    name = "cords.selectionstrategies.SL.craigstrategy"
    assert _cords.DataSelectionStrategy
    monkeypatch.setitem(sys.modules, "apricot", ModuleType("apricot"))
    monkeypatch.delitem(sys.modules, name, raising=False)
    errors = np.geterr()
    module = importlib.import_module(name)
    np.seterr(**errors)
    monkeypatch.setattr(module, "SubsetRandomSampler", lambda rows: [int(row) for row in rows])
    yield module.CRAIGStrategy
    sys.modules.pop(name)


@pytest.mark.parametrize("linear_layer", [True, False])
def test_similarity_is_that_of_cords_before_it_squares(cords_craig, linear_layer):
    problem = Problem([20, 18], batch=16)
    ours = built(problem, context=problem.context(attack=None, loss=SAT()))
    ours.compute_gradients()
    found = similarity(ours.gradients if linear_layer else ours.gradients.bias_only())
    loss = torch.nn.CrossEntropyLoss(reduction="none")
    loaders = problem.train_loader, problem.val_loader
    model, logger = problem.cords_model(), ours.logger
    theirs = cords_craig(*loaders, model, loss, "cpu", 2, linear_layer, False, "PerClass", logger)
    theirs.compute_score(problem.model.state_dict(), torch.arange(38))
    distances = np.sqrt(np.maximum(theirs.const - theirs.dist_mat, 0))
    assert found == pytest.approx(np.sqrt(theirs.const) - distances, abs=2e-3 * float(found.max()))
    assert np.square(found.max() - found) == pytest.approx(theirs.const - theirs.dist_mat, abs=1e-5 * theirs.const)


@cases("optimizer", ["LazyGreedy", "NaiveGreedy"])
@cases("shape", SHAPES)
@cases("budget", [1, 7, 25])
def test_picks_and_clusters_are_those_of_plain_greedy(shape, budget, optimizer):
    gradients = factors(*shape, seed=budget)
    kernel = similarity(gradients)
    found = facility_location(kernel, budget, optimizer, generator())
    sizes = cluster_sizes(kernel, found)
    decided = check_greedy(reference_similarity(gradients.dense()), found.tolist(), sizes.tolist())
    assert decided >= 0.5 * budget


@cases("optimizer", OPTIMIZERS)
def test_no_worse_than_the_greedy_bound(optimizer):
    for seed in range(5):
        kernel = similarity(factors(12, 4, 6, 2, seed=seed))

        def value(rows, kernel=kernel):
            return kernel[:, list(rows)].max(axis=1).sum()

        best = max(map(value, itertools.combinations(range(12), 4)))
        found = value(facility_location(kernel, 4, optimizer, generator()))
        assert (1 - 1 / np.e) * best <= found <= best * (1 + 1e-6)


@cases("optimizer", OPTIMIZERS)
@cases("distinct", [1, 4, 14])
def test_every_budget_of_small_groups_and_of_equal_gradients(optimizer, distinct):
    for size in (1, 2, 3, 7, 14):
        gradients = factors(14, 3, 4, 2).rows(torch.arange(size) % distinct)
        kernel = similarity(gradients)
        for budget in range(1, size + 1):
            rows = facility_location(kernel, budget, optimizer, generator())
            assert len(set(rows.tolist())) == budget
            assert set(rows.tolist()) <= set(range(size))
            assert cluster_sizes(kernel, rows).sum() == size


@pytest.mark.parametrize("optimizer", STOCHASTIC)
def test_stochastic_picks_depend_on_the_generator_alone_and_are_nearly_as_good(optimizer):
    kernel = similarity(factors(400, 5, 8, 2))
    first = facility_location(kernel, 40, optimizer, generator(1))
    assert first.tolist() == facility_location(kernel, 40, optimizer, generator(1)).tolist()
    assert set(first.tolist()) != set(facility_location(kernel, 40, optimizer, generator(2)).tolist())
    uncovered = {
        name: (kernel.max(axis=1) - kernel[:, rows].max(axis=1)).sum()
        for name, rows in {
            "stochastic": first,
            "greedy": facility_location(kernel, 40, "LazyGreedy", generator()),
            "random": torch.randperm(400, generator=generator())[:40].numpy(),
        }.items()
    }
    assert uncovered["greedy"] < uncovered["random"]
    assert uncovered["stochastic"] < (uncovered["greedy"] + uncovered["random"]) / 2


def test_of_equal_similarities_the_first_counts():
    assert cluster_sizes(np.ones((5, 5), dtype=np.float32), np.array([3, 0, 4])).tolist() == [5, 0, 0]


@pytest.mark.parametrize("linear_layer", [True, False])
def test_a_selection_is_greedy_class_by_class(linear_layer):
    problem = Problem([31, 22])
    strategy = built(problem, linear_layer=linear_layer)
    rows, weights = strategy.select(19, problem.model.state_dict())
    strategy.compute_gradients()
    dense = (strategy.gradients if linear_layer else strategy.gradients.bias_only()).dense()
    labels = problem.train.labels
    for label, share in ((0, 11), (1, 8)):
        members = (labels == label).nonzero().view(-1).tolist()
        places = [place for place, row in enumerate(rows) if row in members]
        assert len(places) == share
        picked = [members.index(rows[place]) for place in places]
        check_greedy(reference_similarity(dense[members]), picked, weights[places].tolist())


def test_too_many_candidates_are_refused_with_what_to_do():
    problem = Problem([3, 3])
    with pytest.raises(UserError, match=r'at most 20,000, and has 20,001 here: set selector.granularity = "per_class"'):
        built(problem).pick(factors(20_001, 2, 1, 1), 5, generator())


def test_missing_submodlib_is_one_line_before_anything_runs(monkeypatch):
    monkeypatch.delitem(sys.modules, "robustcords.selection.strategies.adv_craig")
    monkeypatch.setitem(sys.modules, "submodlib", None)
    with pytest.raises(UserError, match=r"^selector 'adv-craig' needs submodlib.*pip install submodlib-py.*$"):
        find("selector", "adv-craig")


def test_broken_submodlib_is_one_line(monkeypatch):
    monkeypatch.setitem(sys.modules, "submodlib", ModuleType("submodlib"))
    with pytest.raises(UserError, match=r"^selector 'adv-craig': submodlib cannot be imported.*pip install.*$"):
        facility_location(np.eye(3, dtype=np.float32), 2, "LazyGreedy", generator())
