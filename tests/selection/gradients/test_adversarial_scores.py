"""The hook in front of CORDS' strategies that get gradients in ways of their own: GLISTER and CRAIG."""

from __future__ import annotations

import logging
import socket

import numpy as np
import pytest
import torch
from support.cases import cases
from support.several import SERVER, together
from support.small_problem import Problem
from torch import distributed

from robustcords.attacks.pgd import PGD
from robustcords.losses.mart import MART
from robustcords.selection._cords import DataSelectionStrategy, GLISTERStrategy
from robustcords.selection.cords.adapter import adapted
from robustcords.selection.gradients.adversarial_gradients import AdversarialGradients
from robustcords.threats.base import ThreatModel

SIZES = [32, 24, 24]
log = logging.getLogger(__name__)
pytestmark = pytest.mark.filterwarnings("ignore:'pin_memory'", "ignore:'cgi'")


def glister(problem, loss, *, eta, linear_layer, selection_type):
    first = (problem.train_loader, problem.val_loader, problem.cords_model(), loss, eta, torch.device("cpu"), 3)
    return (*first, linear_layer, selection_type, "Naive", log)


class HookedGlister(AdversarialGradients, GLISTERStrategy):
    """GLISTER whose validation gradients are the hook's."""


@cases("linear_layer", [True, False])
@cases("selection_type", ["Supervised", "PerClass", "PerBatch"])
def test_glisters_validation_gradient_is_the_hooks_too(linear_layer, selection_type):
    problem = Problem(SIZES, batch=16, validation=[16, 8, 8])
    options = {"linear_layer": linear_layer, "selection_type": selection_type, "eta": 0.3}
    # Both terms of MART at the images themselves are one loss of one forward pass, which CORDS' own code can have.
    upstream = GLISTERStrategy(
        *glister(problem, lambda out, y: MART().from_logits({"clean": out, "adversarial": out}, y), **options)
    )
    hooked = HookedGlister(*glister(problem, MART(), **options))
    step = torch.randn(1, 3 + 3 * 8 * linear_layer, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    for strategy in (upstream, hooked):
        strategy.pcvalloader = strategy.valloader
        strategy._update_grads_val(first_init=True)
    torch.testing.assert_close(hooked.grads_val_curr, upstream.grads_val_curr)
    for strategy in (upstream, hooked):
        strategy._update_grads_val(step)
    torch.testing.assert_close(hooked.grads_val_curr, upstream.grads_val_curr)

    attacked = HookedGlister(*glister(problem, MART(), **options), attack=PGD(ThreatModel(epsilon=0.1), steps=2))
    attacked.pcvalloader = attacked.valloader
    attacked._update_grads_val(first_init=True)
    assert attacked.validation_gradients.logits[1].ne(hooked.validation_gradients.logits[1]).any()


class Scores(AdversarialGradients, DataSelectionStrategy):
    """What CRAIG has, without apricot."""

    if_convex = False


@cases(("selection_type", "linear_layer"), [("PerClass", True), ("PerBatch", True), ("PerClass", False)])
def test_craigs_similarities_are_those_of_the_hook(selection_type, linear_layer):
    problem = Problem(SIZES, batch=8)
    state = problem.cords_model().state_dict()
    attack = PGD(ThreatModel(epsilon=0.1), steps=2)
    strategy = Scores(
        *(problem.train_loader, problem.val_loader, problem.cords_model(), 3, linear_layer, MART()),
        *(torch.device("cpu"), log),
        attack=attack,
    )
    strategy.selection_type = selection_type
    strategy.compute_score(state, range(80))
    strategy.compute_gradients(perBatch=selection_type == "PerBatch")
    dense = strategy.grads_per_elem.numpy()
    distances = np.square(dense[:, None] - dense[None]).sum(axis=2)
    assert len(dense) == strategy.N
    np.testing.assert_allclose(strategy.dist_mat, distances.max() - distances, rtol=1e-5, atol=1e-5)


def in_process(rank, port, answers):
    distributed.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=2)
    torch.set_num_threads(1)
    answers[rank] = shared()
    distributed.destroy_process_group()


def shared():
    problem = Problem(SIZES, batch=8)
    strategy = adapted(HookedGlister)
    config = strategy.Config(name="hooked", greedy="RGreedy")
    rows, weights = strategy.from_context(config, problem.context()).select(20, problem.model.state_dict())
    return rows, weights.tolist()


def test_two_processes_share_the_attack_of_a_hooked_strategy():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    with SERVER.Manager() as manager:
        answers = manager.dict()
        together(in_process, 2, port, answers)
        assert [answers[0], answers[1]] == [shared()] * 2
