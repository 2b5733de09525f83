"""The ``[callbacks]`` table: one table a callback, written back as it was read, and the keys that 0.1 had for two."""

from __future__ import annotations

import tomllib
from pathlib import Path

import pytest
from support.cases import cases

from robustcords.errors import UserError
from robustcords.recipe.recipe import dump, load, parse
from robustcords.training.callbacks.dynamics import Dynamics


def callbacks(*changes: str) -> dict[str, object]:
    """Returns the table as a run's own recipe.toml has it."""
    return dict(tomllib.loads(dump(load("digits_mart", changes)))["callbacks"])


def test_overfitting_is_watched_for_unless_it_is_switched_off():
    assert callbacks() == {"overfitting": {"action": "warn"}}
    assert callbacks("callbacks.overfitting.action=stop") == {"overfitting": {"action": "stop"}}
    assert callbacks("callbacks.overfitting=false") == {"overfitting": False}
    assert callbacks("callbacks.overfitting=false", "callbacks.overfitting=true") == {"overfitting": {"action": "warn"}}


def test_a_table_is_checked_by_the_class_that_its_key_names():
    recipe = load("digits_mart", ["callbacks.dynamics.every=3"])
    assert recipe.callbacks["dynamics"] == Dynamics.Config(every=3, images=1000)
    assert parse(tomllib.loads(dump(recipe))) == recipe


@cases(
    ("earlier", "now"),
    [
        ("train.overfitting=stop", "callbacks.overfitting.action=stop"),
        ("train.overfitting=false", "callbacks.overfitting=false"),
        ("train.dynamics={every = 2}", "callbacks.dynamics.every=2"),
        ("train.dynamics=true", "callbacks.dynamics=true"),
        ("train.dynamics=false", "callbacks.dynamics=false"),
    ],
)
def test_the_keys_of_version_0_1_mean_what_they_meant(earlier: str, now: str):
    assert load("digits_mart", [earlier]) == load("digits_mart", [now])


def test_a_recipe_of_version_0_1_is_read(tmp_path: Path):
    path = tmp_path / "old.toml"
    path.write_text('extends = "digits_mart"\n[train]\nepochs = 3\noverfitting = "stop"\ndynamics = {images = 9}\n')
    assert tomllib.loads(dump(load(path)))["callbacks"] == {
        "overfitting": {"action": "stop"},
        "dynamics": {"images": 9, "every": 1},
    }


PROBLEMS = {
    "callbacks.dynamic=true": "[callbacks] dynamic: unknown callback 'dynamic'; did you mean 'dynamics'?",
    "callbacks.dynamic=false": "[callbacks] dynamic: unknown callback 'dynamic'; did you mean 'dynamics'?",
    "callbacks.dynamics=3": "[callbacks] dynamics = 3: must be a table or false",
    "callbacks=3": "callbacks = 3: must be a table",
    "callbacks.dynamics.evry=3": "[callbacks.dynamics] unknown key \"evry\"; did you mean 'every'?",
    "callbacks.dynamics.every=0": "[callbacks] dynamics.every = 0: must be a whole number >= 1",
    "train.overfitting=loudly": '[callbacks] overfitting.action = "loudly": unknown value',
}


@cases("change", PROBLEMS)
def test_what_is_wrong_is_said_in_one_line(change: str):
    with pytest.raises(UserError) as error:
        load("digits_mart", [change])
    assert str(error.value).startswith(f"--set {change}: {PROBLEMS[change]}")


def test_a_callback_in_its_earlier_place_too_is_refused(tmp_path: Path):
    path = tmp_path / "both.toml"
    path.write_text('extends = "digits_mart"\n[train]\noverfitting = "stop"\n[callbacks]\noverfitting = false\n')
    with pytest.raises(UserError, match=r"both\.toml: train\.overfitting is callbacks\.overfitting now; write one of"):
        load(path)
