"""Evaluation that drops what is broken, example by example against the loop that attacks everything every time."""

import json

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from robustcords.attacks.pgd import PGD
from robustcords.data.images import ImageSet
from robustcords.evaluation.config import EvaluationConfig
from robustcords.evaluation.evaluate import evaluate, robust_accuracy
from robustcords.rng import Noise, derive
from robustcords.threats.base import ThreatModel

SEED, COUNT = 7, 300
STEPS, RESTARTS, STEP_SIZE, EPSILON = 3, 6, 0.015, 0.045
PGD_TABLE = {"steps": STEPS, "restarts": RESTARTS, "step_size": STEP_SIZE, "epsilons": [EPSILON]}


class Counting(nn.Module):
    """A small network in float64, where the size of a batch changes no prediction.

    Attributes:
        looked, attacked: how many examples went through it without and with a graph.
    """

    def __init__(self):
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(0)
            layers = [nn.Conv2d(1, 6, 3), nn.BatchNorm2d(6), nn.ReLU(), nn.Flatten(), nn.Linear(96, 4)]
            self.net = nn.Sequential(*layers).double().eval()
        self.looked = self.attacked = 0

    def forward(self, x):
        if torch.is_grad_enabled():
            self.attacked += len(x)
        else:
            self.looked += len(x)
        return self.net(x.double())


@pytest.fixture
def data():
    draw = torch.Generator().manual_seed(3)
    images = torch.randint(256, (COUNT, 1, 6, 6), generator=draw, dtype=torch.uint8)
    with torch.no_grad():
        labels = Counting()(images.float() / 255).argmax(1)
    labels[::9] = (labels[::9] + 1) % 4
    return ImageSet(images, labels, ("a", "b", "c", "d"))


def plain_loop(data, restarts, purpose):
    """Returns (1 + restarts, N) bool: correct as it is and, so far, after every restart; all are attacked in each."""
    model = Counting()
    x, y = data.images.float() / 255, data.labels
    with torch.no_grad():
        history = [model(x).argmax(1) == y]
    for restart in range(restarts):
        noise = Noise(derive(SEED, purpose), torch.arange(len(y)), restart).uniform((1, 6, 6))
        x_adv = (x + (2 * noise - 1) * EPSILON).clamp(0, 1)
        for _ in range(STEPS):
            x_adv.requires_grad_()
            (gradient,) = torch.autograd.grad(F.cross_entropy(model(x_adv), y), x_adv)
            x_adv = x_adv.detach() + STEP_SIZE * gradient.sign()
            x_adv = torch.min(torch.max(x_adv, x - EPSILON), x + EPSILON).clamp(0, 1)
        with torch.no_grad():
            history.append(history[-1] & (model(x_adv).argmax(1) == y))
    assert model.attacked == restarts * STEPS * len(y)
    return torch.stack(history)


def test_the_same_examples_withstand_and_only_they_are_attacked(data, tmp_path):
    history = plain_loop(data, RESTARTS, "evaluation")
    alive = history.sum(1).tolist()
    assert COUNT > alive[0] > alive[1] > alive[2] > alive[-1] > 0, "every restart should break some"
    model = Counting()
    settings = EvaluationConfig(pgd=PGD_TABLE, autoattack=False)
    report = evaluate(model, data, settings, ThreatModel(), seed=SEED, store=tmp_path)
    kept = [json.loads(path.read_text()) for path in tmp_path.iterdir()]
    outcomes = {each["fingerprint"]["what"]: torch.tensor(each["outcomes"]) > 0 for each in kept}
    assert torch.equal(outcomes["clean"], history[0])
    assert torch.equal(outcomes[f"PGD {EPSILON}"], history[-1])
    assert report.pgd == {str(EPSILON): alive[-1] / COUNT}
    # Each restart takes its steps, and then looks, at those that withstood the ones before.
    assert model.attacked == STEPS * sum(alive[:-1])
    assert model.looked == COUNT + sum(alive[:-1])


def test_validation_attacks_only_what_is_correct(data):
    history = plain_loop(data, 1, "validation")
    model = Counting()
    attack = PGD(ThreatModel(epsilon=EPSILON), steps=STEPS, step_size=STEP_SIZE, random_start="uniform")
    found = robust_accuracy(model, data, attack, seed=SEED, batch_size=64)
    correct, robust = history.sum(1).tolist()
    assert found == (correct / COUNT, robust / COUNT)
    assert (model.attacked, model.looked) == (STEPS * correct, COUNT + correct)
