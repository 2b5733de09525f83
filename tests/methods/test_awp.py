"""Adversarial weight perturbation against a proxy network, as its authors write it."""

from __future__ import annotations

import copy

import pytest
import torch
from support.cases import cases
from support.training_steps import DECAY, LR, MOMENTUM, batches, network, same, train, weighted
from torch.nn import functional as F

from robustcords import PGD, SAT, TRADES, AdversarialTraining, ThreatModel
from robustcords.methods.awp import AWP, ascent
from robustcords.methods.free import Free

THREAT = ThreatModel(epsilon=0.05)
NONE = PGD(THREAT, steps=0)
GAMMA = 0.2


def plain(loss, steps: int = 0):
    return AdversarialTraining(loss, PGD(THREAT, steps=steps, step_size=0.03))


def by_proxy(model, given, *, warmup: int = 0):
    """Wu et al., Alg. 1, on clean images with cross-entropy: a proxy climbs, its BatchNorm's statistics are dropped."""
    buffers = {name: torch.zeros_like(weight) for name, weight in model.named_parameters()}
    for number, batch in enumerate(given):
        proxy = copy.deepcopy(model)
        gradients = torch.autograd.grad(
            weighted(F.cross_entropy(proxy(batch.x), batch.y, reduction="none"), batch), [*proxy.parameters()]
        )
        moves = {}
        for (name, weight), gradient in zip(model.named_parameters(), gradients, strict=True):
            if weight.dim() > 1 and number // 2 >= warmup:
                moves[name] = GAMMA * weight.detach().norm() / gradient.norm() * gradient
        with torch.no_grad():
            for name, move in moves.items():
                model.get_parameter(name).add_(move)
        loss = weighted(F.cross_entropy(model(batch.x), batch.y, reduction="none"), batch)
        gradients = torch.autograd.grad(loss, [*model.parameters()])
        with torch.no_grad():
            for (name, weight), gradient in zip(model.named_parameters(), gradients, strict=True):
                weight.sub_(moves.get(name, torch.zeros(())))
                buffers[name] = MOMENTUM * buffers[name] + gradient + DECAY * weight
                weight.sub_(LR * buffers[name])


@cases("norm", [False, True])
@cases("warmup", [0, 1])
def test_weights_are_those_of_a_proxy_that_climbs(norm: bool, warmup: int):
    model, other = network(norm=norm), network(norm=norm)
    train(AWP(AdversarialTraining(SAT(), NONE), gamma=GAMMA, warmup=warmup), model)
    by_proxy(other.train(), batches(), warmup=warmup)
    same(other, model)


def test_without_a_move_it_is_the_inner_method():
    for around in ({"gamma": 0.0}, {"warmup": 2}):
        model, other = network(norm=True), network(norm=True)
        assert train(AWP(plain(TRADES(), 2), **around), model) == train(plain(TRADES(), 2), other)
        same(model, other, atol=0)


def test_micro_batches_change_nothing():
    model, other = network(), network()
    losses = train(AWP(plain(TRADES(), 1), gamma=GAMMA), model)
    assert train(AWP(plain(TRADES(), 1), gamma=GAMMA), other, accumulation=3) == pytest.approx(losses, rel=1e-9)
    same(model, other)


def test_the_reported_loss_is_that_at_the_moved_weights():
    def first(gamma: float) -> float:
        return train(AWP(plain(SAT()), gamma=gamma), network(), batches(1))[0]

    assert first(0.0) < first(0.01) < 1.5 * first(0.0)


def test_images_get_a_gradient_at_the_moved_weights_alone():
    """Free AT moves images by it: two replays of both, with one that is moved by hand in between."""
    moved, still = network(), network()
    train(AWP(Free(SAT(), NONE, replays=2), gamma=GAMMA), moved, batches(1))
    train(Free(SAT(), NONE, replays=2), still, batches(1))
    (batch,), model = batches(1), network()
    x = batch.x
    optimizer = torch.optim.SGD(model.parameters(), lr=LR, momentum=MOMENTUM, weight_decay=DECAY)
    for _ in range(2):
        x = x.detach().requires_grad_()
        weights = [weight for weight in model.parameters() if weight.dim() > 1]
        loss = weighted(F.cross_entropy(model(x.detach()), batch.y, reduction="none"), batch)
        moves = [
            GAMMA * weight.detach().norm() / gradient.norm() * gradient
            for weight, gradient in zip(weights, torch.autograd.grad(loss, weights), strict=True)
        ]
        torch._foreach_add_([weight.data for weight in weights], moves)
        optimizer.zero_grad()
        weighted(F.cross_entropy(model(x), batch.y, reduction="none"), batch).backward()
        torch._foreach_sub_([weight.data for weight in weights], moves)
        optimizer.step()
        far = x.detach() + 0.05 * x.grad.sign()
        x = far.clamp(batch.x - 0.05, batch.x + 0.05).clamp(0, 1)
    same(model, moved)
    assert not torch.equal(moved[0].weight, still[0].weight)


@cases("gradient", [None, torch.zeros(2, 3), torch.full((2, 3), torch.inf), torch.full((2, 3), torch.nan)])
def test_where_there_is_no_direction_weights_stay(gradient):
    assert torch.equal(ascent(torch.ones(2, 3), gradient, 0.1), torch.zeros(2, 3))
