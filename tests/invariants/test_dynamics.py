"""Outlier, boundary and robust training images: counted by definition, when asked to, without touching the run."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from support.command_line import call, settings
from support.small_run import THREAT, epoch_end, fitted, made_up, vector
from torch.nn.functional import cross_entropy

from robustcords.rng import Noise, derive
from robustcords.training.callbacks.dynamics import Dynamics


def by_hand(model: torch.nn.Module) -> dict[str, int]:
    """PGD-5-1 as Eq. 2 writes it, from the same random start."""
    images = made_up()
    x, y = images.batch(torch.arange(len(images)))
    noise = Noise(derive(3, "validation"), torch.arange(len(images)))
    start = x + THREAT.epsilon * (2 * noise.uniform(x.shape[1:]) - 1)
    low, high = (x - THREAT.epsilon).clamp(min=0), (x + THREAT.epsilon).clamp(max=1)
    x_adv = start.clamp(low, high)
    for _ in range(5):
        x_adv.requires_grad_(True)
        (gradient,) = torch.autograd.grad(cross_entropy(model(x_adv), y), x_adv)
        x_adv = (x_adv.detach() + THREAT.epsilon / 2 * gradient.sign()).clamp(low, high)
    clean, attacked = (model(inputs).argmax(1) == y for inputs in (x, x_adv))
    counts = {"outlier": ~clean, "boundary": clean & ~attacked, "robust": clean & attacked}
    return {kind: int(flags.sum()) for kind, flags in counts.items()}


def test_the_counts_are_those_of_the_definition():
    model = fitted(lr=0.02).model.eval()
    before = vector(model)
    counts = Dynamics(made_up(), THREAT, images=0).after_epoch(epoch_end(model, seed=3))
    expected = by_hand(model)
    assert counts == expected
    assert all(count > 0 for count in expected.values()), "a case with all three kinds"
    assert torch.equal(vector(model), before)


def test_counts_come_every_so_many_epochs_and_change_nothing(tmp_path: Path):
    tracked = fitted(callbacks=[Dynamics(made_up(20), THREAT, every=2)], run=tmp_path / "run", settings={"epochs": 5})
    rows = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert ["dynamics" in row for row in rows] == [False, True, False, True, False]
    assert all(sum(row["dynamics"].values()) == 20 for row in rows if "dynamics" in row)
    assert torch.equal(vector(tracked), vector(fitted(settings={"epochs": 5})))


@pytest.mark.parametrize(
    ("value", "limit", "count"), [("true", 0, 1000), ("{images = 7}", 60, 7), ("{images = 0}", 60, 60)]
)
def test_a_recipe_switches_it_on(
    value: str, limit: int, count: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
):
    monkeypatch.chdir(tmp_path)
    off = {"evaluation__pgd": "false", "evaluation__autoattack": "false", "selector": "false", "bullet": "false"}
    options = settings(
        model__width=2, attack__steps=1, train__epochs=1, callbacks__dynamics=value, data__validation_fraction=0, **off
    )
    options += settings(model__depths="[1]", train__batch_size=449, data__train_limit=limit, evaluation__limit=10)
    assert call(capsys, "run", "digits_mart", *options, "--output", "run").status == 0
    (row,) = [json.loads(line) for line in Path("run/metrics.jsonl").read_text().splitlines()]
    assert sum(row["dynamics"].values()) == count
