"""Fast-BAT against a loop that is written out, with the matrix of second derivatives."""

from __future__ import annotations

import pytest
import torch
from support.cases import cases
from support.training_steps import batches, network, optimizer, same, train
from torch import nn
from torch.nn import functional as F

from robustcords import PGD, SAT, ThreatModel
from robustcords.methods.awp import AWP
from robustcords.methods.fast_bat import FastBAT

EPSILON, SIZE, LAM = 0.05, 0.3, 0.5
ATTACK = PGD(ThreatModel(epsilon=EPSILON))


def ascent(model: nn.Module, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    """The gradient of the summed cross-entropy by the images, with a graph."""
    return torch.autograd.grad(F.cross_entropy(model(x), y, reduction="sum"), x, create_graph=True)[0]


def mixed(model: nn.Module, x: torch.Tensor, y: torch.Tensor, by: torch.Tensor) -> list[torch.Tensor]:
    """``sum_j by_j * d/dtheta d/dx_j CE``, pixel by pixel."""
    weights = [*model.parameters()]
    total = [torch.zeros_like(weight) for weight in weights]
    gradient = ascent(model, x, y).flatten()
    for value, factor in zip(gradient, by.flatten(), strict=True):
        if factor:
            row = torch.autograd.grad(value, weights, retain_graph=True, materialize_grads=True)
            total = [sum_ + factor * part for sum_, part in zip(total, row, strict=True)]
    return total


def written_out(model: nn.Module, *, cross: bool = True) -> float:
    """Zhang et al., example by example; returns the share of pixels inside the bounds."""
    sgd, inside = optimizer(model), []
    for batch in batches():
        model.eval()
        noise = batch.noise.uniform((2, 4, 4)).double() * 2 - 1
        lower, upper = (batch.x - EPSILON).clamp(min=0), (batch.x + EPSILON).clamp(max=1)
        points = [(batch.x + EPSILON * noise).clamp(0, 1)]
        for _ in range(2):
            x = points[-1].requires_grad_()
            points.append((x + SIZE * ascent(model, x, batch.y)).detach().clamp(lower, upper))
        _, before, images = points
        hold = (images > lower) & (images < upper)
        outer = ascent(model, images.requires_grad_(), batch.y).detach()
        terms = [torch.zeros_like(weight) for weight in model.parameters()]
        for row, weight in enumerate(batch.weights):
            part = slice(row, row + 1)
            by = (hold * outer)[part] * weight / batch.total
            found = mixed(model, before[part].detach().requires_grad_(), batch.y[part], by)
            # -1 / lam times the derivative of the gradient of -CE
            terms = [term + each / LAM for term, each in zip(terms, found, strict=True)]
        inside.append(hold.double().mean())
        model.train()
        sgd.zero_grad()
        losses = F.cross_entropy(model(images.detach()), batch.y, reduction="none")
        ((losses * batch.weights).sum() / batch.total).backward()
        for weight, term in zip(model.parameters(), terms, strict=True):
            weight.grad += term * cross
        sgd.step()
    return float(torch.stack(inside).mean())


@pytest.mark.parametrize("norm", [False, True])
def test_weights_are_those_of_the_formula(norm: bool):
    model, other, without = network(norm=norm), network(norm=norm), network(norm=norm)
    train(FastBAT(SAT(), ATTACK, step_size=SIZE, lam=LAM), model)
    assert 0.2 < written_out(other.train()) < 0.9, "some pixels are inside the bounds, and some are not"
    same(other, model)
    written_out(without.train(), cross=False)
    assert (model[0].weight - without[0].weight).abs().max() > 1e-4


def test_micro_batches_change_nothing():
    model, other = network(), network()
    losses = train(FastBAT(SAT(), ATTACK, step_size=SIZE, lam=LAM), model)
    assert train(FastBAT(SAT(), ATTACK, step_size=SIZE, lam=LAM), other, accumulation=3) == pytest.approx(losses)
    same(other, model)


def test_the_reported_loss_is_that_of_the_images():
    (batch,) = batches(1)
    far, near = (train(FastBAT(SAT(), ATTACK, step_size=SIZE, lam=lam), network(), [batch]) for lam in (1e9, 1e-3))
    assert far == pytest.approx(near, rel=1e-12)


def test_around_it_weights_are_perturbed():
    moved, plain = network(norm=True), network(norm=True)
    train(AWP(FastBAT(SAT(), ATTACK, step_size=SIZE), gamma=0.1), moved)
    train(FastBAT(SAT(), ATTACK, step_size=SIZE), plain)
    assert (moved[0].weight - plain[0].weight).abs().max() > 1e-4


@cases(("pixels", "size"), [(4, 5000 / 255), (8, 5000 / 255), (9, 2000 / 255), (16, 2000 / 255)])
def test_the_step_size_follows_from_the_radius(pixels: int, size: float):
    method = FastBAT(SAT(), PGD(ThreatModel(epsilon=pixels / 255)), name="fast_bat")
    assert method.config.step_size == size
    config = AWP.Config(name="awp", inner=FastBAT.Config())
    assert AWP.resolved(config, ThreatModel(epsilon=pixels / 255)).inner.step_size == size
