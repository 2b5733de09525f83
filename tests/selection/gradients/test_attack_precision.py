"""The precision of the attack while selecting, against a PGD written out by hand."""

from __future__ import annotations

from functools import partial

import pytest
import torch
from support.small_problem import images
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader

from robustcords.attacks.pgd import PGD
from robustcords.config.registry import find
from robustcords.data.images import ImageSet
from robustcords.engine.inference import Inference
from robustcords.errors import UserError
from robustcords.losses.mart import MART
from robustcords.selection.base import SelectionContext
from robustcords.threats.base import ThreatModel

SIZES = [40, 30]
EPSILON, STEP, STEPS = 0.2, 0.07, 4
BFLOAT16 = partial(torch.autocast, "cpu", dtype=torch.bfloat16)
FLOAT32 = partial(torch.autocast, "cpu", enabled=False)


class Problem:
    """A float32 network in eval mode, and float32 images, which autocast does not leave alone as it does float64."""

    def __init__(self) -> None:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(1)
            self.body = nn.Sequential(
                nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten(), nn.Linear(32, 16), nn.Tanh()
            )
            self.head = nn.Linear(16, len(SIZES))
        self.model = nn.Sequential(self.body, self.head).eval()
        whole = images(SIZES)
        self.x, self.y = whole.images.float(), whole.labels
        self.loader = DataLoader(ImageSet(self.x, self.y, whole.classes), batch_size=len(self.y))

    def context(self, model: nn.Module) -> SelectionContext:
        attack = PGD(ThreatModel(epsilon=EPSILON), steps=STEPS, step_size=STEP, random_start="none")
        return SelectionContext(
            self.loader, self.loader, model, MART(), attack, len(SIZES), torch.device("cpu"), seed=2
        )

    def strategy(self, model: nn.Module, precision: str | None):
        strategy = find("selector", "adv-gradmatch")
        return strategy.from_context(
            strategy.Config(attack_precision=precision, attack_steps=STEPS, attack_step_size=STEP), self.context(model)
        )

    def attacked(self, precision) -> torch.Tensor:
        """PGD on the cross-entropy, from the images themselves."""
        x_adv = self.x
        for _ in range(STEPS):
            leaf = x_adv.clone().requires_grad_()
            with precision():
                logits = self.model(leaf)
            loss = F.cross_entropy(logits.float(), self.y, reduction="sum")
            moved = x_adv + STEP * torch.autograd.grad(loss, leaf)[0].sign()
            x_adv = torch.min(torch.max(moved, self.x - EPSILON), self.x + EPSILON).clamp(0, 1)
        return x_adv

    def features(self, x: torch.Tensor, precision) -> torch.Tensor:
        with torch.no_grad(), precision():
            return self.body(x).float()


@pytest.fixture(scope="module")
def problem() -> Problem:
    return Problem()


@pytest.mark.parametrize(("name", "during"), [("fp32", FLOAT32), ("bf16", BFLOAT16)])
@pytest.mark.parametrize("training", [None, FLOAT32, BFLOAT16], ids=["plain", "fp32", "bf16"])
def test_the_attack_has_its_own_precision_and_the_factors_that_of_training(problem, training, name, during):
    model = Inference(problem.model, training) if training else problem.model
    strategy = problem.strategy(model, name)
    strategy.compute_gradients()
    clean, adversarial = strategy.gradients.features
    as_trained = training or FLOAT32
    assert clean.dtype == adversarial.dtype == torch.float32
    torch.testing.assert_close(clean, problem.features(problem.x, as_trained), rtol=0, atol=1e-6)
    expected = problem.features(problem.attacked(during), as_trained)
    torch.testing.assert_close(adversarial, expected, rtol=0, atol=1e-6)


def test_the_precisions_lead_to_other_images(problem):
    assert not torch.equal(problem.attacked(FLOAT32), problem.attacked(BFLOAT16))


@pytest.mark.parametrize(("name", "training"), [("fp32", FLOAT32), ("bf16", BFLOAT16)])
def test_the_precision_of_training_changes_nothing(problem, name, training):
    model = Inference(problem.model, training)
    state = model.state_dict()
    rows, weights = problem.strategy(model, None).select(20, state)
    same_rows, same_weights = problem.strategy(model, name).select(20, state)
    assert rows == same_rows
    assert torch.equal(weights, same_weights)


def test_it_holds_inside_another_autocast(problem):
    strategy = problem.strategy(problem.model, "fp32")
    with BFLOAT16():
        strategy.compute_gradients()
    expected = problem.features(problem.attacked(FLOAT32), BFLOAT16)
    torch.testing.assert_close(strategy.gradients.features[1], expected, rtol=0, atol=1e-6)


def test_fewer_steps_keep_the_precision(problem):
    attack = problem.strategy(problem.model, "bf16").attack
    assert (
        attack.num_gradient_steps,
        attack.with_effort(1).num_gradient_steps,
        attack.with_effort(0).num_gradient_steps,
    ) == (STEPS, 1, 0)
    assert attack.with_effort(STEPS).precision == "bf16"


def test_float16_on_a_cpu_is_refused(problem):
    with pytest.raises(UserError, match=r'selector\.attack_precision = "fp16" needs a GPU; on a CPU use "bf16"'):
        problem.strategy(problem.model, "fp16")
