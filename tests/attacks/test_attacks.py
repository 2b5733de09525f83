"""One table of attacks; every promise is checked for every row."""

import numpy as np
import pytest
import torch
from support.cases import cases
from torch import nn
from torch.nn import functional as F

from robustcords.attacks.base import input_gradient
from robustcords.attacks.fgsm import FGSM
from robustcords.attacks.kim import Kim
from robustcords.attacks.n_fgsm import NFGSM
from robustcords.attacks.pgd import PGD
from robustcords.engine.modes import evaluation_mode
from robustcords.losses.objective import cross_entropy_of
from robustcords.rng import Noise
from robustcords.threats.base import ThreatModel

ATTACKS = [
    (FGSM, {"random_start": "uniform"}),
    (FGSM, {"random_start": "none"}),
    (FGSM, {"step_size": 0.2}),
    (Kim, {}),
    (Kim, {"checkpoints": 2}),
    (NFGSM, {}),
    (PGD, {"steps": 3, "step_size": 0.02}),
    (PGD, {"steps": 3, "step_size": 0.02, "random_start": "none"}),
    (PGD, {"steps": 3, "step_size": 0.02, "random_start": "uniform"}),
    (PGD, {"steps": 2, "step_size": 10.0, "random_start": "gaussian"}),
]
RADII = {"linf": 0.1, "l2": 0.1, "l1": 0.1, "l0": 2}
"""A radius in each norm."""


@pytest.fixture
def images():
    generator = torch.Generator().manual_seed(0)
    x = torch.rand((6, 3, 5, 5), generator=generator)
    x[0], x[1] = 0.0, 1.0  # images on the bounds
    return x, torch.tensor([0, 1, 2, 3, 0, 1])


@pytest.fixture
def model():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return nn.Sequential(
            nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Dropout(0.5), nn.Flatten(), nn.Linear(36, 4)
        )


def noise(count, seed=5):
    return Noise(seed, torch.arange(count))


@cases("norm", RADII)
@cases(("attack", "options"), ATTACKS)
def test_stays_inside_ball_and_bounds(attack, options, norm, model, images):
    x, y = images
    radius, threat = RADII[norm], ThreatModel(norm=norm, epsilon=RADII[norm])
    x_adv = attack(threat, **options)(model, x, cross_entropy_of(y), noise(6))
    # A pixel of l0 is all of its channels.
    delta = (x_adv != x).any(1).double().flatten(1) if norm == "l0" else (x_adv - x).flatten(1)
    size = delta.norm(dim=1, p={"linf": torch.inf, "l2": 2, "l1": 1, "l0": 1}[norm])
    if attack.contained:
        assert size.max() <= radius + 1e-6
    elif norm != "l0":  # where a step that is not projected moves all pixels
        assert 2 * radius < size.max() <= 3 * radius + 1e-6, "N-FGSM: noise of two radii and a step of one"
    assert x_adv.min() >= 0
    assert x_adv.max() <= 1
    assert size.max() > 0.01
    assert not x_adv.requires_grad


@cases("norm", RADII)
@cases(("attack", "options"), ATTACKS)
def test_objective_rises_on_a_linear_model(attack, options, norm, images):
    x, _ = images
    with torch.random.fork_rng():
        torch.manual_seed(1)
        linear = nn.Sequential(nn.Flatten(), nn.Linear(75, 4))
    y = linear(x).argmax(1)
    attacked = attack(ThreatModel(norm=norm, epsilon=RADII[norm]), **options)(linear, x, cross_entropy_of(y), noise(6))
    with torch.no_grad():
        before, after = (F.cross_entropy(linear(images_), y, reduction="none") for images_ in (x, attacked))
    # A step across the whole ball may come back on the other side; noise outside of it may do more than the step, and
    # so may a random start under l1 and l0, whose steps move few pixels.
    few = norm in {"l1", "l0"} and options.get("random_start") != "none"
    if options.get("step_size") != 10.0 and attack.contained and not few:
        assert (after >= before - 1e-6).all()
    assert after.sum() > before.sum()


@cases(("attack", "options"), ATTACKS)
def test_no_radius_no_batch_no_change(attack, options, model, images):
    x, y = images
    nothing = attack(ThreatModel(epsilon=0.0), **options)
    assert torch.equal(nothing(model, x, cross_entropy_of(y), noise(6)), x)
    empty = attack(ThreatModel(epsilon=0.1), **options)(model, x[:0], cross_entropy_of(y[:0]), noise(0))
    assert empty.shape == x[:0].shape


@cases(("attack", "options"), ATTACKS)
def test_leaves_the_model_as_it_was(attack, options, model, images):
    x, y = images
    model.train()
    model[3].eval()
    buffers = {name: value.clone() for name, value in model.named_buffers()}
    attack(ThreatModel(epsilon=0.1), **options)(model, x, cross_entropy_of(y), noise(6))
    assert [module.training for module in model] == [True, True, True, False, True, True]
    assert all(torch.equal(value, buffers[name]) for name, value in model.named_buffers())
    assert all(parameter.grad is None for parameter in model.parameters())


