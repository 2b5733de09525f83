from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from made_runs import GLISTER, make_run, write_outcomes

from robustcords.errors import UserError
from robustcords.report import training_charts
from robustcords.report.comparison import compare
from robustcords.report.grouping import baselines, group, method_names, method_of
from robustcords.report.runs import find_runs, load_run, unfinished


def test_a_run_is_read_whole(tmp_path: Path):
    path = make_run(tmp_path / "run", {"seed": 3})
    (path / "selections").mkdir()
    for epoch, indices in ((0, [1, 5]), (2, [5, 7])):
        weights = np.array([1.0, 2.0], dtype=np.float32)
        np.savez(path / f"selections/epoch_{epoch:04d}.npz", indices=np.array(indices), weights=weights)
    run = load_run(path)
    assert (run.path, run.seed, len(run.rows), run.notes) == (path, 3, 4, [])
    written = json.loads((path / "report.json").read_text())
    assert run.report.to_json() == {"version": 2, **written}
    assert [(s.epoch, s.indices.tolist(), s.weights.tolist()) for s in run.selections] == [
        (0, [1, 5], [1.0, 2.0]),
        (2, [5, 7], [1.0, 2.0]),
    ]
    assert {key: outcome.right.tolist() for key, outcome in run.outcomes.items()} == {
        ("last", "clean"): [True, True, True, False],
        ("last", "PGD 0.15"): [True, True, False, False],
        ("last", "AutoAttack 0.15"): [True, False, False, False],
    }


def test_what_is_missing_is_noted(tmp_path: Path):
    path = make_run(tmp_path / "run", GLISTER, outcomes=False)
    report = json.loads((path / "report.json").read_text())
    report["training"]["selections"] = [{"epoch": 0, "size": 5}]
    (path / "report.json").write_text(json.dumps(report))
    (path / "metrics.jsonl").unlink()
    run = load_run(path)
    assert (run.rows, run.selections, run.outcomes) == ([], [], {})
    assert run.notes == [
        "metrics.jsonl has 0 of the 4 epochs",
        "no selections/: overlap is not known",
        "evaluation/last/ does not have the single images' outcomes of clean, PGD 0.15, AutoAttack 0.15",
    ]


def test_outcomes_of_another_evaluation_are_passed_over(tmp_path: Path):
    path = make_run(tmp_path / "run")
    other = {"clean": [1, 1, 1, 1], "PGD 0.15": [1, 1], "AutoAttack 0.15": [0, 0, 0, 1]}
    write_outcomes(path / "evaluation/last", other, attacks=2)
    (path / "evaluation/last/broken.json").write_text("{")
    run = load_run(path)
    assert {what for _, what in run.outcomes} == {"AutoAttack 0.15"}  # the same accuracy cannot be told apart
    assert "clean, PGD 0.15" in run.notes[0]


def test_an_outcome_that_is_not_there_yet_is_no_outcome(tmp_path: Path):
    path = make_run(tmp_path / "run")
    file = path / "evaluation/last/0.json"
    content = json.loads(file.read_text())
    content["outcomes"] = [1, 1, 1, -1]
    file.write_text(json.dumps(content))
    assert ("last", "clean") not in load_run(path).outcomes


def test_folders_are_searched_and_what_is_not_finished_is_named(tmp_path: Path):
    make_run(tmp_path / "grid/b")
    make_run(tmp_path / "grid/deeper/a")
    make_run(tmp_path / "grid/.hidden/c")
    half = make_run(tmp_path / "grid/half")
    (half / "report.json").unlink()
    make_run(half / "inside")  # what lies in a run is its own business
    given = [tmp_path / "grid/b", tmp_path / "grid"]
    assert [run.path for run in find_runs(given)] == [tmp_path / "grid/b", tmp_path / "grid/deeper/a"]
    assert unfinished(given) == [half]
    with pytest.raises(UserError, match=r"half: not finished \(no report.json\)"):
        find_runs([half])


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("report.json", "[1", "report.json: damaged: not a JSON object"),
        ("report.json", "{}", r"report.json: damaged: recipe: field required"),
        ("metrics.jsonl", '{"epoch": 0}\n', r"metrics.jsonl:1: damaged: not an epoch's line \(KeyError"),
        ("metrics.jsonl", '{"epoch"\n', r"metrics.jsonl:1: damaged: not an epoch's line"),
        ("selections/epoch_0000.npz", "no zip", r"epoch_0000.npz: damaged: not a selection"),
    ],
)
def test_a_damaged_file_is_one_line(tmp_path: Path, name: str, text: str, message: str):
    path = make_run(tmp_path / "run")
    (path / name).parent.mkdir(exist_ok=True)
    (path / name).write_text(text)
    with pytest.raises(UserError, match=message) as raised:
        find_runs([tmp_path])
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    ("keys", "value", "message"),
    [
        ("training epochs", 0, "training.epochs: input should be greater than 0"),
        ("training seconds attack", -1.0, "training.seconds.attack: input should be greater than or equal to 0"),
        ("recipe threat epsilon", "abc", "recipe.threat.epsilon: 'abc' is not a number or a fraction"),
        ("recipe selector", {"name": "random", "fraction": 0.0}, "recipe.selector.fraction: input should be greater"),
        ("evaluation last clean", 81.0, "evaluation.last.clean: input should be less than or equal to 1"),
        ("evaluation last pgd 0.15", "much", "evaluation.last.pgd.0.15: input should be a valid number"),
        ("evaluation last pgd 0.15", -0.5, "evaluation.last.pgd.0.15: input should be greater than or equal to 0"),
        ("evaluation last pgd 8/0", 0.5, "evaluation.last.pgd.8/0.[key]: '8/0' is not a number"),
        ("evaluation last examples", 0, "evaluation.last.examples: input should be greater than 0"),
        ("evaluation last autoattack_examples", -5, "evaluation.last.autoattack_examples: input should be greater"),
        ("evaluation last pgd_attack", "", "evaluation.last: pgd without pgd_attack"),
        ("evaluation last autoattack_examples", None, "evaluation.last: autoattack without autoattack_version and"),
        ("training selections", [{"epoch": 0}], "training.selections.0.size: field required"),
        ("environment git_commit", 7, "environment.git_commit: input should be a valid string"),
        ("recipe threat norm", ["l2"], "recipe.threat.norm: input should be a valid string"),
        ("evaluation foo", {}, "evaluation.foo.[key]: input should be 'best', 'last' or 'weights'"),
    ],
)
def test_a_wrong_number_deep_in_a_report_is_named(tmp_path: Path, keys: str, value: object, message: str):
    path = make_run(tmp_path / "run")
    report = json.loads((path / "report.json").read_text())
    *tables, last = keys.split()
    table = report
    for name in tables:
        table = table[name]
    table[last] = value
    (path / "report.json").write_text(json.dumps(report))
    with pytest.raises(UserError) as raised:
        load_run(path)
    assert str(raised.value).startswith(f"{path / 'report.json'}: damaged: {message}")


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("selection", 7, "selection: input should be"),
        ("selection", {"classes": "abc"}, "selection.classes: input should be a valid list"),
        ("selection", {"classes": ["<b>", 2]}, "selection.classes.0: input should be a valid integer"),
        ("epoch", -1, "epoch: input should be greater than or equal to 0"),
    ],
)
def test_a_wrong_number_in_the_metrics_is_named(tmp_path: Path, key: str, value: object, message: str):
    path = make_run(tmp_path / "run")
    first, *others = (path / "metrics.jsonl").read_text().splitlines()
    (path / "metrics.jsonl").write_text("\n".join([json.dumps(json.loads(first) | {key: value}), *others]))
    with pytest.raises(UserError) as raised:
        load_run(path)
    assert str(raised.value).startswith(f"{path / 'metrics.jsonl'}:1: damaged: {message}")


