"""RCS, against the algorithm written out with automatic differentiation and steps of a copied network."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from support.cases import cases
from support.small_problem import Problem
from torch import nn
from torch.nn import functional as F
from torch.nn.utils import parametrizations

from robustcords.data.split import apportion
from robustcords.errors import UserError
from robustcords.losses.sat import SAT
from robustcords.rng import Noise, derive, generator
from robustcords.selection.strategies.rcs import Divergence, RCSStrategy

RATE = 2.0


def head_gradient(model: nn.Module, value: torch.Tensor) -> list[torch.Tensor]:
    return list(torch.autograd.grad(value, [model[-1].weight, model[-1].bias]))


def divergence(model: nn.Module, attack: Any, problem: Problem, seed: int) -> list[torch.Tensor]:
    """The gradient of the mean KL(p' || p) over the validation images, batch by batch attacked."""
    total = torch.zeros((), dtype=torch.float64)
    for batch in torch.arange(len(problem.validation)).split(16):
        x, y = problem.validation.batch(batch)
        with torch.no_grad():
            clean = model(x)
        x_adv = attack(model, x, Divergence().objective(y, lambda z=clean: z), Noise(seed, batch))
        p_adv, p = model(x_adv).softmax(1), model(x).softmax(1)
        total = total + (p_adv * (p_adv.log() - p.log())).sum()
    return head_gradient(model, total / len(problem.validation))


def written_out(problem: Problem, context: Any, budget: int, window: int) -> list[int]:
    model = copy.deepcopy(problem.model).eval()
    order = torch.randperm(len(problem.train), generator=generator(context.seed, "batches"))
    batches, chosen = order.split(8), []
    gradients = []
    for batch in batches:
        x, y = problem.train.batch(batch)
        objective = SAT().objective(y, lambda: None)
        x_adv = context.attack(model, x, objective, Noise(derive(context.seed, "training"), batch))
        gradients.append(head_gradient(model, F.cross_entropy(model(x_adv), y)))
    windows = torch.arange(len(batches)).split(window)
    shares = apportion([sum(len(batches[batch]) for batch in part) for part in windows], budget)
    for part, share in zip(windows, shares, strict=True):
        moved, free, taken = copy.deepcopy(model), part.tolist(), []
        step = torch.optim.SGD(moved[-1].parameters(), lr=RATE)
        while len(taken) < share:
            target = divergence(moved, context.attack, problem, derive(context.seed, "validation"))
            best = max(free, key=lambda b: sum(float((g * t).sum()) for g, t in zip(gradients[b], target, strict=True)))
            free.remove(best)
            taken += batches[best].tolist()
            for parameter, gradient in zip(moved[-1].parameters(), gradients[best], strict=True):
                parameter.grad = gradient
            step.step()
        chosen += taken[:share]
    return chosen


@cases(("budget", "window"), [(24, 100), (30, 4), (13, 3)])
def test_picks_are_those_of_the_algorithm_written_out(budget: int, window: int):
    problem = Problem([30, 24, 12], batch=8)
    context = problem.context(lr=RATE)
    strategy = RCSStrategy.from_context(RCSStrategy.Config(window=window), context)
    before = copy.deepcopy(problem.model.state_dict())
    rows, weights = strategy.select(budget, problem.model.state_dict())
    assert rows == written_out(problem, context, budget, window)
    assert weights.tolist() == [1.0] * budget
    assert all(torch.equal(value, before[name]) for name, value in problem.model.state_dict().items())


def test_the_layer_moves_after_each_pick():
    """With a rate of 0 the choice is that of the first gradient alone, and another one."""
    problem = Problem([30, 24, 12], batch=8)
    found = [
        RCSStrategy.from_context(RCSStrategy.Config(eta=eta), problem.context(lr=None)).select(
            40, problem.model.state_dict()
        )[0]
        for eta in (0.0, 100.0)
    ]
    assert found[0] != found[1]


def test_a_layer_that_cannot_be_moved_and_a_rate_that_is_missing_are_one_line():
    problem = Problem([12, 9])
    with pytest.raises(UserError, match=r'^selector.eta = "lr" needs the optimizer'):
        RCSStrategy.from_context(RCSStrategy.Config(), problem.context(lr=None))
    problem.model[-1] = parametrizations.weight_norm(problem.model[-1])
    with pytest.raises(UserError, match=r"^selector 'rcs' moves the last layer's weight, .* parametrization"):
        RCSStrategy.from_context(RCSStrategy.Config(), problem.context())
