from __future__ import annotations

import io
import json
from collections.abc import Mapping
from csv import DictReader
from pathlib import Path
from typing import Any

import pytest
from made_runs import BULLET, GLISTER, RANDOM, evaluation, make_run, write_outcomes
from rich.console import Console

from robustcords.errors import UserError
from robustcords.report.comparison import ComparedMethod, Comparison, Measure, ReferenceKind, compare
from robustcords.report.comparison_tables import csv, markdown, print_comparison
from robustcords.report.intervals import Accuracy, Estimate, difference
from robustcords.report.runs import find_runs

CLEAN = Measure("last", "clean", "", "clean")
PGD = Measure("last", "PGD-50-10", "0.15", "PGD 0.15")
AUTOATTACK = Measure("last", "AutoAttack standard", "0.15", "AutoAttack 0.15")


def shares(**right: float) -> dict[str, list[int]]:
    """Returns outcomes of 100 images with these accuracies, the first ones right."""
    names = {"clean": "clean", "pgd": "PGD 0.15", "aa": "AutoAttack 0.15"}
    return {names[key]: [1] * round(100 * value) + [0] * round(100 * (1 - value)) for key, value in right.items()}


def compared(folder: Path, **options: Any) -> Comparison:
    return compare(find_runs([folder]), **options)


def against(method: ComparedMethod, kind: ReferenceKind) -> list[str]:
    """Returns the names of the methods that another is compared with in some way."""
    return [reference.name for reference in method.references if reference.kind is kind]


def differences(method: ComparedMethod, kind: ReferenceKind) -> Mapping[Measure, Estimate]:
    (found,) = [reference.differences for reference in method.references if reference.kind is kind]
    return found


@pytest.fixture
def made(tmp_path: Path) -> Path:
    for seed in (0, 1):
        change = {"seed": seed, "data": {"path": f"disk{seed}"}}
        make_run(tmp_path / f"full{seed}", change, right=shares(clean=0.9, pgd=0.5 + seed / 100, aa=0.4), seconds=20)
        make_run(tmp_path / f"lots{seed}", change, RANDOM, right=shares(clean=0.8, pgd=0.4, aa=0.30 + seed / 20))
        make_run(tmp_path / f"gli{seed}", change, GLISTER, right=shares(clean=0.8 - seed / 50, pgd=0.45, aa=0.4))
    make_run(tmp_path / "bullet", BULLET, right=shares(clean=0.9, pgd=0.5, aa=0.42), seconds=8)
    make_run(tmp_path / "short", {"train": {"epochs": 2}}, right=shares(clean=0.7, pgd=0.4, aa=0.3), seconds=20)
    fast = {"loss": {"name": "sat"}, "attack": {"name": "fgsm"}}
    make_run(tmp_path / "zfast", fast, right=shares(clean=0.9, pgd=0.4, aa=0.3), seconds=5)
    return tmp_path


def test_methods_are_named_and_given_a_baseline(made: Path):
    found = compared(made)
    assert {
        m.name: (m.baseline, against(m, ReferenceKind.RANDOM), [run.seed for run in m.runs]) for m in found.methods
    } == {
        "trades, full data, Bullet": ("trades, full data", [], [0]),
        "trades, full data": (None, [], [0, 1]),
        "trades, adv-glister 50 %": ("trades, full data", ["trades, random 50 %"], [0, 1]),
        "trades, random 50 %": ("trades, full data", [], [0, 1]),
        "trades, full data, 2 epochs": ("trades, full data", [], [0]),
        "sat, full data, attack fgsm": ("trades, full data", [], [0]),
    }


@pytest.mark.parametrize(
    "other",
    [{"train": {"epochs": 3}}, {"threat": {"norm": "linf", "epsilon": 0.5}}, BULLET],
    ids=["epochs", "radius", "Bullet"],
)
def test_random_subsets_that_were_trained_otherwise_say_nothing_of_a_selector(tmp_path: Path, other: dict[str, Any]):
    make_run(tmp_path / "full", right=shares(clean=0.9, pgd=0.5, aa=0.4))
    make_run(tmp_path / "gli", GLISTER, right=shares(clean=0.8, pgd=0.45, aa=0.4))
    make_run(tmp_path / "lots", RANDOM, other, right=shares(clean=0.8, pgd=0.4, aa=0.3))
    assert against(compared(tmp_path).method("trades, adv-glister 50 %"), ReferenceKind.RANDOM) == []


