from __future__ import annotations

import json
import math

import pytest
from robustcords.report.summary import summarise

METRICS = [
    {"epoch": 0, "train_loss": 2.0, "seconds": {"total": 3.0, "attack": 1.5, "selection": 0.5}},
    {"epoch": 1, "train_loss": 1.5, "seconds": {"total": 2.0, "attack": 1.25, "selection": 0.0}},
]
SELECTIONS = [{"epoch": 0, "size": 30}, {"epoch": 1, "size": 31}]
EVALUATION = {"last": {"clean": 0.81, "pgd": {"8/255": 0.5}, "examples": 100}}


def test_report_of_a_run_by_hand():
    report = summarise({"seed": 3}, {"device": "cpu"}, METRICS, SELECTIONS, EVALUATION, ["too short"])
    assert report == {
        "recipe": {"seed": 3},
        "environment": {"device": "cpu"},
        "training": {
            "epochs": 2,
            "seconds": {"total": 5.0, "attack": 2.75, "selection": 0.5},
            "selections": SELECTIONS,
            "warnings": ["too short"],
        },
        "evaluation": EVALUATION,
    }


def test_a_report_without_a_run_has_no_epochs():
    report = summarise({}, {}, [], [], EVALUATION)
    assert report["training"] == {"epochs": 0, "seconds": {}, "selections": [], "warnings": []}


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_what_json_has_no_word_for_becomes_null(value: float):
    report = summarise({"a": [value, 1.5]}, {}, [], (), {"last": {"clean": value, "examples": 3}})
    assert json.loads(json.dumps(report, allow_nan=False)) == report
    assert report["evaluation"]["last"] == {"clean": None, "examples": 3}
    assert report["recipe"] == {"a": [None, 1.5]}
