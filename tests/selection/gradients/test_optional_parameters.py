"""Gradients of exactly the parameters that the last layer has and trains, against automatic differentiation."""

from __future__ import annotations

import logging
from dataclasses import replace

import pytest
import torch
from support.cases import cases
from support.small_problem import LOSSES, Problem, read
from torch import nn
from torch.nn import functional as F

from robustcords.config.registry import find
from robustcords.errors import UserError
from robustcords.losses.sat import SAT
from robustcords.models.last_layer import LastLayer
from robustcords.selection._cords import DataSelectionStrategy, GLISTERStrategy, GradMatchStrategy
from robustcords.selection.cords.adapter import adapted
from robustcords.selection.gradients.adversarial_gradients import AdversarialGradients
from robustcords.selection.gradients.adversarial_pass import adversarial_pass
from robustcords.selection.gradients.torch_loss import as_loss
from robustcords.selection.gradients.validation_gradient import ValidationGradient
from robustcords.selection.solvers.gram import gram_matrix

SIZES = [20, 13, 9]
LAYERS = ["bias and weight", "no bias", "frozen bias", "frozen weight"]
EXTRA = {
    "torch": lambda: as_loss(nn.CrossEntropyLoss(reduction="none", label_smoothing=0.1), adversarial=True),
    "weighted": lambda: as_loss(
        nn.CrossEntropyLoss(torch.tensor([1.0, 2.0, 0.5]).double(), reduction="none"), adversarial=False
    ),
    "smoothed": lambda: find("loss", "trades")(label_smoothing=0.2, beta=3.0),
}
log = logging.getLogger(__name__)
pytestmark = pytest.mark.filterwarnings("ignore:'pin_memory'", "ignore:'cgi'")


def problem_of(layer: str) -> Problem:
    problem = Problem(SIZES)
    head = problem.model[-1]
    if layer == "no bias":
        problem.model[-1] = nn.Linear(8, len(SIZES), bias=False).double()
        with torch.no_grad():
            problem.model[-1].weight.copy_(head.weight)
    elif layer == "frozen bias":
        head.bias.requires_grad_(False)
    elif layer == "frozen weight":
        head.weight.requires_grad_(False)
    return problem


def written_out(head, gradients):
    """Puts gradients of the head's trained parameters into CORDS' columns, biases first; others have none."""
    count = head.out_features
    bias, weight = torch.zeros(count).double(), torch.zeros_like(head.weight).flatten()
    for parameter, value in gradients:
        if parameter is head.bias:
            bias = value
        else:
            weight = value.flatten()
    return torch.cat([bias, weight]) if head.weight.requires_grad else bias


def by_autograd(problem, loss, images, labels):
    """Every example's gradient, clean and adversarial images the same, one backward pass each."""
    model, head = problem.model.eval(), problem.model[-1]
    trained = [parameter for parameter in head.parameters() if parameter.requires_grad]
    rows = []
    for x, y in zip(images, labels, strict=True):
        value = loss.from_logits({name: model(x.unsqueeze(0)) for name in loss.views}, y.unsqueeze(0)).sum()
        rows.append(written_out(head, zip(trained, torch.autograd.grad(value, trained), strict=True)))
    return torch.stack(rows)


def pass_over(problem, loss, which="train"):
    loader = {"train": problem.train_loader, "validation": problem.val_loader}[which]
    return adversarial_pass(problem.model, *read(loader), loss, None, seed=0, num_classes=len(SIZES), device="cpu")


@cases("name", [*LOSSES, *EXTRA])
@cases("layer", LAYERS)
def test_all_that_is_computed_of_factors_is_of_the_trained_parameters(layer, name):
    problem, loss = problem_of(layer), {**LOSSES, **EXTRA}[name]()
    exact = by_autograd(problem, loss, problem.train.images, problem.train.labels)
    found = pass_over(problem, loss)
    products = exact @ exact.T
    weights = torch.linspace(0, 2, len(found)).double()

    def flat(direction):
        return torch.cat([direction[:, 0], direction[:, 1:].flatten()])

    torch.testing.assert_close(found.dense(), exact)
    torch.testing.assert_close(found.squared_norms(), products.diagonal())
    torch.testing.assert_close(found.products(found.rows(slice(3, 9))), products[:, 3:9])
    torch.testing.assert_close(gram_matrix_of(found), products)
    torch.testing.assert_close(flat(found.sum(weights)), weights @ exact)
    torch.testing.assert_close(found.inner(found.sum()), products.sum(dim=1))
    # A direction may have a part of its own for a bias that is not there.
    direction = torch.randn(
        len(SIZES), 1 + found.features[0].shape[1], generator=torch.Generator().manual_seed(1)
    ).double()
    torch.testing.assert_close(found.inner(direction), exact @ flat(direction))
    joined = type(found).joined([found.rows(slice(0, 7)), found.rows(slice(7, None))])
    torch.testing.assert_close(joined.squared_norms(), products.diagonal())
    means = found.means([20, 22])
    torch.testing.assert_close(means.dense(), torch.stack([exact[:20].mean(0), exact[20:].mean(0)]))
    own = found.of_output(1)
    columns = [1] if layer == "frozen weight" else [1, *range(3 + 8, 3 + 16)]
    torch.testing.assert_close(own.squared_norms(), exact[:, columns].square().sum(dim=1))


def gram_matrix_of(gradients):
    out = torch.empty(len(gradients), len(gradients), dtype=torch.float64)
    gram_matrix(gradients, out)
    return out


