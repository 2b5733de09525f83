"""What ``robustcords new --minutes`` writes."""

from __future__ import annotations

import tomllib
from datetime import timedelta
from pathlib import Path
from types import SimpleNamespace

import pytest
from support.command_line import call
from support.made_data import picture

from robustcords.experiments import new_recipe
from robustcords.recipe.recipe import Recipe, load, shipped


@pytest.fixture
def mine(tmp_path: Path) -> Path:
    """Class folders of images of two sizes, without any to test on."""
    for number in range(40):
        file = tmp_path / "mine" / "train" / ("cat", "dog")[number % 2] / f"{number}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        picture(6 * number, (20, 17) if number < 20 else (12, 30)).save(file)
    return tmp_path / "mine"


def test_a_recipe_for_somebodys_images(mine: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    file = tmp_path / "my.toml"
    answer = call(capsys, "new", file, "--data", mine, "--minutes", "5", "--model", "resnet8")
    assert answer.status == 0, answer.err
    assert "there is no test split: 20% of train are tested on" in answer.out
    assert "all become 8 x 8" in answer.out
    recipe = load(file)
    assert (recipe.data.name, recipe.data.test_fraction, recipe.data.image_size) == (str(mine), 0.2, 8)
    assert recipe.model.name == "resnet8"
    assert 60 < recipe.train.budget.total_seconds() < 5 * 60
    assert recipe.evaluation.limit == 8, "all there are"
    assert "of evaluation on 8 images" in answer.out
    assert recipe.train.epochs is None
    again = call(capsys, "new", file, "--data", mine, "--minutes", "5")
    assert (again.status, again.err) == (2, f"error: {file}: exists already; choose another name\n")


def test_a_time_that_is_too_short(mine: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    answer = call(capsys, "new", tmp_path / "my.toml", "--data", mine, "--minutes", "0.1", "--model", "resnet8")
    assert answer.status == 2
    assert answer.err.splitlines()[-1].startswith("error: --minutes 0.1: too few: reading the data takes ")
    assert not (tmp_path / "my.toml").exists()


@pytest.mark.parametrize(
    ("epochs", "chosen", "measured"),
    [
        ({"fast": 24.0}, "fast", ["fast"]),
        ({"fast": 39.0, "balanced": 39.0}, "balanced", ["fast", "balanced"]),
        ({"fast": 90.0, "strongest": 41.0}, "strongest", ["fast", "strongest"]),
        ({"fast": 90.0, "strongest": 20.0, "balanced": 90.0}, "balanced", ["fast", "strongest", "balanced"]),
        ({"fast": 30.0, "balanced": 24.0}, "fast", ["fast", "balanced"]),
    ],
)
def test_what_the_time_has_no_room_for_is_not_measured(
    epochs: dict[str, float], chosen: str, measured: list[str], monkeypatch: pytest.MonkeyPatch
):
    asked = []

    def plan(recipe: Recipe, name: str, budget: timedelta) -> SimpleNamespace:
        asked.append(name)
        return SimpleNamespace(epochs_in_budget=epochs[name])

    monkeypatch.setattr(new_recipe, "plan", plan)
    choice, planned = new_recipe._chosen({"data": {"name": "digits"}}, 10.0)
    assert (choice.recipe, planned.epochs_in_budget, asked) == (chosen, epochs[chosen], measured)


def test_choices_are_shipped_recipes_and_one_of_them_always_fits():
    choices = tomllib.loads(new_recipe._CHOICES.read_text())["choice"]
    assert {each["recipe"] for each in choices} <= shipped().keys()
    needed = [each["epochs"] for each in choices]
    assert needed == sorted(needed, reverse=True)
    assert needed[-1] == 0
