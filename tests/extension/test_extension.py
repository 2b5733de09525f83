"""Components from outside the package, each one file and one line of a recipe, trained by the command line."""

from __future__ import annotations

import json
import shutil
import tomllib
from pathlib import Path

import pytest
import torch
from l1 import L1
from safetensors.torch import load_file

from robustcords import Noise

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
