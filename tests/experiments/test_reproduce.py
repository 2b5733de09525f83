"""The paper's tables, run again: which runs, in which order, and how long those that are to take as long as others."""

from __future__ import annotations

import dataclasses
import io
import json
import shutil
import tomllib
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from rich.console import Console
from support.command_line import call

from robustcords.errors import UserError
from robustcords.experiments import fleet, reproduce
from robustcords.paper.tables import TABLES
from robustcords.recipe.recipe import load
from robustcords.report import paper_tables


def pretend(recipe: Path, output: Path) -> None:
    """Does what a run does to its directory: an epoch takes 10 s on full data, as TRADES has it, and 2 s under FGSM."""
    output.mkdir(parents=True)
    shutil.copy(recipe, output / "recipe.toml")
    tables = tomllib.loads(recipe.read_text())
    epochs, selector = tables["train"]["epochs"], tables.get("selector")
    each = 2.0 if tables["attack"]["name"] == "fgsm" else 10 * (selector["fraction"] if selector else 1)
    seconds = {"total": 9 * each * epochs, "attack": each * epochs, "validation": 8 * each * epochs}
    if selector and selector["name"] == "adv-gradmatch":
        seconds["selection"] = 9.0
    training = {"epochs": epochs, "seconds": seconds, "selections": []}
    environment = {"device": "CPU", "world_size": 1, "threads": 1, "versions": {}}
    result = {
        **{"clean": 0.5 + tables["seed"] / 100, "examples": 100, "pgd": {"8/255": 0.25}, "pgd_attack": "PGD-50-10"},
        **{"autoattack": {"8/255": 0.2}, "autoattack_examples": 100, "autoattack_version": "standard"},
    }
    report = {"recipe": tables, "environment": environment, "training": training, "evaluation": {"last": result}}
    (output / "report.json").write_text(json.dumps(report))