def test_differences_tell_of_how_many_seeds_they_are(made: Path):
    lots = {"seed": 2, "data": {"path": "disk2"}}
    make_run(made / "lots2", lots, RANDOM, right=shares(clean=0.8, pgd=0.4, aa=0.3))
    found = compared(made)
    to_full = differences(found.method("trades, random 50 %"), ReferenceKind.BASELINE)
    assert {estimate.seeds for estimate in to_full.values()} == {1, 2}, "two were the same, and are one run each"
    (whole,) = [
        line
        for line in markdown(found).splitlines()
        if line.startswith("| trades, random 50 % |") and line.endswith(" 3 |")
    ]
    assert "[2.00, 2.00] (2 seeds) |" in whole
    row = next(line for line in markdown(found).splitlines() if line.startswith("| trades, random 50 % | trades, full"))
    assert "(2 seeds)" in row
    assert "(1 seed)" in row


def test_subsets_of_other_sizes_are_warned_of(tmp_path: Path):
    for name, table, size in (("gli", GLISTER, 1080), ("lots", RANDOM, 1200)):
        report = make_run(tmp_path / name, table) / "report.json"
        content = json.loads(report.read_text())
        content["training"]["selections"] = [{"epoch": 0, "size": size}]
        report.write_text(json.dumps(content))
    line = "trades, adv-glister 50 %: subsets of 1080 images, those of trades, random 50 % of 1200"
    assert compared(tmp_path).warnings == [line]


def test_two_lengths_of_fast_training_are_compared_with_the_losses_that_have_subsets(made: Path):
    fast = {"loss": {"name": "sat"}, "attack": {"name": "fgsm"}, "train": {"epochs": 5}}
    make_run(made / "zlonger", fast, right=shares(clean=0.9, pgd=0.4, aa=0.3), seconds=5)
    found = {m.name: m.baseline for m in compared(made).methods if m.name.startswith("sat")}
    assert found == {
        "sat, full data, attack fgsm": "trades, full data",
        "sat, full data, attack fgsm, 5 epochs": "trades, full data",
    }


@pytest.mark.parametrize(
    ("made", "expected"),
    [
        # A loss of which there are only subsets has no baseline to lend.
        (["trades random", "sat 3", "sat 4"], {"sat 4": None, "sat 3": "sat 4", "trades random": None}),
        # Of two that have one, a loss with subsets comes before one with more methods.
        (
            ["trades 4", "trades random", "mart 2", "mart 3", "mart 4", "sat 4"],
            {"sat 4": "trades 4", "mart 4": "trades 4"},
        ),
        # A single one is compared with the loss that has the most, several keep their own.
        (["mart 2", "mart 3", "mart 4", "sat 4"], {"sat 4": "mart 4", "mart 3": "mart 4", "mart 4": None}),
        (["mart 3", "mart 4", "sat 3", "sat 4"], {"sat 4": None, "mart 4": None}),
        (["trades 4", "trades random", "mart 4", "mart random", "mart bullet", "sat 4"], {"sat 4": "mart 4"}),
    ],
)
def test_which_loss_lends_its_baseline(tmp_path: Path, made: list[str], expected: dict[str, str | None]):
    for name in made:
        loss, kind = name.split()
        changes: list[dict[str, Any]] = [{"loss": {"name": loss}}]
        changes += {"random": [RANDOM], "bullet": [BULLET]}.get(kind) or [{"train": {"epochs": int(kind)}}]
        make_run(tmp_path / name, *changes)
    short = {m.name: m.runs[0].path.name for m in compared(tmp_path).methods}
    found = {short[m.name]: m.baseline and short[m.baseline] for m in compared(tmp_path).methods}
    assert {name: found[name] for name in expected} == expected


def test_lists_tell_methods_apart(tmp_path: Path):
    for name, milestones in (("a", [0.5]), ("b", [0.5, 0.9]), ("c", [0.5])):
        make_run(tmp_path / name, {"seed": ord(name), "schedule": {"name": "step", "milestones": milestones}})
    names = [method.name for method in compared(tmp_path).methods]
    assert names == [f"trades, full data, schedule milestones {each}" for each in ([0.5], [0.5, 0.9])]


