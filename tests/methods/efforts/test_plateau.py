"""Steps that end where the loss has ceased to rise, example by example."""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest
import torch
from support.by_hand import gradient, objective, projected, start, trained_by_hand, untrained, weights
from support.small_run import THREAT
from torch import Tensor

from robustcords.attacks.fgsm import FGSM
from robustcords.attacks.pgd import PGD
from robustcords.errors import UserError
from robustcords.losses.context import Moment
from robustcords.losses.sat import SAT
from robustcords.methods.efforts.batch import attack_batch
from robustcords.methods.efforts.plateau import Plateau
from robustcords.rng import Noise

STEPS, SIZE, RISE = 6, 0.02, {"sat": 0.005, "trades": 0.3}


def stopped(loss: str, model: Any, batch: Any, epsilon: float) -> tuple[Tensor, list[int]]:
    """Each example alone; returns the examples and how many steps each took."""
    points, taken, made = start(loss, batch, epsilon), [], []
    for row in range(len(batch.y)):
        x, y, x_adv = batch.x[row : row + 1], batch.y[row : row + 1], points[row : row + 1]
        before, steps = None, 0
        while steps < STEPS:
            with torch.no_grad():
                now = float(objective(loss, model(x), model(x_adv), y))
            if before is not None and now - before <= RISE[loss] * abs(before):
                break
            before = now
            x_adv = projected(x_adv + SIZE * gradient(loss, model, x, x_adv, y).sign(), x, epsilon)
            steps += 1
        made.append(x_adv)
        taken.append(steps)
    return torch.cat(made), taken


@pytest.mark.parametrize("loss", ["sat", "trades"])
def test_equals_a_training_that_asks_before_each_step(loss: str):
    threat, taken = THREAT.with_epsilon(0.1), []

    def attacked(model: Any, batch: Any, moment: Moment) -> Tensor:
        examples, steps = stopped(loss, model, batch, threat.epsilon)
        taken.extend(steps)
        return examples

    attack = PGD(threat, steps=STEPS, step_size=SIZE)
    made = untrained(loss=loss, attack=attack, effort=partial(Plateau, rise=RISE[loss]), settings={"epochs": 2})
    expected = trained_by_hand(made, loss, attacked)
    made.fit()
    torch.testing.assert_close(weights(made), expected, rtol=0, atol=1e-9)
    assert min(taken) < STEPS, "some stop"
    assert len(set(taken)) > 2, "they differ by example"


def test_a_linear_model_rises_until_the_ball_ends():
    model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(9, 3)).double()
    x = torch.full((4, 1, 3, 3), 0.5, dtype=torch.float64)
    y, noise = torch.arange(4) % 3, Noise(1, torch.arange(4))
    attack = PGD(THREAT.with_epsilon(0.1), steps=20, step_size=0.02, random_start="none")
    attacked = partial(attack_batch, model, x, y, noise, attack=attack, loss=SAT())
    assert torch.equal(attacked(effort=Plateau(rise=0)).images, attacked().images)


def test_an_attack_that_cannot_stop_is_refused():
    x, y = torch.rand(2, 1, 3, 3), torch.zeros(2, dtype=torch.int64)
    with pytest.raises(UserError, match="no attack steps that differ by example, and the effort plans an early end"):
        attack_batch(torch.nn.Flatten(), x, y, Noise(0, y), attack=FGSM(THREAT), loss=SAT(), effort=Plateau())
