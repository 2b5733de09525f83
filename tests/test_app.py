"""The command line, from a recipe to a report, and everything that a user can get wrong."""

from __future__ import annotations

import json
import tomllib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from command_line import ROOT, Answer, call, contents, settings
from PIL import Image
from safetensors.torch import load_file, save_file

from robustcords import build, recipe
from robustcords.timing import PHASES

RECIPES = sorted((ROOT / "recipes").rglob("*.toml"))
SMALL = settings(
    model__width=4,
    attack__steps=1,
    selector__select_every=1,
    train__epochs=2,
    train__precision="fp32",
    evaluation__limit=20,
    evaluation__checkpoints='["best", "last"]',
    evaluation__pgd="{steps = 1, restarts = 1, step_size = 0.1, epsilons = [0.1, 0.15]}",
    evaluation__autoattack="false",
)

Command = Callable[..., Answer]


@pytest.fixture
def command(capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Command:
    """Runs a command in an empty folder."""
    monkeypatch.chdir(tmp_path)
    return lambda *arguments: call(capsys, *arguments)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny run, named by default; the tests leave it as it is."""
    folder = tmp_path_factory.mktemp("run")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setattr("sys.argv", ["robustcords", "run", "digits_mart", *SMALL])
        with pytest.raises(SystemExit) as ended:
            from robustcords.app import main

            main()
    assert ended.value.code in {0, None}
    return folder / "runs" / "digits_mart"


def refused(answer: Answer, *parts: str) -> None:
    """Checks that a command said what is wrong in one line, and did nothing."""
    assert answer.status == 2, answer
    assert answer.out == ""
    assert len(answer.err.splitlines()) == 1, answer.err
    assert answer.err.startswith("error: ")
    for part in parts:
        assert part in answer.err
    assert list(Path().iterdir()) == []


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
    assert recipe.load(run / "recipe.toml") == recipe.load("digits_mart", SMALL[1::2])


def test_selections_are_numbered_in_the_whole_training_set(run: Path):
    loaded = recipe.load(run / "recipe.toml")
    numbers = build.data(loaded).numbers.tolist()
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
    assert report.keys() == {"recipe", "environment", "training", "evaluation"}
    assert report["recipe"] == tomllib.loads((run / "recipe.toml").read_text())
    assert report["training"]["epochs"] == 2
    assert report["training"]["selections"] == [{"epoch": 0, "size": 364}, {"epoch": 1, "size": 364}]
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
        answer = command("run", "digits_mart", *SMALL, *settings(train__epochs=1, selector="false", bullet="false"))
        assert answer.out.splitlines()[-1] == f"runs/digits_mart{number}"
    assert list(Path("runs/digits_mart/selections").iterdir()) == []
    row = json.loads(Path("runs/digits_mart/metrics.jsonl").read_text())
    assert (row["subset_size"], row["counts"]) == (1212, None)


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
    Path("letter.json").write_text("{}")
    answer = command("evaluate", run, "--output", "letter.json")
    assert (answer.status, answer.err) == (
        2,
        "error: --output letter.json: exists and is not a report; name another file\n",
    )
    assert Path("letter.json").read_text() == "{}"


def test_evaluate_a_weights_file_gives_what_the_run_reported(run: Path, command: Command):
    weights = run / "weights" / "last.safetensors"
    answer = command("evaluate", "--recipe", "digits_mart", "--weights", weights, *SMALL, "--output", "out.json")
    assert answer.status == 0
    found = json.loads(Path("out.json").read_text())["evaluation"]
    assert found == {"weights": json.loads((run / "report.json").read_text())["evaluation"]["last"]}


@pytest.mark.parametrize(
    ("arguments", "parts"),
    [
        ([], ["either a RUN_DIR, or --recipe together with --weights"]),
        (["--recipe", "digits_mart"], ["either a RUN_DIR, or --recipe together with --weights"]),
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
    assert answer.out.startswith("121 of 1212 training images in ")
    with np.load("chosen.npz", allow_pickle=False) as content:
        indices, given = content["indices"], content["weights"]
    assert (indices.dtype, given.dtype) == (np.int64, np.float32)
    numbers = build.data(recipe.load(run / "recipe.toml")).numbers.tolist()
    assert set(indices.tolist()) <= set(numbers)
    assert len(set(indices.tolist())) == len(given) == 121
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


@pytest.mark.parametrize(
    ("key", "value", "parts"),
    [
        ("selector__fractoin", 0.5, ['unknown key "fractoin"', "did you mean 'fraction'?"]),
        ("trian__epochs", 3, ["unknown table [trian]", "did you mean 'train'?"]),
        ("train__epochs", "'three'", ['[train] epochs = "three"', "whole number"]),
        ("train__epochs", 2.5, ["[train] epochs = 2.5", "whole number"]),
        ("selector__fraction", 0, ["[selector] fraction = 0", "> 0 and <= 1"]),
        ("selector__fraction", 1.5, ["[selector] fraction = 1.5", "> 0 and <= 1"]),
        ("threat__epsilon", -1, ["[threat] epsilon = -1", ">= 0"]),
        ("threat__epsilon", "8/0", ['[threat] epsilon = "8/0"', "fraction"]),
        ("attack__steps", "abc", ['[attack] steps = "abc"', "whole number"]),
        ("evaluation__pgd__steps", "abc", ['[evaluation] pgd.steps = "abc"', "whole number"]),
        ("loss__name", "matr", ["unknown loss 'matr'", "did you mean 'mart'?"]),
        ("data__name", "digit", ["unknown data 'digit'", "did you mean 'digits'?"]),
        ("model__name", "resnet8x", ["resnet8x", "did you mean 'resnet8'?"]),
        ("model__name", "no_such_module:Net", ["no_such_module"]),
        ("selector__name", "adv-glistr", ["did you mean 'adv-glister'?"]),
        ("data__path", "no/such/folder", ["data.path: digits ships with scikit-learn"]),
        ("train__batch_size", 2000, []),
        ("train__precision", "fp16", ["fp16", "needs a GPU"]),
        ("logging__trackers", '["aim"]', ["'aim'", "not installed"]),
        ("data__validation_fraction", 0.0001, ["validation_fraction > 0"]),
    ],
)
def test_a_recipe_that_makes_no_sense_is_one_line(command: Command, key: str, value: object, parts: list[str]):
    if key == "train__batch_size":
        options = settings(train__batch_size=2000, train__accumulation=365)
        parts = ["train.batch_size = 2000 gives batches of 364", "train.accumulation = 365"]
    else:
        options = settings(**{key: value})
    refused(command("run", "digits_mart", *SMALL, *options, "--output", "run"), *parts)


def pictures(folder: Path, counts: dict[str, int]) -> None:
    """Writes an image folder with so many images of each class."""
    for split in ("train", "test"):
        for label, (name, count) in enumerate(counts.items()):
            (folder / split / name).mkdir(parents=True)
            for number in range(count):
                color = (40 * label + 20, 7 * number % 256, 128)
                Image.new("RGB", (8, 8), color).save(folder / split / name / f"{number:03}.png")


def truncated(folder: Path) -> None:
    pictures(folder, {"cat": 3, "dog": 3})
    (folder / "train" / "dog" / "001.png").write_bytes(b"\x89PNG\r\n")


@pytest.mark.parametrize(
    ("make", "part"),
    [
        (lambda folder: None, "neither parquet files"),
        (lambda folder: pictures(folder, {"cat": 5}), "training needs at least two classes"),
        (lambda folder: pictures(folder, {"cat": 5, "dog": 0}), "dog: there are no images of this class"),
        (truncated, "001.png"),
    ],
)
def test_an_image_folder_that_cannot_be_used(
    command: Command, tmp_path_factory: pytest.TempPathFactory, make: Callable[[Path], None], part: str
):
    folder = tmp_path_factory.mktemp("images")
    make(folder)
    refused(command("run", "digits_mart", *SMALL, *settings(data__name=folder), "--output", "run"), str(folder), part)


def test_a_class_with_hardly_any_images_is_no_obstacle(command: Command, tmp_path_factory: pytest.TempPathFactory):
    folder = tmp_path_factory.mktemp("images")
    pictures(folder, {"cat": 40, "dog": 2, "owl": 1})
    options = settings(data__name=folder, data__validation_fraction=0.2, selector__fraction=0.9, train__batch_size=16)
    answer = command("run", "digits_mart", *SMALL, *options, "--output", "run")
    assert answer.status == 0, answer.err
    with np.load("run/selections/epoch_0001.npz") as content:
        assert len(set(content["indices"].tolist())) == round(0.9 * 34)


@pytest.mark.parametrize(
    ("arguments", "parts"),
    [
        (["rnu"], ["No such command 'rnu'"]),
        (["run", "digits_mart", "--outptu", "x"], ["No such option: --outptu"]),
        (["run"], ["Missing argument 'RECIPE'"]),
        (["run", "no.toml"], ["no file and no shipped recipe is called 'no.toml'"]),
        (["run", "digits_matr"], ["did you mean 'digits_mart'?"]),
        (["run", "digits_mart", "--set", "train.epochs"], ["--set train.epochs: expected KEY=VALUE"]),
        (
            ["run", "digits_mart", "--output", "/proc/nowhere"],
            ["/proc/nowhere: cannot be written (No such file or directory)"],
        ),
        (["list", "los"], ["unknown kind 'los'; did you mean 'loss'?"]),
        (["validate", "no.toml"], ["'no.toml'"]),
        (["new", "x.toml", "--loss", "mrat"], ["did you mean 'mart'?"]),
        (["new", "x.toml", "--fraction", "1.5"], ["fraction = 1.5"]),
        (["new", "x.toml", "--fraction", "half"], ["--fraction", "number"]),
        (["new", "no/x.toml"], ["no/x.toml: No such file or directory"]),
    ],
)
def test_a_command_that_makes_no_sense_is_one_line(command: Command, arguments: list[str], parts: list[str]):
    refused(command(*arguments), *parts)


def test_no_arguments_print_help(command: Command):
    answer = command()
    assert (answer.status, answer.err) == (0, "")
    for name in ("run", "evaluate", "select", "validate", "list", "new", "doctor"):
        assert f"\n  {name} " in answer.out
        assert command(name, "--help").status == 0


def test_validate_takes_every_shipped_recipe_and_stops_at_a_broken_one(command: Command):
    answer = command("validate", *RECIPES)
    assert answer.status == 0
    assert answer.out.splitlines() == [f"{path}: valid" for path in RECIPES]
    Path("broken.toml").write_text('extends = "digits_mart"\n[loss]\nbta = 3.0\n')
    answer = command("validate", "digits_mart", "broken.toml")
    assert answer.status == 2
    assert answer.err.startswith("error: broken.toml: [loss] unknown key \"bta\"; did you mean 'beta'?")


@pytest.mark.parametrize("kind", ["data", "model", "attack", "loss", "selector", "optimizer", "schedule", "recipe"])
def test_list_names_and_describes(command: Command, kind: str):
    answer = command("list", kind)
    assert answer.status == 0
    head, *entries = answer.out.splitlines()
    assert head == f"{kind}:"
    assert entries
    assert all(len(entry.split()) > 2 for entry in entries)
    assert answer.out in command("list").out


def test_new_writes_a_recipe_that_validates_and_never_over_a_file(command: Command):
    arguments = ("new", "mine.toml", "--data", "digits", "--loss", "mart", "--selector", "random", "--bullet")
    answer = command(*arguments, "--fraction", "0.2")
    assert (answer.status, answer.out) == (0, "mine.toml: written; robustcords run mine.toml\n")
    assert command("validate", "mine.toml").out == "mine.toml: valid\n"
    loaded = recipe.load("mine.toml")
    assert loaded.selector is not None
    assert (loaded.data.name, loaded.loss.name, loaded.selector.name) == ("digits", "mart", "random")
    assert (loaded.selector.fraction, loaded.bullet is not None) == (0.2, True)
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
    options = settings(
        logging__trackers='["tensorboard"]', train__epochs=1, selector="false", bullet="false", evaluation__limit=1
    )
    Path("runs/digits_mart").mkdir(parents=True)
    assert command("run", "digits_mart", *SMALL, *options).status == 0
    events = [path.parts for path in Path("runs").rglob("events.out.tfevents.*")]
    assert events
    assert {parts[1] for parts in events} == {"digits_mart-2"}