@pytest.mark.parametrize(
    ("indices", "weights"),
    [
        (np.arange(0), np.ones(0)),
        (np.arange(4).reshape(2, 2), np.ones((2, 2))),
        (np.array(3), np.array(1.0)),
        (np.arange(3), np.ones(2)),
    ],
)
def test_a_selection_of_another_shape_is_damaged(
    tmp_path: Path, indices: npt.NDArray[np.int64], weights: npt.NDArray[np.float64]
):
    path = make_run(tmp_path / "run")
    (path / "selections").mkdir()
    np.savez(path / "selections" / "epoch_0002.npz", indices=indices, weights=weights)
    with pytest.raises(UserError, match=r"epoch_0002.npz: damaged: not a selection: indices \("):
        load_run(path)


def test_class_counts_that_no_chart_can_be_made_of_make_none(tmp_path: Path):
    path = make_run(tmp_path / "run", GLISTER)
    first, second, *others = (json.loads(line) for line in (path / "metrics.jsonl").read_text().splitlines())
    for one, other in (([0, 0], [0, 0]), ([1, 2], [1, 2, 3])):
        rows = [first | {"selection": {"classes": one}}, second | {"selection": {"classes": other}}, *others]
        (path / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        shown = training_charts.sections(compare([load_run(path)]))
        assert not any(chart.key.startswith("balance") for section in shown for chart in section.charts)


def test_paths_that_are_nothing_are_refused(tmp_path: Path):
    (tmp_path / "file").write_text("")
    (tmp_path / "empty").mkdir()
    for name, message in (("nowhere", "there is no such folder"), ("file", "a file"), ("empty", "neither a run")):
        with pytest.raises(UserError, match=message):
            find_runs([tmp_path / name])


def test_a_copy_given_twice_counts_once(tmp_path: Path):
    path = make_run(tmp_path / "run")
    assert len(find_runs([path, tmp_path, tmp_path / "run"])) == 1
    shutil.copytree(path, tmp_path / "copy")
    assert len(find_runs([tmp_path])) == 2


def test_runs_of_the_first_version_have_the_one_method_that_there_was():
    folder = Path(__file__).parents[2] / "docs" / "results" / "runs" / "table1" / "cifar10_bullet,seed=0"
    assert "method" not in json.loads((folder / "report.json").read_text())["recipe"]
    assert method_of(load_run(folder))["method.name"] == "adversarial"


def test_runs_from_before_efforts_are_the_same_methods(tmp_path: Path):
    steps = {"steps": {"outlier": 0, "robust": 2, "boundary": 10}}
    old = make_run(tmp_path / "old", {"bullet": steps}), make_run(tmp_path / "plain old")
    new = make_run(
        tmp_path / "new", {"effort": {"name": "bullet", **steps}, "seed": 1, "method": {"name": "adversarial"}}
    )
    plain = make_run(tmp_path / "plain new", {"effort": {"name": "uniform"}, "seed": 1})
    groups = group([load_run(path) for path in (*old, new, plain)])
    assert [[run.path.name for run in members] for _, members in groups] == [["old", "new"], ["plain old", "plain new"]]
    assert method_names([method for method, _ in groups]) == ["trades, full data, Bullet", "trades, full data"]
    assert baselines([method for method, _ in groups]) == [1, None]


def test_a_report_with_both_forms_of_a_table_is_damaged(tmp_path: Path):
    path = make_run(tmp_path / "run", {"bullet": {"steps": {}}, "effort": {"name": "bullet"}})
    with pytest.raises(UserError, match=r"damaged: recipe: \[bullet\] is short for"):
        load_run(path)
