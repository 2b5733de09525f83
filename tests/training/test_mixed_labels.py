"""Training on images that are mixed in pairs: a step written out in plain torch, and who is refused."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from support.cases import cases
from support.small_run import BATCH, COUNT, THREAT, After, fitted, made_up, network, vector
from torch import Tensor, nn

from robustcords import PGD, CropFlip, CutMix, MixUp, Trainer
from robustcords.data.images import ImageSet
from robustcords.errors import Interrupted, UserError
from robustcords.methods.efforts.bullet import Bullet
from robustcords.methods.efforts.uniform import Uniform
from robustcords.selection.selector import everything
from robustcords.training.config import AveragingConfig
from robustcords.training.loader import BatchLoader

ATTACK = PGD(THREAT, steps=3, step_size=0.03)


def in_double() -> ImageSet:
    images = made_up()
    return ImageSet(images.images.double() / 255, images.labels, images.classes)


def cross_entropy(logits: Tensor, shares: Tensor) -> Tensor:
    return -(shares * logits.log_softmax(1)).sum(1)


def divergence(clean: Tensor, adversarial: Tensor) -> Tensor:
    return (clean.softmax(1) * (clean.log_softmax(1) - adversarial.log_softmax(1))).sum(1)


def attacked(model: nn.Module, loss: str, x: Tensor, shares: Tensor, start: Tensor) -> Tensor:
    """PGD: what is maximised is the mixed cross-entropy, or the divergence from the clean prediction."""
    clean, adversarial = model(x).detach(), start
    for _ in range(3):
        adversarial = adversarial.detach().requires_grad_()
        z = model(adversarial)
        value = divergence(clean, z) if loss == "trades" else cross_entropy(z, shares)
        (gradient,) = torch.autograd.grad(value.sum(), adversarial)
        moved = adversarial + 0.03 * gradient.sign()
        adversarial = torch.minimum(torch.maximum(moved, x - THREAT.epsilon), x + THREAT.epsilon).clamp(0, 1)
    return adversarial.detach()


@cases("accumulation", [1, 3])
@cases("mixing", [CutMix(crop=1, flip=True), MixUp(alpha=0.4, probability=0.7)])
@cases("loss", ["sat", "trades", "standard"])
def test_a_step_is_the_papers(loss: str, mixing: Any, accumulation: int):
    train, model = in_double(), network().double()
    before = copy.deepcopy(model)
    settings = {"epochs": 1, "batch_size": COUNT, "accumulation": accumulation}
    fitted(loss=loss, attack=ATTACK, model=model, settings=settings, train=train, augmentation=mixing, lr=0.5)

    loader = BatchLoader(train, COUNT, mixing, seed=0, device=torch.device("cpu"))
    batch = loader.load(loader.order(0, everything(COUNT))[0], everything(COUNT), 0)
    assert batch.y.shape == (COUNT, 3)
    torch.testing.assert_close(batch.y.sum(1), torch.ones(COUNT, dtype=torch.float64))
    assert ((batch.y > 0).sum(1) == 2).any()
    x = batch.x
    noise = batch.noise.normal(x.shape[1:]) * 0.001
    if loss == "sat":
        noise = (batch.noise.uniform(x.shape[1:]) * 2 - 1) * THREAT.epsilon
    adversarial = attacked(before, loss, x, batch.y, (x + noise).clamp(0, 1))
    values = {
        "standard": lambda: cross_entropy(before(x), batch.y),
        "sat": lambda: cross_entropy(before(adversarial), batch.y),
        "trades": lambda: cross_entropy(before(x), batch.y) + 6 * divergence(before(x), before(adversarial)),
    }[loss]()
    gradients = torch.autograd.grad(values.mean(), tuple(before.parameters()))
    for after, start, gradient in zip(model.parameters(), before.parameters(), gradients, strict=True):
        torch.testing.assert_close(after, start - 0.5 * gradient, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize(
    ("loss", "effort", "message"),
    [
        ("mart", Uniform, r"loss .*:MART requires hard labels, and the augmentation mixes images"),
        ("sat", Bullet, r"effort .*:Bullet requires hard labels, and the augmentation mixes images"),
    ],
)
def test_what_needs_one_class_an_image_is_refused_in_python_too(loss: str, effort: Any, message: str):
    with pytest.raises(UserError, match=message):
        fitted(loss=loss, effort=effort, augmentation=MixUp(), settings={"batch_size": BATCH})


def test_a_run_that_was_stopped_ends_as_if_it_had_not_been(tmp_path: Path):
    def run(folder: str, interruption: Any = None) -> Trainer:
        settings = {"epochs": 2, "averaging": AveragingConfig(decay=0.5)}
        mixing, place = CutMix(crop=1), tmp_path / folder
        return fitted(
            loss="trades", augmentation=mixing, settings=settings, run=place, interruption=interruption, seed=3
        )

    whole = run("whole")
    with pytest.raises(Interrupted):
        run("parts", After(3))
    assert torch.equal(vector(whole), vector(run("parts")))
    assert not torch.equal(vector(whole), vector(fitted(loss="trades", augmentation=CropFlip(crop=1), seed=3)))