def test_the_committed_runs_of_several_networks_on_one_page():
    runs = find_runs([Path(__file__).parents[2] / "docs" / "results" / "runs"])
    found = compare(runs)
    assert {run.path.name for run in runs} - {run.path.name for run in found.runs} == {"fast_two_processes"}
    assert [line.rpartition("/")[2] for line in found.left_out] == ["fast"], "its recipe and seed are those of that run"
    assert len(found.runs) == len(runs) - 1
    fast = [m for m in found.methods if m.recipe["loss.name"] == "sat" and m.recipe["model.name"] == "resnet8"]
    assert {m.baseline for m in fast if m.recipe["attack.name"] != "pgd"} == {"sat, full data"}, "PGD-AT"
    assert not [m.name for m in found.methods if "sync_batchnorm" in m.name], "older runs lack the option"


def test_figures_by_hand(made: Path):
    found = compared(made)
    full, glister = found.method("trades, full data"), found.method("trades, adv-glister 50 %")
    assert found.measures == [CLEAN, PGD, AUTOATTACK]
    assert full.accuracies[PGD].mean == pytest.approx(0.505)
    assert full.accuracies[PGD].std == pytest.approx(0.01 / 2**0.5)
    assert full.seconds is not None
    assert full.seconds.values == pytest.approx({0: 80.0, 1: 80.0})  # without validation and checkpoints
    assert full.seconds_per_epoch is not None
    assert full.seconds_per_epoch.mean == pytest.approx(20.0)
    assert glister.speed_up is not None
    assert (glister.speed_up.value, glister.speed_up.low, glister.speed_up.high) == pytest.approx((2, 2, 2))
    lots = differences(glister, ReferenceKind.RANDOM)
    assert lots[AUTOATTACK].value == pytest.approx((0.10 + 0.05) / 2)
    assert lots[AUTOATTACK].how == "t interval, paired over 2 seeds"
    to_full = differences(glister, ReferenceKind.BASELINE)
    assert to_full[CLEAN].value == pytest.approx(-(0.10 + 0.12) / 2)
    assert to_full[CLEAN].noise, "of two seeds the t interval is wide"
    bullet = differences(found.method("trades, full data, Bullet"), ReferenceKind.BASELINE)
    assert bullet[CLEAN].noise
    assert bullet[CLEAN].how == "bootstrap, paired over 100 test images, seed 0"


def test_cheaper_methods_are_compared_with_all_images_for_a_similar_time(made: Path):
    make_run(made / "shorter", {"train": {"epochs": 1}}, right=shares(clean=0.6, pgd=0.3, aa=0.2), seconds=20)
    # Adv-GLISTER took 40 s, Bullet 32 s. The baseline took 80 s, two epochs 40 s, one epoch and FGSM 20 s.
    found = compared(made)
    assert {
        method.name: names for method in found.methods if (names := against(method, ReferenceKind.SIMILAR_TIME))
    } == {
        "trades, adv-glister 50 %": ["trades, full data, 2 epochs", "sat, full data, attack fgsm"],
        "trades, random 50 %": ["trades, full data, 2 epochs", "sat, full data, attack fgsm"],
        "trades, full data, Bullet": ["trades, full data, 2 epochs", "sat, full data, attack fgsm"],
    }
    glister = found.method("trades, adv-glister 50 %")
    shorter, fast = (each for each in glister.references if each.kind is ReferenceKind.SIMILAR_TIME)
    assert shorter.time is not None
    assert fast.time is not None
    assert (shorter.time.value, fast.time.value) == pytest.approx((1.0, 0.5))
    assert shorter.differences[CLEAN].value == pytest.approx(0.1), "of the seed in common, 0"
    text = markdown(found)
    assert "## Difference to training on all images for a similar time, last weights, in percentage points" in text
    assert "| trades, adv-glister 50 % | trades, full data, 2 epochs | 1.00\N{MULTIPLICATION SIGN} | +10.00 [" in text


