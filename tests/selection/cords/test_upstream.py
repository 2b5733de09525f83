"""Beside CORDS' own classes, in CORDS' own code."""

from __future__ import annotations

import logging

import numpy as np
import pytest
import torch
from support.cases import cases
from support.small_problem import Problem
from torch import nn

from robustcords.attacks.pgd import PGD
from robustcords.losses.sat import SAT
from robustcords.selection._cords import GradMatchStrategy
from robustcords.selection.gradients.adversarial_gradients import AdversarialGradients
from robustcords.selection.strategies.adv_glister import AdvGLISTERStrategy
from robustcords.selection.strategies.adv_gradmatch import AdvGradMatchStrategy
from robustcords.threats.base import ThreatModel

SIZES = [32, 24, 24]
log = logging.getLogger(__name__)
pytestmark = pytest.mark.filterwarnings("ignore:'pin_memory'", "ignore:'cgi'")


class Arguments(dict):
    """CORDS' dss_args: a dictionary with attributes."""

    __getattr__ = dict.__getitem__
    __setattr__ = dict.__setitem__


def gradmatch_arguments(problem, selection_type, linear_layer=True, loss=None, lam=0.5):
    return (
        problem.train_loader,
        problem.val_loader,
        problem.cords_model(),
        loss or nn.CrossEntropyLoss(reduction="none"),
        0.01,
        torch.device("cpu"),
        len(SIZES),
        linear_layer,
        selection_type,
        log,
        False,
        True,
        lam,
        1e-100,
    )


@cases("selection_type", ["PerClass", "PerClassPerGradient", "PerBatch"])
def test_clean_cross_entropy_selects_what_cords_selects(selection_type):
    # With few rows and a small ridge CORDS neither takes a row twice nor prunes, so it fills nothing up at random.
    problem = Problem(SIZES, batch=8)
    budget = 16 if selection_type == "PerBatch" else 10
    arguments = gradmatch_arguments(problem, selection_type, lam=1e-3)
    np.random.seed(0)
    rows, gammas = GradMatchStrategy(*arguments).select(budget, problem.model.state_dict())
    expected = dict(zip(map(int, rows), gammas.tolist(), strict=True))
    attack = PGD(ThreatModel(epsilon=0.0), steps=2)
    found, weights = AdvGradMatchStrategy(*arguments, attack=attack).select(budget, problem.model.state_dict())
    assert set(found) == set(expected)
    assert len(expected) == budget
    torch.testing.assert_close(weights, torch.tensor([expected[row] for row in found]), rtol=1e-5, atol=1e-5)


def test_the_constructor_is_cords_own_whose_eta_and_v1_choose_nothing_here():
    assert "__init__" not in vars(AdvGradMatchStrategy)
    problem = Problem(SIZES, batch=8)
    *given, valid, v1, lam, eps = gradmatch_arguments(problem, "PerClass", lam=1e-3)
    attack = PGD(ThreatModel(epsilon=0.0), steps=2)
    usual = AdvGradMatchStrategy(*given, valid, v1, lam, eps, attack=attack)
    given[4] = 7.0
    other = AdvGradMatchStrategy(*given, valid=valid, v1=not v1, lam=lam, eps=eps, attack=attack)
    (rows, weights), again = (each.select(10, problem.model.state_dict()) for each in (usual, other))
    assert (usual.eta, usual.v1, other.eta, other.v1) == (0.01, True, 7.0, False)
    assert rows == again[0]
    assert torch.equal(weights, again[1])
    assert {"eta", "v1"}.isdisjoint(AdvGradMatchStrategy.Config.model_fields)


@cases(
    ("selection_type", "linear_layer"),
    [("PerClass", True), ("PerClass", False), ("PerClassPerGradient", True), ("PerBatch", True), ("PerBatch", False)],
)
def test_the_hook_gives_an_upstream_strategy_its_gradients(selection_type, linear_layer):

    class Mixed(AdversarialGradients, GradMatchStrategy):
        pass

    problem = Problem(SIZES, batch=8)
    arguments = gradmatch_arguments(problem, selection_type, linear_layer)
    state = problem.model.state_dict()
    np.random.seed(0)
    expected = GradMatchStrategy(*arguments).select(16, state)
    np.random.seed(0)
    found = Mixed(*arguments).select(16, state)
    assert [int(row) for row in found[0]] == [int(row) for row in expected[0]]
    torch.testing.assert_close(found[1], expected[1], rtol=1e-5, atol=1e-5)

    np.random.seed(0)
    attack = PGD(ThreatModel(epsilon=0.1), steps=2, step_size=0.1)
    attacked = Mixed(*gradmatch_arguments(problem, selection_type, linear_layer, SAT()), attack=attack).select(
        16, state
    )
    assert not torch.equal(attacked[1], found[1])


@pytest.mark.parametrize("loader", ["glister", "gradmatch"])
def test_takes_upstreams_place_in_cords_data_loaders(monkeypatch, loader):
    from cords.utils.data.dataloader.SL.adaptive import glisterdataloader, gradmatchdataloader

    problem = Problem(SIZES)
    arguments = Arguments(
        model=problem.cords_model(),
        loss=nn.CrossEntropyLoss(reduction="none"),
        eta=0.01,
        num_classes=3,
        linear_layer=True,
        selection_type="PerClass",
        greedy="RGreedy",
        r=3,
        valid=False,
        v1=True,
        lam=0.5,
        eps=1e-100,
        fraction=0.3,
        select_every=2,
        device=torch.device("cpu"),
        kappa=0,
    )
    monkeypatch.setattr(glisterdataloader, "GLISTERStrategy", AdvGLISTERStrategy)
    monkeypatch.setattr(gradmatchdataloader, "GradMatchStrategy", AdvGradMatchStrategy)
    kind = {"glister": glisterdataloader.GLISTERDataLoader, "gradmatch": gradmatchdataloader.GradMatchDataLoader}
    cords_loader = kind[loader](problem.train_loader, problem.val_loader, arguments, log, batch_size=8)
    sizes = [sum(len(y) for _, y, _ in cords_loader) for _ in range(3)]
    assert sizes == [24, 24, 24]
    assert isinstance(cords_loader.strategy, AdvGLISTERStrategy | AdvGradMatchStrategy)
    rows, weights = cords_loader.strategy.select(24, arguments.model.state_dict())
    assert list(cords_loader.subset_indices) == rows
    assert torch.equal(cords_loader.subset_weights, weights)
