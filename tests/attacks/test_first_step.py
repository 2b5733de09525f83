"""Where TRADES' attack starts the objective is flat: its first step is float32's in any precision."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from typing import Any

import pytest
import torch
from torch import nn

from robustcords.attacks.base import Attack, CleanLogits
from robustcords.attacks.fgsm import FGSM
from robustcords.attacks.pgd import PGD
from robustcords.data.digits import Digits
from robustcords.data.images import ImageSet
from robustcords.engine.inference import Inference
from robustcords.engine.precision import autocast
from robustcords.losses.base import Loss
from robustcords.losses.mart import MART
from robustcords.losses.sat import SAT
from robustcords.losses.trades import TRADES, kl_divergence
from robustcords.methods.efforts.batch import attack_batch
from robustcords.methods.efforts.bullet import Bullet
from robustcords.models.resnet import ResNet
from robustcords.rng import Noise
from robustcords.selection.gradients.adversarial_pass import adversarial_pass
from robustcords.selection.gradients.attack_precision import AttackIn
from robustcords.threats.base import ThreatModel

BF16 = partial(autocast, "bf16", torch.device("cpu"))
THREAT = ThreatModel(epsilon=0.15)
COUNT = 64


@pytest.fixture(scope="module")
def problem() -> tuple[nn.Module, ImageSet]:
    """A network that has learnt a little, and images."""
    images = Digits(name="digits").load().train
    model = ResNet(name="resnet8", width=16).build(1, 8, 10, mean=[0.3], std=[0.37], seed=0)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    draw = torch.Generator().manual_seed(0)
    for _ in range(60):
        x, y = images.batch(torch.randperm(len(images), generator=draw)[:128])
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(x), y).backward()
        optimizer.step()
    return model.eval(), images.subset(torch.arange(COUNT))


def attacked(model: nn.Module, images: ImageSet, attack: Attack, loss: Loss) -> torch.Tensor:
    x, y = images.batch(torch.arange(len(images)))
    return attack_batch(model, x, y, Noise(3, torch.arange(len(x))), attack=attack, loss=loss).images


def same(first: torch.Tensor, second: torch.Tensor) -> float:
    """Returns the share of pixels that are where they are in the other images."""
    return float((first.double() - second.double()).abs().lt(1e-5).double().mean())


@contextmanager
def ways_to_run(model: nn.Module, way: str) -> Iterator[nn.Module]:
    """Gives the model in bfloat16 as attacks meet it: plain, folded, and folded in a context of the trainer's."""
    network = Inference(model, BF16)
    if way == "plain":
        yield network
    elif way == "folded":
        with network.folded():
            yield network
    else:
        with BF16(), network.folded():
            yield network


@pytest.mark.parametrize("way", ["plain", "folded", "in a context"])
@pytest.mark.parametrize("attack", [PGD(THREAT, steps=1), FGSM(THREAT)])
def test_the_first_step_is_as_near_to_float64s_as_float32s(
    problem: tuple[nn.Module, ImageSet], attack: Attack, way: str
):
    model, images = problem
    exact = copy.deepcopy(model).double()
    x, y = images.batch(torch.arange(COUNT))
    expected = attacked(exact, ImageSet(x.double(), y, images.classes), attack, TRADES())
    with ways_to_run(model, way) as network:
        found = attacked(network, images, attack, TRADES())
    plain = same(attacked(model, images, attack, TRADES()), expected)
    assert plain > 0.99
    assert same(found, expected) > plain - 0.002


def test_it_reaches_what_float32_reaches(problem: tuple[nn.Module, ImageSet]):
    model, images = problem
    x, _ = images.batch(torch.arange(COUNT))
    attack = PGD(THREAT, steps=2)

    def reached(x_adv: torch.Tensor) -> float:
        with torch.no_grad():
            return float(kl_divergence(model(x), model(x_adv)).mean())

    whole = reached(attacked(model, images, attack, TRADES()))
    assert reached(attacked(Inference(model, BF16), images, attack, TRADES())) > 0.98 * whole


def test_in_bfloat16_alone_many_of_the_first_steps_signs_are_noise(problem: tuple[nn.Module, ImageSet]):
    model, images = problem
    x, y = images.batch(torch.arange(COUNT))
    attack, low = PGD(THREAT, steps=1), Inference(model, BF16)
    throughout = replace(TRADES().objective(y, CleanLogits(low, x, exact=False)), relative_to_clean=False)
    alone = attack(low, x, throughout, Noise(3, torch.arange(COUNT)))
    assert same(alone, attacked(model, images, attack, TRADES())) < 0.75


class Counted(nn.Module):
    """Counts forward passes by whether they run in bfloat16."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model
        self.passes = {True: 0, False: 0}

    def forward(self, x: torch.Tensor) -> Any:
        self.passes[torch.is_autocast_enabled("cpu")] += 1
        return self.model(x)


@pytest.mark.parametrize(
    ("loss", "lower", "exact"), [(TRADES(), 9, 2), (MART(), 10, 0)], ids=["relative", "not relative"]
)
def test_one_step_and_the_clean_pass_are_what_it_costs(problem: Any, loss: Loss, lower: int, exact: int):
    model, images = problem
    network = Counted(model)
    attacked(Inference(network, BF16), images, PGD(THREAT, steps=10), loss)
    assert network.passes == {True: lower, False: exact}


def test_clean_logits_are_computed_once_and_only_for_those_who_ask(problem: tuple[nn.Module, ImageSet]):
    model, images = problem
    x, y = images.batch(torch.arange(COUNT))
    network = Counted(model.train())
    clean = CleanLogits(Inference(network, BF16), x)
    SAT().objective(y, clean)
    assert network.passes == {True: 0, False: 0}
    first, second = TRADES().objective(y, clean), clean()
    assert network.passes == {True: 0, False: 1}
    assert model.training
    with torch.no_grad():
        expected = model.eval()(x)
    torch.testing.assert_close(second, expected, rtol=0, atol=1e-5)
    assert float(first.value(expected).abs().max()) < 1e-5
    CleanLogits(Inference(network, BF16), x, exact=False)()
    assert network.passes == {True: 1, False: 1}


def test_bullet_and_selection_start_in_float32_too(problem: tuple[nn.Module, ImageSet]):
    model, images = problem
    x, y = images.batch(torch.arange(COUNT))
    effort = Bullet(steps={"outlier": 1, "robust": 1, "boundary": 1})
    both = [
        attack_batch(
            network, x, y, Noise(3, torch.arange(COUNT)), attack=PGD(THREAT), loss=TRADES(), effort=effort
        ).images
        for network in (model, Inference(model, BF16))
    ]
    assert same(*both) > 0.99

    found: list[torch.Tensor] = []

    class Watched(PGD):
        def search(self, *args: Any) -> torch.Tensor:
            found.append(super().search(*args))
            return found[-1]

    batches = [list(range(COUNT))]
    for network, attack in (
        (Inference(model), Watched(THREAT, steps=1)),
        (Inference(model, BF16), Watched(THREAT, steps=1)),
        (Inference(model), AttackIn(Watched(THREAT, steps=1), "bf16")),
    ):
        adversarial_pass(network, images, batches, TRADES(), attack, seed=1, num_classes=10, device="cpu")
    for other in found[1:]:
        assert same(other, found[0]) > 0.99
