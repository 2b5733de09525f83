"""An attack of the evaluation from outside the package, through the command line."""

from __future__ import annotations

import json
import shutil
import sys
import tomllib
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from support.command_line import SMALL, settings

from robustcords.evaluation.config import EvaluationConfig
from robustcords.evaluation.evaluate import evaluate
from robustcords.experiments import build
from robustcords.recipe.recipe import load
from robustcords.rng import Noise, derive

COMPONENTS = Path(__file__).parent / "components"
TRAIN = ["run", "digits_mart", *SMALL, *settings(selector="false", bullet="false", evaluation__limit=60)]
ATTACKS = 'evaluation.attacks=[{name = "cw:CW", steps = 6, epsilons = [0.01, 0.03]}]'


def by_hand(folder: Path, steps: int, epsilon: float) -> float:
    """The margin's signed ascent on all 60 images at once, written out."""
    recipe = load(folder / "recipe.toml", of_run=True)
    images = build.data(recipe)
    model = build.model(recipe, images).eval()
    model.load_state_dict(load_file(folder / "weights/last.safetensors"))
    rows = torch.arange(60)
    x, y = images.test.batch(rows)
    start = Noise(derive(recipe.seed, "evaluation"), rows).uniform(x.shape[1:])
    x_adv = (x + (2 * start - 1) * epsilon).clamp(0, 1)
    for _ in range(steps):
        x_adv.requires_grad_()
        z = model(x_adv)
        best = torch.stack([torch.cat([row[:label], row[label + 1 :]]).max() for row, label in zip(z, y, strict=True)])
        (gradient,) = torch.autograd.grad((best - z.gather(1, y[:, None]).squeeze(1)).sum(), x_adv)
        moved = x_adv.detach() + 2.5 * epsilon / steps * gradient.sign()
        x_adv = (x + (moved - x).clamp(-epsilon, epsilon)).clamp(0, 1)
    right = (model(x).argmax(1) == y) & (model(x_adv).argmax(1) == y)
    return right.double().mean().item()


def test_its_numbers_are_in_the_report_and_on_the_page(command, tmp_path: Path):
    shutil.copy(COMPONENTS / "cw.py", tmp_path)
    done = command(*TRAIN, "--set", ATTACKS, "--output", "run")
    assert done.status == 0, done.err
    written = tomllib.loads((tmp_path / "run/recipe.toml").read_text())["evaluation"]["attacks"]
    assert written == [{"name": "cw:CW", "steps": 6, "epsilons": [0.01, 0.03]}]
    entry = json.loads((tmp_path / "run/report.json").read_text())["evaluation"]["last"]
    found = {each["radius"]: each["accuracy"] for each in entry["attacks"]}
    assert found == {"0.01": by_hand(tmp_path / "run", 6, 0.01), "0.03": by_hand(tmp_path / "run", 6, 0.03)}
    assert 0 < found["0.03"] < found["0.01"] < entry["clean"], "the attack should break some"
    assert {each["attack"] for each in entry["attacks"]} == {"cw:CW"}
    assert f"| CW-6 | 0.03 | 60 | {100 * found['0.03']:.2f} ± " in (tmp_path / "run/report.md").read_text()
    assert "CW-6" in done.out

    page = command("report", "run", "--output", "page.html", "--images", "0")
    assert page.status == 0, page.err
    assert "CW-6 0.03" in (tmp_path / "page.html").read_text()
    assert f",CW-6,0.03,0,{found['0.03']}," in (tmp_path / "page.csv").read_text()
    assert "single images" not in (tmp_path / "page.md").read_text(), "its outcomes of single images should be known"

    # Another radius is added to the run's own report; another number of steps would be another attack.
    more = command("evaluate", "run", "--attack", "cw:CW", "--epsilon", "0.02", "--output", "run/report.json")
    assert more.status == 0, more.err
    entry = json.loads((tmp_path / "run/report.json").read_text())["evaluation"]["last"]
    assert [each["radius"] for each in entry["attacks"]] == ["0.01", "0.03", "0.02"]
    assert found["0.03"] <= entry["attacks"][2]["accuracy"] <= found["0.01"]
    assert list(entry["pgd"]) == ["0.1", "0.15"]

    table = 'evaluation.attacks=[{name = "pgd", steps = 5, restarts = 1, epsilons = [0.06], step_size = SIZE}]'
    second = ("evaluate", "run", "--attack", "pgd", "--output", "run/report.json", "--set")
    assert command(*second, table.replace("SIZE", "0.02")).status == 0
    report = json.loads((tmp_path / "run/report.json").read_text())
    assert [each["label"] for each in report["evaluation"]["last"]["attacks"]] == ["CW-6", "CW-6", "CW-6", "PGD-5-1"]
    assert [each["name"] for each in report["recipe"]["evaluation"]["attacks"]] == ["cw:CW", "pgd"]
    refused = command(*second, table.replace("SIZE", "0.03").replace("0.06", "0.07"))
    assert refused.err.endswith("has pgd with other settings (step_size); name another file\n")


@pytest.mark.parametrize(
    ("attacks", "said"),
    [
        ('[{name = "cw:CW", stepz = 6}]', "[evaluation.attacks[0]] unknown key \"stepz\"; did you mean 'steps'?"),
        ('[{name = "cw:CW", steps = "x"}]', '[evaluation] attacks[0].steps = "x": must be a whole number'),
        (
            '[{name = "cw:CV"}]',
            "[evaluation] attacks[0].name = \"cw:CV\": evaluation_attack 'cw:CV': module 'cw' has no",
        ),
        ('[{name = "pdg"}]', "attacks[0].name = \"pdg\": unknown evaluation_attack 'pdg'; did you mean 'pgd'?"),
        ("[{steps = 6}]", "[evaluation] attacks[0].name is missing"),
        ('["cw:CW"]', '[evaluation] attacks[0] = "cw:CW": '),
        ('[{name = "robustcords.attacks.pgd:PGD"}]', "not of kind evaluation_attack"),
        ('[{name = "cw:CW", epsilons = [8]}]', "[evaluation] attacks[0].epsilons = [8.0]: "),
        ('[{name = "pgd", steps = 5, step_size = "1/255"}]', "[evaluation] attacks[0].step_size = 0.003"),
    ],
)
def test_what_is_wrong_with_a_table_is_one_line(
    command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, attacks: str, said: str
):
    shutil.copy(COMPONENTS / "cw.py", tmp_path)
    refused = command("run", "digits_mart", "--set", f"evaluation.attacks={attacks}")
    assert refused.status == 2
    assert refused.err.count("\n") == 1
    assert said in refused.err
    assert not (tmp_path / "runs").exists()


def test_in_python_a_table_is_a_dictionary(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.syspath_prepend(COMPONENTS)
    config = EvaluationConfig(pgd=None, autoattack=None, attacks=[{"name": "cw:CW", "steps": 3}])
    options = config.attacks[0].options
    assert type(options) is sys.modules["cw"].CW.Config
    assert EvaluationConfig(**config.model_dump()) == config
    recipe = load("digits_mart", ["model.width=4"])
    images = build.data(recipe)
    found = evaluate(build.model(recipe, images), images.test, config, recipe.threat, seed=0)
    assert [each.label for each in found.measurements] == ["clean", "CW-3"]
