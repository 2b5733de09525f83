from __future__ import annotations

import logging

import pytest
import torch
from small_problem import Problem
from torch import nn

from robustcords.strategies._cords import GLISTERStrategy
from robustcords.strategies.adv_glister import AdvGLISTERStrategy

SIZES = [30, 24, 18]
log = logging.getLogger(__name__)


def pair(problem, greedy, selection_type, linear_layer, eta):
    """CORDS' strategy and ours, with the same arguments of CORDS' constructor."""
    model = problem.cords_model()
    arguments = (
        problem.train_loader,
        problem.val_loader,
        model,
        nn.CrossEntropyLoss(reduction="none"),
        eta,
        torch.device("cpu"),
        len(SIZES),
        linear_layer,
        selection_type,
        greedy,
        log,
        3,
    )
    return GLISTERStrategy(*arguments), AdvGLISTERStrategy(*arguments, normalise=False), model.state_dict()


@pytest.mark.parametrize("linear_layer", [True, False])
@pytest.mark.parametrize("selection_type", ["PerClass", "Supervised", "PerBatch"])
@pytest.mark.parametrize("greedy", ["RGreedy", "Naive"])
@pytest.mark.filterwarnings("ignore:'pin_memory'")
def test_picks_what_cords_picks(greedy, selection_type, linear_layer):
    # Shares of 15, 12 and 9 of 36, all multiples of r = 3, and 48 = 3 whole batches.
    budget = 48 if selection_type == "PerBatch" else 36
    problem = Problem(SIZES, batch=12 if selection_type != "PerBatch" else 16, validation=[16, 8, 8])
    upstream, ours, state = pair(problem, greedy, selection_type, linear_layer, eta=0.05)
    expected, _ = upstream.select(budget, state)
    found, weights = ours.select(budget, state)
    assert found == [int(row) for row in expected]
    assert torch.equal(weights, torch.ones(budget))


def test_eta_is_normalised_by_the_budget():
    problem = Problem(SIZES)
    _, same, state = pair(problem, "RGreedy", "Supervised", True, eta=0.05)
    arguments = AdvGLISTERStrategy.Config(eta=0.05 * 36, granularity="full", r=3)
    ours = AdvGLISTERStrategy.from_context(
        arguments, problem.context(attack=None, loss=nn.CrossEntropyLoss(reduction="none"))
    )
    assert ours.select(36, problem.model.state_dict())[0] == same.select(36, state)[0]


def test_stochastic_is_reproducible_and_depends_on_the_seed():
    problem = Problem(SIZES)
    config = AdvGLISTERStrategy.Config(greedy="Stochastic")

    def select(seed):
        strategy = AdvGLISTERStrategy.from_context(config, problem.context(seed=seed))
        return strategy.select(20, problem.model.state_dict())[0]

    assert select(1) == select(1) != select(2)


def test_gains_lower_the_adversarial_validation_loss():
    problem = Problem([60, 60], validation=[30, 30])
    strategy = AdvGLISTERStrategy.from_context(
        AdvGLISTERStrategy.Config(granularity="full", eta=1.0), problem.context()
    )
    chosen, _ = strategy.select(12, problem.model.state_dict())
    validation, step = strategy.validation_gradients, strategy.gradients.rows(torch.tensor(chosen)).sum() / 12

    def loss(moved):
        z, h = validation.logits[0], validation.features[0]
        return nn.functional.cross_entropy(z - moved * (h @ step[:, 1:].T + step[:, 0]), validation.labels)

    mean = strategy.gradients.sum() / len(strategy.gradients)
    everything = nn.functional.cross_entropy(
        validation.logits[0] - validation.features[0] @ mean[:, 1:].T - mean[:, 0], validation.labels
    )
    assert loss(1) < loss(0)
    assert loss(1) < everything
