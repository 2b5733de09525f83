"""Which method a comparison says to train with."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from made_runs import BULLET, GLISTER, RANDOM, make_run

from robustcords.report.comparison import Comparison, Label, compare
from robustcords.report.front import clean_measure, deciding_measure, front, leader, verdict
from robustcords.report.runs import find_runs


def outcomes(clean: int, robust: int, first: int = 0) -> dict[str, list[int]]:
    """Returns outcomes of 1,000 images, so many right, those under attack from a first one on."""
    flags = [1 if first <= n < first + robust else 0 for n in range(1000)]
    return {"clean": [1] * clean + [0] * (1000 - clean), "PGD 0.15": flags, "AutoAttack 0.15": flags}


def compared(folder: Path, **options: object) -> Comparison:
    return compare(find_runs([folder]), **options)  # type: ignore[arg-type]


@pytest.fixture
def made(tmp_path: Path) -> Path:
    make_run(tmp_path / "full", right=outcomes(900, 400), seconds=20)
    make_run(
        tmp_path / "bullet", BULLET, right=outcomes(900, 395), seconds=10
    )  # five images less: noise or not, see below
    make_run(tmp_path / "random", RANDOM, right=outcomes(800, 300), seconds=5)
    make_run(tmp_path / "glister", GLISTER, right=outcomes(800, 250), seconds=6)
    return tmp_path


def test_the_front_is_what_none_beats_in_both(made: Path):
    found = compared(made)
    measure = deciding_measure(found)
    assert measure is not None
    assert measure.label == "AutoAttack standard 0.15"
    assert [method.name for method in front(found.methods, measure)] == [
        "trades, random 50 %",
        "trades, full data, Bullet",
        "trades, full data",
    ]


def test_a_leader_is_ahead_of_all_by_more_than_the_noise(made: Path):
    found = compared(made)
    measure, clean = deciding_measure(found), clean_measure(found, "last")
    assert measure is not None
    assert clean is not None
    best = leader(found.methods, measure)
    assert best is not None
    assert best.name == "trades, full data", "five images of which none is the other way round are not noise"
    assert leader(found.methods, clean) is None, "two are as accurate"


def test_the_verdict_names_the_most_accurate_and_what_is_behind(made: Path):
    said = verdict(compared(made))
    assert said.startswith(
        "By AutoAttack standard 0.15 and time, train with trades, full data: 40.0%, 90.0% clean, in 1:20."
    )
    assert "Behind trades, full data by more than the noise: trades, full data, Bullet (39.5%" in said
    assert "0.5 points [0.1, 1.0], and 2 others." in said
    assert said.endswith("another seed may differ by more.")


def test_of_methods_that_are_level_the_verdict_takes_the_fastest(tmp_path: Path):
    make_run(tmp_path / "full", right=outcomes(900, 400), seconds=20)
    make_run(tmp_path / "bullet", BULLET, right=outcomes(900, 395, first=200), seconds=10)  # other images
    said = verdict(compared(tmp_path))
    assert "train with trades, full data, Bullet: 39.5%, 90.0% clean, in 40 s." in said
    assert "The most accurate is trades, full data (40.0%, 90.0% clean, in 1:20), by 0.5 points [" in said
    assert "within the noise." in said
    assert "Behind" not in said


def test_methods_without_the_deciding_attack_are_named(made: Path):
    for row, name in enumerate("abcd", 6):
        file = make_run(made / name, {"train": {"epochs": row}}, outcomes=False) / "report.json"
        report = json.loads(file.read_text())
        last = report["evaluation"]["last"]
        report["evaluation"]["last"] = {key: value for key, value in last.items() if "autoattack" not in key}
        file.write_text(json.dumps(report))
    said = verdict(compared(made))
    assert "train with trades, full data: 40.0%" in said
    assert said.count("Not compared, since they have no AutoAttack standard 0.15: ") == 1
    assert ", and 1 other. With one seed" in said


def test_one_method_has_no_verdict(tmp_path: Path):
    make_run(tmp_path / "full")
    assert verdict(compared(tmp_path)) == ""


def test_runs_that_were_planned_have_their_rows_names_and_equal_times(made: Path):
    make_run(made / "short", {"train": {"epochs": 2}}, right=outcomes(700, 300), seconds=20)
    labels = {
        made / "glister": Label("Adv-GLISTER"),
        made / "short": Label("TRADES, equal time", ["Adv-GLISTER"]),
    }
    found = compared(made, labels=labels)
    times = {m.name: [r.name for r in m.references if "time" in r.kind.value] for m in found.methods}
    assert times == {
        "trades, full data": [],
        "trades, full data, Bullet": [],
        "trades, random 50 %": [],
        "Adv-GLISTER": ["TRADES, equal time"],
        "TRADES, equal time": [],
    }
