"""CAT: the division of a batch, the step sizes, when there is one step more, and a training written out."""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest
import torch
from support.by_hand import gradient, projected, start, trained_by_hand, untrained, weights
from support.cases import cases
from support.small_run import THREAT, fitted, made_up
from support.written import BASE, Write, message
from torch import Tensor

from robustcords.attacks.pgd import PGD
from robustcords.losses.context import Moment
from robustcords.methods.efforts.base import Plan
from robustcords.methods.efforts.curriculum import Curriculum
from robustcords.rng import Noise
from robustcords.training.callbacks.validation import Validation

ATTACK = PGD(THREAT, steps=4, step_size=0.03)
STRENGTH = 3


def at(strength: int, **options: Any) -> Curriculum:
    effort = Curriculum(**options)
    effort.strength = strength
    return effort


def planned(effort: Curriculum, count: int, step: int = 0) -> Plan:
    y = torch.zeros(count, dtype=torch.int64)
    return effort.plan(ATTACK, lambda: torch.zeros(count, 2), y, Moment(0, step, 0.0), Noise(7, torch.arange(count)))


@cases("loss", ["sat", "trades", "mart"])
def test_equals_a_training_of_mixed_batches(loss: str):
    def attacked(model: Any, batch: Any, moment: Moment) -> Tensor:
        """The batch in four parts, attacked one after the other; each part's steps go as far as the attack's four."""
        x_adv, count = batch.x.clone(), len(batch.y)
        points = start(loss, batch, THREAT.epsilon)
        for number in range(1, STRENGTH + 1):
            rows = torch.arange(number, count, STRENGTH + 1)
            x, y, part = batch.x[rows], batch.y[rows], points[rows]
            for _ in range(number):
                moved = part + 0.12 / number * gradient(loss, model, x, part, y).sign()
                part = projected(moved, x, THREAT.epsilon)
            x_adv[rows] = part
        return x_adv

    made = untrained(loss=loss, attack=ATTACK, effort=partial(at, STRENGTH, most=STRENGTH, spread=1.0))
    expected = trained_by_hand(made, loss, attacked)
    made.fit()
    torch.testing.assert_close(weights(made), expected, rtol=0, atol=1e-9)


def test_the_division_is_even_and_counted():
    effort = at(3, most=7)
    plan = planned(effort, 14)
    assert plan.steps.bincount().tolist() == [4, 4, 3, 3]
    assert plan.kinds is not None
    assert plan.kinds.counts() == dict(zip([f"pgd-{n}" for n in range(8)], [4, 4, 3, 3, 0, 0, 0, 0], strict=True))
    assert planned(at(0), 5).steps.tolist() == [0] * 5
    assert planned(at(7), 3).steps.tolist() == [0, 1, 2]
    assert len(planned(at(2), 0).steps) == 0
    halves = planned(at(3), 16).steps.split(8)  # of two micro-batches or processes
    assert [half.bincount().tolist() for half in halves] == [[2] * 4] * 2


def test_step_sizes_are_drawn_for_each_number_of_steps_and_batch():
    plans = [planned(at(3), 40, step) for step in range(200)]
    sizes = torch.stack([plan.step_size[[1, 2, 3]] for plan in plans if plan.step_size is not None])
    for plan in plans:
        assert plan.step_size is not None
        assert all(len(set(plan.step_size[plan.steps == number].tolist())) == 1 for number in (1, 2, 3))
    for number, drawn in enumerate((sizes * torch.tensor([1, 2, 3]) / 0.12).T, 1):  # in units of reach / n
        low, high = float(drawn.min()), float(drawn.max())
        assert 1 <= low < 1.2 and 0.97 * 10 / number < high <= 10 / number
        deviation = (10 / number - 1) / (12 * len(drawn)) ** 0.5
        assert float(drawn.mean()) == pytest.approx((1 + 10 / number) / 2, abs=4 * deviation)
    assert torch.equal(planned(at(3), 40, 5).step_size, planned(at(3), 40, 5).step_size)  # type: ignore[arg-type]


NOBODY = torch.zeros(0, dtype=torch.int64)


def told(effort: Curriculum, *accuracies: float, right: float = 0.0) -> list[int]:
    """Returns k after each of some epochs, each with a validation and this share of training images right."""
    strengths = []
    for epoch, accuracy in enumerate(accuracies):
        effort.plan(
            ATTACK,
            lambda: torch.zeros(0, 2),
            torch.zeros(0).long(),
            Moment(epoch, 0, 0.0),
            Noise(0, torch.zeros(0).long()),
        )
        effort.observe(torch.arange(100) < 100 * right)
        effort.on_validation({"clean": 1.0, "robust": 0.9, "planned": accuracy})
        strengths.append(effort.strength)
    return strengths


def test_one_step_more_where_accuracy_no_longer_improves():
    assert told(Curriculum(patience=2), 0.1, 0.2, 0.2, 0.15, 0.1, 0.3, 0.2, 0.2) == [0, 0, 0, 1, 1, 1, 1, 2]
    assert told(Curriculum(patience=1, most=2), *[0.5] * 7) == [0, 1, 1, 2, 2, 2, 2]


def test_one_step_more_where_training_images_are_learnt():
    assert told(Curriculum(most=2), 0.1, 0.2, 0.3, right=0.96) == [1, 2, 2]
    assert told(Curriculum(most=2), 0.1, 0.2, 0.3, right=0.95) == [0, 0, 0]


def test_a_learnable_problem_leads_up_to_the_last_step():
    strengths = []

    class Recording(Curriculum):
        def on_validation(self, result: Any) -> None:
            super().on_validation(result)
            strengths.append(self.strength)

    effort = partial(Recording, most=2, enough=0.6)
    held_out = made_up(12, seed=1)
    fitted(effort=effort, attack=ATTACK, settings={"epochs": 8, "validate_every": 1}, validation=held_out)
    assert strengths[0] == 0 and strengths[-1] == 2
    assert strengths == sorted(strengths) and set(strengths) == {0, 1, 2}


def test_a_validation_measures_the_attack_of_now():
    effort = at(2)
    attack = effort.validation_attack(ATTACK)
    assert (attack.num_gradient_steps, attack.total_step_length) == (2, pytest.approx(0.12))
    assert at(0).validation_attack(ATTACK).num_gradient_steps == 0
    callback = Validation(made_up(12, seed=1), ATTACK, 1, partial(effort.validation_attack, ATTACK))
    made = fitted(callbacks=[callback], settings={"epochs": 1})
    assert made.progress.epoch == 1
    other = Curriculum()
    other.load_state_dict(effort.state_dict())
    assert other.state_dict() == effort.state_dict()


def test_without_held_out_images_it_is_refused(write: Write):
    path = write(f'{BASE}[effort]\nname = "curriculum"\n')
    assert "requires validation images" in message(
        path, "data.validation_fraction=0", "evaluation.checkpoints=['last']"
    )
