from __future__ import annotations

from typing import Any

import pytest
from pydantic import ValidationError
from support.cases import cases

from robustcords.evaluation.config import EvaluationConfig
from robustcords.threats.base import ThreatModel


def test_at_the_papers_radius_what_follows_is_the_papers():
    config = EvaluationConfig().resolved(ThreatModel(epsilon=8 / 255))
    assert config.pgd is not None
    assert config.autoattack is not None
    assert (config.pgd.steps, config.pgd.restarts, config.pgd.step_size) == (50, 10, 2 / 255)
    assert config.pgd.epsilons == [4 / 255, 8 / 255, 16 / 255]
    assert config.autoattack.epsilons == [8 / 255]
    assert config.limit == config.autoattack.limit == 0


def test_false_leaves_an_attack_out_and_is_written_back():
    config = EvaluationConfig(**{"pgd": False, "autoattack": {"epsilons": ["4/255", 0.15]}})
    assert config.pgd is None
    dumped = config.model_dump()
    assert dumped["pgd"] is False
    assert dumped["autoattack"]["epsilons"] == ["4/255", 0.15]
    assert EvaluationConfig(**dumped) == config


@cases(
    ("table", "message"),
    [
        ({"pgd": True}, "valid dictionary"),
        ({"pgd": {"steps": 0}}, "greater than or equal to 1"),
        ({"pgd": {"steps": "abc"}}, "valid integer"),
        ({"pgd": {"epsilons": []}}, "at least 1 item"),
        ({"pgd": {"epsilons": ["8/0"]}}, "'8/0' is not a number"),
        ({"pgd": {"epsilons": [0.0]}}, "greater than 0"),
        ({"pgd": {"step_size": 0}}, "greater than 0"),
        ({"autoattack": {"epsilons": ["8/255", 8 / 255]}}, "8/255 is given twice"),
        ({"autoattack": {"version": "full"}}, "'standard', 'plus' or 'rand'"),
        ({"autoattack": {"limit": -1}}, "greater than or equal to 0"),
        ({"checkpoints": ["first"]}, "'best' or 'last'"),
        ({"checkpoints": []}, "at least 1 item"),
    ],
)
def test_impossible_values(table: dict[str, Any], message: str):
    with pytest.raises(ValidationError, match=message) as caught:
        EvaluationConfig(**table)
    assert len(caught.value.errors()) == 1
