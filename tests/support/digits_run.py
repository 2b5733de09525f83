"""A run on the digits with everything that has a state: Bullet-Train, averaging, accumulation, selections."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from support.command_line import settings

RECIPE = [
    "digits_mart",
    *settings(
        model__width=4,
        model__depths="[1]",
        attack__steps=2,
        bullet__steps__boundary=3,
        data__train_limit=120,
        selector__fraction=0.4,
        selector__select_every=2,
        train__epochs=6,
        train__batch_size=16,
        train__accumulation=2,
        train__validate_every=3,
        train__averaging__kind="ema",
        train__averaging__decay=0.9,
        train__precision="fp32",
        evaluation__limit=40,
        evaluation__checkpoints='["best", "last"]',
        evaluation__pgd="{steps = 2, restarts = 1, step_size = 0.1, epsilons = [0.15]}",
        evaluation__autoattack="false",
        callbacks__overfitting="false",  # takes longer than the steps
    ),
]
AUTOATTACK = '--set=evaluation.autoattack={version = "standard", epsilons = [0.3], limit = 8}'
TINY = """
from torch import nn

class TinyNet(nn.Sequential):
    def __init__(self, num_classes: int) -> None:
        super().__init__(
            nn.Conv2d(1, 4, 3, stride=2, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(64, num_classes)
        )
"""
"""A module with a network that has no BatchNorm."""

SAME = (
    "weights/last.safetensors",
    "weights/best.safetensors",
    *(f"selections/epoch_{n:04d}.npz" for n in (0, 2, 4)),
)


def rows(run: Path) -> list[dict[str, object]]:
    timed = ("seconds", "images_per_second")
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [{key: value for key, value in line.items() if key not in timed} for line in lines]


def timeless(report: dict[str, Any]) -> dict[str, Any]:
    """Returns a report without what may differ: the environment and the seconds."""
    training = {key: value for key, value in report["training"].items() if key != "seconds"}
    return {"recipe": report["recipe"], "evaluation": report["evaluation"], "training": training}


def check_same(one: Path, other: Path) -> None:
    """Two runs have the same bytes of weights and selections, and the same figures."""
    for name in SAME:
        assert (one / name).read_bytes() == (other / name).read_bytes(), name
    assert len(list((other / "selections").iterdir())) == len(SAME) - 2
    assert [row["epoch"] for row in rows(other)] == list(range(6))
    assert rows(one) == rows(other)
    reports = [json.loads((run / "report.json").read_text()) for run in (one, other)]
    assert timeless(reports[0]) == timeless(reports[1])


def check_close(one: Path, other: Path) -> None:
    """Two runs have the same weights and losses to float tolerance, and are otherwise equal."""
    weights = [load_file(run / "weights" / "last.safetensors") for run in (one, other)]
    assert weights[0].keys() == weights[1].keys()
    for name in weights[0]:
        torch.testing.assert_close(weights[0][name], weights[1][name], rtol=1e-3, atol=1e-5)
    for first, second in zip(rows(one), rows(other), strict=True):
        assert first["counts"] == second["counts"]
        assert first["validation"] == second["validation"]
        assert first["train_loss"] == pytest.approx(second["train_loss"], rel=1e-4)
    selections = [np.load(run / "selections" / "epoch_0000.npz") for run in (one, other)]
    assert np.array_equal(selections[0]["indices"], selections[1]["indices"])
    results = [json.loads((run / "report.json").read_text())["evaluation"] for run in (one, other)]
    assert results[0] == results[1]