@pytest.fixture
def pretended(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of the runs that were made, in order."""
    made: list[str] = []

    def start(recipe: Path, output: Path, *_: Any) -> SimpleNamespace:
        made.append(output.name)
        pretend(recipe, output)
        return SimpleNamespace(poll=lambda: 0)

    monkeypatch.setattr(fleet, "start", start)
    monkeypatch.setattr(fleet, "_POLL_S", 0.0)
    return made


def epochs(folder: Path, name: str) -> int:
    return int(tomllib.loads((folder / name / "recipe.toml").read_text())["train"]["epochs"])


def test_rows_come_first_and_then_those_of_equal_time(tmp_path: Path, pretended: list[str]):
    made = reproduce.plan("table1", "small", seeds=[0, 1], folder=tmp_path)
    ended = reproduce.run(made)
    assert {job.state for job in ended} == {"done"}
    plain = [row.id for row in made.rows if not row.equal_time]
    assert len(plain) == 13
    assert pretended[:26] == [f"{row},seed={seed}" for seed in (0, 1) for row in plain]
    timed = ["cifar10_equal_time", "cifar10_fgsm_rs_equal_time"]
    assert pretended[26] == f"one-epoch,{timed[1]},seed=0", "the other seeds are of the same length"
    assert pretended[27:] == [f"{row},seed={seed}" for seed in (0, 1) for row in timed]
    # Adv-GRAD-MATCH: 12 epochs of 3 s and 9 s of selection; Adv-GLISTER less.
    assert [epochs(tmp_path, f"{row},seed=1") for row in timed] == [round(45 / 10), round(45 / 2)]
    assert load(tmp_path / "cifar10_trades,seed=1" / "recipe.toml").seed == 1


def test_what_is_there_is_not_run_again_and_keeps_its_length(tmp_path: Path, pretended: list[str]):
    made = reproduce.plan("table1", "small", folder=tmp_path)
    reproduce.run(made)
    report = tmp_path / "cifar10_gradmatch,seed=0" / "report.json"
    longer = json.loads(report.read_text())
    longer["training"]["seconds"]["selection"] = 500.0
    report.write_text(json.dumps(longer))
    pretended.clear()
    assert {job.state for job in reproduce.run(made)} == {"skipped"}
    assert pretended == []


def test_without_the_rows_whose_time_it_takes_one_is_left_out(
    tmp_path: Path, pretended: list[str], capsys: pytest.CaptureFixture[str]
):
    made = reproduce.plan("table1", "small", rows=["cifar10_equal_time", "cifar10_glister"], folder=tmp_path)
    assert [job.task.name for job in reproduce.run(made)] == ["cifar10_glister,seed=0"]
    said = " ".join(capsys.readouterr().err.split())
    why = "it is to train for as long as cifar10_glister, cifar10_gradmatch, which are not all done"
    assert f"cifar10_equal_time,seed=0: left out: {why}" in said


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"table": "table9"},
            "unknown table 'table9'; did you mean 'table4'? (one of: figure1, figure2, table1, table2, ",
        ),
        ({"preset": "smal"}, "unknown preset 'smal'; did you mean 'small'? (one of: paper, small, smoke)"),
        (
            {"datasets": ["cifar"]},
            "--dataset cifar: not in table1; did you mean 'cifar10'? (one of: cifar10, cifar100)",
        ),
        ({"overrides": ["seed=7"]}, "--set seed=7: the seeds are named with --seed"),
        ({"rows": ["cifar100_trades"]}, "--row cifar100_trades: a row for cifar100; add --dataset cifar100"),
        ({"rows": ["cifar10_trade"]}, "--row cifar10_trade: not among the rows of table1 for cifar10; did you mean"),
        ({"seeds": [0, -1]}, "--seed -1: must be 0 or more"),
        (
            {"overrides": ["train.epoch=3"]},
            "--set train.epoch=3: [train] unknown key \"epoch\"; did you mean 'epochs'?",
        ),
    ],
)
def test_what_there_is_not_is_said_in_one_line(tmp_path: Path, options: dict[str, Any], message: str):
    with pytest.raises(UserError) as refused:
        reproduce.plan(**{"table": "table1", **options}, folder=tmp_path)
    assert str(refused.value).startswith(message)
    assert "\n" not in str(refused.value)
    assert list(tmp_path.iterdir()) == []


def test_ours_stands_beside_the_papers_numbers(tmp_path: Path, pretended: list[str]):
    names = ["cifar10_trades", "cifar10_glister", "cifar10_random", "cifar10_bullet"]
    made = reproduce.plan("table1", "small", rows=names, seeds=[0, 4], folder=tmp_path)
    reproduce.run(made)
    shutil.rmtree(tmp_path / "cifar10_bullet,seed=0")
    shutil.rmtree(tmp_path / "cifar10_bullet,seed=4")
    runs, _ = made.runs()
    header, *lines = paper_tables.rows(TABLES["table1"], runs)
    assert header == ["method", "", "clean", "pgd 8/255", "autoattack", "s / epoch", "speed-up", "seeds"]
    x = "\N{MULTIPLICATION SIGN}"
    assert lines == [
        ["TRADES", "paper", "82.73", "51.83", "49.06", "416.20", "", ""],
        ["", "ours", "52.00 ± 2.83", "25.00 ± 0.00", "20.00 ± 0.00", "10.00 ± 0.00", "", "2"],
        ["", "difference", "-30.73", "-26.83", "-29.06", "", "", ""],
        ["Bullet", "paper", "84.60", "50.82", "47.93", "193.06", f"2.16{x}", ""],
        ["", "ours", "", "", "", "", "", "none"],
        ["Adv-GLISTER", "paper", "77.62", "46.06", "41.61", "120.70", f"3.45{x}", ""],
        ["", "ours", "52.00 ± 2.83", "25.00 ± 0.00", "20.00 ± 0.00", "3.00 ± 0.00", f"3.33{x} ± 0.00", "2"],
        ["", "difference", "-25.62", "-21.06", "-21.61", "", "-0.12", ""],
        [
            "Random subset",
            "ours",
            "52.00 ± 2.83",
            "25.00 ± 0.00",
            "20.00 ± 0.00",
            "3.00 ± 0.00",
            f"3.33{x} ± 0.00",
            "2",
        ],
    ]
    shown = io.StringIO()
    paper_tables.print_alongside(TABLES["table1"], runs, Console(file=shown, width=200))
    assert (
        "- Ours: resnet8 on cifar10, 12 epochs, 100 test images, PGD-50-10, AutoAttack standard on 100.\n- Paper: "
        in shown.getvalue()
    )
    assert "arXiv:2302.12366" in shown.getvalue()
    assert "Table 3 has Adv-GLISTER's numbers for 100 epochs under beta = 1" in shown.getvalue()
    assert all(cell in shown.getvalue() for line in lines for cell in line)


def test_rows_of_two_data_sets_tell_which(tmp_path: Path, pretended: list[str]):
    rows = ["cifar10_trades", "cifar100_trades"]
    made = reproduce.plan("table1", "small", datasets=["cifar10", "cifar100"], rows=rows, folder=tmp_path)
    reproduce.run(made)
    labels = [line[0] for line in paper_tables.rows(TABLES["table1"], made.runs()[0]) if line[1] == "paper"]
    assert labels == ["TRADES (cifar10)", "TRADES (cifar100)"]


def test_the_command_prints_the_table(
    tmp_path: Path, pretended: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.chdir(tmp_path)
    answer = call(capsys, "reproduce", "table2", "--preset", "smoke", "--row", "cifar10_mart", "--seed", "3")
    assert answer.status == 0, answer.err
    assert pretended == ["cifar10_mart,seed=3"]
    assert (tmp_path / "runs" / "table2-smoke" / "cifar10_mart,seed=3" / "report.json").exists()
    page = tmp_path / "runs" / "table2-smoke" / "report.html"
    assert all(
        "MART results where data pruning methods use" in page.with_suffix(s).read_text() for s in (".html", ".md")
    )
    assert "80.96" in answer.out
    assert "53.00" in answer.out


def test_runs_of_another_recipe_stand_in_no_row(
    tmp_path: Path, pretended: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.chdir(tmp_path)
    common = ("reproduce", "table1", "--preset", "small", "--row", "cifar10_random", "--output", "runs")
    assert call(capsys, *common, "--set", "train.epochs=3", "--set", "selector.fraction=0.5", "--seed", "1").status == 0
    answer = call(capsys, *common)
    assert answer.status == 0
    line = "runs/cifar10_random,seed=1: left out: another recipe; what differs: selector.fraction, train.epochs"
    assert line in answer.out
    assert line in (tmp_path / "runs" / "report.html").read_text()
    made = reproduce.plan("table1", "small", rows=["cifar10_random"], folder=tmp_path / "runs")
    assert [run.seed for run in made.runs()[0]["cifar10_random"]] == [0]


def test_rows_of_equal_time_keep_the_length_that_they_were_given(tmp_path: Path, pretended: list[str]):
    rows = ["cifar10_glister", "cifar10_gradmatch", "cifar10_fgsm_rs_equal_time"]
    made = reproduce.plan("table1", "small", rows=rows, seeds=[0, 1], folder=tmp_path)
    reproduce.run(made)
    runs, others = made.runs()
    assert [run.recipe.train.epochs for run in runs["cifar10_fgsm_rs_equal_time"]] == [round(45 / 2)] * 2
    assert others == []
    later = reproduce.plan("table1", "small", rows=rows, seeds=[2], folder=tmp_path)
    reproduce.run(dataclasses.replace(later, rows=later.rows[:2]))
    report = tmp_path / "cifar10_gradmatch,seed=2" / "report.json"
    longer = json.loads(report.read_text())
    longer["training"]["seconds"]["selection"] = 500.0
    report.write_text(json.dumps(longer))
    reproduce.run(later)
    assert epochs(tmp_path, "cifar10_fgsm_rs_equal_time,seed=2") == round(45 / 2), "a method has one length"


def test_the_time_of_another_recipe_or_machine_is_not_taken_in_silence(
    tmp_path: Path, pretended: list[str], capsys: pytest.CaptureFixture[str]
):
    rows = ["cifar10_trades", "cifar10_glister", "cifar10_gradmatch"]
    reproduce.run(reproduce.plan("table1", "small", rows=rows, folder=tmp_path))
    timed = reproduce.plan("table1", "small", rows=["cifar10_fgsm_rs_equal_time"], folder=tmp_path)
    other = dataclasses.replace(timed, overrides=["selector.fraction=0.4"])
    with pytest.raises(UserError, match=r"cifar10_glister,seed=0: its time counts, but it has another recipe"):
        reproduce.run(other)
    report = tmp_path / "cifar10_gradmatch,seed=0" / "report.json"
    report.write_text(report.read_text().replace('"device": "CPU"', '"device": "H200"'))
    reproduce.run(timed)
    said = " ".join(capsys.readouterr().err.split())
    assert "cifar10_gradmatch,seed=0 was timed on H200 (1 x 1 threads), an epoch of " in said


def test_the_page_has_every_row_that_is_there(
    tmp_path: Path, pretended: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.chdir(tmp_path)
    command = ("reproduce", "table1", "--preset", "small", "--output", "runs")
    assert call(capsys, *command, "--row", "cifar10_trades").status == 0
    answer = call(capsys, *command, "--row", "cifar10_bullet", "--seed", "1")
    assert answer.status == 0, answer.err
    assert "TRADES" in answer.out
    text = (tmp_path / "runs" / "report.md").read_text()
    assert "| TRADES | paper | 82.73" in text
    assert "| Bullet | paper | 84.60" in text
    assert "Random subset" not in text, "no row that was neither asked for nor run"
    answer = call(capsys, *command, "--row", "cifar10_random", "--set", "selector.fraction=0.4")
    assert answer.status == 0, "of the rows that have no selector nothing was asked"
    assert "runs/cifar10_trades,seed=0: left out: " in answer.out


def test_a_row_of_equal_time_alone_is_no_success(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.chdir(tmp_path)
    answer = call(capsys, "reproduce", "table1", "--preset", "smoke", "--row", "cifar10_equal_time")
    assert answer.status == 1
    assert "cifar10_equal_time,seed=0: left out: it is to train for as long as" in answer.err


def test_best_weights_have_a_line_of_their_own_and_other_radii_are_not_the_papers(tmp_path: Path, pretended: list[str]):
    made = reproduce.plan("table1", "small", rows=["cifar10_early_stopped", "cifar10_trades"], folder=tmp_path)
    reproduce.run(made)
    report = tmp_path / "cifar10_early_stopped,seed=0" / "report.json"
    content = json.loads(report.read_text())
    content["evaluation"]["best"] = {**content["evaluation"]["last"], "clean": 0.7, "pgd": {"8/255": 0.4}}
    report.write_text(json.dumps(content))
    report = tmp_path / "cifar10_trades,seed=0" / "report.json"
    content = json.loads(report.read_text())
    content["evaluation"]["last"]["autoattack"] = {"4/255": 0.99}
    report.write_text(json.dumps(content))
    lines = paper_tables.rows(TABLES["table1"], made.runs()[0])
    header, full, ours, gap, last, best = [line[:5] for line in lines]
    assert header[2:] == ["clean", "pgd 8/255", "autoattack"]
    assert full == ["TRADES", "paper", "82.73", "51.83", "49.06"]
    assert ours == ["", "ours", "50.00", "25.00", ""]
    assert gap[4] == ""
    assert last == ["TRADES, early-stopped", "ours, last weights", "50.00", "25.00", "20.00"]
    assert best == ["", "ours, best weights", "70.00", "40.00", "20.00"]
