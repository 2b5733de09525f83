"""Run directories with hand-made numbers."""

from __future__ import annotations

import copy
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import tomli_w

RECIPE: dict[str, Any] = {
    "seed": 0,
    "data": {"name": "digits", "validation_fraction": 0.1},
    "model": {"name": "resnet8", "width": 4},
    "threat": {"norm": "linf", "epsilon": 0.15},
    "attack": {"name": "pgd", "steps": 10, "step_size": 0.0375},
    "loss": {"name": "trades", "beta": 6.0},
    "optimizer": {"name": "sgd", "lr": 0.1},
    "schedule": {"name": "one-cycle"},
    "train": {"epochs": 4, "batch_size": 64, "precision": "fp32"},
    "evaluation": {"checkpoints": ["last"], "pgd": {"steps": 50, "restarts": 10, "step_size": 0.0375}},
    "logging": {"trackers": []},
}
RANDOM = {"selector": {"name": "random", "fraction": 0.5, "select_every": 2}}
GLISTER = {"selector": {"name": "adv-glister", "fraction": 0.5, "select_every": 2}}
BULLET = {"bullet": {"steps": {"outlier": 0, "robust": 2, "boundary": 10}}}
ENVIRONMENT = {
    "versions": {"torch": "2.9.0"},
    "device": "a processor",
    "git_commit": None,
    "world_size": 1,
    "threads": 1,
    "seed": 0,
    "precision": "fp32",
}


def merged(base: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """Returns a table with changes, table by table."""
    found = copy.deepcopy(dict(base))
    for key, value in changes.items():
        found[key] = merged(found[key], value) if isinstance(value, Mapping) and key in found else value
    return found


def make_run(
    path: Path,
    *changes: Mapping[str, Any],
    right: Mapping[str, Sequence[int]] | None = None,
    seconds: float = 10.0,
    environment: Mapping[str, Any] | None = None,
    outcomes: bool = True,
) -> Path:
    """Writes the directory of a finished run.

    Args:
        path: where; its parents are made.
        changes: of `RECIPE`.
        right: ``"clean"``, ``"PGD 0.15"`` and ``"AutoAttack 0.15"`` to 0 or 1 for each test image.
        seconds: of attack and update together, in every epoch; another tenth each for validation and checkpoints.
        environment: changes of `ENVIRONMENT`.
        outcomes: whether the single images are known.
    """
    recipe = RECIPE
    for change in changes:
        recipe = merged(recipe, change)
    right = right or {"clean": [1, 1, 1, 0], "PGD 0.15": [1, 1, 0, 0], "AutoAttack 0.15": [1, 0, 0, 0]}
    path.mkdir(parents=True)
    phases = {"attack": 0.7 * seconds, "update": 0.3 * seconds, "validation": seconds / 10, "checkpoint": seconds / 10}
    phases = {"total": 1.2 * seconds, "data": 0.0, "selection": 0.0, **phases}
    epochs = recipe["train"]["epochs"]
    rows = [{"epoch": n, "train_loss": 2.0 / (n + 1), "lr": 0.1, "seconds": phases} for n in range(epochs)]
    entry = evaluation(right)
    report = {
        "recipe": recipe,
        "environment": merged(ENVIRONMENT, environment or {}),
        "training": {"epochs": epochs, "seconds": {k: v * epochs for k, v in phases.items()}, "selections": []},
        "evaluation": {"last": entry},
    }
    (path / "recipe.toml").write_text(tomli_w.dumps(recipe))
    (path / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (path / "report.json").write_text(json.dumps(report))
    if outcomes:
        write_outcomes(path / "evaluation/last", right, attacks=len(entry["autoattack_attacks"]))
    return path


def evaluation(right: Mapping[str, Sequence[int]]) -> dict[str, Any]:
    """Returns the report's entry of one set of weights."""
    accuracies = {what: float(np.mean(flags)) for what, flags in right.items()}
    return {
        "clean": accuracies["clean"],
        "examples": len(right["clean"]),
        "pgd": {"0.15": accuracies["PGD 0.15"]},
        "pgd_attack": "PGD-50-10",
        "autoattack": {"0.15": accuracies["AutoAttack 0.15"]},
        "autoattack_examples": len(right["AutoAttack 0.15"]),
        "autoattack_version": "standard",
        "autoattack_attacks": ["apgd-ce", "square"],
        "autoattack_warnings": [],
    }


def write_outcomes(folder: Path, right: Mapping[str, Sequence[int]], attacks: int, images: str = "same") -> None:
    """Writes what an evaluation keeps of single images."""
    folder.mkdir(parents=True, exist_ok=True)
    for number, (what, flags) in enumerate(right.items()):
        full = attacks if what.startswith("AutoAttack") else 1
        content = {
            "fingerprint": {"what": what, "count": len(flags), "images": images},
            "outcomes": [full if flag else full - 1 for flag in flags],
            "warnings": [],
        }
        (folder / f"{number}.json").write_text(json.dumps(content))
