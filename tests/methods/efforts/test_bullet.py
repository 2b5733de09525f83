import numpy as np
import pytest
import torch
from support.cases import cases
from torch import nn

from robustcords.attacks.base import CleanLogits
from robustcords.attacks.fgsm import FGSM
from robustcords.attacks.pgd import PGD
from robustcords.losses.mart import MART
from robustcords.losses.sat import SAT
from robustcords.losses.trades import TRADES
from robustcords.methods.efforts.batch import attack_batch
from robustcords.methods.efforts.bullet import KINDS, Bullet
from robustcords.rng import Noise
from robustcords.threats.base import ThreatModel

THREAT = ThreatModel(epsilon=0.1)


@pytest.fixture
def problem():
    generator = torch.Generator().manual_seed(0)
    x = torch.rand((40, 1, 3, 3), generator=generator)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = nn.Sequential(nn.Flatten(), nn.Linear(9, 4))
    model[1].weight.data *= 3
    with torch.no_grad():
        y = model(x).argmax(1)
    y[:8] = (y[:8] + 1) % 4  # eight outliers
    return model, x, y, Noise(1, torch.arange(40))


def attacked(problem, effort=None, attack=None, loss=None):
    model, x, y, noise = problem
    return attack_batch(model, x, y, noise, attack=attack or PGD(THREAT), loss=loss or SAT(), effort=effort)


def masks_of(bullet, logits, y):
    kind = bullet.classify(logits, y)
    return {name: kind == number for number, name in enumerate(KINDS)}


def numpy_kinds(logits, y, reference):
    """DESIGN's reading of Hua et al. 2021, written out in NumPy."""
    e = np.exp(logits - logits.max(1, keepdims=True))
    p = e / e.sum(1, keepdims=True)
    s = p.std(1, ddof=1) * np.where(logits.argmax(1) == y, 1, -1)
    threshold = max(0, np.quantile(s, np.clip(1 - reference, 0, 1)))
    return s < 0, (s >= 0) & (s <= threshold), s > threshold


@pytest.mark.parametrize("reference", [0.0, 0.3, 0.7, 1.0, 1.5])
def test_kinds_follow_the_formula(problem, reference):
    model, x, y, _ = problem
    bullet = Bullet()
    bullet.reference = reference
    with torch.no_grad():
        logits = model(x)
    outlier, boundary, robust = numpy_kinds(logits.double().numpy(), y.numpy(), reference)
    masks = masks_of(bullet, logits, y)
    np.testing.assert_array_equal(masks["outlier"].numpy(), outlier)
    np.testing.assert_array_equal(masks["boundary"].numpy(), boundary)
    np.testing.assert_array_equal(masks["robust"].numpy(), robust)
    assert outlier.sum() == 8


@pytest.mark.parametrize("loss", [SAT(), TRADES(), MART()])
def test_each_kind_gets_its_own_attack(problem, loss):
    """The same images as attacking the whole batch three times and masking, which is what the compaction avoids."""
    model, x, y, noise = problem
    bullet = Bullet()
    bullet.reference = 0.5
    with torch.no_grad():
        clean = model(x)
    masks = masks_of(bullet, clean, y)
    objective = loss.objective(y, lambda: clean)
    expected = x.clone()
    for kind, steps, size in (("robust", 2, 0.075), ("boundary", 10, 0.025)):
        whole = PGD(THREAT, steps=steps, step_size=size)(model, x, objective, noise)
        expected[masks[kind]] = whole[masks[kind]]
    result = attacked(problem, bullet, loss=loss)
    torch.testing.assert_close(result.images, expected)
    assert torch.equal(result.images[masks["outlier"]], x[masks["outlier"]])
    assert result.counts == {kind: int(mask.sum()) for kind, mask in masks.items()}
    assert sum(result.counts.values()) == 40


def test_reference_follows_robust_accuracy(problem):
    model, _, y, _ = problem
    bullet = Bullet()
    expected = 0.0
    for _ in range(3):
        images = attacked(problem, bullet).images
        with torch.no_grad():
            accuracy = (model(images).argmax(1) == y).double().mean().item()
        expected = 0.9 * expected + 0.1 * 0.8 * accuracy
        assert bullet.reference == pytest.approx(expected, rel=1e-12)
    other = Bullet()
    other.load_state_dict(bullet.state_dict())
    assert other.reference == bullet.reference > 0


def test_same_steps_for_all_equals_the_uniform_effort(problem):
    steps, sizes = (
        dict.fromkeys(("outlier", "robust", "boundary"), 3),
        dict.fromkeys(("outlier", "robust", "boundary"), 0.02),
    )
    bullet = attacked(problem, Bullet(steps=steps, step_size=sizes), loss=TRADES())
    uniform = attacked(problem, attack=PGD(THREAT, steps=3, step_size=0.02), loss=TRADES())
    torch.testing.assert_close(bullet.images, uniform.images)


def test_works_around_a_single_step_attack(problem):
    model, x, y, noise = problem
    bullet = Bullet()
    with torch.no_grad():
        masks = masks_of(bullet, model(x), y)
    images = attacked(problem, bullet, FGSM(THREAT)).images
    whole = FGSM(THREAT)(model, x, SAT().objective(y, CleanLogits(model, x)), noise)
    torch.testing.assert_close(images[~masks["outlier"]], whole[~masks["outlier"]])
    assert torch.equal(images[masks["outlier"]], x[masks["outlier"]])


@cases("options", [{"steps": {"robust": -1}}, {"step": {}}, {"momentum": 1.0}, {"step_size": {"boundary": "x"}}])
def test_bad_options_are_named(options):
    with pytest.raises(ValueError, match=next(iter(options))):
        Bullet(**options)
