"""A run on the digits with everything that has a state: Bullet-Train, averaging, accumulation, selections."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from command_line import settings

RECIPE = [
    "digits_mart",
    *settings(
        model__width=4,
        attack__steps=2,
        bullet__steps__boundary=3,
        selector__select_every=2,
        train__epochs=8,
        train__accumulation=2,
        train__validate_every=3,
        train__averaging__kind="ema",
        train__averaging__decay=0.9,
        train__precision="fp32",
        evaluation__limit=40,
        evaluation__checkpoints='["best", "last"]',
        evaluation__pgd="{steps = 2, restarts = 1, step_size = 0.1, epsilons = [0.15]}",
        evaluation__autoattack="false",
    ),
]
SAME = (
    "weights/last.safetensors",
    "weights/best.safetensors",
    *(f"selections/epoch_{n:04d}.npz" for n in (0, 2, 4, 6)),
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
    assert [row["epoch"] for row in rows(other)] == list(range(8))
    assert rows(one) == rows(other)
    reports = [json.loads((run / "report.json").read_text()) for run in (one, other)]
    assert timeless(reports[0]) == timeless(reports[1])
