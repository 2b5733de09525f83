"""The command line, from a recipe to a report, and everything that a user can get wrong."""

from __future__ import annotations

import json
import shutil
import tomllib
from pathlib import Path

import numpy as np
import pytest
import torch
import typer.main
from safetensors.torch import load_file, save_file
from support.cases import cases
from support.command_line import ROOT, SMALL, Command, contents, refused, settings
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

import robustcords
from robustcords.cli.app import app
from robustcords.experiments import build
from robustcords.recipe import recipe
from robustcords.report.runs import find_runs
from robustcords.runtime.stopwatch import PHASES

RECIPES = sorted((ROOT / "recipes").rglob("*.toml"))


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny run, named by default; the tests leave it as it is."""
    folder = tmp_path_factory.mktemp("run")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setattr("sys.argv", ["robustcords", "run", "digits_mart", *SMALL])
        with pytest.raises(SystemExit) as ended:
            from robustcords.cli.app import main

            main()
    assert ended.value.code in {0, None}
    return folder / "runs" / "digits_mart"


def test_the_run_directory_is_the_contracts(run: Path):
    assert {path.name for path in run.iterdir()} - {"evaluation", ".lock"} == {
        *("recipe.toml", "environment.json", "metrics.jsonl", "report.json", "report.md"),
        *("checkpoints", "selections", "weights"),
    }
    environment = json.loads((run / "environment.json").read_text())
    assert environment.keys() == {"versions", "device", "git_commit", "world_size", "threads", "seed", "precision"}
    assert {"torch", "robustcords", "cords"} <= environment["versions"].keys()
    assert (environment["world_size"], environment["seed"], environment["precision"]) == (1, 0, "fp32")
    for line in (run / "metrics.jsonl").read_text().splitlines():
        seconds = json.loads(line)["seconds"]
        assert seconds.keys() == {"total", *PHASES}
        assert sum(seconds[phase] for phase in PHASES) == pytest.approx(seconds["total"], rel=1e-9)
    assert {path.stem for path in (run / "selections").iterdir()} == {"epoch_0000", "epoch_0001"}
    assert {path.stem for path in (run / "weights").iterdir()} == {"best", "last"}
    layout = "train.memory_format=channels_last"
    assert recipe.load(run / "recipe.toml") == recipe.load("digits_mart", [*SMALL[1::2], layout])


def test_selections_are_numbered_in_the_whole_training_set(run: Path):
    loaded = recipe.load(run / "recipe.toml")
    numbers = build.data(loaded).train.numbers.tolist()
    everything = build.component("data", loaded.data).load().train
    assert len(numbers) < len(everything)
    for path in (run / "selections").iterdir():
        with np.load(path, allow_pickle=False) as content:
            indices, weights = content["indices"], content["weights"]
        assert (indices.dtype, weights.dtype) == (np.int64, np.float32)
        assert len(set(indices.tolist())) == len(indices) == len(weights) == round(0.3 * len(numbers))
        assert set(indices.tolist()) <= set(numbers)


def test_the_report_says_what_the_contract_promises(run: Path):
    report = json.loads((run / "report.json").read_text())
    assert report.keys() == {"version", "recipe", "environment", "training", "evaluation"}
    assert report["recipe"] == tomllib.loads((run / "recipe.toml").read_text())
    assert report["training"]["epochs"] == 2
    assert report["training"]["selections"] == [{"epoch": 0, "size": 65}, {"epoch": 1, "size": 65}]
    assert report["evaluation"].keys() == {"best", "last"}
    for result in report["evaluation"].values():
        assert result["examples"] == 20
        assert result["pgd"].keys() == {"0.1", "0.15"}
        assert all(0 <= accuracy <= result["clean"] <= 1 for accuracy in result["pgd"].values())
        assert "autoattack" not in result
    assert "PGD-1-1" in (run / "report.md").read_text()


def test_weights_are_plain_state_dicts(run: Path):
    loaded = recipe.load(run / "recipe.toml")
    network = build.model(loaded, build.data(loaded))
    assert network.state_dict().keys() == load_file(run / "weights" / "last.safetensors").keys()


def test_a_runs_own_recipe_is_that_run_again(run: Path, command: Command):
    answer = command("run", run / "recipe.toml")
    assert answer.status == 0
    assert answer.out.splitlines()[-1] == "runs/digits_mart"
    for name in ("weights/best.safetensors", "weights/last.safetensors", "selections/epoch_0001.npz", "recipe.toml"):
        assert (run / name).read_bytes() == (Path("runs/digits_mart") / name).read_bytes()


def test_runs_without_a_place_are_numbered(command: Command):
    for number in ("", "-2"):
        options = settings(train__epochs=1, train__batch_size=108, selector="false", bullet="false")
        answer = command("run", "digits_mart", *SMALL, *options)
        assert answer.out.splitlines()[-1] == f"runs/digits_mart{number}"
    assert list(Path("runs/digits_mart/selections").iterdir()) == []
    row = json.loads(Path("runs/digits_mart/metrics.jsonl").read_text())
    assert (row["subset_size"], row["counts"]) == (216, None)


def test_evaluate_leaves_the_run_alone_and_writes_where_it_is_told(run: Path, command: Command):
    before = contents(run)
    options = ("--limit", "7", "--attack", "pgd", "--epsilon", "0.05", "--epsilon", "8/255")
    answer = command("evaluate", run, *options, "--output", "mine.json")
    assert answer.status == 0
    assert "PGD-1-1" in answer.out
    report = json.loads(Path("mine.json").read_text())
    assert report["evaluation"].keys() == {"best", "last"}
    for result in report["evaluation"].values():
        assert result["examples"] == 7
        assert result["pgd"].keys() == {"0.05", "8/255"}
    assert report["training"]["epochs"] == 2
    after = contents(run)  # finished parts are kept, so that an interrupted evaluation goes on
    assert {name: content for name, content in after.items() if name in before} == before
    assert all(name.relative_to(run).parts[0] == "evaluation" for name in after.keys() - before.keys())
    # An earlier report may be written again, nothing else may.
    assert command("evaluate", run, "--limit", "1", "--output", "mine.json").status == 0
    assert json.loads(Path("mine.json").read_text())["evaluation"]["last"]["examples"] == 1
    letters = {"letter.json": '{"evaluation": {}, "mine": 1}', "letter.md": "# Mine\n\n## Test accuracy\n"}
    for name, text in letters.items():
        Path(name).write_text(text)
        answer = command("evaluate", run, "--output", name)
        line = f"error: --output {name}: exists and is not a report; name another file\n"
        assert (answer.status, answer.err) == (2, line)
        assert Path(name).read_text() == text


@pytest.fixture
def copied(run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny run, to be written to."""
    return Path(shutil.copytree(run, tmp_path_factory.mktemp("copied") / "run"))


