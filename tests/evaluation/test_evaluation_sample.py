"""Which images a limit takes of class folders, from the recipe to the report."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from PIL import Image
from support.command_line import Command
from torch import nn

from robustcords.data.images import ImageSet
from robustcords.evaluation.config import EvaluationConfig
from robustcords.evaluation.evaluate import evaluate
from robustcords.evaluation.sanity.checks import Sanity
from robustcords.threats.base import ThreatModel

pytestmark = pytest.mark.usefixtures("brief")

THREAT = ThreatModel(epsilon=0.02)


def by_class(per_class: int = 20, classes: int = 3) -> ImageSet:
    """Images that are their class's grey, in the order of the classes."""
    labels = torch.repeat_interleave(torch.arange(classes), per_class)
    greys = (labels.float() + 1) / (classes + 1)
    return ImageSet(greys.view(-1, 1, 1, 1).expand(-1, 1, 4, 4).contiguous(), labels, tuple("abc"[:classes]))


class Always(nn.Module):
    """Says one class, by a margin that no attack closes."""

    def __init__(self, label: int) -> None:
        super().__init__()
        self.bias = nn.Parameter(nn.functional.one_hot(torch.tensor(label), 3).float() * 9)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.bias + 0.1 * x.flatten(1).mean(1, keepdim=True)


@pytest.mark.parametrize("label", [0, 2])
def test_always_saying_one_class_is_right_for_a_third_of_any_sample(label: int):
    config = EvaluationConfig(pgd={"steps": 2, "restarts": 1}, autoattack={"limit": 6}, limit=30)
    found = evaluate(Always(label), by_class(), config, THREAT, seed=0)
    assert (found.clean, found.examples, found.sample) == (1 / 3, 30, "stratified")
    assert (found.autoattack["0.02"], found.autoattack_examples) == (1 / 3, 6)
    assert found.autoattack_sample == "stratified"
    assert found.same_images.clean == found.same_images.pgd["0.02"] == 1 / 3
    assert Sanity(THREAT, 12).check(Always(label), by_class(), seed=0).attacked == 4


def test_with_no_limit_of_its_own_autoattack_has_pgds_images():
    config = EvaluationConfig(pgd={"steps": 2, "restarts": 1}, limit=9)
    found = evaluate(Always(1), by_class(), config, THREAT, seed=0)
    assert (found.examples, found.autoattack_examples, found.autoattack_sample) == (9, 9, "all")
    assert found.same_images is None


def folders(root: Path) -> None:
    for split, per_class in (("train", 8), ("test", 6)):
        for label, name in enumerate("abc"):
            folder = root / split / name
            folder.mkdir(parents=True)
            for number in range(per_class):
                Image.new("L", (8, 8), 60 + 60 * label + number).save(folder / f"{number}.png")


def test_the_command_line_says_that_it_took_a_sample(tmp_path: Path, command: Command):
    folders(tmp_path / "images")
    (tmp_path / "r.toml").write_text(
        'data = {name = "images", validation_fraction = 0}\nmodel = {name = "torch_linear:Linear"}\n'
        "train = {epochs = 1, batch_size = 8, precision = 'fp32'}\nattack.steps = 1\nattack.name = 'pgd'\n"
        "evaluation = {limit = 6, pgd = {steps = 2, restarts = 1}, autoattack = {limit = 3}}"
    )
    (tmp_path / "torch_linear.py").write_text(LINEAR)
    answer = command("run", "r.toml", "--output", "run")
    assert answer.status == 0, answer.err
    said = "last: 6 and 3 test images are a fixed sample, stratified by class"
    assert said in answer.out
    assert said in Path("run/report.md").read_text()
    found = json.loads(Path("run/report.json").read_text())["evaluation"]["last"]
    assert (found["examples"], found["autoattack_examples"]) == (6, 3)
    rows = [line for line in answer.out.splitlines() if "PGD-2-1" in line and "8/255" in line]
    assert [line.split("│")[3].strip() for line in rows if line.split("│")[2].strip() == "8/255"] == ["6", "3"]

    del found["sample"], found["autoattack_sample"], found["same_images"]  # as version 0.1 left it
    report = json.loads(Path("run/report.json").read_text())
    report["evaluation"]["last"] = found
    Path("run/report.json").write_text(json.dumps(report))
    more = command("evaluate", "run", "--epsilon", "0.05", "--attack", "pgd", "--output", "run/report.json")
    assert (more.status, "on the first 6 images" in more.err) == (2, True), more.err


LINEAR = """
from torch import nn
from robustcords.models.base import ModelConfig, ModelSource


class Linear(ModelSource):
    class Config(ModelConfig):
        name: str = "linear"

    def network(self, channels, image_size, num_classes):
        return nn.Sequential(nn.Flatten(), nn.Linear(channels * image_size[0] * image_size[1], num_classes))
"""
