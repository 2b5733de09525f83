"""Training and evaluation by the command line under the threat models of few pixels, and what does not go together."""

from __future__ import annotations

import json
import tomllib
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from support.cases import cases
from support.command_line import refused, settings
from support.ranks import ended, said, start

TINY = """
from torch import nn

class TinyNet(nn.Sequential):
    def __init__(self, num_classes: int) -> None:
        super().__init__(nn.Conv2d(1, 4, 3, stride=2), nn.ReLU(), nn.Flatten(), nn.Linear(36, num_classes))
"""
"""A network without BatchNorm, whose statistics each process has of its own share."""

SMALL = {
    "model__name": "pixelnet:TinyNet",
    "data__train_limit": 240,
    "selector": "false",
    "train__epochs": 1,
    "train__batch_size": 108,  # two steps
    "train__precision": "fp32",
    "evaluation__limit": 12,
    "evaluation__pgd": "{steps = 4, restarts = 1}",
    "evaluation__autoattack": "false",
}


@pytest.mark.parametrize(
    ("norm", "epsilon", "radii"), [("l1", "2.0", ("1.0", "2.0", "4.0")), ("l0", "3", ("2.0", "3.0", "6.0"))]
)
def test_on_two_processes_as_on_one(command, tmp_path: Path, norm: str, epsilon: str, radii: tuple[str, ...]):
    (tmp_path / "pixelnet.py").write_text(TINY)
    options = settings(**SMALL, threat__norm=norm, threat__epsilon=epsilon)
    arguments = ["run", "digits_mart", *options, "--output"]
    assert ended(start(2, tmp_path, [*arguments, "two"]), within=120) == [0, 0], said(tmp_path, 0)
    assert command(*arguments, "one").status == 0
    one, two = (json.loads((tmp_path / run / "report.json").read_text()) for run in ("one", "two"))
    assert (one["environment"]["world_size"], two["environment"]["world_size"]) == (1, 2)
    assert one["evaluation"] == two["evaluation"]
    assert tuple(one["evaluation"]["last"]["pgd"]) == radii
    first, second = (load_file(tmp_path / run / "weights/last.safetensors") for run in ("one", "two"))
    for name, value in first.items():
        torch.testing.assert_close(second[name], value, rtol=1e-3, atol=1e-5)
    written = tomllib.loads((tmp_path / "one/recipe.toml").read_text())
    assert written["threat"]["epsilon"] == float(epsilon)
    assert written["attack"]["step_size"] == 2.5 * float(epsilon) / 10


def test_the_attack_of_carlini_and_wagner_is_in_the_report(command, tmp_path: Path):
    (tmp_path / "pixelnet.py").write_text(TINY)
    attack = '[{name = "cw", steps = 40, lr = 0.05, searches = 1, constant = 10.0, epsilons = [0.5, 1.0]}]'
    options = settings(**SMALL, threat__norm="l2", threat__epsilon="1.0", evaluation__attacks=attack)
    done = command("run", "digits_mart", *options, "--output", "run")
    assert done.status == 0, done.err
    (near, far) = json.loads((tmp_path / "run/report.json").read_text())["evaluation"]["last"]["attacks"]
    assert [each["radius"] for each in (near, far)] == ["0.5", "1.0"]
    assert far["accuracy"] <= near["accuracy"]
    median = near["extras"]["median_distance"]
    line = f"CW-40-1 (last): median distance {median:.4g}"
    assert line in done.out
    assert line in (tmp_path / "run/report.md").read_text()
    assert f"| CW-40-1 | 0.5 | 12 | {100 * near['accuracy']:.2f} ± " in (tmp_path / "run/report.md").read_text()


@cases(
    ("options", "said"),
    [
        ({"norm": "l0"}, "an l0 radius is a whole number of pixels"),
        ({"norm": "l0", "epsilon": 5}, "AutoAttack has no attacks for threat.norm = 'l0'; set autoattack = false"),
        ({"norm": "l1", "epsilon": 64}, "an l1 radius or step of 64 and more covers every image of this size"),
        ({"norm": "l1", "share": 0.1}, "unknown key \"share\"; did you mean 'step_share'"),
    ],
)
def test_what_does_not_go_together_is_one_line(command, options: dict[str, object], said: str):
    refused(
        command("run", "digits_mart", *settings(**{f"threat__{key}": value for key, value in options.items()})), said
    )


@pytest.mark.parametrize(
    ("attacks", "said"),
    [
        ('[{name = "cw"}]', '[evaluation] the attack "cw" requires distances in l2, which threat.norm = '),
        ('[{name = "pgd", epsilons = [2.5]}]', "epsilons = [2.5]: an l0 radius is a whole number of pixels"),
    ],
)
def test_an_evaluation_that_says_nothing_is_one_line(command, attacks: str, said: str):
    l0 = settings(threat__norm="l0", threat__epsilon=5, evaluation__autoattack="false", evaluation__attacks=attacks)
    refused(command("run", "digits_mart", *l0), said)
