"""Accuracy against the radius, and of each class."""

from __future__ import annotations

import json
from pathlib import Path

import made_runs as made
import pytest

from robustcords.report.comparison import Comparison, compare
from robustcords.report.evaluation_charts import classes, radii
from robustcords.report.runs import find_runs


def comparison(folder: Path, **evaluation: object) -> Comparison:
    """Returns a comparison of one run, with these changes of the evaluation of its last weights."""
    run = made.make_run(folder / "run")
    content = json.loads((run / "report.json").read_text())
    content["evaluation"]["last"] |= evaluation
    (run / "report.json").write_text(json.dumps(content))
    return compare(find_runs([run]))


def test_accuracy_falls_with_the_radius_from_clean_accuracy_on(tmp_path: Path):
    (chart,) = radii(comparison(tmp_path, pgd={"4/255": 0.6, "8/255": 0.5, "0.1": 0.25}), "last").charts
    (line,) = chart.figure["data"]
    assert line["x"] == pytest.approx([0, 4 / 255, 8 / 255, 0.1])
    assert line["y"] == [75, 60, 50, 25]


def test_radii_in_levels_are_shown_in_levels(tmp_path: Path):
    (chart,) = radii(comparison(tmp_path, pgd={"4/255": 0.6, "8/255": 0.5}), "last").charts
    assert chart.figure["data"][0]["x"] == pytest.approx([0, 4, 8])
    assert chart.figure["layout"]["xaxis"]["title"]["text"] == "radius (levels of 255)"


def test_one_radius_is_no_chart(tmp_path: Path):
    one = comparison(tmp_path)
    assert radii(one, "last").charts == classes(one, "last").charts == []


def test_classes_are_shown_clean_and_at_the_training_radius_the_least_robust_first(tmp_path: Path):
    clean, robust = {"cat": 0.5, "<dog>": 0.9}, {"cat": 0.2, "<dog>": 0.1}
    per_class = {"clean": clean, "PGD 0.1": dict.fromkeys(clean, 0.4), "PGD 0.15": robust}
    (chart,) = classes(comparison(tmp_path, per_class=per_class), "last").charts
    before, after = chart.figure["data"]
    assert (before["y"], after["y"]) == ([90, 50], [10, 20])
    assert chart.figure["layout"]["xaxis"]["ticktext"] == ["&lt;dog&gt;", "cat"]
    assert [name for name, _ in chart.legend] == ["clean", "PGD 0.15"]


def test_of_many_classes_the_least_robust_are_shown(tmp_path: Path):
    robust = {f"class {number}": number / 100 for number in range(100)}
    (chart,) = classes(comparison(tmp_path, per_class={"clean": robust, "PGD 0.15": robust}), "last").charts
    assert len(chart.figure["data"][0]["x"]) == 20
    assert chart.caption.endswith("the least robust classes first, 20 of 100.")