AUTOATTACK = "evaluation.autoattack={epsilons = [0.15], limit = 4}"


def test_evaluate_adds_to_a_runs_own_report_and_changes_nothing_in_it(copied: Path, command: Command):
    before = json.loads((copied / "report.json").read_text())
    radii = ("--epsilon", "0.15", "--epsilon", "0.1", "--epsilon", "0.05")
    assert command("evaluate", copied, *radii, "--output", copied / "report.json").status == 0
    # Of fewer images, but nothing of PGD is new.
    sanity = ("--sanity", "--limit", "4", "--set", AUTOATTACK)
    assert command("evaluate", copied, *sanity, "--output", copied / "report.json").status == 0
    after = json.loads((copied / "report.json").read_text())
    assert find_runs([copied])[0].report.to_json() == after
    assert after["recipe"]["evaluation"].pop("autoattack") == {"version": "standard", "epsilons": [0.15], "limit": 4}
    assert before["recipe"]["evaluation"].pop("autoattack") is False
    assert {key: after[key] for key in before if key != "evaluation"} == {
        key: before[key] for key in before if key != "evaluation"
    }
    for name, result in before["evaluation"].items():
        more = after["evaluation"][name]
        assert more["pgd"].keys() == {"0.15", "0.1", "0.05"}
        assert result["pgd"].items() <= more["pgd"].items()
        assert more["clean"] == result["clean"]
        assert more["examples"] == 20
        assert (more["autoattack"].keys(), more["autoattack_examples"]) == ({"0.15"}, 4)
        assert more["sanity"]["examples"] == 4
    text = (copied / "report.md").read_text()
    assert all(each in text for each in ("0.05", "AutoAttack standard", "Masked gradients"))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--limit", "3", "--epsilon", "0.2"], "has best weights on 20 images, not 3"),
        (["--epsilon", "0.2", "--set", "evaluation.pgd.steps=2"], "has pgd with other settings (steps)"),
        (["--epsilon", "0.2", "--set", "evaluation.pgd.step_size=0.5"], "has pgd with other settings (step_size)"),
        (["--set", "train.epochs=500"], "the run has another recipe (train.epochs)"),
        (["--set", "train.precision=bf16"], "the run has another recipe (train.precision)"),
        (["--set", "threat.norm=l2"], "the run has another recipe (threat.norm)"),
        (["--set", "seed=7", "--set", "loss.beta=1"], "the run has another recipe (loss.beta, seed)"),
    ],
)
def test_evaluate_adds_nothing_to_a_runs_own_report_that_does_not_belong_there(
    copied: Path, command: Command, arguments: list[str], message: str
):
    before = contents(copied)
    refused(command("evaluate", copied, *arguments, "--output", copied / "report.json"), f"{message}; name another")
    assert contents(copied) == before


