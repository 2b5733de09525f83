from __future__ import annotations

import tomllib
from functools import cache
from pathlib import Path

import pytest
import torch
from support.cases import cases
from torch import nn

from robustcords.data.images import ImageSet
from robustcords.errors import UserError
from robustcords.experiments import build
from robustcords.models.last_layer import find_head
from robustcords.recipe import recipe
from robustcords.runtime.session import Session

FOLDER = Path(__file__).parents[2] / "recipes"
FILES = sorted(FOLDER.rglob("*.toml"))
PAPER = {
    f"cifar10_{loss}{way}{bullet}"
    for loss in ("trades", "mart")
    for way in ("", "_glister", "_gradmatch")
    for bullet in ("", "_bullet")
}


@cache
def shipped(file: Path) -> recipe.Recipe:
    return recipe.load(file)


def test_there_are_recipes() -> None:
    assert FILES
    assert set(recipe.shipped()) == {file.relative_to(FOLDER).with_suffix("").as_posix() for file in FILES}


@cases("file", FILES)
def test_validates_and_survives_being_written_out(file: Path, tmp_path: Path) -> None:
    loaded = shipped(file)
    (tmp_path / "recipe.toml").write_text(recipe.dump(loaded), encoding="utf-8")
    assert recipe.load(tmp_path / "recipe.toml") == loaded


@cases("file", FILES)
def test_opens_with_a_comment_and_names_no_place_on_a_disk(file: Path) -> None:
    text = file.read_text(encoding="utf-8")
    assert text.startswith("# ")
    assert "path" not in tomllib.loads(text).get("data", {})


MODELS: dict[str, nn.Module] = {}


def stand_in(loaded: recipe.Recipe) -> build.Data:
    """Noise in the shape of a recipe's images, two of every class."""
    shape = (1, 8, 8) if loaded.data.name == "digits" else (3, 32, 32)
    pixels = torch.randint(256, (20, *shape), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    images = ImageSet(pixels, torch.arange(20) % 10, tuple("0123456789"))
    source = build.component("data", loaded.data)
    held_out = images if loaded.data.validation_fraction else None
    return build.Data(source, images, held_out, images, *build.channel_statistics(images))


def model_of(loaded: recipe.Recipe, images: build.Data) -> nn.Module:
    """Returns the recipe's model; recipes with the same [model] table share one, to save time."""
    key = f"{loaded.data.name} {loaded.model!r}"
    if key not in MODELS:
        MODELS[key] = build.model(loaded, images)
    return MODELS[key]


@cases("file", FILES)
def test_everything_that_it_names_can_be_built(file: Path):
    loaded = shipped(file)
    images = stand_in(loaded)
    network = model_of(loaded, images)
    find_head(network, 10)
    loss = build.component("loss", loaded.loss)
    optimizer = build.component("optimizer", loaded.optimizer).build(network.parameters())
    factors = [
        build.component("schedule", loaded.schedule).factor(epoch, loaded.train.epochs or 3) for epoch in (0, 1, 2)
    ]
    method = build.method(loaded, loss, build.attack(loaded), build.effort(loaded))
    chooser = build.selector(loaded, images)
    assert sum(parameter.numel() for group in optimizer.param_groups for parameter in group["params"]) > 10_000
    assert all(0 <= factor <= 1 for factor in factors)
    assert any(factors)
    assert method.attack.threat == loaded.threat
    assert method.effort.config == loaded.effort
    assert (chooser is None) == (loaded.selector is None)
    if chooser:
        assert chooser.strategy.needs_linear_head == (loaded.selector.name not in {"random", "importance", "infobatch"})
        assert chooser.config.budget_of(20) == round(20 * loaded.selector.fraction)


class Headless(nn.Module):
    """A classifier whose last operation is a convolution, so that there is no linear layer to take gradients of."""

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.last = nn.Conv2d(1, num_classes, 8)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.last(x).flatten(1)


@cases("selector", ["adv-glister", "adv-gradmatch", "glister", "gradmatch", "random"])
def test_a_model_that_a_selector_cannot_work_with_is_refused_before_training(selector: str):
    name = f"model.name={__name__}:Headless"
    loaded = recipe.load("digits_mart", [name, f"selector.name={selector}", "train.precision=fp32"])
    images, work = stand_in(loaded), Session(build.accelerator(loaded))
    if selector == "random":
        made = build.trainer(loaded, images, work)
        assert made.selector is not None
        assert made.selector.loss is made.method.loss, "one for all, which is looked at once"
    else:
        with pytest.raises(UserError, match=r"Linear"):
            build.trainer(loaded, images, work)


@cases("name", sorted(PAPER))
def test_the_papers_own_settings(name: str) -> None:
    loaded = recipe.load(name)
    mart, glister, gradmatch = "_mart" in name, "_glister" in name, "_gradmatch" in name
    assert (loaded.model.name, loaded.train.epochs) == ("resnet18", 100)
    options = loaded.optimizer.options()
    assert (options["momentum"], options["weight_decay"]) == (0.9, 3.5e-3 if mart else 2e-4)
    assert options["lr"] == (0.02 if glister else 0.01 if gradmatch or mart else 0.1)
    assert loaded.data.validation_fraction == (0.1 if glister else 0)
    assert (loaded.effort.name == "bullet") == name.endswith("_bullet")
    assert loaded.evaluation.pgd is not None
    assert (loaded.evaluation.pgd.steps, loaded.evaluation.pgd.restarts) == (50, 10)
    assert loaded.evaluation.pgd.epsilons == [4 / 255, 8 / 255, 16 / 255]
    if glister or gradmatch:
        assert loaded.selector is not None
        assert loaded.selector.name == ("adv-glister" if glister else "adv-gradmatch")
        assert (loaded.selector.fraction, loaded.selector.select_every) == (0.3, 20)
    else:
        assert loaded.selector is None


def test_small_recipes_differ_in_method_alone() -> None:
    small = {name: recipe.load(name) for name in recipe.shipped() if name.startswith("cifar10_small_")}
    assert small
    first = small["cifar10_small_trades"]
    for each in small.values():
        assert (each.data, each.model, each.threat) == (first.data, first.model, first.threat)
        train = each.train.model_copy(update={"averaging": None})
        if each.effort.name == "curriculum":  # which goes by validations
            assert train.validate_every == 1
            train = train.model_copy(update={"validate_every": first.train.validate_every})
        assert (each.optimizer, each.schedule, train, each.evaluation) == (
            first.optimizer,
            first.schedule,
            first.train,
            first.evaluation,
        )
