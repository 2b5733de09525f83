from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
from made_runs import ENVIRONMENT
from made_runs import RECIPE as EARLIER
from support.cases import cases

from robustcords.errors import UserError
from robustcords.evaluation.results import Evaluation, Measurement
from robustcords.report.run_report import VERSION, Environment, EpochMetrics, Report, summarise

RECIPE = {"method": {"name": "adversarial"}, **EARLIER}
ROWS = [
    EpochMetrics(epoch=0, train_loss=2.0, seconds={"total": 3.0, "attack": 1.5, "selection": 0.5}),
    EpochMetrics(epoch=1, train_loss=1.5, seconds={"total": 2.0, "attack": 1.25, "selection": 0.0}),
]
SELECTIONS = [{"epoch": 0, "size": 30}, {"epoch": 1, "size": 31}]
LAST = {"clean": 0.81, "examples": 100, "pgd": {"8/255": 0.5}, "pgd_attack": "PGD-50-10"}
EVALUATION = {"last": Evaluation(**LAST)}
AROUND = Environment(**ENVIRONMENT)


def test_report_of_a_run_by_hand():
    report = summarise(RECIPE, AROUND, ROWS, SELECTIONS, EVALUATION, ["too short"])
    assert report.to_json() == {
        "version": VERSION,
        "recipe": RECIPE,
        "environment": ENVIRONMENT,
        "training": {
            "epochs": 2,
            "seconds": {"total": 5.0, "attack": 2.75, "selection": 0.5},
            "selections": SELECTIONS,
            "warnings": ["too short"],
        },
        "evaluation": {"last": LAST},
    }
    assert report.training.total == 5.0
    assert report.training.phases == {"attack": 2.75, "selection": 0.5}


def test_a_report_without_a_run_has_no_epochs():
    training = summarise(RECIPE, AROUND, [], [], EVALUATION).to_json()["training"]
    assert training == {"epochs": 0, "seconds": {}, "selections": [], "warnings": []}


@cases("value", [math.nan, math.inf, -math.inf])
def test_what_json_has_no_word_for_becomes_null(value: float):
    recipe = {**RECIPE, "loss": {"name": "mine:Loss", "weights": [value, 1.5]}}
    content = summarise(recipe, AROUND, ROWS, SELECTIONS, EVALUATION).to_json()
    assert json.loads(json.dumps(content, allow_nan=False)) == content
    assert content["recipe"]["loss"]["weights"] == [None, 1.5]


def test_what_is_written_is_read_and_written_the_same(tmp_path: Path):
    further = {"attack": "cw:CW", "label": "CW-3", "what": "CW-3 8/255", "radius": "8/255", "accuracy": 0.25}
    further |= {"examples": 20, "extras": {"distances": [0.5, None]}}
    entry = LAST | {"attacks": [further], "a key of tomorrow": {"x": 1}}
    report = summarise(RECIPE, AROUND, ROWS, SELECTIONS, {"best": Evaluation(**entry), **EVALUATION})
    report.write(tmp_path / "report.json")
    again = Report.read(tmp_path / "report.json")
    assert again == report
    again.write(tmp_path / "again.json")
    assert (tmp_path / "again.json").read_bytes() == (tmp_path / "report.json").read_bytes()
    assert json.loads((tmp_path / "report.json").read_text())["evaluation"]["best"] == entry
    assert again.evaluation["best"].measurements[-1].extras == {"distances": [0.5, None]}


def test_a_report_of_the_first_version_is_read_as_one_of_this(tmp_path: Path):
    whole = summarise(RECIPE, AROUND, ROWS, SELECTIONS, EVALUATION).to_json()
    earlier = {key: value for key, value in whole.items() if key != "version"}
    (tmp_path / "report.json").write_text(json.dumps({**earlier, "recipe": EARLIER}))
    report = Report.read(tmp_path / "report.json")
    assert (report.version, report.recipe.method.name) == (VERSION, "adversarial")
    assert report.to_json() == {**whole, "recipe": EARLIER}
    added = {"augmentation": {"name": "crop_flip"}, "effort": {"name": "uniform"}}
    assert report.recipe.tables == {**whole["recipe"], **added}


@pytest.mark.parametrize("version", [0, 3, "2", None])
def test_a_report_of_no_version_that_is_known_is_one_line(tmp_path: Path, version: Any):
    whole = summarise(RECIPE, AROUND, ROWS, SELECTIONS, EVALUATION).to_json()
    (tmp_path / "report.json").write_text(json.dumps({**whole, "version": version}))
    with pytest.raises(UserError, match=r"report\.json: damaged: version: input should be") as caught:
        Report.read(tmp_path / "report.json")
    assert "\n" not in str(caught.value)


def stored_reports() -> list[Path]:
    return sorted((Path(__file__).parents[2] / "docs" / "results").rglob("report.json"))


@cases("path", stored_reports())
def test_every_stored_report_keeps_every_key_in_its_order(path: Path):
    stored = json.loads(path.read_text())
    written = Report.read(path).to_json()
    assert stored.get("version", 2) == 2, "the first version had no number"
    assert json.dumps(written) == json.dumps({"version": 2, **stored})


def measured(what: str, radius: str, value: float) -> Measurement:
    label = what.split(maxsplit=1)[0]
    return Measurement(attack="cw:CW", label=label, what=what, radius=radius, accuracy=value, examples=100)


def test_more_is_added_and_what_is_there_stays():
    here = Evaluation(**LAST, attacks=[measured("CW-3 0.1", "0.1", 0.3)])
    there = Evaluation(
        clean=0.5,
        examples=100,
        pgd={"4/255": 0.6, "8/255": 0.1},
        pgd_attack="PGD-50-10",
        autoattack={"8/255": 0.2},
        autoattack_examples=50,
        autoattack_version="standard",
        autoattack_warnings=["zero gradients"],
        attacks=[measured("CW-3 0.1", "0.1", 0.9), measured("CW-3 0.2", "0.2", 0.1)],
    )
    both = here.with_more(there)
    assert (both.clean, both.pgd) == (0.81, {"4/255": 0.6, "8/255": 0.5})
    assert (both.autoattack, both.autoattack_examples, both.warnings) == (
        {"8/255": 0.2},
        50,
        [("AutoAttack", "zero gradients")],
    )
    assert [(each.what, each.accuracy) for each in both.attacks] == [("CW-3 0.1", 0.3), ("CW-3 0.2", 0.1)]
    assert both.with_more(there) == both
    assert [each.accuracy for each in both.under("CW-3")] == [0.3, 0.1]
    assert (both.accuracy("pgd", "4/255"), both.accuracy("clean"), both.accuracy("pgd", "1.0")) == (0.6, 0.81, None)