def test_evaluate_replaces_no_check_by_one_of_fewer_images(copied: Path, command: Command):
    line = ("evaluate", copied, "--sanity", "--output", copied / "report.json")
    assert command(*line, "--limit", "2").status == 0
    refused(command(*line, "--limit", "1"), "has best weights checked on 2 images; name another file")
    assert command(*line, "--limit", "3").status == 0


@pytest.mark.parametrize("name", ["report.json", "report.md", "report_after_1_epochs.json"])
@pytest.mark.parametrize("there", [True, False])
def test_evaluate_leaves_the_reports_of_other_runs_alone(
    run: Path, copied: Path, command: Command, name: str, there: bool
):
    if there:
        shutil.copy(copied / "report.json", copied / "report_after_1_epochs.json")
    else:
        (copied / "report.json").unlink()
        (copied / "report.md").unlink()
    before = contents(copied)
    weights = ("--recipe", "digits_mart", "--weights", run / "weights" / "last.safetensors", *SMALL)
    refused(command("evaluate", run, "--output", copied / name), "where a run has its own report; name another file")
    refused(command("evaluate", *weights, "--output", copied / name), "where a run has its own report")
    own = "where a run has its own report" if name != "report.json" else "the run has not finished"
    if name != "report.json" or not there:
        refused(command("evaluate", copied, "--output", copied / name), own)
    assert contents(copied) == before


def test_evaluate_a_weights_file_gives_what_the_run_reported(run: Path, command: Command):
    weights = run / "weights" / "last.safetensors"
    answer = command("evaluate", "--recipe", "digits_mart", "--weights", weights, *SMALL, "--output", "out.json")
    assert answer.status == 0
    found = json.loads(Path("out.json").read_text())["evaluation"]
    assert found == {"weights": json.loads((run / "report.json").read_text())["evaluation"]["last"]}


@pytest.mark.parametrize(
    ("arguments", "parts"),
    [
        ([], ["either a RUN_DIR, or --recipe together with --weights, --model or both"]),
        (["--recipe", "digits_mart"], ["either a RUN_DIR, or --recipe together with --weights"]),
        (["--model", "resnet18"], ["either a RUN_DIR, or --recipe together with --weights"]),
        (["--recipe", "digits_mart", "--model", "resnet18"], ["--model resnet18: has no published weights"]),
        (["RUN", "--recipe", "digits_mart"], ["either a RUN_DIR, or --recipe together with --weights"]),
        (["nowhere"], ["nowhere: not a run directory"]),
        (["RUN", "--attack", "pdg"], ["--attack pdg: unknown; did you mean 'pgd'?"]),
        (["RUN", "--epsilon", "8/0"], ["--epsilon 8/0", "not a number or a fraction"]),
        (["RUN", "--epsilon", "-1"], ["--epsilon -1", "greater than or equal to 0"]),
        (["RUN", "--limit", "-1"], ["--limit", "greater than or equal to 0"]),
        (["RUN", "--limit", "many"], ["--limit", "integer"]),
        (["RUN", "--output", "no/where.json"], ["--output no/where.json: there is no folder no"]),
        (["--recipe", "digits_mart", "--weights", "none.safetensors"], ["none.safetensors: there is no such file"]),
        (["--recipe", "digits_mart", "--weights", "RUN/recipe.toml"], ["recipe.toml: not a safetensors file"]),
        (["--recipe", "digits_mart", "--weights", "RUN"], ["a folder; name a file"]),
        (["--recipe", "digits_mart", "--weights", "RUN/weights/last.safetensors"], ["has shape", "another model"]),
    ],
)
def test_evaluate_refuses(run: Path, command: Command, arguments: list[str], parts: list[str]):
    before = contents(run)
    refused(command("evaluate", *(each.replace("RUN", str(run)) for each in arguments)), *parts)
    assert contents(run) == before


