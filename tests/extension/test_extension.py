"""Components from outside the package, each one file and one line of a recipe, trained by the command line."""

from __future__ import annotations

import json
import shutil
import tomllib
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from robustcords.data.digits import Digits

COMPONENTS = Path(__file__).parent / "components"
SMALL = (
    *("--set", "data.train_limit=300", "--set", "model.width=4", "--set", "train.epochs=1"),
    *("--set", "train.batch_size=50", "--set", "callbacks.overfitting=false"),
    *("--set", "evaluation.pgd={steps = 4, restarts = 1}", "--set", "evaluation.limit=20"),
    *("--set", "evaluation.autoattack=false"),
)
UNNORMALISED = """
from torch import nn

class Unnormalised(nn.Sequential):
    def __init__(self, num_classes: int, width: int) -> None:
        first = nn.Conv2d(1, width, 3, stride=2, padding=1)
        super().__init__(first, nn.ReLU(), nn.Flatten(), nn.Linear(16 * width, num_classes))
"""
"""A module with a network that has no BatchNorm, whose statistics each process has of its own share."""


@pytest.fixture
def trained(command, tmp_path: Path):
    """Trains the digits with components and changes of the recipe; returns the run's report."""

    def run(*files: str, output: str = "run", **changes: str) -> dict:
        for file in files:
            shutil.copy(COMPONENTS / f"{file}.py", tmp_path)
        sets = [part for key, value in changes.items() for part in ("--set", f"{key.replace('__', '.')}={value}")]
        done = command("run", "digits_mart", *SMALL, *sets, "--output", output, "--resume")
        assert done.status == 0, done.err
        return json.loads((tmp_path / output / "report.json").read_text())

    return run


def test_a_threat(trained, tmp_path: Path):
    options = {"threat__norm": "frame:Frame", "threat__epsilon": "0.5", "threat__thickness": "2"}
    report = trained("frame", **options)
    threat = tomllib.loads((tmp_path / "run" / "recipe.toml").read_text())["threat"]
    assert threat == {"norm": "frame:Frame", "epsilon": 0.5, "thickness": 2}
    assert report["evaluation"]["last"]["pgd"].keys() == {"0.25", "0.5", "1.0"}
    assert report["training"]["epochs"] == 1


def test_a_training_method(trained, tmp_path: Path):
    report = trained("free", method__name="free:Free", method__replays="2", loss__name="sat", bullet="false")
    assert tomllib.loads((tmp_path / "run" / "recipe.toml").read_text())["method"] == {
        "name": "free:Free",
        "replays": 2,
    }
    assert report["training"]["epochs"] == 1


def test_weights_that_are_perturbed_around_any_method(trained, tmp_path: Path):
    def weights(output: str, *files: str, **options: str) -> dict:
        (tmp_path / "unnormalised.py").write_text(UNNORMALISED)
        same = {"model__name": "unnormalised:Unnormalised", "loss__name": "sat", "selector": "false"}
        trained(*files, output=output, **same, **options)
        return load_file(tmp_path / output / "weights" / "last.safetensors")

    def equal(one: dict, other: dict) -> bool:
        return all(torch.equal(one[name], other[name]) for name in one)

    # Around adversarial training, as nothing else is named, with Bullet-Train.
    plain, still, moved = (
        weights("plain"),
        weights("still", "awp", method__name="awp:AWP", method__gamma="0.0"),
        weights("moved", "awp", method__name="awp:AWP", method__gamma="0.1"),
    )
    assert equal(still, plain)
    assert not equal(moved, plain)
    table = tomllib.loads((tmp_path / "moved" / "recipe.toml").read_text())["method"]
    assert table == {"name": "awp:AWP", "gamma": 0.1, "inner": {"name": "adversarial"}}
    rows = [json.loads(line) for line in (tmp_path / "moved" / "metrics.jsonl").read_text().splitlines()]
    assert rows[0]["counts"].keys() == {"outlier", "boundary", "robust"}
    # Around Free AT, with an option of that.
    free = {"bullet": "false", "method__inner__name": "free:Free", "method__inner__replays": "2"}
    alone = weights("alone", "free", bullet="false", method__name="free:Free", method__replays="2")
    still, moved = (weights(gamma, method__name="awp:AWP", method__gamma=gamma, **free) for gamma in ("0.0", "0.1"))
    assert equal(still, alone)
    assert not equal(moved, alone)
    table = tomllib.loads((tmp_path / "0.1" / "recipe.toml").read_text())["method"]
    assert table["inner"] == {"name": "free:Free", "replays": 2}


