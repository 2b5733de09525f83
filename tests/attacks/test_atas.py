"""ATAS against the rule written out example by example, and what its perturbations go through."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from support import small_problem
from support.cases import cases
from support.ranks import joined
from support.small_run import After, trainer, vector
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.functional import pad

from robustcords.attacks import perturbations
from robustcords.attacks.atas import ATAS
from robustcords.attacks.base import CleanLogits
from robustcords.data.augmentations.base import Augmentation
from robustcords.data.augmentations.crop_flip import CropFlip
from robustcords.data.images import ImageSet
from robustcords.errors import Interrupted, UserError
from robustcords.losses.context import Moment
from robustcords.losses.sat import SAT
from robustcords.methods.efforts.batch import attack_batch
from robustcords.methods.efforts.bullet import Bullet
from robustcords.recipe import recipe
from robustcords.rng import Noise, derive
from robustcords.selection.selector import everything
from robustcords.threats.base import ThreatModel
from robustcords.training.callbacks.overfitting import OverfittingProbe

EPSILON, CROP, EPOCHS = 0.05, 1, 4
OPTIONS: dict[str, Any] = {"redraw_every": 2, "warmup": 1, "scale": 0.03, "smallest_step": 0.02, "largest_step": 0.06}
THREAT = ThreatModel(epsilon=EPSILON)
IMAGES = small_problem.images([14, 14, 13])


def network() -> nn.Module:
    model = small_problem.network(3)
    model[4] = nn.Identity()  # dropout
    return model


def made(**options: Any) -> Any:
    return trainer(
        **{
            "attack": ATAS(THREAT, **OPTIONS),
            "model": network(),
            "train": IMAGES,
            "augmentation": CropFlip(crop=CROP, flip=True),
            **options,
            "settings": {"epochs": EPOCHS, **options.get("settings", {})},
        }
    )


def window(image: Tensor, top: int, left: int, mirrored: bool) -> Tensor:
    cut = pad(image, [CROP] * 4)[:, top : top + image.shape[1], left : left + image.shape[2]]
    return cut.flip(2) if mirrored else cut


def back(cut: Tensor, into: Tensor, top: int, left: int, mirrored: bool) -> Tensor:
    canvas = pad(into, [CROP] * 4)
    canvas[:, top : top + into.shape[1], left : left + into.shape[2]] = cut.flip(2) if mirrored else cut
    return canvas[:, CROP:-CROP, CROP:-CROP]


def written_out(ours: Any) -> tuple[nn.Module, Tensor, list[float]]:
    """Huang et al., Alg. 1, example by example; returns the network, the perturbations and the adaptive steps."""
    model, steps = network(), []
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    stored, v = torch.zeros(len(IMAGES), 3, 4, 4, dtype=torch.float64), [0.0] * len(IMAGES)
    for epoch in range(EPOCHS):
        for positions in ours.loader.order(epoch, everything(len(IMAGES))):
            batch = ours.loader.load(positions, everything(len(IMAGES)), epoch)
            moves = Noise(derive(0, "augment", epoch), positions)
            corners, flips = moves.integers(2 * CROP + 1, (2,)).tolist(), moves.integers(2, draw=1).tolist()
            drawn = ((batch.noise.uniform((3, 4, 4)) * 2 - 1) * EPSILON).double()
            adversarial = []
            model.eval()
            for i, number in enumerate(positions.tolist()):
                move = (*corners[i], bool(flips[i]))
                x = window(IMAGES.images[number], *move)
                if epoch % 2 == 0:
                    stored[number], delta = 0.0, drawn[i]
                else:
                    delta = window(stored[number], *move)
                start_ = (x + delta.clamp(-EPSILON, EPSILON)).clamp(0, 1).requires_grad_()
                F.cross_entropy(model(start_[None]), batch.y[i : i + 1]).backward()
                step = EPSILON
                if epoch >= 1:
                    v[number] = 0.5 * v[number] + 0.5 * float(start_.grad.square().sum())
                    step = min(max(2 * EPSILON / (1 + v[number] ** 0.5 / 0.03), 0.02), 0.06)
                    steps.append(step)
                far = start_.detach() + step * start_.grad.sign() - x
                adversarial.append((x + far.clamp(-EPSILON, EPSILON)).clamp(0, 1))
                stored[number] = back(adversarial[-1] - x, stored[number], *move)
            model.train()
            optimizer.zero_grad()
            F.cross_entropy(model(torch.stack(adversarial)), batch.y).backward()
            optimizer.step()
    return model, stored, steps


def test_training_is_the_rule_written_out() -> None:
    ours = made()
    ours.fit()
    model, stored, steps = written_out(ours)
    assert 0.02 in steps and any(0.02 < step < 0.06 for step in steps), "a limit is met, and not by all"
    torch.testing.assert_close(vector(ours), vector(model), rtol=0, atol=1e-9)
    torch.testing.assert_close(ours.method.attack.stored.delta, stored, rtol=0, atol=1e-9)


def plain_run(loss: str = "sat", accumulation: int = 2) -> Any:
    """Returns a run, with Bullet-Train, of a network in which examples keep to themselves."""
    model = nn.Sequential(nn.Flatten(), nn.Linear(48, 3)).double()
    nn.init.normal_(model[1].weight, generator=torch.Generator().manual_seed(0))
    nn.init.zeros_(model[1].bias)
    ours = made(loss=loss, model=model, effort=Bullet, settings={"accumulation": accumulation})
    ours.fit()
    return ours


@cases("loss", ["sat", "trades", "mart"])
def test_accumulation_is_the_larger_batch(loss: str) -> None:
    whole, parts = plain_run(loss, 1), plain_run(loss, 3)
    torch.testing.assert_close(vector(whole), vector(parts))
    torch.testing.assert_close(whole.method.attack.stored.delta, parts.method.attack.stored.delta)
    assert whole.progress.steps > 0


def test_the_published_steps_follow_from_the_radius() -> None:
    config = ATAS(ThreatModel(epsilon=8 / 255)).config
    assert (config.step_size, config.smallest_step, config.largest_step) == (16 / 255, 4 / 255, 14 / 255)
    gradient = torch.tensor([0.0, 0.64**2, 1.28**2, 1e6])  # 128 times those of the mean loss of a batch
    steps = ATAS(ThreatModel(epsilon=8 / 255))._step(gradient).flatten() * 255
    torch.testing.assert_close(steps, torch.tensor([14.0, 16 / 1.5, 8.0, 4.0]))


def test_no_step_is_shorter_than_the_shortest_and_longer_than_the_longest() -> None:
    with pytest.raises(UserError, match=r"smallest_step = 0\.2 is longer than largest_step"):
        recipe.load("digits_mart", ["attack.name=atas", "attack.smallest_step=0.2", "attack.largest_step=0.1"])


def test_an_example_that_misses_the_epoch_of_a_redraw_is_drawn_anew_when_it_comes_up() -> None:
    attack, model = ATAS(THREAT, **OPTIONS), nn.Sequential(nn.Flatten(), nn.Linear(48, 3)).double()
    nn.init.zeros_(model[1].weight)  # no gradient, so that examples stay where they start
    attack.prepare(IMAGES, torch.device("cpu"))

    def attacked(epoch: int, *numbers: int) -> tuple[Tensor, Tensor]:
        """Returns where the examples of an epoch start, and what would be drawn for them."""
        keys = torch.tensor(numbers)
        x, y = IMAGES.batch(keys)
        geometry, noise = CropFlip().geometry(Noise(0, keys)), Noise(epoch, keys)
        with attack.training_step(Moment(epoch, 0, 0.0), geometry):
            found = attack(model, x, attack.objective_for(SAT(), y, CleanLogits(model, x)), noise)
        return found, THREAT.uniform_start(x, noise)

    first, drawn = attacked(0, 3, 4, 5)
    assert torch.equal(first, drawn)
    second, drawn = attacked(1, 3, 4, 9)
    torch.testing.assert_close(second[:2], first[:2])
    assert torch.equal(second[2], drawn[2])
    third, drawn = attacked(3, 3, 5, 9)
    assert torch.equal(third, drawn), "in epoch 2, when all are drawn anew, none of them was there"


def test_what_is_outside_of_training_changes_nothing() -> None:
    """A selection and the probe for overfitting attack with it, and training is as if they had not."""
    attack = ATAS(THREAT, **OPTIONS)
    probe = OverfittingProbe(IMAGES, attack, attack)
    ours, plain = made(attack=attack, callbacks=[probe]), made()
    ours.fit()
    plain.fit()
    assert torch.equal(vector(ours), vector(plain))
    x, y = IMAGES.batch(torch.arange(8))
    noise, model = Noise(3, torch.arange(8)), network()
    before = {name: value.clone() for name, value in attack.state_dict().items()}
    aim = attack.objective_for(SAT(), y, CleanLogits(model, x))
    found = attack(model, x, aim, noise)
    assert torch.equal(found, ATAS(THREAT, **OPTIONS)(model, x, aim, noise)), "whatever has been kept"
    assert all(torch.equal(value, before[name]) for name, value in attack.state_dict().items())


@pytest.mark.parametrize("looks", [4, 5])
def test_a_run_that_is_stopped_ends_as_one_that_is_not(tmp_path: Path, looks: int) -> None:
    whole = made(run=tmp_path / "whole", effort=Bullet)
    whole.fit()
    with pytest.raises(Interrupted):
        made(run=tmp_path / "parts", interruption=After(looks), effort=Bullet).fit()
    resumed = made(run=tmp_path / "parts", effort=Bullet)
    resumed.fit()
    assert torch.equal(vector(whole), vector(resumed))
    for name, value in whole.method.attack.state_dict().items():
        assert torch.equal(value, resumed.method.attack.state_dict()[name])


def one_of_two(rank: int, folder: Path) -> None:
    ours = plain_run()
    torch.save([vector(ours), ours.method.attack.state_dict()], folder / str(rank))


def test_two_processes_keep_what_one_keeps(tmp_path: Path) -> None:
    joined(one_of_two, 2, tmp_path)
    ours = plain_run()
    for rank in range(2):
        weights, state = torch.load(tmp_path / str(rank))
        torch.testing.assert_close(weights, vector(ours))
        for name, value in ours.method.attack.state_dict().items():
            torch.testing.assert_close(state[name], value)


class Darker(Augmentation):
    """Does more than move pixels."""

    def __call__(self, x: Tensor, noise: Noise) -> Tensor:
        """Returns darker images."""
        return x * noise.uniform((1, 1, 1)).to(x)


def test_it_needs_an_augmentation_that_moves_pixels_and_does_nothing_else() -> None:
    loaded = recipe.load("digits_mart", ["attack.name=atas"])
    assert loaded.attack.name == "atas"
    with pytest.raises(UserError, match=r'\[attack\] name = "atas": requires crops and flips that can be undone'):
        recipe.load("digits_mart", ["attack.name=atas", f"augmentation.name={__name__}:Darker"])
    x, y = IMAGES.batch(torch.arange(4))
    with pytest.raises(UserError, match="ATAS keeps perturbations, for which it needs the batch's geometry"):
        attack_batch(network(), x, y, Noise(0, torch.arange(4)), attack=ATAS(THREAT), loss=SAT())


def test_too_many_images_are_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    free = type("Memory", (), {"available": 10_000})
    monkeypatch.setattr(perturbations.psutil, "virtual_memory", free)
    line = r"of each of 41 images of 3 x 4 x 4, which with their checkpoint takes 0.0 GB of main memory, and 0.0 GB are"
    with pytest.raises(UserError, match=line):
        made()
    with pytest.raises(UserError, match="ATAS keeps a perturbation"):
        ATAS(THREAT).prepare(ImageSet(IMAGES.images, IMAGES.labels, IMAGES.classes), torch.device("cpu"))
