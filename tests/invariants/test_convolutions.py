"""Training, attacks, selection and evaluation on a CPU keep away from the geometries that torch computes wrongly."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from support.command_line import SMALL, Command, settings
from support.convolution_watch import Watch
from support.several import together
from support.small_run import ATTACK, made_up, trainer
from torch import Tensor, nn
from torch.nn import functional as F

from robustcords.data.images import ImageSet
from robustcords.evaluation.attacks import autoattack
from robustcords.evaluation.attacks.pgd import PGDEvaluation
from robustcords.evaluation.config import EvaluationConfig
from robustcords.evaluation.evaluate import evaluate
from robustcords.losses.objective import Objective
from robustcords.models.resnet import ResNetNetwork
from robustcords.rng import Noise
from robustcords.threats.base import ThreatModel


class Branch(nn.Conv2d):
    """A convolution of somebody's own."""

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self._conv_forward(x, 0.5 * self.weight, self.bias))


class Custom(nn.Module):
    """A network with layers of torch's, one derived from them, grouped ones, and functions; on 8 x 8 images."""

    def __init__(self, num_classes: int = 3) -> None:
        super().__init__()
        self.stem, self.shortcut = Branch(1, 4, 1, stride=2), nn.Conv2d(4, 8, 1, stride=2, groups=2)
        self.norm, self.depthwise = nn.BatchNorm2d(8), nn.Conv2d(8, 8, 3, stride=2, padding=1, groups=8)
        self.filters = nn.Parameter(0.1 * torch.randn(8, 8, 3, 3))
        self.head = nn.Linear(8, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        x = self.depthwise(F.relu(self.norm(self.shortcut(self.stem(x)))))
        x = F.conv2d(x, self.filters, None, 2, 1) + torch.conv2d(x, self.filters, padding=1, stride=(2, 2))
        logits: Tensor = self.head(x.mean((2, 3)))
        return logits


def test_a_custom_network_trains_attacks_and_evaluates_without_the_geometries():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = Custom()
    with Watch() as watch:
        model(made_up().batch(torch.arange(4))[0])
    assert len(watch.unsound) >= 5
    with Watch() as watch:
        made = trainer(model=model, loss="trades", lr=0.01)
        made.fit()
        trained = watch.seen
        x, y = made_up().batch(torch.arange(8))
        objective = Objective(lambda logits: F.cross_entropy(logits, y, reduction="none"))
        ATTACK(model, x, objective, Noise(0, torch.arange(8)))
        pgd = PGDEvaluation(steps=1, restarts=1, step_size=0.05, epsilons=[0.05])
        evaluate(model, made_up(), EvaluationConfig(pgd=pgd, autoattack=None), ThreatModel(), seed=0)
        autoattack.square(model, x, y, norm="Linf", epsilon=0.05, queries=2, seed=0)
    assert trained > 100
    assert watch.seen > trained + 20
    assert watch.unsound == []


def test_every_command_runs_without_the_geometries(command: Command):
    # Five stages on 8 x 8 images: the last convolutions see one pixel.
    small = [*SMALL, *settings(model__depths="[1, 1, 1, 1, 1]", train__epochs=1, selector__fraction=0.05)]
    small += settings(model__width=16, evaluation__limit=4, data__validation_fraction=0.03)
    weights = Path("run") / "weights" / "last.safetensors"
    with Watch() as watch:
        for arguments in (
            ("run", "digits_mart", "--output", "run"),
            ("evaluate", "--recipe", "digits_mart", "--weights", weights, "--attack", "pgd"),
            ("select", "digits_mart", "--weights", weights, "--output", "chosen.npz"),
        ):
            before = watch.seen
            answer = command(*arguments, *small)
            assert answer.status == 0, answer.err
            assert watch.seen > before + 10
    assert watch.unsound == []


@pytest.mark.parametrize("model", ["torchvision:resnet18", "resnet8"])
def test_two_runs_with_images_smaller_than_their_padding_have_the_same_weights(command: Command, model: str):
    few = settings(model__name=model, data__validation_fraction=0, loss__name="trades", attack__steps=1, bullet="false")
    few += settings(selector__name="random", selector__fraction=0.05, train__epochs=1, train__precision="bf16")
    few += settings(data__train_limit=240, callbacks__overfitting="false", evaluation__limit=10)
    few += settings(evaluation__pgd="false", evaluation__autoattack="false")
    few += settings(model__depths="[1, 1, 1, 1, 1]", model__width=4) if model == "resnet8" else []
    written = []
    for run in ("first", "second"):
        answer = command("run", "digits_mart", "--output", run, *few)
        assert answer.status == 0, answer.err
        written.append((Path(run) / "weights" / "last.safetensors").read_bytes())
    assert written[0] == written[1]


def train_on_large_images(_rank: int) -> None:
    torch.set_num_threads(1)
    images = ImageSet(torch.randint(256, (18, 3, 128, 128), dtype=torch.uint8), torch.arange(18) % 3, ("a", "b", "c"))
    settings = {"batch_size": 18, "memory_format": "channels_last", "epochs": 1}
    trainer(model=ResNetNetwork(3, 3, 4, (1, 1, 1)), train=images, settings=settings).fit()


def test_a_narrow_network_trains_on_larger_images():
    """Torch's operators write past their memory here, so it has a process of its own."""
    together(train_on_large_images, 1)
