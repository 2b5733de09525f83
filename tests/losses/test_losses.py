"""Losses against NumPy float64 from the papers' formulas."""

import numpy as np
import pytest
import torch
from support.cases import cases
from torch.autograd import gradcheck

from robustcords.losses.mart import MART
from robustcords.losses.sat import SAT
from robustcords.losses.standard import Standard
from robustcords.losses.trades import TRADES, kl_divergence


def softmax(z):
    e = np.exp(z - z.max(1, keepdims=True))
    return e / e.sum(1, keepdims=True)


def numpy_loss(name, clean, adversarial, y, beta=0.0, smoothing=0.0):
    rows, classes = np.arange(len(y)), clean.shape[1]
    target = np.full_like(clean, smoothing / classes)
    target[rows, y] += 1 - smoothing
    p, q = softmax(clean), softmax(adversarial)
    ce, ce_adv = -(target * np.log(p)).sum(1), -(target * np.log(q)).sum(1)
    kl = (p * np.log(p / q)).sum(1)
    if name == "standard":
        return ce
    if name == "sat":
        return ce_adv
    if name == "trades":
        return ce + beta * kl
    wrong = q.copy()
    wrong[rows, y] = -1
    return ce_adv - np.log(1 - wrong.max(1)) + beta * kl * (1 - p[rows, y])


LOSSES = [
    ("standard", Standard, {}),
    ("sat", SAT, {}),
    ("trades", TRADES, {"beta": 6.0}),
    ("mart", MART, {"beta": 5.0}),
]


def logits_of(loss, clean, adversarial):
    return {name: {"clean": clean, "adversarial": adversarial}[name] for name in loss.views}


@cases("smoothing", [0.0, 0.1])
@cases("classes", [2, 3, 10])
@cases(("name", "kind", "options"), LOSSES)
def test_equals_the_formula(name, kind, options, classes, smoothing):
    rng = np.random.default_rng(classes)
    clean, adversarial = rng.normal(size=(2, 16, classes)) * 3
    y = rng.integers(classes, size=16)
    loss = kind(**options, label_smoothing=smoothing)
    expected = numpy_loss(name, clean, adversarial, y, smoothing=smoothing, **options)
    tensors = logits_of(loss, torch.from_numpy(clean), torch.from_numpy(adversarial))
    np.testing.assert_allclose(loss.from_logits(tensors, torch.from_numpy(y)).numpy(), expected, rtol=1e-10)
    single = {name: z.float() for name, z in tensors.items()}
    value = loss.from_logits(single, torch.from_numpy(y))
    assert value.dtype == torch.float32
    np.testing.assert_allclose(value.numpy(), expected, rtol=1e-5, atol=1e-6)


def test_by_hand():
    """Two classes, clean p = (0.5, 0.5), adversarial p' = (0.25, 0.75), label 0."""
    clean, adversarial, y = torch.zeros(1, 2), torch.tensor([[0.0, np.log(3.0)]]), torch.tensor([0])
    kl = 0.5 * np.log(0.5 / 0.25) + 0.5 * np.log(0.5 / 0.75)
    logits = {"adversarial": adversarial, "clean": clean}
    assert TRADES(beta=2.0).from_logits(logits, y).item() == pytest.approx(np.log(2) + 2 * kl, rel=1e-6)
    boosted = -np.log(0.25) - np.log(1 - 0.75)
    assert MART(beta=2.0).from_logits(logits, y).item() == pytest.approx(boosted + 2 * kl * 0.5, rel=1e-6)


@cases(("name", "kind", "options"), LOSSES)
def test_gradients(name, kind, options):
    """No term is detached: the gradient with respect to both views is that of the whole formula."""
    loss, y = kind(**options), torch.tensor([0, 2, 1])
    generator = torch.Generator().manual_seed(1)
    inputs = [torch.randn((3, 4), generator=generator, dtype=torch.float64, requires_grad=True) for _ in loss.views]

    def value(*logits):
        return loss.from_logits(dict(zip(loss.views, logits, strict=True)), y)

    assert gradcheck(value, inputs)
    total = torch.autograd.grad(value(*inputs).sum(), inputs)
    assert all(gradient.abs().max() > 1e-3 for gradient in total)
    for gradient in total:  # a shift of all logits changes nothing, so every row sums to zero
        torch.testing.assert_close(gradient.sum(1), torch.zeros(3, dtype=torch.float64), atol=1e-12, rtol=0)


@cases("scale", [0.0, 50.0, 1e4])
@cases(("name", "kind", "options"), LOSSES)
def test_extreme_logits_stay_finite(name, kind, options, scale):
    loss = kind(**options)
    clean = (torch.eye(4) * scale).requires_grad_()
    adversarial = (-torch.eye(4) * scale).requires_grad_()
    used = logits_of(loss, clean, adversarial)
    value = loss.from_logits(used, torch.arange(4))
    assert value.isfinite().all()
    for gradient in torch.autograd.grad(value.sum(), list(used.values())):
        assert gradient.isfinite().all()


def test_mart_of_a_single_class_is_finite():
    logits = {name: torch.tensor([[2.0], [-1.0]], requires_grad=True) for name in MART.views}
    value = MART().from_logits(logits, torch.zeros(2, dtype=torch.int64))
    assert torch.equal(value, torch.zeros(2))  # -log 1, no other class to be taken for, and p = p'
    gradients = torch.autograd.grad(value.sum(), list(logits.values()))
    assert all(torch.equal(gradient, torch.zeros(2, 1)) for gradient in gradients)


def test_confidently_wrong_mart_is_finite():
    wrong = torch.tensor([[0.0, 1000.0, 0.0]], requires_grad=True)
    value = MART().from_logits({"clean": torch.zeros(1, 3), "adversarial": wrong}, torch.tensor([0]))
    assert value.isfinite().all()
    assert torch.autograd.grad(value.sum(), wrong)[0].isfinite().all()


def never():
    raise AssertionError("nobody needs the clean logits")


def test_objectives():
    clean, adversarial, y = torch.randn(3, 5, 4)[0], torch.randn(5, 4), torch.tensor([0, 1, 2, 3, 0])
    expected = -np.log(softmax(adversarial.double().numpy()))[np.arange(5), y.numpy()]
    for loss in (Standard(), SAT(label_smoothing=0.2), MART()):
        objective = loss.objective(y, never)
        np.testing.assert_allclose(objective.value(adversarial).numpy(), expected, rtol=1e-5)
        assert (objective.start, objective.relative_to_clean) == (
            "gaussian" if isinstance(loss, MART) else "uniform",
            False,
        )
    p, q = softmax(clean.double().numpy()), softmax(adversarial.double().numpy())
    objective = TRADES().objective(y, lambda: clean)
    np.testing.assert_allclose(objective.value(adversarial).numpy(), (p * np.log(p / q)).sum(1), rtol=1e-4, atol=1e-7)
    assert (objective.start, objective.relative_to_clean) == ("gaussian", True)


def test_kl_of_a_zero_target_is_not_nan():
    target = torch.tensor([[0.0, -200.0]])  # the second probability underflows in float32
    assert kl_divergence(target, torch.tensor([[0.0, 0.0]])).item() == pytest.approx(np.log(2), rel=1e-6)


@cases("options", [{"beta": -1.0}, {"beta": float("nan")}, {"label_smoothing": 1.0}, {"gamma": 1.0}])
def test_bad_options_are_named(options):
    with pytest.raises(ValueError, match=next(iter(options))):
        TRADES(**options)
