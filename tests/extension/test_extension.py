"""Components from outside the package, each one file and one line of a recipe, trained by the command line."""

from __future__ import annotations

import json
import shutil
import tomllib
from pathlib import Path

import numpy as np
import pytest
import torch
from command_line import settings
from l1 import L1
from ranks import ended, said, start
from safetensors.torch import load_file

from robustcords import Noise
from robustcords.data.digits import Digits

HERE = Path(__file__).parent
SMALL = (
    *("--set", "model.width=4", "--set", "train.epochs=1", "--set", "train.batch_size=200"),
    *("--set", "evaluation.pgd={steps = 4, restarts = 1}", "--set", "evaluation.limit=20"),
)


@pytest.fixture
def trained(command, tmp_path: Path):
    """Trains the digits with files of this folder and changes of the recipe; returns the run's report."""

    def run(*files: str, **changes: str) -> dict:
        for file in files:
            shutil.copy(HERE / f"{file}.py", tmp_path)
        sets = [part for key, value in changes.items() for part in ("--set", f"{key.replace('__', '.')}={value}")]
        done = command("run", "digits_mart", *SMALL, *sets, "--output", "run")
        assert done.status == 0, done.err
        return json.loads((tmp_path / "run" / "report.json").read_text())

    return run


def test_a_threat(trained, tmp_path: Path):
    report = trained("l1", threat__norm="l1:L1", threat__epsilon="4.0", evaluation__autoattack="false")
    assert tomllib.loads((tmp_path / "run" / "recipe.toml").read_text())["threat"] == {"norm": "l1:L1", "epsilon": 4.0}
    assert report["evaluation"]["last"]["pgd"].keys() == {"2.0", "4.0", "8.0"}
    assert report["training"]["epochs"] == 1


def test_the_l1_ball_is_one():
    threat = L1(epsilon=2.0)
    x = torch.rand(6, 1, 4, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    far = x + torch.randn(x.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    near = threat.project(far, x)
    assert (near - x).abs().flatten(1).sum(1).max() <= 2 + 1e-12
    # No point of the ball, of a thousand drawn from it, is closer before the box is looked at.
    free = threat.project(far * 0 + 0.5 + (far - x), torch.full_like(x, 0.5)) - 0.5
    drawn = threat.uniform_start(torch.full((1000, 1, 4, 4), 0.5), Noise(0, torch.arange(1000))) - 0.5
    inside = (free.abs() < 0.5).flatten(1).all(1)
    assert inside.any()
    for row in inside.nonzero().view(-1):
        distance = ((far - x)[row] - free[row]).norm()
        assert (((far - x)[row] - drawn).flatten(1).norm(dim=1) >= distance - 1e-9).all()
    assert threat.norm == "l1:L1"
    assert threat.with_epsilon(1.0) == L1(epsilon=1.0)


def test_a_training_method(trained, tmp_path: Path):
    report = trained("free", method__name="free:Free", method__replays="2", loss__name="sat", bullet="false")
    assert tomllib.loads((tmp_path / "run" / "recipe.toml").read_text())["method"] == {
        "name": "free:Free",
        "replays": 2,
    }
    assert report["training"]["epochs"] == 1


def test_weights_that_are_perturbed(trained):
    assert trained("awp", method__name="awp:AWP")["training"]["epochs"] == 1


def test_a_loss_with_gradients_by_the_images(trained):
    options = {"loss__name": "grad_align:GradAlign", "attack__name": "fgsm", "selector": "false", "bullet": "false"}
    assert trained("grad_align", **options)["training"]["epochs"] == 1


SMOOTH = """
from torch import nn

class Smooth(nn.Sequential):
    def __init__(self, num_classes: int) -> None:
        super().__init__(nn.Conv2d(1, 4, 3, stride=2), nn.Softplus(), nn.Flatten(), nn.Linear(36, num_classes))
"""
"""A network without BatchNorm, whose gradients by the images depend on its weights smoothly."""


def test_its_second_derivatives_on_two_processes_are_those_on_one(command, tmp_path: Path):
    shutil.copy(HERE / "grad_align.py", tmp_path)
    (tmp_path / "smooth_net.py").write_text(SMOOTH)
    two_steps = settings(
        model__name="smooth_net:Smooth",
        attack__name="fgsm",
        loss__name="grad_align:GradAlign",
        loss__weight=5.0,
        selector__name="random",
        selector__fraction=0.05,
        bullet="false",
        train__epochs=1,
        train__batch_size=40,
        train__precision="fp32",
        evaluation__limit=8,
        evaluation__pgd="{steps = 1, restarts = 1, step_size = 0.15, epsilons = [0.15]}",
        evaluation__autoattack="false",
    )
    arguments = ("run", "digits_mart", *two_steps, "--output")
    assert ended(start(2, tmp_path, [*arguments, "two"]), within=120) == [0, 0], said(tmp_path, 0)
    assert command(*arguments, "one").status == 0
    assert command(*arguments, "plain", "--set", "loss.weight=0.0").status == 0
    one, two, plain = (load_file(tmp_path / run / "weights" / "last.safetensors") for run in ("one", "two", "plain"))
    assert json.loads((tmp_path / "two" / "environment.json").read_text())["world_size"] == 2
    for name, value in one.items():
        torch.testing.assert_close(two[name], value, rtol=1e-4, atol=1e-6)
    assert max(float((one[name] - plain[name]).abs().max()) for name in one) > 1e-4, "the regularizer has a part in it"


def test_a_loss_with_a_term_of_the_whole_batch(trained):
    options = {"loss__name": "nuclear:Nuclear", "bullet": "false", "selector__select_first": "true"}
    assert trained("nuclear", **options, evaluation__autoattack="false")["training"]["epochs"] == 1


def test_bullet_goes_with_methods_that_attack_as_they_are_told(command, tmp_path: Path):
    shutil.copy(HERE / "free.py", tmp_path)
    refused = command("run", "digits_mart", *SMALL, "--set", "method.name=free:Free", "--set", "loss.name=sat")
    assert refused.status == 2
    line = "free:Free attacks all images alike; set bullet = false"
    assert refused.err.splitlines()[-1].endswith(line)
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
    shutil.copy(HERE / "memory_mapped.py", tmp_path)
    small = (*SMALL, "--set", "selector.select_first=true", "--set", "evaluation.autoattack=false")
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
    assert 200 < epoch["subset_size"] <= 400  # two steps
