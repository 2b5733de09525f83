"""Bullet-Train's compacted sub-batches against the plain loop: everybody attacked to the end, updates masked."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from robustcords.attacks.pgd import PGD
from robustcords.losses.mart import MART
from robustcords.losses.sat import SAT
from robustcords.losses.trades import TRADES
from robustcords.methods.efforts.batch import attack_batch
from robustcords.methods.efforts.bullet import Bullet
from robustcords.rng import Noise
from robustcords.threats.base import ThreatModel

EPSILON = 0.06
STEPS = {"outlier": 1, "robust": 2, "boundary": 5}
STEP_SIZES = {"outlier": 0.01, "robust": 0.04, "boundary": 0.02}
CONFIG = {"steps": STEPS, "step_size": STEP_SIZES}
NO_OUTLIERS = {"steps": {**STEPS, "outlier": 0}, "step_size": STEP_SIZES}


def middle(config):
    """Bullet-Train in the middle of a training."""
    bullet = Bullet(**config)
    bullet.reference = 0.4
    return bullet


class Counting(nn.Module):
    """A convolutional network with BatchNorm that keeps (batch size, logits) of every forward, all in eval mode."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3, padding=1)
        self.norm = nn.BatchNorm2d(8)
        self.head = nn.Linear(8, 4)
        self.calls = []

    def forward(self, x):
        assert not any(module.training for module in self.modules())
        logits = self.head(F.relu(self.norm(self.conv(x))).mean(dim=(2, 3)))
        self.calls.append((len(x), logits.detach()))
        return logits


@pytest.fixture
def problem():
    """A model in float64 whose BatchNorm has seen data, 48 images, labels that make 12 outliers, and noise."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = Counting().double()
        model.norm.running_mean.normal_(std=0.1)
        model.norm.running_var.uniform_(0.5, 2.0)
        nn.init.normal_(model.head.weight, std=3.0)
        x = torch.rand(48, 3, 6, 6, dtype=torch.float64)
    model.eval()
    with torch.no_grad():
        y = model(x).argmax(dim=1)
    model.train()
    y[::4] = (y[::4] + 1) % 4
    model.calls.clear()
    return model, x, y, Noise(3, torch.arange(100, 148))


def objective(loss, clean, y):
    """What the attack of a loss maximises, from the papers' definitions."""
    if not isinstance(loss, TRADES):
        return lambda logits: -logits.log_softmax(dim=1)[torch.arange(len(y)), y]
    p = clean.softmax(dim=1)
    return lambda logits: (p * (p.log() - logits.softmax(dim=1).log())).sum(dim=1)


def plain_loop(model, x, y, noise, kinds, steps, loss, norm):
    """Attacks the whole batch for the largest number of steps and moves an example only while its kind has steps."""
    with torch.no_grad():
        value = objective(loss, model(x), y)
    own_steps = torch.tensor([steps[kind] for kind in kinds])
    size = torch.tensor([STEP_SIZES[kind] for kind in kinds], dtype=x.dtype).view(-1, 1, 1, 1)
    if isinstance(loss, SAT):
        start = (noise.uniform((3, 6, 6)) * 2 - 1).double() * EPSILON
        if norm == "l2":
            direction = noise.normal((3, 6, 6)).double()
            radius = EPSILON * noise.uniform((1, 1, 1), draw=1).double() ** (1 / 108)
            start = direction / direction.flatten(1).norm(dim=1).view(-1, 1, 1, 1) * radius
    else:
        start = 0.001 * noise.normal((3, 6, 6)).double()
    current = torch.where((own_steps > 0).view(-1, 1, 1, 1), projected(x + start, x, norm), x)
    for step in range(max(steps.values())):
        current = current.detach().requires_grad_()
        (gradient,) = torch.autograd.grad(value(model(current)).sum(), current)
        length = gradient.flatten(1).norm(dim=1).view(-1, 1, 1, 1)
        direction = gradient.sign() if norm == "linf" else gradient / length
        moved = projected(current + size * direction, x, norm)
        current = torch.where((step < own_steps).view(-1, 1, 1, 1), moved, current)
    return current.detach()