def test_other_norms_share_no_column_and_no_baseline(tmp_path: Path):
    make_run(tmp_path / "linf", right=shares(clean=0.8, pgd=0.4, aa=0.3))
    make_run(tmp_path / "l2", {"threat": {"norm": "l2"}}, right=shares(clean=0.9, pgd=0.8, aa=0.7))
    found = compared(tmp_path)
    assert [method.references for method in found.methods] == [[], []]
    labels = ["clean", "PGD-50-10 0.15", "l2 PGD-50-10 0.15", "AutoAttack standard 0.15", "l2 AutoAttack standard 0.15"]
    assert sorted(measure.label for measure in found.measures) == sorted(labels)


def test_cells_of_fewer_seeds_say_so(tmp_path: Path):
    for seed in (0, 1):
        path = make_run(tmp_path / f"{seed}", {"seed": seed}, right=shares(clean=0.8, pgd=0.4, aa=0.3))
    report = json.loads((path / "report.json").read_text())
    report["evaluation"]["last"]["autoattack"] = {}
    (path / "report.json").write_text(json.dumps(report))
    assert "| 30.00 (1 seed) | 80.00 ± 0.00 | " in markdown(compared(tmp_path))


def test_seeds_that_differ_by_the_same_give_no_interval_of_width_0():
    ones = {seed: Accuracy(0.40 + seed / 10, 100) for seed in (0, 1)}
    others = {seed: Accuracy(0.45 + seed / 10, 100) for seed in (0, 1)}
    found = difference(ones, others)
    assert found.noise
    assert found.how == "binomial interval, not paired, over 100 test images, seed 0"
    others = {seed: Accuracy(0.45, 100) for seed in (2, 3)}
    found = difference({seed: Accuracy(0.4, 100) for seed in (0, 1)}, others)
    assert found.how == "binomial interval, not paired, over 100 test images, seeds 0 and 2"
    assert found.low is not None
    assert found.high is not None
    assert found.low < -0.05 < found.high


def test_a_baseline_that_is_named(made: Path, tmp_path: Path):
    found = compared(made, baseline=made / "short")
    assert {method.baseline for method in found.methods} == {None, "trades, full data, 2 epochs"}
    alone = compare(find_runs([made / "bullet"]), baseline=made / "short")
    names = ("trades, full data, Bullet, 4 epochs", "trades, full data, 2 epochs")
    assert [(method.name, method.baseline) for method in alone.methods] == [(names[1], None), names]
    with pytest.raises(UserError, match=r"--baseline .*nowhere: not a finished run"):
        compared(made, baseline=made / "nowhere")


def test_early_stopping(tmp_path: Path):
    path = make_run(tmp_path / "run", right=shares(clean=0.8, pgd=0.4, aa=0.3))
    best = shares(clean=0.7, pgd=0.5, aa=0.4)
    report = json.loads((path / "report.json").read_text())
    report["evaluation"]["best"] = evaluation(best)
    (path / "report.json").write_text(json.dumps(report))
    write_outcomes(path / "evaluation/best", best, attacks=2)
    method = compared(tmp_path).methods[0]
    assert {
        m.what: (m.which, round(e.value, 9)) for m, e in differences(method, ReferenceKind.EARLY_STOPPING).items()
    } == {
        "clean": ("best", -0.1),
        "PGD 0.15": ("best", 0.1),
        "AutoAttack 0.15": ("best", 0.1),
    }
    assert "Early stopping: best minus last weights" in markdown(compared(tmp_path))


def test_names_differ_where_any_key_does(tmp_path: Path):
    for number, change in enumerate(({}, {"loss": {"beta": 1.0}}, {"optimizer": {"lr": 0.2}})):
        make_run(tmp_path / f"{number}", change)
    names = {method.name for method in compared(tmp_path).methods}
    assert names == {"trades, full data", "trades, full data, beta 1", "trades, full data, optimizer lr 0.2"}


