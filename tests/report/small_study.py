"""Real runs on the digits, small enough to make for the tests."""

from __future__ import annotations

from pathlib import Path

from support.command_line import settings

from robustcords.experiments import run as experiment
from robustcords.recipe import recipe

SMALL = {
    "model__width": 4,
    "model__depths": "[1]",
    "attack__steps": 1,
    "selector__select_every": 1,
    "train__epochs": 3,
    "data__train_limit": 400,
    "train__batch_size": 80,
    "train__validate_every": 1,
    "train__precision": "fp32",
    "train__checkpoint_every": 3,
    "evaluation__limit": 60,
    "evaluation__checkpoints": '["best", "last"]',
    "evaluation__pgd": "{steps = 2, restarts = 1, step_size = 0.1, epsilons = [0.05, 0.15]}",
    "evaluation__autoattack": "false",
    "callbacks__overfitting": "false",
}
FULL = {"selector": "false", "bullet": "false"}
RANDOM = {"selector__name": "random", "bullet": "false"}
METHODS: dict[str, dict[str, object]] = {
    "full": FULL,
    "random30": RANDOM,
    "random60": {**RANDOM, "selector__fraction": 0.6},
    "glister": {},
}


def make(folder: Path, name: str, **changes: object) -> Path:
    """Runs a small recipe, with ``selector`` and ``bullet`` switched off last, and returns its directory."""
    values = {**SMALL, **changes}
    if values.get("selector") == "false":
        values = {key: value for key, value in values.items() if not key.startswith("selector__")}
    options = settings(**values)[1::2]
    path, _ = experiment.run(recipe.load("digits_mart", options), name, folder / name)
    return path
