from __future__ import annotations

import io
from typing import Any

import pytest

from robustcords.report.run_report import Report
from robustcords.report.run_tables import MARK, accuracy_rows, data_name, markdown, print_report
from robustcords.runtime.progress import verbatim


@pytest.fixture
def content() -> dict[str, Any]:
    shared = {"examples": 1000, "pgd_attack": "PGD-50-10", "autoattack_examples": 200, "autoattack_version": "standard"}
    best = {"clean": 0.8125, "pgd": {"4/255": 0.7, "8/255": 0.51234}, "autoattack": {"8/255": 0.425}, **shared}
    last = {"clean": 1.0, "pgd": {"4/255": 0.6, "8/255": 0.0}, **shared, "autoattack_warnings": ["zero gradients [x]"]}
    seconds = {"total": 200.0, "attack": 150.0, "update": 40.0, "selection": 10.0}
    return {
        "recipe": {
            "seed": 7,
            "data": {"name": "cifar10"},
            "model": {"name": "resnet18", "width": 64},
            "threat": {"norm": "linf", "epsilon": "8/255"},
            "attack": {"name": "pgd", "steps": 10},
            "loss": {"name": "mart", "beta": 5.0},
            "selector": {"name": "adv-glister", "fraction": 0.3, "select_every": 20},
            "bullet": {"steps": {"outlier": 0, "robust": 2, "boundary": 10}},
            "optimizer": {"name": "sgd", "lr": 0.02},
            "schedule": {"name": "step"},
            "train": {"epochs": 2, "batch_size": 128, "precision": "bf16"},
        },
        "environment": {
            "versions": {"torch": "2.9.0"},
            "device": "a processor",
            "git_commit": None,
            "world_size": 2,
            "threads": 1,
        }
        | {"precision": "bf16", "seed": 7},
        "training": {"epochs": 2, "seconds": seconds, "selections": [{"epoch": 0, "size": 13500}]},
        "evaluation": {"best": best, "last": last},
    }


@pytest.fixture
def report(content: dict[str, Any]) -> Report:
    return Report.model_validate(content)


def test_accuracies_are_percentages_with_their_intervals(report: Report):
    assert accuracy_rows(report) == [
        ["attack", "radius", "images", "best", "last"],
        ["none", "", "1000", "81.25 ± 2.59", "100.00 ± 0.38"],
        ["PGD-50-10", "4/255", "1000", "70.00 ± 2.91", "60.00 ± 3.07"],
        ["PGD-50-10", "8/255", "1000", "51.23 ± 3.13", "0.00 ± 0.38"],
        ["AutoAttack standard", "8/255", "200", "42.50 ± 6.93", ""],
    ]


def test_markdown_tells_what_was_trained_and_how_well_it_did(report: Report):
    text = markdown(report)
    for line in (
        "# mart on cifar10, resnet18, adv-glister 30 %, Bullet",
        "- loss: mart (beta 5.0)",
        "- selector: adv-glister (fraction 0.3, select_every 20)",
        "- effort: bullet (steps.outlier 0, steps.robust 2, steps.boundary 10)",
        "- threat: linf, radius 8/255",
        "- 2 epochs, batches of 128, precision bf16, seed 7",
        "| PGD-50-10 | 8/255 | 1000 | 51.23 ± 3.13 | 0.00 ± 0.38 |",
        "AutoAttack warns (last): zero gradients [x]",
        "| attack | 150.0 | 75.0 |",
        "The run trained 2 epochs in 3:20, on 1 subset of 13500 images.",
        "a processor, 2 processes of 1 thread, bf16; torch 2.9.0",
    ):
        assert line in text.splitlines()


def test_markdown_of_full_data_training_without_bullet(content: dict[str, Any]):
    del content["recipe"]["bullet"], content["recipe"]["selector"]
    content["training"]["selections"] = []
    text = markdown(Report.model_validate(content))
    assert text.startswith(f"{MARK}\n\n# mart on cifar10, resnet18\n")
    assert "- selector: none, full data" in text
    assert "- effort: uniform\n" in text
    assert "in 3:20.\n" in text


def test_a_heading_has_no_path_of_this_machine():
    assert [data_name(name) for name in ("/home/me/pets", "me/pets", "cifar10")] == ["pets", "me/pets", "cifar10"]


def test_markdown_without_a_run(content: dict[str, Any]):
    content["training"] = {"epochs": 0, "seconds": {}, "selections": []}
    text = markdown(Report.model_validate(content))
    assert "## Training" not in text
    assert "# resnet18 on cifar10\n" in text
    assert "- loss: " not in text
    assert "| 81.25 ± 2.59 |" in text


def test_markdown_has_the_least_accurate_classes_first(content: dict[str, Any]):
    names = [f"class {number}" for number in range(25)]
    clean, robust = dict.fromkeys(names, 0.5), {name: number / 25 for number, name in enumerate(reversed(names))}
    content["evaluation"]["last"]["per_class"] = {"clean": clean, "PGD 8/255": robust}
    lines = markdown(Report.model_validate(content)).partition("## Accuracy by class")[2].splitlines()
    assert lines[2] == "last weights, 20 of 25 classes, accuracy in percent."
    assert lines[4] == "| class | clean | PGD 8/255 |"
    assert lines[6:8] == ["| class 24 | 50.00 | 0.00 |", "| class 23 | 50.00 | 4.00 |"]
    assert "## Accuracy by class" not in markdown(Report.model_validate({**content, "evaluation": {}}))


def test_further_attacks_have_rows_of_their_own(content: dict[str, Any]):
    figure = {"attack": "cw:CW", "label": "CW-20", "what": "CW-20 8/255", "radius": "8/255", "accuracy": 0.25}
    distance = {"attack": "cw:Minimal", "label": "Minimal", "what": "Minimal", "accuracy": 0.5, "warnings": ["slow"]}
    content["evaluation"]["last"]["attacks"] = [figure | {"examples": 50}, distance | {"examples": 1000}]
    report = Report.model_validate(content)
    assert accuracy_rows(report)[5:] == [
        ["CW-20", "8/255", "50", "", "25.00 ± 12.41"],
        ["Minimal", "", "1000", "", "50.00 ± 3.09"],
    ]
    assert "Minimal warns (last): slow" in markdown(report)


def test_terminal_shows_every_number_on_80_columns(report: Report):
    stream = io.StringIO()
    print_report(report, verbatim(stream, width=80))
    text = stream.getvalue()
    for row in accuracy_rows(report)[1:]:
        assert any(all(cell in line for cell in row) for line in text.splitlines())
    assert "AutoAttack warns (last): zero gradients [x]" in text
    assert "trained 2 epochs in 3:20" in text