def test_the_same_seed_twice_counts_once_and_precisions_are_told_apart(tmp_path: Path):
    make_run(tmp_path / "a")
    make_run(tmp_path / "b")
    found = compared(tmp_path)
    assert [run.path for run in found.methods[0].runs] == [tmp_path / "a"]
    assert found.left_out == [f"{tmp_path / 'b'}: left out: the same recipe and seed as {tmp_path / 'a'}"]
    make_run(tmp_path / "c", {"train": {"precision": "bf16"}})
    assert {m.name for m in compared(tmp_path).methods} == {
        "trades, full data, precision fp32",
        "trades, full data, precision bf16",
    }


def test_how_steps_are_computed_counts_only_where_a_seed_was_run_in_two_ways(tmp_path: Path):
    make_run(tmp_path / "a")
    make_run(tmp_path / "b", {"seed": 1, "train": {"cuda_graphs": True, "compile": False}})
    (method,) = compared(tmp_path).methods
    assert [run.seed for run in method.runs] == [0, 1]
    make_run(tmp_path / "c", {"seed": 1, "train": {"cuda_graphs": True, "compile": True}})
    assert {m.name: [run.seed for run in m.runs] for m in compared(tmp_path).methods} == {
        "trades, full data, compile none": [0],
        "trades, full data, compile False": [1],
        "trades, full data, compile True": [1],
    }


def test_what_cannot_be_compared_is_warned_of(tmp_path: Path):
    make_run(tmp_path / "a")
    other = {"device": "another", "threads": 2, "versions": {"torch": "2.8.0"}}
    path = make_run(tmp_path / "b", GLISTER, right=shares(clean=0.8, pgd=0.4, aa=0.3), environment=other)
    report = json.loads((path / "report.json").read_text())
    report["evaluation"]["last"]["autoattack_warnings"] = ["zero gradients"]
    (path / "report.json").write_text(json.dumps(report))
    assert compared(tmp_path).warnings == [
        "numbers of test images differ (100; 4): accuracies are not comparable",
        "numbers of AutoAttack images differ (100; 4): accuracies are not comparable",
        "devices differ (a processor; another): times are not comparable",
        "numbers of threads differ (1; 2): times are not comparable",
        "versions of torch differ (2.8.0; 2.9.0): results may too",
        "trades, adv-glister 50 %, seed 0: AutoAttack warns (last): zero gradients",
    ]


def test_markdown_and_terminal_say_the_same(made: Path):
    found = compared(made)
    text = markdown(found)
    assert "| trades, full data |  | 40.00 ± 0.00 | 90.00 ± 0.00 | 1:20 ± 0 s | 50.50 ± 0.71 |" in text
    bullet = "| trades, full data, Bullet | ● | 42.00 ≈ | 90.00 ≈ | 32 s | 50.00 ≈ | 2.50\u00d7 | 8.00 | 1 |"
    assert bullet in text
    assert "| trades, full data, Bullet | trades, full data | 0.00 [0.00, 0.00] ≈ |" in text
    stream = io.StringIO()
    print_comparison(found, Console(file=stream))
    assert any("trades, full data, Bullet" in line and "42.00 ≈" in line for line in stream.getvalue().splitlines())


def test_csv_has_every_number(made: Path):
    rows = list(DictReader(io.StringIO(csv(compared(made)))))
    found = {(row["method"], row["measure"], row["reference"]): row for row in rows}
    row = found["trades, adv-glister 50 %", "AutoAttack standard", "trades, random 50 %"]
    assert float(row["difference"]) == pytest.approx(0.075)
    assert row["seeds"] == "0 1"
    assert row["within_noise"] == "true"
    assert float(found["trades, full data", "PGD-50-10", ""]["mean"]) == pytest.approx(0.505)
    assert float(found["trades, full data", "seconds", ""]["mean"]) == pytest.approx(80)
    assert float(found["trades, random 50 %", "speed-up", "trades, full data"]["difference"]) == pytest.approx(2)
    alone = found["trades, full data, Bullet", "speed-up", "trades, full data"]
    assert (alone["low"], alone["within_noise"]) == ("", ""), "one timing each has no interval to be within"


def test_names_are_escaped_in_markdown(tmp_path: Path):
    make_run(tmp_path / "a|b", {"loss": {"name": "mine:<script>|[x](y)"}})
    text = markdown(compared(tmp_path))
    assert "| mine:\\<script\\>\\|[x\\](y), full data |" in text
    assert "<script>" not in text
    assert r"a\|b" in text
