"""NuAT against singular values by NumPy, and its schedule."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from support.cases import cases
from support.training_steps import batches, network, optimizer, same, train
from torch import nn
from torch.nn import functional as F

from robustcords import PGD, AdversarialTraining, ThreatModel
from robustcords.losses.context import Moment
from robustcords.losses.nuat import NuAT, shares
from robustcords.rng import Noise

EPSILON, LAM = 0.05, 4.0
ATTACK = PGD(ThreatModel(epsilon=EPSILON), steps=1, step_size=EPSILON)


def written_out(model: nn.Module, ramp: float, alternate: bool) -> None:
    """Sriramanan et al.: the attack in eval mode, on the cross-entropy and the norm of the batch's logits."""
    sgd, given = optimizer(model), batches()
    for number, batch in enumerate(given):
        lam = LAM * (min(1.0, number / len(given) / ramp) if ramp else 1.0)
        model.eval()
        clean = model(batch.x).detach()
        signs = torch.where(Noise(number, batch.noise.keys).uniform((2, 4, 4)) < 0.5, 1.0, -1.0).double()
        start = (batch.x + EPSILON / 2 * signs).clamp(0, 1).requires_grad_()
        moved = model(start)
        goal = F.cross_entropy(moved, batch.y)
        if lam and not (alternate and number % 2 == 0):
            goal = goal + lam * torch.linalg.matrix_norm(moved - clean, ord="nuc") / len(batch.y)
        far = start.detach() + EPSILON * torch.autograd.grad(goal, start)[0].sign()
        x = far.clamp(batch.x - EPSILON, batch.x + EPSILON).clamp(0, 1)
        model.train()
        sgd.zero_grad()
        clean, moved = model(batch.x), model(x)
        losses = F.cross_entropy(clean, batch.y, reduction="none")
        norm = torch.linalg.svdvals(moved - clean).sum() / len(batch.y)
        ((losses * batch.weights).sum() / batch.total + lam * norm).backward()
        sgd.step()


@cases("norm", [False, True])
@cases(("ramp", "alternate"), [(1.0, False), (0.5, True), (0.0, True)])
def test_weights_are_those_of_the_formula(ramp: float, alternate: bool, norm: bool):
    model, other = network(norm=norm), network(norm=norm)
    train(AdversarialTraining(NuAT(lam=LAM, ramp=ramp, alternate=alternate), ATTACK), model)
    written_out(other.train(), ramp, alternate)
    same(other, model)


def test_the_norm_is_the_sum_of_singular_values():
    rng = np.random.default_rng(0)
    clean, adversarial = rng.normal(size=(2, 7, 3))
    found = shares(torch.from_numpy(clean), torch.from_numpy(adversarial))
    expected = np.linalg.svd(adversarial - clean, compute_uv=False).sum() / 7
    np.testing.assert_allclose(found.numpy(), np.full(7, expected), rtol=1e-12)


def test_by_hand():
    """Two examples whose logits move by 3 along one axis and by 4 along the other: the norm is 7."""
    logits = {"clean": torch.zeros(2, 2), "adversarial": torch.tensor([[3.0, 0.0], [0.0, 4.0]])}
    value = NuAT(lam=2.0).from_logits(logits, torch.tensor([0, 1]))
    assert value.tolist() == pytest.approx([np.log(2) + 2 * 7 / 2] * 2)


@cases(
    ("ramp", "progress", "weight"),
    [(1.0, 0.0, 0.0), (1.0, 0.25, 1.0), (0.5, 0.25, 2.0), (0.5, 0.9, 4.0), (0.0, 0.0, 4.0)],
)
def test_the_weight_rises(ramp: float, progress: float, weight: float):
    loss = NuAT(lam=4.0, ramp=ramp)
    then = loss.at(Moment(0, 0, progress))
    assert (then.weight, then.weight_in_attack) == (weight, weight)
    assert loss.weight == 4.0
    steps = [NuAT(ramp=ramp, alternate=True).at(Moment(0, step, progress)).weight_in_attack for step in range(3)]
    assert steps == [0.0, weight, 0.0]


def test_where_the_norm_weighs_nothing_no_clean_logits_are_asked_for():
    def never() -> torch.Tensor:
        raise AssertionError("nobody needs the clean logits")

    objective = NuAT().at(Moment(0, 0, 0.0)).objective(torch.tensor([0, 1]), never)
    assert (objective.start, objective.relative_to_clean) == ("signs", False)
    assert objective.value(torch.zeros(2, 2)).tolist() == pytest.approx([np.log(2)] * 2)


@pytest.mark.parametrize("scale", [0.0, 1e4])
def test_extreme_logits_stay_finite(scale: float):
    clean = (torch.eye(4) * scale).requires_grad_()
    adversarial = (-torch.eye(4) * scale).requires_grad_()
    value = NuAT().from_logits({"clean": clean, "adversarial": adversarial}, torch.arange(4))
    assert value.isfinite().all()
    assert all(found.isfinite().all() for found in torch.autograd.grad(value.sum(), (clean, adversarial)))