@cases("layer", LAYERS)
def test_the_look_ahead_of_glister_steps_the_trained_parameters(layer):
    problem, loss = problem_of(layer), SAT()
    head = problem.model.eval()[-1]
    before = pass_over(problem, loss, "validation")
    step = 0.3 * pass_over(problem, loss).sum()
    found = ValidationGradient(before, loss).after(step)

    # The same step, taken by the layer itself.
    with torch.no_grad():
        if head.bias is not None and head.bias.requires_grad:
            head.bias -= step[:, 0]
        if head.weight.requires_grad:
            head.weight -= step[:, 1:]
    exact = by_autograd(problem, loss, problem.validation.images, problem.validation.labels).mean(dim=0)
    torch.testing.assert_close(torch.cat([found[:, 0], found[:, 1:].flatten()]), exact)
    assert not torch.allclose(before.sum() / len(before), found)


class HookedGlister(AdversarialGradients, GLISTERStrategy):
    """GLISTER whose validation gradients are the hook's."""


class Scores(AdversarialGradients, DataSelectionStrategy):
    """What CRAIG has, without apricot."""

    if_convex = False
    selection_type = "PerClass"


@cases("layer", LAYERS)
def test_cords_code_behind_the_hook_gets_them_too(layer):
    problem, loss = problem_of(layer), SAT()
    arguments = (problem.train_loader, problem.val_loader, problem.cords_model())
    exact = by_autograd(problem, loss, problem.train.images, problem.train.labels)
    strategy = Scores(*arguments, len(SIZES), True, loss, torch.device("cpu"), log)
    strategy.compute_gradients()
    torch.testing.assert_close(strategy.grads_per_elem, exact)
    strategy.compute_score(problem.model.state_dict(), range(sum(SIZES)))
    distances = (exact[:, None] - exact[None]).square().sum(dim=2)
    torch.testing.assert_close(
        torch.from_numpy(strategy.dist_mat), (distances.max() - distances).float(), rtol=1e-4, atol=1e-5
    )
    glister = HookedGlister(*arguments, loss, 0.3, torch.device("cpu"), len(SIZES), True, "Supervised", "Naive", log)
    glister._update_grads_val(first_init=True)
    validation = by_autograd(problem, loss, problem.validation.images, problem.validation.labels)
    torch.testing.assert_close(glister.grads_val_curr[:, 0], validation.mean(dim=0))


@cases("name", ["adv-glister", "adv-gradmatch", "adv-craig", "loss", "el2n", "gradmatch"])
@cases("layer", LAYERS)
def test_every_strategy_on_gradients_selects_by_them(layer, name):
    problem = problem_of(layer)
    strategy = find("selector", name)
    config = strategy.Config(name=name, granularity="per_class")
    strategy.check(config, problem.context())
    rows, weights = strategy.from_context(config, problem.context()).select(12, problem.model.state_dict())
    assert len(set(rows)) == len(weights) == 12


def test_without_a_bias_gradmatch_is_this_packages_own_and_not_cords():
    """CORDS' code takes a bias for granted, so its gradients are others."""
    problem = problem_of("no bias")
    gradmatch, adversarial = find("selector", "gradmatch"), find("selector", "adv-gradmatch")
    options = {"granularity": "per_class", "lam": 0.5}
    plain = replace(
        problem.context(), attack=None, loss=as_loss(nn.CrossEntropyLoss(reduction="none"), adversarial=False)
    )
    found = gradmatch.from_context(gradmatch.Config(name="gradmatch", **options), problem.context()).select(
        12, problem.model.state_dict()
    )
    own = AdvGradMatchOf(adversarial, plain, **options).select(12, problem.model.state_dict())
    assert found[0] == own[0]
    torch.testing.assert_close(found[1], own[1])


def AdvGradMatchOf(strategy, context, **options):  # noqa: N802 -- stands for a class
    return strategy(
        *strategy.arguments(strategy.Config(name="adv-gradmatch", eps=1e-100, **options), context),
        granularity=options["granularity"],
        seed=context.seed,
    )


@cases(
    ("name", "layer", "options", "message"),
    [
        ("adv-glister", "no bias", {"linear_layer": False}, "has no bias, of which selector.linear_layer = false"),
        ("adv-craig", "frozen bias", {"linear_layer": False}, "has a frozen bias, of which .* set it to true"),
        ("glister", "no bias", {"linear_layer": False}, "has no bias, of which selector.linear_layer = false"),
        ("gradmatch", "frozen", {}, "last linear layer is frozen"),
        ("adv-gradmatch", "frozen", {}, "last linear layer is frozen"),
    ],
)
def test_gradients_that_there_are_not_are_refused_before_and_at_a_selection(name, layer, options, message):
    problem = problem_of(layer)
    if layer == "frozen":
        problem.model[-1].requires_grad_(False)
    strategy = find("selector", name)
    config = strategy.Config(name=name, **options)
    with pytest.raises(UserError, match=message):
        strategy.check(config, problem.context())
    with pytest.raises(UserError, match=message):
        strategy.from_context(config, problem.context()).select(12, problem.model.state_dict())


def test_plain_cords_code_is_refused_where_it_would_take_gradients_of_a_bias_that_is_not_there():
    strategy = adapted(GradMatchStrategy)
    config = strategy.Config(name="cords", granularity="per_class")
    strategy.check(config, problem_of("bias and weight").context())
    for layer in ("no bias", "frozen bias", "frozen weight"):
        with pytest.raises(UserError, match="CORDS' gradients are those of a bias and a weight"):
            strategy.check(config, problem_of(layer).context())


def test_a_bias_that_is_frozen_still_moves_the_logits():
    problem = problem_of("frozen bias")
    last = LastLayer(problem.model.eval(), len(SIZES))
    h, z = last.features_and_logits(problem.train.images[:3])
    torch.testing.assert_close(z, F.linear(h, last.head.weight, last.head.bias))
    assert not last.trains_bias
