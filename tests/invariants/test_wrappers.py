"""Methods around others: what they pass on, and what they keep."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from support.small_run import ATTACK, fitted, made_up, trainer, vector

from robustcords.losses.sat import SAT
from robustcords.methods.adversarial import AdversarialTraining
from robustcords.methods.base import Step
from robustcords.methods.efforts.bullet import Bullet
from robustcords.methods.wrapper import StepAround, Wrapper


class Plain(Wrapper):
    """Lends a step that changes nothing."""

    def around(self, step: Step) -> Step:
        return StepAround(step)


def wrapped(**options: Any) -> Any:
    made = trainer(effort=Bullet, **options)
    made.method = Plain(Plain(made.method))
    return made


@pytest.mark.parametrize("settings", [{}, {"accumulation": 3}])
def test_one_that_changes_nothing_is_the_inner_method(settings: dict[str, Any]):
    made = wrapped(settings=settings)
    made.fit()
    assert torch.equal(vector(made), vector(fitted(effort=Bullet, settings=settings)))
    states = {name: part.state_dict() for name, part in made.method.parts().items()}
    effort = {"reference": made.method.effort.reference}
    assert states == {"method": {}, "method.inner": {}, "method.inner.inner": {}, "effort": effort, "attack": {}}
    assert made.method.effort.reference > 0


def test_its_parts_are_the_inner_methods():
    inner = AdversarialTraining(SAT(), ATTACK, Bullet(), name="adversarial")
    outer = Plain(inner, name="mine:Plain")
    assert (outer.loss, outer.attack, outer.effort) == (inner.loss, inner.attack, inner.effort)
    assert outer.config.model_dump() == {"name": "mine:Plain", "inner": {"name": "adversarial"}}
    own = {"effort": inner.effort, "attack": inner.attack}
    assert outer.parts() == {"method": outer, "method.inner": inner, **own}


def test_efforts_are_told_of_validations():
    told: list[Any] = []

    class Told(Bullet):
        def on_validation(self, result: Any) -> None:
            told.append(result)

    made = trainer(
        effort=Told,
        validation=made_up(12, seed=1),
        settings={"epochs": 4, "validate_every": 2},
    )
    made.method = Plain(made.method)
    made.fit()
    assert [set(each) for each in told] == [{"clean", "robust"}] * 2
    assert made.callbacks[0].best == max(each["robust"] for each in told)