def test_what_is_wrong_with_an_inner_method_is_said_where_it_is(command, tmp_path: Path):
    shutil.copy(COMPONENTS / "awp.py", tmp_path)
    shutil.copy(COMPONENTS / "free.py", tmp_path)
    for setting, line in (
        ("method.inner.name=adversaria", "[method.inner] name = \"adversaria\": unknown method 'adversaria'"),
        ("method.inner=3", "[method] inner = 3: must be a table"),
        ("method.inner.replays=3", '[method.inner] unknown key "replays"'),
        ("method.inner={name = 'free:Free', replays = 0}", "[method] inner.replays = 0: must be a whole number >= 1"),
        ("method.inner.name=free:Free", 'requires attack steps to vary, and method "free:Free" attacks all'),
    ):
        options = ("--set", "method.name=awp:AWP", "--set", setting, "--set", "loss.name=sat")
        refused = command("run", "digits_mart", *SMALL, *options)
        assert refused.status == 2
        assert line in refused.err.splitlines()[-1]


def test_a_curriculum_of_attack_steps(trained, tmp_path: Path):
    def counts(epochs: int) -> list[dict[str, int]]:
        """Trains one step an epoch, each with a validation after it; goes on with the run that is there."""
        report = trained(
            "curriculum",
            effort__name="curriculum:Curriculum",
            effort__most="3",
            effort__enough="0.0",
            loss__name="sat",
            selector="false",
            train__epochs=str(epochs),
            train__batch_size="2000",
            train__validate_every="1",
        )
        assert report["recipe"]["effort"] == {"name": "curriculum:Curriculum", "most": 3, "enough": 0.0}
        return [json.loads(line)["counts"] for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]

    first, second = counts(epochs=2)
    size = 270
    assert first == {"1 steps": size, "2 steps": 0, "3 steps": 0}
    assert second == {"1 steps": 0, "2 steps": size, "3 steps": 0}
    assert counts(epochs=3)[2] == {"1 steps": 0, "2 steps": 0, "3 steps": size}, "the checkpoint has its state"


def test_a_loss_with_gradients_by_the_images(trained):
    options = {"loss__name": "grad_align:GradAlign", "attack__name": "fgsm", "selector": "false", "bullet": "false"}
    assert trained("grad_align", **options)["training"]["epochs"] == 1


def test_a_loss_with_a_term_of_the_whole_batch(trained):
    options = {"loss__name": "nuclear:Nuclear", "bullet": "false", "selector__select_first": "true"}
    assert trained("nuclear", **options)["training"]["epochs"] == 1


def test_an_effort_goes_with_methods_that_attack_as_they_are_told(command, tmp_path: Path):
    shutil.copy(COMPONENTS / "free.py", tmp_path)
    refused = command("run", "digits_mart", *SMALL, "--set", "method.name=free:Free", "--set", "loss.name=sat")
    assert refused.status == 2
    line = 'requires attack steps to vary, and method "free:Free" attacks all images alike; set effort.name = "uniform"'
    assert refused.err.splitlines()[-1].endswith(line)
    refused = command("run", "digits_mart", *SMALL, "--set", "method.name=free:Free", "--set", "bullet=false")
    assert refused.err == (
        'error: --set method.name=free:Free: [loss] name = "mart": requires a clean view, and method "free:Free" has '
        "none\n"
    )
    assert not (tmp_path / "runs").exists()