def test_weights_with_other_names(run: Path, command: Command, tmp_path_factory: pytest.TempPathFactory):
    state = load_file(run / "weights" / "last.safetensors")
    renamed = tmp_path_factory.mktemp("weights") / "renamed.safetensors"
    first = next(iter(state))
    save_file({("x" if name == first else name): value for name, value in state.items()}, renamed)
    refused(command("evaluate", "--recipe", "digits_mart", "--weights", renamed, *SMALL), f"no {first!r}")
    save_file({**state, "extra": torch.zeros(1)}, renamed)
    refused(
        command("evaluate", "--recipe", "digits_mart", "--weights", renamed, *SMALL), "'extra' is not in this model"
    )


def test_select_writes_what_a_run_would_train_on(run: Path, command: Command):
    weights = run / "weights" / "last.safetensors"
    arguments = ("select", run / "recipe.toml", "--weights", weights, "--output", "chosen.npz")
    answer = command(*arguments, *settings(selector__granularity="full", selector__fraction=0.1))
    assert answer.status == 0, answer.err
    assert answer.out.startswith("22 of 216 training images in ")
    with np.load("chosen.npz", allow_pickle=False) as content:
        indices, given = content["indices"], content["weights"]
    assert (indices.dtype, given.dtype) == (np.int64, np.float32)
    numbers = build.data(recipe.load(run / "recipe.toml")).train.numbers.tolist()
    assert set(indices.tolist()) <= set(numbers)
    assert len(set(indices.tolist())) == len(given) == 22
    before = Path("chosen.npz").read_bytes()
    again = command(*arguments)
    assert (again.status, again.err) == (2, "error: --output chosen.npz: exists; name another file\n")
    assert Path("chosen.npz").read_bytes() == before


@pytest.mark.parametrize(
    ("arguments", "part"),
    [
        (["--weights", "RUN/weights/last.safetensors", "--output", "no/x.npz"], "there is no folder no"),
        (["--weights", "no.safetensors", "--output", "x.npz"], "no.safetensors: there is no such file"),
        (["--weights", "RUN", "--output", "x.npz", *settings(selector="false")], "no [selector] table"),
        (["--output", "x.npz"], "Missing option '--weights'"),
    ],
)
def test_select_refuses(run: Path, command: Command, arguments: list[str], part: str):
    refused(command("select", run / "recipe.toml", *(each.replace("RUN", str(run)) for each in arguments)), part)


def test_no_arguments_print_help(command: Command):
    answer = command()
    assert (answer.status, answer.err) == (0, "")
    for name in ("run", "evaluate", "select", "validate", "list", "new", "doctor"):
        assert f"\n  {name} " in answer.out
        assert command(name, "-h").out == command(name, "--help").out
    assert "..." not in answer.out.partition("Commands:")[2], "a line is cut off"


def test_version(command: Command):
    answer = command("--version")
    assert (answer.status, answer.out) == (0, f"robustcords {robustcords.__version__}\n")


def test_validate_takes_every_shipped_recipe_and_says_all_that_is_wrong(command: Command):
    answer = command("validate", *RECIPES)
    assert answer.status == 0
    assert answer.out.splitlines() == [f"{path}: valid" for path in RECIPES]
    Path("broken.toml").write_text('extends = "digits_mart"\n[loss]\nbta = 3.0\n')
    answer = command("validate", "broken.toml", "digits_mart", "--set", "train.epochs=-1")
    assert answer.status == 2
    first, second = answer.err.splitlines()
    assert first.startswith("error: broken.toml: [loss] unknown key \"bta\"; did you mean 'beta'?")
    assert second.startswith("error: --set train.epochs=-1: [train] epochs = -1: must be")


