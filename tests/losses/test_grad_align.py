"""GradAlign against gradients that are written out, and what is known of it."""

from __future__ import annotations

import math

import pytest
import torch
from support.cases import cases
from support.training_steps import batches, network, optimizer, same, train, weighted
from torch import nn
from torch.nn import functional as F

from robustcords import FGSM, AdversarialTraining, ThreatModel
from robustcords.errors import UserError
from robustcords.losses.context import LossContext, Moment
from robustcords.losses.grad_align import GradAlign, misalignment
from robustcords.rng import Noise, derive

EPSILON, LAM = 0.05, 3.0
THREAT = ThreatModel(epsilon=EPSILON)


def attack():
    return FGSM(THREAT, random_start="none", step_size=EPSILON)


def gradient(model: nn.Module, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    x = x.clone().requires_grad_()
    return torch.autograd.grad(F.cross_entropy(model(x), y, reduction="sum"), x, create_graph=True)[0]


def written_out(model: nn.Module, both: bool) -> None:
    """Andriushchenko and Flammarion, section 5, with FGSM from the image in eval mode."""
    sgd = optimizer(model)
    for number, batch in enumerate(batches()):
        model.eval()
        x = batch.x + EPSILON * gradient(model, batch.x, batch.y).sign()
        model.train()
        seed = derive(0, "loss", number // 2, number % 2)
        eta = (Noise(seed, batch.noise.keys).uniform((2, 4, 4)).double() * 2 - 1) * EPSILON
        here = gradient(model, batch.x, batch.y)
        there = gradient(model, (batch.x + eta).clamp(0, 1), batch.y)
        cosine = F.cosine_similarity((here if both else here.detach()).flatten(1), there.flatten(1))
        loss = F.cross_entropy(model(x.clamp(0, 1).detach()), batch.y, reduction="none") + LAM * (1 - cosine)
        sgd.zero_grad()
        weighted(loss, batch).backward()
        sgd.step()


@cases("norm", [False, True])
@cases("both", [False, True])
def test_weights_are_those_of_the_formula(both: bool, norm: bool):
    model, other = network(norm=norm), network(norm=norm)
    train(AdversarialTraining(GradAlign(lam=LAM, both=both), attack()), model)
    written_out(other.train(), both)
    same(other, model)


def test_it_has_a_part_in_the_weights_and_micro_batches_have_none():
    model, other, without = network(), network(), network()
    for each, lam, settings in ((model, LAM, {}), (other, LAM, {"accumulation": 3}), (without, 0.0, {})):
        train(AdversarialTraining(GradAlign(lam=lam), attack()), each, **settings)
    same(other, model)
    assert (model[0].weight - without[0].weight).abs().max() > 1e-4


def test_gradients_of_a_linear_model_of_two_classes_are_aligned():
    """Each is a multiple of the difference of the two rows of weights."""
    model = nn.Sequential(nn.Flatten(), nn.Linear(32, 2)).double()
    x, y = batches(1)[0].x, torch.tensor([0, 1, 0, 1, 1, 0])
    context = LossContext(THREAT, Moment(0, 0, 0.0), Noise(0, torch.arange(6)))
    views = {"clean": x, "adversarial": x}
    value = GradAlign(lam=100.0).forward(model, views, y, context)
    torch.testing.assert_close(value, F.cross_entropy(model(x), y, reduction="none"), rtol=0, atol=1e-10)


def test_by_hand_and_where_a_gradient_is_zero():
    first = torch.tensor([[1.0, 0.0], [1.0, 0.0], [1.0, 1.0], [0.0, 0.0], [1.0, 2.0]], requires_grad=True)
    second = torch.tensor([[0.0, 2.0], [-3.0, 0.0], [2.0, 2.0], [1.0, 1.0], [0.0, 0.0]], requires_grad=True)
    value = misalignment(first, second)
    torch.testing.assert_close(value, torch.tensor([1.0, 2.0, 0.0, 0.0, 0.0]))
    for found in torch.autograd.grad(value.sum(), (first, second)):
        assert found.isfinite().all()
        assert not found[3:].any()


@cases("pixels", [4, 8, 16, 32])
def test_the_weight_follows_from_the_radius(pixels: int):
    config = GradAlign.resolved(GradAlign.Config(), ThreatModel(epsilon=pixels / 255))
    assert config.lam == pytest.approx(math.exp(min(pixels, 16) * math.log(10) / 8 + math.log(0.02)))
    assert GradAlign.resolved(GradAlign.Config(lam=7.0), ThreatModel(epsilon=pixels / 255)).lam == 7.0


def test_of_another_norm_it_has_to_be_given():
    with pytest.raises(UserError, match=r'\[loss\] lam is missing: .* is for threat.norm = "linf", not "l2"'):
        GradAlign.resolved(GradAlign.Config(), ThreatModel(norm="l2", epsilon=0.5))
