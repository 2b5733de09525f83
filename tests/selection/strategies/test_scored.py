from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from support.cases import cases
from support.small_problem import LOSSES, Problem, factors

from robustcords.config.registry import find
from robustcords.losses.standard import Standard
from robustcords.rng import generator
from robustcords.selection.strategies.scored import ranked

SCORED = ["el2n", "loss"]


def built(problem, name, *, context=None, **options):
    strategy = find("selector", name)
    return strategy.from_context(strategy.Config(**options), context or problem.context())


def softmax(z):
    p = np.exp(z - z.max(axis=1, keepdims=True))
    return p / p.sum(axis=1, keepdims=True)


def reference_el2n(z, y):
    """Paul et al. 2021, Definition 2.3."""
    return np.sqrt(((softmax(z) - np.eye(z.shape[1])[y]) ** 2).sum(axis=1))


def reference_sat(logits, y):
    return -np.log(softmax(logits[-1])[np.arange(len(y)), y])


def reference_trades(logits, y, beta=6.0):
    """Zhang et al. 2019, Eq. 5: cross-entropy of the clean logits, and beta times KL(p || p')."""
    p, p_adv = map(softmax, logits)
    return -np.log(p[np.arange(len(y)), y]) + beta * (p * np.log(p / p_adv)).sum(axis=1)


def numpy_logits(strategy):
    return [z.double().numpy() for z in strategy.gradients.logits], strategy.gradients.labels.numpy()


@cases("loss", LOSSES)
def test_el2n_is_at_adversarial_logits(loss):
    problem = Problem([20, 15, 10])
    strategy = built(problem, "el2n", context=problem.context(loss=LOSSES[loss]()), granularity="full")
    rows, weights = strategy.select(12, problem.model.state_dict())
    logits, labels = numpy_logits(strategy)
    expected = reference_el2n(logits[-1], labels)
    assert strategy.scores(strategy.gradients).numpy() == pytest.approx(expected, abs=1e-12)
    assert rows == np.argsort(-expected, kind="stable")[:12].tolist()
    assert torch.equal(weights, torch.ones(12))
    with torch.no_grad():
        clean = problem.model.eval()(problem.train.images).numpy()
    assert np.abs(reference_el2n(clean, labels) - expected).max() > 1e-3


def test_el2n_is_at_clean_logits_where_the_loss_has_no_other():
    problem = Problem([20, 15])
    strategy = built(problem, "el2n", context=problem.context(loss=Standard()), granularity="full")
    rows, _ = strategy.select(9, problem.model.state_dict())
    with torch.no_grad():
        clean = problem.model.eval()(problem.train.images).numpy()
    expected = reference_el2n(clean, problem.train.labels.numpy())
    assert rows == np.argsort(-expected, kind="stable")[:9].tolist()


@pytest.mark.parametrize(("loss", "reference"), [("sat", reference_sat), ("trades", reference_trades)])
def test_loss_is_the_whole_training_loss_at_adversarial_examples(loss, reference):
    problem = Problem([20, 15, 10])
    strategy = built(problem, "loss", context=problem.context(loss=LOSSES[loss]()), granularity="full")
    rows, weights = strategy.select(12, problem.model.state_dict())
    expected = reference(*numpy_logits(strategy))
    assert strategy.scores(strategy.gradients).numpy() == pytest.approx(expected, rel=1e-9)
    assert rows == np.argsort(-expected, kind="stable")[:12].tolist()
    assert torch.equal(weights, torch.ones(12))


def test_scores_are_finite_at_extreme_logits():
    gradients = factors(4, 3, 2, 2)
    extreme = torch.tensor([[1e4, 0, 0], [0, 1e4, 0], [-1e4, 0, 0], [0, 0, 0]])
    gradients = replace(gradients, logits=(extreme, extreme))
    problem = Problem([3, 3])
    losses, errors = (built(problem, name).scores(gradients) for name in ("loss", "el2n"))
    assert losses.isfinite().all()
    assert errors == pytest.approx([0, 2**0.5, 1.5**0.5, (2 / 3) ** 0.5], abs=1e-6)
    assert losses.argmin() == 0


KEPT = {
    "highest": ([5.0, 1.0, 4.0, 2.0, 3.0, 0.0], [0, 2, 4, 3, 1, 5]),
    "lowest": ([5.0, 1.0, 4.0, 2.0, 3.0, 0.0], [5, 1, 3, 4, 2, 0]),
    "middle": ([5.0, 1.0, 4.0, 2.0, 3.0, 0.0], [3, 4, 1, 2, 5, 0]),
}


@cases("keep", KEPT)
def test_orders_known_by_hand(keep):
    scores, expected = KEPT[keep]
    assert ranked(torch.tensor(scores), keep).tolist() == expected


@cases("size", [1, 2, 7, 8, 31])
def test_the_middle_is_the_ranks_around_the_median(size):
    scores = torch.randn(size, generator=torch.Generator().manual_seed(size))
    by_rank = scores.argsort()
    order = ranked(scores, "middle")
    for budget in range(1, size + 1):
        first = (size - budget) // 2
        assert set(order[:budget].tolist()) == set(by_rank[first : first + budget].tolist())


@pytest.mark.parametrize("keep", ["highest", "lowest"])
def test_of_equal_scores_the_first_is_kept(keep):
    assert ranked(torch.zeros(40), keep).tolist() == list(range(40))
    assert ranked(torch.zeros(5), "middle").tolist() == [2, 1, 3, 0, 4]


@cases("keep", KEPT)
@cases("name", SCORED)
def test_classes_are_ranked_one_by_one_whatever_the_output(name, keep):
    problem = Problem([21, 14, 7])
    strategy = built(problem, name, keep=keep)
    rows, _ = strategy.select(18, problem.model.state_dict())
    strategy.compute_gradients()
    scores = strategy.scores(strategy.gradients)
    expected = []
    for label, share in enumerate((9, 6, 3)):
        members = (problem.train.labels == label).nonzero().view(-1)
        expected += members[ranked(scores[members], keep)[:share]].tolist()
    assert set(rows) == set(expected)
    per_gradient = built(problem, name, keep=keep, granularity="per_gradient")
    assert per_gradient.select(18, problem.model.state_dict())[0] == rows


@cases("keep", KEPT)
@cases("name", SCORED)
def test_batches_are_ranked_by_their_mean_score(name, keep):
    problem = Problem([31, 28], batch=8)  # seven batches of 8 and one of 3
    strategy = built(problem, name, keep=keep, granularity="per_batch")
    rows, weights = strategy.select(20, problem.model.state_dict())
    batches = np.array_split(torch.randperm(59, generator=generator(5, "batches")).numpy(), range(8, 59, 8))
    scores = strategy.scores(strategy.gradients).numpy()
    means = torch.tensor([scores[batch].mean() for batch in batches])
    order = ranked(means, keep).tolist()
    expected = np.concatenate([batches[batch] for batch in order])
    assert rows == expected[:20].tolist()
    assert torch.equal(weights, torch.ones(20))