@cases(("attack", "options"), ATTACKS)
def test_is_reproducible_and_independent_of_batching(attack, options, model, images):
    x, y = images
    search = attack(ThreatModel(epsilon=0.1), **options)
    state = torch.get_rng_state()
    whole = search(model, x, cross_entropy_of(y), noise(6))
    assert torch.equal(whole, search(model, x, cross_entropy_of(y), noise(6)))
    rows = torch.tensor([4, 1])
    part = search(model, x[rows], cross_entropy_of(y[rows]), noise(6)[rows])
    torch.testing.assert_close(part, whole[rows])
    assert torch.equal(torch.get_rng_state(), state)
    if options.get("random_start") != "none" and options.get("step_size") != 10.0:
        assert not torch.equal(whole, search(model, x, cross_entropy_of(y), noise(6, seed=6)))


def test_pgd_follows_the_formula():
    """Eq. (2) in NumPy float64, on a linear model whose gradient is known."""
    rng = np.random.default_rng(0)
    weight, x, y = rng.normal(size=(3, 4)), rng.uniform(size=(5, 4)), np.array([0, 1, 2, 0, 1])
    epsilon, step, expected = 0.1, 0.03, x.copy()
    for _ in range(4):
        logits = expected @ weight.T
        p = np.exp(logits - logits.max(1, keepdims=True))
        p /= p.sum(1, keepdims=True)
        gradient = (p - np.eye(3)[y]) @ weight
        expected = np.clip(np.clip(expected + step * np.sign(gradient), x - epsilon, x + epsilon), 0, 1)
    linear = nn.Sequential(nn.Flatten(), nn.Linear(4, 3, bias=False)).double()
    linear[1].weight.data = torch.from_numpy(weight)
    attack = PGD(ThreatModel(epsilon=epsilon), steps=4, step_size=step, random_start="none")
    result = attack(linear, torch.from_numpy(x).view(5, 1, 2, 2), cross_entropy_of(torch.from_numpy(y)), noise(5))
    np.testing.assert_allclose(result.view(5, 4).numpy(), expected, atol=1e-12)


def test_l2_step_goes_along_the_normalised_gradient():
    threat = ThreatModel(norm="l2", epsilon=1.0)
    x, gradient = torch.full((2, 1, 2, 2), 0.5), torch.zeros(2, 1, 2, 2)
    gradient[0, 0, 0] = torch.tensor([3.0, 4.0])
    moved = threat.ascend(x, gradient, 0.5)
    torch.testing.assert_close(moved[0, 0, 0], torch.tensor([0.8, 0.9]))
    assert torch.equal(moved[1], x[1])  # a zero gradient has no direction


@cases("scale", [1.0, 1e-13, 1e-30])
def test_a_vanishing_gradient_does_not_shorten_the_l2_step(scale):
    """A confident prediction's gradient is far below 1, and its square below what float32 can hold."""
    threat = ThreatModel(norm="l2", epsilon=1.0)
    x = torch.full((1, 1, 2, 2), 0.5)
    gradient = torch.tensor([[[[3.0, 4.0], [0.0, 0.0]]]]) * scale
    torch.testing.assert_close(threat.ascend(x, gradient, 0.5) - x, torch.tensor([[[[0.3, 0.4], [0.0, 0.0]]]]))


def test_input_gradient_matches_autograd_and_leaves_no_graph(model, images):
    x, y = images
    model.eval()
    gradient = input_gradient(model, cross_entropy_of(y), x)
    leaf = x.clone().requires_grad_()
    F.cross_entropy(model(leaf), y, reduction="sum").backward()
    torch.testing.assert_close(gradient, leaf.grad)
    assert gradient.grad_fn is None


def test_effort_replaces_steps(model, images):
    x, y = images
    threat = ThreatModel(epsilon=0.1)
    pgd = PGD(threat, steps=7, step_size=0.01)
    assert pgd.with_effort(2, 0.05).config.steps == 2
    assert pgd.with_effort(2, 0.05).config.step_size == 0.05
    assert pgd.with_effort(2).config.step_size == 0.125, "2.5 epsilon / steps"
    assert torch.equal(pgd.with_effort(0)(model, x, cross_entropy_of(y), noise(6)), x)
    for single in (FGSM(threat), Kim(threat), NFGSM(threat)):
        assert torch.equal(single.with_effort(0)(model, x, cross_entropy_of(y), noise(6)), x)
        assert single.with_effort(5) is single


def test_modes_come_back_after_an_error(model):
    model.train()
    with pytest.raises(RuntimeError, match="inside"), evaluation_mode(model):
        assert not model[1].training
        raise RuntimeError("inside")
    assert all(module.training for module in model.modules())


@cases(
    ("attack", "options", "key"),
    [(PGD, {"steps": -1}, "steps"), (PGD, {"step_size": "2/0"}, "step_size"), (FGSM, {"stepsize": 1.0}, "stepsize")],
)
def test_bad_options_are_named(attack, options, key):
    with pytest.raises(ValueError, match=key):
        attack(ThreatModel(), **options)


def test_a_search_may_write_over_its_images(model, images):
    class Writes(FGSM):
        def search(self, model, x, objective, noise):
            found = super().search(model, x, objective, noise)
            x.fill_(0.7)
            return found

    (x, y), threat = images, ThreatModel(epsilon=0.1)
    kept = x.clone()
    assert torch.equal(
        Writes(threat)(model, x, cross_entropy_of(y), noise(6)), FGSM(threat)(model, x, cross_entropy_of(y), noise(6))
    )
    assert torch.equal(x, kept)
