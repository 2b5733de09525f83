from __future__ import annotations

import logging
import math
from dataclasses import replace

import pytest
import torch
from support.cases import cases
from support.small_problem import Problem, factors
from torch import nn

from robustcords.errors import UserError
from robustcords.losses.mart import MART
from robustcords.losses.sat import SAT
from robustcords.rng import generator
from robustcords.selection._cords import GLISTERStrategy
from robustcords.selection.gradients.validation_gradient import ValidationGradient
from robustcords.selection.solvers.greedy import taylor_greedy
from robustcords.selection.strategies.adv_glister import AdvGLISTERStrategy

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
    arguments = AdvGLISTERStrategy.Config(eta=0.05 * 36, greedy="RGreedy", granularity="full", r=3)
    ours = AdvGLISTERStrategy.from_context(
        arguments, problem.context(attack=None, loss=nn.CrossEntropyLoss(reduction="none"))
    )
    assert ours.select(36, problem.model.state_dict())[0] == same.select(36, state)[0]


def test_stochastic_is_reproducible_and_depends_on_the_seed():
    problem = Problem(SIZES)
    config = AdvGLISTERStrategy.Config(granularity="per_class")

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


def plain_stochastic(gradients, validation, budget, step_size, generator):
    """Alg. 2 written out: the whole validation gradient anew after every pick, on written-out gradients."""
    dense, held = gradients.dense(), validation
    free, taken = list(range(len(dense))), []
    count = max(1, int(len(dense) / budget * math.log(100)))
    width = 1 + held.features[0].shape[1]
    classes = held.logits[0].shape[1]
    for _ in range(budget):
        step = step_size * dense[taken].sum(dim=0) if taken else torch.zeros(classes * width, dtype=dense.dtype)
        bias, weight = step[:classes], step[classes:].view(classes, width - 1)
        total = torch.zeros(classes * width, dtype=dense.dtype)
        for z, h in zip(held.logits, held.features, strict=True):
            delta = (z - h @ weight.T - bias).softmax(1) - nn.functional.one_hot(held.labels, classes)
            total += torch.cat([delta.sum(0), (delta.T @ h).flatten()]) / len(held)
        draws = torch.rand(min(count, len(free)), generator=generator, dtype=torch.float64).tolist()
        for number, draw in enumerate(draws, start=1):
            last, other = len(free) - number, int(draw * (len(free) - number + 1))
            free[last], free[other] = free[other], free[last]
        candidates = free[len(free) - len(draws) :]
        best = candidates[int((dense[candidates] @ total).argmax())]
        free[free.index(best)] = free[-1]  # the last one takes its place
        free.pop()
        taken.append(best)
    return taken


@pytest.mark.parametrize("terms", [1, 2])
def test_following_the_logits_picks_what_computing_them_anew_does(terms):
    gradients = factors(60, 4, 7, terms)
    validation = replace(factors(25, 4, 7, 1, seed=3), labels=torch.arange(25) % 4)
    logits = torch.randn((25, 4), generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    validation = replace(validation, logits=(logits,))

    def source():
        return torch.Generator().manual_seed(8)

    found = taylor_greedy(
        gradients,
        ValidationGradient(validation, SAT()),
        20,
        step_size=0.3,
        method="Stochastic",
        rounds=1,
        generator=source(),
    )
    assert len(found.unique()) == 20
    assert found.tolist() == plain_stochastic(gradients, validation, 20, 0.3, source())


@cases("linear_layer", [True, False])
@cases("granularity", ["full", "per_class"])
def test_eta_lr_is_cords_scale(granularity, linear_layer):
    problem = Problem(SIZES)
    config = {"granularity": granularity, "greedy": "RGreedy", "r": 3, "linear_layer": linear_layer}
    kinds = {"full": "Supervised", "per_class": "PerClass"}
    _, same, state = pair(problem, "RGreedy", kinds[granularity], linear_layer, eta=0.05)
    ours = AdvGLISTERStrategy.from_context(
        AdvGLISTERStrategy.Config(eta="lr", **config),
        problem.context(attack=None, loss=nn.CrossEntropyLoss(reduction="none"), lr=0.05),
    )
    assert ours.select(36, problem.model.state_dict())[0] == same.select(36, state)[0]
    with pytest.raises(UserError, match='eta = "lr" needs'):
        AdvGLISTERStrategy.from_context(AdvGLISTERStrategy.Config(), problem.context(lr=None))


@cases("granularity", ["full", "per_class", "per_batch"])
def test_the_hard_tail_is_left_out_before_choosing(granularity):
    problem = Problem([40, 40], batch=8)
    config = AdvGLISTERStrategy.Config(hard_tail=0.4, granularity=granularity)
    strategy = AdvGLISTERStrategy.from_context(config, problem.context())
    rows, _ = strategy.select(16, problem.model.state_dict())
    strategy.compute_gradients()
    gradients, labels = strategy.gradients, problem.train.labels
    clean, adversarial = gradients.logits
    losses = MART().from_logits({"clean": clean, "adversarial": adversarial}, gradients.labels)
    if granularity == "per_batch":
        order = torch.randperm(80, generator=generator(5, "batches"))
        means = torch.stack([part.mean() for part in losses[order].split(8)])
        easy = order[(means.argsort()[:6].view(-1, 1) * 8 + torch.arange(8)).flatten()].tolist()
    elif granularity == "per_class":
        easy = [row for c in (0, 1) for row in (labels == c).nonzero().flatten()[losses[labels == c].argsort()[:24]]]
        easy = [int(row) for row in easy]
    else:
        easy = losses.argsort()[:48].tolist()
    assert set(rows) <= set(easy)
    whole = AdvGLISTERStrategy.from_context(AdvGLISTERStrategy.Config(granularity=granularity), problem.context())
    assert not set(whole.select(16, problem.model.state_dict())[0]) <= set(easy)
    most = AdvGLISTERStrategy.from_context(AdvGLISTERStrategy.Config(hard_tail=0.9), problem.context())
    assert len(most.select(70, problem.model.state_dict())[0]) == 70