@cases("kind", ["data", "model", "attack", "loss", "selector", "optimizer", "schedule", "recipe"])
def test_list_names_and_describes(command: Command, kind: str):
    answer = command("list", kind)
    assert answer.status == 0
    head, *entries = answer.out.splitlines()
    assert head == f"{kind}:"
    assert entries
    assert all(len(entry.split()) > 2 for entry in entries)
    assert answer.out in command("list").out


def test_the_command_that_new_suggests_can_be_pasted(command: Command):
    answer = command("new", "my recipe.toml", "--data", "digits")
    assert answer.out == "my recipe.toml: written; robustcords run 'my recipe.toml'\n"


def test_new_writes_a_recipe_that_validates_and_never_over_a_file(command: Command):
    arguments = ("new", "mine.toml", "--data", "digits", "--loss", "mart", "--selector", "random", "--bullet")
    answer = command(*arguments, "--fraction", "0.2")
    assert (answer.status, answer.out) == (0, "mine.toml: written; robustcords run mine.toml\n")
    assert command("validate", "mine.toml").out == "mine.toml: valid\n"
    loaded = recipe.load("mine.toml")
    assert loaded.selector is not None
    assert (loaded.data.name, loaded.loss.name, loaded.selector.name) == ("digits", "mart", "random")
    assert (loaded.selector.fraction, loaded.effort.name) == (0.2, "bullet")
    text = Path("mine.toml").read_text()
    answer = command(*arguments)
    assert (answer.status, answer.err) == (2, "error: mine.toml: exists already; choose another name\n")
    assert Path("mine.toml").read_text() == text


def test_a_loss_that_is_not_finite_ends_with_status_1(command: Command):
    answer = command("run", "digits_mart", *SMALL, *settings(optimizer__lr=1e30, bullet="false"), "--output", "run")
    assert answer.status == 1
    last = answer.err.splitlines()[-1]
    assert last.startswith("error: the ")
    assert "not finite in epoch 0" in last
    assert "lower optimizer.lr" in last
    assert not Path("run/report.json").exists()


def test_trackers_write_into_the_run_they_belong_to(command: Command):
    options = settings(logging__trackers='["tensorboard"]', train__epochs=1, bullet="false", evaluation__limit=1)
    Path("runs/digits_mart").mkdir(parents=True)
    assert command("run", "digits_mart", *SMALL, *options).status == 0
    folders = {path.parent for path in Path("runs").rglob("events.out.tfevents.*")}
    assert {folder.parts[1] for folder in folders} == {"digits_mart-2"}
    events = [EventAccumulator(str(folder)).Reload() for folder in folders]
    report = json.loads(Path("runs/digits_mart-2/report.json").read_text())["evaluation"]["last"]
    (row,) = (json.loads(line) for line in Path("runs/digits_mart-2/metrics.jsonl").read_text().splitlines())
    written = {name: each.Scalars(name)[-1].value for each in events for name in each.Tags()["scalars"]}
    assert written["seconds/attack"] == pytest.approx(row["seconds"]["attack"])
    assert written["validation/robust"] == pytest.approx(row["validation"]["robust"])
    assert written["evaluation/last/clean"] == pytest.approx(report["clean"])
    assert {name for each in events for name in each.Tags()["images"]} == {
        "images/test_clean_adversarial_difference",
        "images/selection_kept",
        "images/selection_left_out",
    }


@pytest.mark.parametrize("command", ["run", "validate"])
def test_a_shell_completes_shipped_recipes(command: str):
    found = typer.main.get_command(app).commands[command]
    recipes = next(parameter for parameter in found.params if parameter.name in {"recipe", "recipes"})
    context = found.make_context(command, [], resilient_parsing=True)
    names = [item.value for item in recipes.shell_complete(context, "digits_m")]
    assert "digits_mart" in names
    assert all(name.startswith("digits_m") for name in names)
