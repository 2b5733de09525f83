"""The ramp against a training written out, and at its ends."""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest
import torch
from support.by_hand import gradient, projected, start, trained_by_hand, untrained, weights
from support.cases import cases
from support.small_run import THREAT

from robustcords.attacks.atas import ATAS
from robustcords.attacks.fgsm import FGSM
from robustcords.attacks.pgd import PGD
from robustcords.errors import UserError
from robustcords.losses.context import Moment
from robustcords.losses.sat import SAT
from robustcords.methods.efforts.base import Plan
from robustcords.methods.efforts.batch import attack_batch
from robustcords.methods.efforts.ramp import Ramp
from robustcords.rng import Noise
from robustcords.threats.base import ThreatModel
from robustcords.threats.l0 import L0

EPOCHS = 4
Y = torch.zeros(3, dtype=torch.int64)
NOISE = Noise(1, torch.arange(3))


def planned(effort: Ramp, epoch: int, attack: Any = None, epochs: int = EPOCHS) -> Plan:
    attack = attack or PGD(ThreatModel(epsilon=0.1), steps=2, step_size=0.1)
    return effort.plan(attack, lambda: torch.zeros(3, 2), Y, Moment(epoch, 0, epoch / epochs, epochs), NOISE)


@pytest.mark.parametrize("loss", ["trades", "sat"])
def test_equals_a_training_whose_radius_is_written_out(loss: str):
    def attacked(model: Any, batch: Any, moment: Moment) -> torch.Tensor:
        """ACAT: two steps of the radius of this epoch."""
        epsilon = THREAT.epsilon * (moment.epoch + 1) / EPOCHS
        x_adv = start(loss, batch, epsilon)
        for _ in range(2):
            moved = x_adv + epsilon * gradient(loss, model, batch.x, x_adv, batch.y).sign()
            x_adv = projected(moved, batch.x, epsilon)
        return x_adv

    attack = PGD(THREAT, steps=2, step_size=THREAT.epsilon)
    made = untrained(loss=loss, attack=attack, effort=Ramp, settings={"epochs": EPOCHS})
    expected = trained_by_hand(made, loss, attacked)
    made.fit()
    torch.testing.assert_close(weights(made), expected, rtol=0, atol=1e-9)
    whole = untrained(loss=loss, attack=attack, settings={"epochs": EPOCHS})
    whole.fit()
    assert not torch.allclose(weights(whole), expected, rtol=0, atol=1e-3)


def test_the_line_at_its_ends():
    assert [planned(Ramp(), epoch).epsilon for epoch in range(4)] == [0.025, 0.05, 0.075, 0.1]
    halved = [planned(Ramp(start=0.5, until=0.5), epoch).epsilon for epoch in range(4)]
    assert halved == pytest.approx([0.075, 0.1, 0.1, 0.1])
    assert planned(Ramp(), 0, epochs=1).epsilon == 0.1


def test_under_l0_it_is_a_number_of_pixels():
    attack = PGD(L0(epsilon=3), steps=2, step_size=3.0)
    plans = [planned(Ramp(steps=1), epoch, attack, 7) for epoch in range(7)]
    assert [plan.epsilon for plan in plans] == [1, 1, 1, 2, 2, 3, 3]
    assert [None if plan.step_size is None else float(plan.step_size[0]) for plan in plans] == [2, 2, 2, 4, *[None] * 3]
    assert planned(Ramp(), 0, PGD(L0(epsilon=0), steps=2)).epsilon == 0


def test_steps_rise_each_for_as_many_epochs_and_go_as_far():
    attack = PGD(ThreatModel(epsilon=0.1), steps=4, step_size=0.05)
    plans = [planned(Ramp(steps=1, start=1.0), epoch, attack, 8) for epoch in range(8)]
    assert [int(plan.steps[0]) for plan in plans] == [1, 1, 2, 2, 3, 3, 4, 4]
    reach = [float(plan.steps[0] * plan.step_size[0]) for plan in plans if plan.step_size is not None]
    assert reach == pytest.approx([0.2] * 6)
    early = [planned(Ramp(steps=1, until=0.5), epoch, attack, 8) for epoch in range(8)]
    assert [int(plan.steps[0]) for plan in early] == [1, 2, 3, 4, 4, 4, 4, 4]
    with pytest.raises(UserError, match=r"^effort\.steps = 5: more than the 4 of the attack$"):
        Ramp(steps=5).attacks(attack)


@cases("attack", [partial(PGD, steps=3), FGSM])
@cases("norm", ["linf", "l2"])
def test_every_attack_is_one_at_the_smaller_radius(norm: str, attack: Any):
    threat = ThreatModel(norm=norm, epsilon=0.2)
    model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(9, 2)).double()
    x = torch.rand(3, 1, 3, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    found = attack_batch(
        model, x, Y, NOISE, attack=attack(threat), loss=SAT(), effort=Ramp(), moment=Moment(1, 0, 0.25, 4)
    ).images
    expected = attack_batch(model, x, Y, NOISE, attack=attack(threat.with_epsilon(0.1)), loss=SAT()).images
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-12)


def test_an_attack_that_keeps_perturbations_is_refused():
    with pytest.raises(UserError, match=r"^attack .*:ATAS keeps perturbations of one radius, and the effort varies it"):
        ATAS(THREAT).with_epsilon(0.01)


def test_what_is_no_radius_is_one_line():
    class Wild(Ramp):
        def plan(self, *arguments: Any) -> Plan:
            return Plan(torch.ones(3).long(), epsilon=3.0)

    x = torch.rand(3, 1, 3, 3)
    with pytest.raises(
        UserError, match=r"^effort test_ramp:.*Wild planned epsilon = 3\.0 for attack .*:PGD: an l-infinity .* at most"
    ):
        attack_batch(torch.nn.Flatten(), x, Y, NOISE, attack=PGD(THREAT), loss=SAT(), effort=Wild())
