"""Importance sampling: what it draws by, and with what weights."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from support.small_problem import Problem
from torch import nn

from robustcords.data.split import apportion
from robustcords.selection.observer import LastLosses
from robustcords.selection.strategies.importance import ByGradient, ImportanceSampling

SIZES, BUDGET, UNIFORM = [30, 18, 6], 20, 0.2


def probabilities(scores: np.ndarray, budget: int) -> np.ndarray:
    """Those of the mixture, with the c that makes them add up found by halving."""
    p = UNIFORM / len(scores) + (1 - UNIFORM) * scores / scores.sum()
    low, high = 0.0, budget / p.min()
    for _ in range(200):
        middle = (low + high) / 2
        low, high = (middle, high) if np.minimum(1, middle * p).sum() < budget else (low, middle)
    return np.minimum(1, high * p)


def by_group(scores: np.ndarray, labels: np.ndarray, granularity: str) -> np.ndarray:
    if granularity == "full":
        return probabilities(scores, BUDGET)
    found = np.zeros(len(scores))
    for label, share in enumerate(apportion(SIZES, BUDGET)):
        found[labels == label] = probabilities(scores[labels == label], share)
    return found


@pytest.mark.parametrize("granularity", ["full", "per_class"])
def test_weights_are_the_inverse_probabilities_of_gradient_lengths(granularity: str):
    problem = Problem(SIZES)
    config = ImportanceSampling.Config(granularity=granularity, uniform=UNIFORM)
    rows, weights = ImportanceSampling.from_context(config, problem.context()).select(
        BUDGET, problem.model.state_dict()
    )
    judge = ByGradient.from_context(config, problem.context())
    judge.compute_gradients()
    lengths = judge.gradients.dense().norm(dim=1).numpy()
    expected = by_group(lengths, problem.train.labels.numpy(), granularity)
    assert len(set(rows)) == BUDGET
    np.testing.assert_allclose(weights.numpy(), 1 / expected[rows], rtol=1e-6)


class NeverAsked(nn.Module):
    """A model that no pass may go through."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        raise AssertionError("the model was asked")


@pytest.mark.parametrize("granularity", ["full", "per_class"])
def test_by_loss_unseen_examples_count_as_the_largest_and_no_pass_is_made(granularity: str):
    problem = Problem(SIZES)
    losses = torch.rand(54, generator=torch.Generator().manual_seed(0)) * 3 - 0.2  # a few below 0
    seen = LastLosses(54)
    seen.observe(torch.arange(0, 54, 3), losses[::3])
    context = problem.context(model=NeverAsked(), observer=seen)
    config = ImportanceSampling.Config(granularity=granularity, uniform=UNIFORM, score="loss")
    ImportanceSampling.check(config, context)
    rows, weights = ImportanceSampling.from_context(config, context).select(BUDGET, None)
    scores = np.full(54, float(losses[::3].max()))
    scores[::3] = np.maximum(losses[::3].numpy(), 0)
    expected = by_group(scores, problem.train.labels.numpy(), granularity)
    assert len(set(rows)) == BUDGET
    np.testing.assert_allclose(weights.numpy(), 1 / expected[rows], rtol=1e-6)


def test_with_no_loss_known_the_draw_is_uniform():
    problem = Problem(SIZES)
    config = ImportanceSampling.Config(granularity="full", score="loss")
    strategy = ImportanceSampling.from_context(config, problem.context(observer=LastLosses(54)))
    np.testing.assert_allclose(strategy.select(BUDGET, None)[1].numpy(), 54 / BUDGET, rtol=1e-6)


def test_what_counts_a_weight_is_kept_below_its_bound():
    problem = Problem(SIZES)
    config = ImportanceSampling.Config(granularity="full", uniform=0.5)
    _, weights = ImportanceSampling.from_context(config, problem.context()).select(BUDGET, problem.model.state_dict())
    assert weights.max() <= 54 / BUDGET / 0.5 * (1 + 1e-6)
    assert ImportanceSampling.fixes_normaliser


def test_only_by_loss_anything_is_learnt_from_training():
    observers = [ImportanceSampling.build_observer(ImportanceSampling.Config(score=s), 9) for s in ("loss", "gradient")]
    assert isinstance(observers[0], LastLosses) and observers[1] is None
