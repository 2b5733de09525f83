"""FAT against Algorithm 1 of Zhang et al. 2020, example by example, in an attack and in a training."""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest
import torch
from support.by_hand import gradient, projected, start, trained_by_hand, untrained, weights
from support.cases import cases
from support.small_run import THREAT
from support.written import BASE, Write, message
from torch import Tensor

from robustcords.attacks.fgsm import FGSM
from robustcords.attacks.pgd import PGD
from robustcords.errors import UserError
from robustcords.losses.context import Moment
from robustcords.losses.sat import SAT
from robustcords.methods.efforts.batch import attack_batch
from robustcords.methods.efforts.fat import FAT
from robustcords.rng import Noise

STEPS, SIZE = 6, 0.02
TAUS, EPOCHS = (0, 1, 2), 3


def early_stopped(loss: str, model: Any, batch: Any, tau: int, epsilon: float) -> tuple[Tensor, list[int]]:
    """Algorithm 1 for each example alone; returns the examples and how many steps each took."""
    points, taken = start(loss, batch, epsilon), []
    found = []
    for row in range(len(batch.y)):
        x, y, x_adv = batch.x[row : row + 1], batch.y[row : row + 1], points[row : row + 1]
        left, steps = tau, 0
        while steps < STEPS:
            wrong = int(model(x_adv).argmax()) != int(y)
            if wrong and left == 0:
                break
            left -= wrong
            x_adv = projected(x_adv + SIZE * gradient(loss, model, x, x_adv, y).sign(), x, epsilon)
            steps += 1
        found.append(x_adv)
        taken.append(steps)
    return torch.cat(found), taken


@cases("loss", ["sat", "trades", "mart"])
def test_equals_a_training_by_algorithm_1(loss: str):
    threat, taken = THREAT.with_epsilon(0.1), []

    def attacked(model: Any, batch: Any, moment: Moment) -> Tensor:
        found, steps = early_stopped(loss, model, batch, TAUS[moment.epoch], threat.epsilon)
        taken.append((moment.epoch, steps))
        return found

    effort = partial(FAT, tau=TAUS, milestones=[1 / 3, 2 / 3])
    attack = PGD(threat, steps=STEPS, step_size=SIZE)
    made = untrained(loss=loss, attack=attack, effort=effort, settings={"epochs": EPOCHS})
    expected = trained_by_hand(made, loss, attacked)
    made.fit()
    torch.testing.assert_close(weights(made), expected, rtol=0, atol=1e-9)
    for epoch, tau in enumerate(TAUS):
        steps = {each for when, batch in taken if when == epoch for each in batch}
        assert tau <= min(steps) < STEPS == max(steps), "they differ by example"


def test_tau_rises_at_the_authors_epochs():
    def tau(epoch: int, epochs: int = 120, **options: Any) -> int:
        moment, y = Moment(epoch, 0, epoch / epochs, epochs), torch.zeros(2, dtype=torch.int64)
        plan = FAT(**options).plan(PGD(THREAT), lambda: torch.zeros(2, 2), y, moment, Noise(0, y))
        assert plan.patience is not None
        return int(plan.patience[0])

    assert [tau(epoch) for epoch in (0, 49, 50, 89, 90, 119)] == [0, 0, 1, 1, 2, 2]
    assert [tau(epoch, 12) for epoch in (4, 5, 8, 9)] == [0, 1, 1, 2]
    assert [tau(epoch, tau=[3], milestones=[]) for epoch in (0, 119)] == [3, 3]


def test_patience_without_end_is_the_attack_itself():
    model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(9, 3)).double()
    x = torch.rand(8, 1, 3, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    y, noise = torch.arange(8) % 3, Noise(1, torch.arange(8))
    made = partial(attack_batch, model, x, y, noise, attack=PGD(THREAT, steps=4), loss=SAT())
    assert torch.equal(made(effort=FAT(tau=[4], milestones=[])).images, made().images)
    assert not torch.equal(made(effort=FAT(tau=[0], milestones=[])).images, made().images)


def test_an_attack_that_cannot_stop_is_refused(write: Write):
    x, y = torch.rand(2, 1, 3, 3), torch.zeros(2, dtype=torch.int64)
    with pytest.raises(
        UserError, match=r"^attack robustcords\.attacks\.fgsm:FGSM: no attack steps that differ by exam"
    ):
        attack_batch(torch.nn.Flatten(), x, y, Noise(0, y), attack=FGSM(THREAT), loss=SAT(), effort=FAT())
    path = write(f'{BASE}[effort]\nname = "fat"\n')
    assert message(path, "attack.name=fgsm").endswith(
        'requires attack steps that differ by example, and attack "fgsm" has none; set attack.name = "pgd"'
    )
    assert message(path, "effort.tau=[0,1]").endswith("2 of tau for 2 milestones; it takes one more than those")
