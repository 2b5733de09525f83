"""What picks for Adv-GLISTER and Adv-GRAD-MATCH, on synthetic gradients: no CORDS, loader or model."""

from __future__ import annotations

from dataclasses import replace

import torch
from scipy.optimize import nnls
from support.cases import cases
from support.small_problem import factors
from torch import Tensor
from torch.nn import functional as F

from robustcords.losses.sat import SAT
from robustcords.selection.gradients.candidates import Group
from robustcords.selection.gradients.factors import LastLayerGradients
from robustcords.selection.solvers.greedy import TaylorGreedy
from robustcords.selection.solvers.omp import MatchingPursuit

CLASSES, WIDTH = 3, 5


def source() -> torch.Generator:
    return torch.Generator().manual_seed(7)


def validation(count: int = 11) -> LastLayerGradients:
    """Validation examples whose gradients are those of cross-entropy at their logits."""
    made = factors(count, CLASSES, WIDTH, 1, seed=3)
    logits = torch.randn(count, CLASSES, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    labels = torch.arange(count) % CLASSES
    deltas = logits.softmax(1) - F.one_hot(labels, CLASSES)
    return replace(made, deltas=(deltas,), labels=labels, logits=(logits,))


def mean_gradient(beside: LastLayerGradients, step: Tensor) -> Tensor:
    """The mean gradient (C * (1 + E),), biases first, by automatic differentiation of the layer moved by ``-step``."""
    weight = -step[CLASSES:].view(CLASSES, WIDTH)
    leaves = [(-step[:CLASSES]).requires_grad_(), weight.clone().requires_grad_()]
    logits = beside.logits[0] + beside.features[0] @ leaves[1].T + leaves[0]
    parts = torch.autograd.grad(F.cross_entropy(logits, beside.labels), leaves)
    return torch.cat([part.flatten() for part in parts])


@cases("normalise", [True, False])
@cases(("method", "rounds", "sizes"), [("Naive", 15, [1] * 8), ("RGreedy", 3, [3, 3, 2])])
def test_the_greedy_choice_takes_the_largest_gains_again_and_again(method, rounds, sizes, normalise):
    gradients, beside, eta = factors(40, CLASSES, WIDTH, 2), validation(), 0.7
    dense, chosen = gradients.dense(), []
    for size in sizes:
        step = eta * dense[chosen].sum(0) / (8 if normalise else 1)
        gains = dense @ mean_gradient(beside, step)
        gains[chosen] = -torch.inf
        chosen += gains.argsort(descending=True)[:size].tolist()
    before = [tensor.clone() for tensor in (*beside.logits, *beside.features)]
    rows, weights = TaylorGreedy(SAT(), eta, method, rounds, normalise).pick(gradients, beside, 8, source())
    assert rows.tolist() == chosen
    assert weights.tolist() == [1.0] * 8
    assert all(map(torch.equal, before, (*beside.logits, *beside.features)))
    still = TaylorGreedy(SAT(), 0.0, method, rounds).pick(gradients, beside, 8, source())[0]
    assert still.tolist() == (dense @ mean_gradient(beside, 0 * dense[0])).argsort(descending=True)[:8].tolist()
    assert still.tolist() != chosen, "the look-ahead counts"


def test_stochastic_draws_from_the_generator_alone():
    gradients, beside = factors(40, CLASSES, WIDTH, 1), validation()
    greedy = TaylorGreedy(SAT(), 0.5, "Stochastic")
    first, again = (greedy.pick(gradients, beside, 12, source())[0] for _ in range(2))
    other = greedy.pick(gradients, beside, 12, torch.Generator().manual_seed(8))[0]
    assert first.tolist() == again.tolist() != other.tolist()
    assert len(first.unique()) == 12


@cases("method", ["Naive", "RGreedy", "Stochastic"])
def test_class_shares_hold_for_every_method(method):
    labels = torch.tensor([0] * 20 + [1] * 12 + [2] * 8)
    gradients = replace(factors(40, CLASSES, WIDTH, 1), labels=labels)
    rows, _ = TaylorGreedy(SAT(), 0.5, method, class_shares=True).pick(gradients, validation(), 10, source())
    assert labels[rows].bincount().tolist() == [5, 3, 2]


@cases("lam", [0.0, 0.5])
@cases("beside", [None, validation()])
def test_the_pursuit_weighs_what_it_holds_by_least_squares(beside, lam):
    gradients = factors(30, CLASSES, WIDTH, 2)
    dense = gradients.dense()
    # Of all, or of the validation examples, as many as there are candidates.
    target = dense.sum(0) if beside is None else 30 * mean_gradient(beside, torch.zeros(CLASSES * (1 + WIDTH)).double())
    rows, weights = MatchingPursuit(lam, 1e-10).pick(gradients, beside, 6, source())
    assert len(rows.unique()) == len(weights) == 6
    matrix = torch.cat([dense[rows].T, lam**0.5 * torch.eye(6).double()]).numpy()
    expected, _ = nnls(matrix, torch.cat([target, torch.zeros(6).double()]).numpy())
    torch.testing.assert_close(weights, torch.from_numpy(expected), rtol=1e-6, atol=1e-8)


def test_the_pursuit_takes_the_nearest_first_and_weighs_nothing_beyond_the_tolerance():
    gradients = factors(9, CLASSES, WIDTH, 1)
    dense, target = gradients.dense(), gradients.dense().sum(0)
    rows, _ = MatchingPursuit(0.0, 1e-10).pick(gradients, None, 1, source())
    assert rows.item() == (dense @ target).argmax()
    rows, weights = MatchingPursuit(0.0, 0.1).pick(gradients, None, 9, source())
    assert (weights @ dense[rows] - target).norm() < 0.1 * target.norm()
    held = rows[weights > 0]
    assert 1 < len(held) < 9
    before = nnls(dense[held[:-1]].T.numpy(), target.numpy())[1]
    assert before >= 0.1 * target.norm(), "it went on until then"


def test_several_groups_are_picked_from_as_each_alone():
    pursuit = MatchingPursuit(0.5, 1e-10)
    groups = [
        Group(n, factors(20 + 5 * n, CLASSES, WIDTH, 1, seed=n), (None, validation())[n % 2], 7) for n in range(3)
    ]
    for group, (rows, weights) in zip(groups, pursuit.pick_all(groups), strict=True):
        alone = pursuit.pick(group.gradients, group.validation, group.budget, source())
        assert rows.tolist() == alone[0].tolist()
        torch.testing.assert_close(weights, alone[1])