def projected(points, x, norm):
    delta = points - x
    if norm == "linf":
        delta = delta.clamp(-EPSILON, EPSILON)
    else:
        length = delta.flatten(1).norm(dim=1).view(-1, 1, 1, 1)
        delta = delta * (EPSILON / length.clamp(min=1e-12)).clamp(max=1)
    return (x + delta).clamp(0, 1)


def kinds_of(logits, y, reference):
    """Each example's kind, one after the other."""
    p = logits.softmax(dim=1)
    score = [float(row.std()) * (1 if int(row.argmax()) == int(label) else -1) for row, label in zip(p, y, strict=True)]
    threshold = max(0.0, float(torch.tensor(score, dtype=torch.float64).quantile(1 - reference)))
    return ["outlier" if s < 0 else "robust" if s > threshold else "boundary" for s in score]


@pytest.mark.parametrize("norm", ["linf", "l2"])
@pytest.mark.parametrize("config", [CONFIG, NO_OUTLIERS])
@pytest.mark.parametrize("loss", [SAT(), TRADES(), MART()])
def test_equals_the_plain_masked_loop(problem, loss, config, norm):
    model, x, y, noise = problem
    attack = PGD(ThreatModel(norm=norm, epsilon=EPSILON))
    found = attack_batch(model, x, y, noise, attack=attack, loss=loss, effort=middle(config))

    model.eval()
    with torch.no_grad():
        kinds = kinds_of(model(x), y, 0.4)
    expected = plain_loop(model, x, y, noise, kinds, config["steps"], loss, norm)
    assert found.counts == {kind: kinds.count(kind) for kind in ("outlier", "boundary", "robust")}
    assert min(found.counts.values()) >= 5
    # The noise is float32 in both, and its rounding differs by where it is scaled; all else is float64.
    tolerance = 1e-8 if isinstance(loss, SAT) else 1e-12
    torch.testing.assert_close(found.images, expected, rtol=0, atol=tolerance)
    moved = (found.images - x).abs().flatten(1).amax(dim=1) > 0
    assert moved.tolist() == [config["steps"][kind] > 0 for kind in kinds]


@pytest.mark.parametrize("config", [CONFIG, NO_OUTLIERS])
@pytest.mark.parametrize("loss", [SAT(), TRADES()])
def test_makes_no_other_forward_than_the_steps_and_two_more(problem, loss, config):
    model, x, y, noise = problem
    bullet = middle(config)
    found = attack_batch(model, x, y, noise, attack=PGD(ThreatModel(epsilon=EPSILON)), loss=loss, effort=bullet)
    counts = found.counts
    model.eval()
    robust = float((model(found.images).argmax(dim=1) == y).double().mean())
    model.train()
    assert bullet.reference == pytest.approx(0.9 * 0.4 + 0.1 * 0.8 * robust, abs=1e-12)
    model.calls.pop()
    sizes = [size for size, _ in model.calls]
    # The clean forward that classifies, and that of the examples that were attacked, whose robust accuracy is counted.
    assert (sizes[0], sizes[-1]) == (len(x), sum(counts[kind] for kind, number in config["steps"].items() if number))
    going = [
        sum(counts[kind] for kind, number in config["steps"].items() if number > step)
        for step in range(max(config["steps"].values()))
    ]
    assert sizes[1:-1] == going
    assert model.training and model.norm.training


def test_trades_is_anchored_at_the_forward_that_classifies(problem):
    model, x, y, noise = problem
    anchors = []

    class Watched(TRADES):
        def objective(self, y, clean):
            anchors.append(clean())
            return super().objective(y, clean)

    attack = PGD(ThreatModel(epsilon=EPSILON))
    counts = attack_batch(model, x, y, noise, attack=attack, loss=Watched(), effort=middle(CONFIG)).counts
    logits = model.calls[0][1]
    kinds = kinds_of(logits, y, 0.4)
    assert counts == {kind: kinds.count(kind) for kind in counts}
    for step, anchor in zip((0, 1, 2), anchors, strict=True):  # one for each time that some examples are done
        torch.testing.assert_close(anchor, logits[[STEPS[kind] > step for kind in kinds]], rtol=0, atol=0)