def test_where_a_threat_does_not_fit_is_one_line(command, tmp_path: Path):
    (tmp_path / "no.py").write_text("from robustcords import ThreatModel\n\nclass Half(ThreatModel):\n    pass\n")
    refused = command("run", "digits_mart", *SMALL, "--set", "threat.norm=no:Half")
    assert refused.err == (
        'error: --set threat.norm=no:Half: [threat] norm = "no:Half": Half lacks ascend and project and uniform_start\n'
    )
    refused = command("run", "digits_mart", *SMALL, "--set", "threat.norm=lfin")
    assert refused.err.startswith("error: --set threat.norm=lfin: [threat] norm = \"lfin\": unknown threat 'lfin'")
    assert "linf" in refused.err


@pytest.fixture
def files(tmp_path: Path) -> Path:
    """The digits as files of unsigned bytes."""
    splits = Digits(name="digits").load()
    folder = tmp_path / "bytes"
    folder.mkdir()
    for part, images in (("train", splits.train), ("test", splits.test)):
        x, labels = images.batch(torch.arange(len(images)))
        np.save(folder / f"{part}.npy", (x * 255).round().to(torch.uint8).numpy())
        np.save(folder / f"{part}_labels.npy", labels.numpy())
    (folder / "classes.txt").write_text("\n".join(splits.train.classes))
    return folder


def test_a_data_set_in_files_trains_the_weights_that_the_same_in_memory_trains(command, tmp_path: Path, files: Path):
    shutil.copy(COMPONENTS / "memory_mapped.py", tmp_path)
    small = (*SMALL, "--set", "selector.select_first=true")
    mapped = ("--set", "data.name=memory_mapped:Mapped", "--set", f"data.path={files}")
    in_memory, in_files = (tmp_path / name for name in ("memory", "files"))
    for folder, changes in ((in_memory, ()), (in_files, mapped)):
        done = command("run", "digits_mart", *small, *changes, "--output", folder)
        assert done.status == 0, done.err
    weights = [load_file(folder / "weights" / "last.safetensors") for folder in (in_memory, in_files)]
    assert weights[0].keys() == weights[1].keys()
    assert all(torch.equal(value, weights[1][name]) for name, value in weights[0].items())
    (selected,) = {(folder / "selections" / "epoch_0000.npz").read_bytes() for folder in (in_memory, in_files)}
    assert selected
    reports = [json.loads((folder / "report.json").read_text()) for folder in (in_memory, in_files)]
    assert reports[0]["evaluation"]["last"]["pgd"] == reports[1]["evaluation"]["last"]["pgd"]
    (epoch,) = (json.loads(line) for line in (in_files / "metrics.jsonl").read_text().splitlines())
    assert 50 < epoch["subset_size"] <= 100  # two steps


def test_an_augmentation(trained, tmp_path: Path):
    changes = {"augmentation__name": "grain:Grain", "augmentation__crop": "1", "evaluation__autoattack": "false"}
    for deviation in ("0.0", "0.3"):
        trained("grain", output=deviation, **changes, augmentation__deviation=deviation)
    recipe = tomllib.loads((tmp_path / "0.3" / "recipe.toml").read_text())
    assert recipe["augmentation"] == {"name": "grain:Grain", "crop": 1, "deviation": 0.3}
    still, noisy = (load_file(tmp_path / run / "weights" / "last.safetensors") for run in ("0.0", "0.3"))
    assert any(not torch.equal(value, noisy[name]) for name, value in still.items())


def test_a_callback(trained, tmp_path: Path):
    trained("weight_norm", train__epochs="2", **{'callbacks."weight_norm:WeightNorm"': "{every = 2}"})
    recipe = tomllib.loads((tmp_path / "run" / "recipe.toml").read_text())
    assert recipe["callbacks"]["weight_norm:WeightNorm"] == {"every": 2}
    rows = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    weights = load_file(tmp_path / "run" / "weights" / "last.safetensors")
    buffers = ("running_mean", "running_var", "num_batches_tracked", "mean", "std")
    learnt = [value.double() for name, value in weights.items() if name.rpartition(".")[2] not in buffers]
    norm = sum(float(value.square().sum()) for value in learnt) ** 0.5
    assert "weightnorm" not in rows[0]
    assert rows[1]["weightnorm"] == {"norm": pytest.approx(norm, rel=1e-5), "steps": 4}
