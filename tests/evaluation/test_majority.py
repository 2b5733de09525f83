"""Models that always say one class: their accuracy is the share of that class, whatever the attack, and is told."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console
from support.cases import cases
from support.command_line import call, settings
from support.made_data import classes_as_folders
from torch import Tensor, nn

from robustcords.attacks.pgd import PGD
from robustcords.data.images import ImageSet
from robustcords.evaluation.config import EvaluationConfig
from robustcords.evaluation.evaluate import evaluate
from robustcords.evaluation.majority import classes_right, largest_share, warning
from robustcords.evaluation.results import Evaluation
from robustcords.losses.sat import SAT
from robustcords.methods.adversarial import AdversarialTraining
from robustcords.runtime.accelerator import start
from robustcords.runtime.progress import Display
from robustcords.runtime.session import Session
from robustcords.threats.base import ThreatModel
from robustcords.training.callbacks.validation import Validation
from robustcords.training.config import TrainConfig
from robustcords.training.trainer import Trainer

pytestmark = pytest.mark.usefixtures("brief")


class Always(nn.Module):
    """Says the same class of every image."""

    def __init__(self, label: int) -> None:
        super().__init__()
        self.label, self.weight = label, nn.Parameter(torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        logits = torch.zeros(len(x), 3) + 0 * self.weight * x.flatten(1).sum(1, keepdim=True)
        return logits + torch.eye(3)[self.label]


def image_set(*counts: int) -> ImageSet:
    labels = torch.tensor([label for label, count in enumerate(counts) for _ in range(count)])
    images = torch.randint(256, (len(labels), 1, 8, 8), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    return ImageSet(images, labels, ("a", "b", "c"))


CONFIG: dict[str, Any] = {
    "pgd": {"steps": 1, "restarts": 1, "step_size": 0.1, "epsilons": [0.1]},
    "autoattack": {"version": "standard", "epsilons": [0.1], "limit": 4},
}


def test_shares_by_hand():
    labels = torch.tensor([0, 2, 2, 1, 2, 0])
    assert largest_share(labels) == 0.5
    assert classes_right(labels, labels == 2) == 1
    assert classes_right(labels, torch.tensor([True, False, True, False, False, False])) == 2
    assert classes_right(labels, labels < 0) == 0


def test_an_evaluation_says_what_one_class_alone_would_reach():
    result = evaluate(Always(1), image_set(3, 5, 2), EvaluationConfig(**CONFIG), ThreatModel(), seed=0)
    assert (result.clean, result.pgd, result.largest_class, result.classes_right) == (
        0.5,
        {"0.1": 0.5},
        0.5,
        1,
    )
    of_classes = {"a": 0.0, "b": 1.0, "c": 0.0}
    assert result.per_class == {"clean": of_classes, "PGD 0.1": of_classes}
    # Of AutoAttack's four images, a sample by class, two are of the second.
    assert (result.autoattack, result.autoattack_largest_class) == ({"0.1": 0.5}, 0.5)
    assert warning(result) == (
        "not above the largest class's share, which always predicting one class reaches: clean 50.00% (share 50.00%), "
        "PGD-1-1 0.1 50.00% (share 50.00%), AutoAttack 0.1 50.00% (share 50.00%); images of one class alone are "
        "classified correctly"
    )


@cases(
    ("changes", "named"),
    [
        ({}, []),
        ({"clean": 0.3}, ["clean"]),
        ({"pgd": {"8/255": 0.2, "16/255": 0.41}}, ["PGD-2-1 8/255"]),
        ({"autoattack": {"8/255": 0.25}}, ["AutoAttack 8/255"]),
        ({"autoattack": {"8/255": 0.1}}, []),
        ({"clean": None}, []),
        ({"clean": 0.1, "largest_class": None}, []),
    ],
)
def test_only_what_is_not_above_the_share_is_told(changes: dict[str, Any], named: list[str]):
    result: dict[str, Any] = {
        "clean": 0.9,
        "pgd": {"8/255": 0.5},
        "pgd_attack": "PGD-2-1",
        "autoattack": {"8/255": 0.45},
    }
    result |= {"largest_class": 0.4, "autoattack_largest_class": 0.4, "classes_right": 3, "examples": 10, **changes}
    text = warning(Evaluation(autoattack_version="standard", autoattack_examples=10, **result))
    assert (text is None) == (not named)
    for name in ("clean", "PGD-2-1 8/255", "PGD-2-1 16/255", "AutoAttack 8/255"):
        assert (text is not None and name in text) == (name in named)


def test_reports_without_the_shares_say_nothing():
    assert warning(Evaluation(clean=0.1, examples=10, pgd={"8/255": 0.0}, pgd_attack="PGD-50-10")) is None


@pytest.mark.parametrize(("says", "told"), [(0, 1), (1, 1)])
def test_training_warns_once_when_best_is_chosen_on_it(says: int, told: int):
    said = io.StringIO()
    model, threat = Always(says), ThreatModel(norm="linf", epsilon=0.1)
    attack = PGD(threat, steps=1, step_size=0.1)
    trainer = Trainer(
        model,
        AdversarialTraining(SAT(), attack),
        image_set(4, 4, 4),
        torch.optim.SGD(model.parameters(), lr=0.0),
        TrainConfig(epochs=3, batch_size=6, precision="fp32", validate_every=1),
        callbacks=[Validation(image_set(2, 1, 1), attack)],
        session=Session(start("fp32"), Display(console=Console(file=said, width=300))),
    )
    trainer.fit()
    share = {0: "50.0%", 1: "25.0%"}[says]
    assert said.getvalue().count(f"clean accuracy on the validation split, {share}, is not above the share") == told


def test_a_run_that_says_one_class_tells_on_the_console_and_in_its_reports(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.chdir(tmp_path)
    classes_as_folders(tmp_path / "set", train=4, test=2)
    answer = call(
        capsys,
        "run",
        "digits_mart",
        "--output",
        "run",
        *settings(
            data__name="./set",
            data__validation_fraction=0.25,
            model__width=4,
            attack__steps=1,
            selector="false",
            bullet="false",
            train__epochs=1,
            train__memory_format="contiguous",
            train__precision="fp32",
            evaluation__pgd="{steps = 1, restarts = 1, step_size = 0.1, epsilons = [0.1]}",
            evaluation__autoattack="false",
        ),
    )
    assert answer.status == 0, answer.err
    line = "not above the largest class's share, which always predicting one class reaches"
    assert "warning: clean accuracy on the validation split" in answer.err
    assert line in answer.out + answer.err
    assert line in Path("run/report.md").read_text()
    answer = call(capsys, "report", "run", "--output", "page.html", "--images", "0")
    assert answer.status == 0, answer.err
    assert line in Path("page.md").read_text()
