"""What ``robustcords plan`` says of recipes."""

from __future__ import annotations

import json
import math

import pytest
from support.cases import cases
from support.command_line import call, settings

from robustcords.recipe.recipe import load
from robustcords.training.costs import Calendar, Costs

TINY = settings(
    model__width=2, attack__steps=1, train__epochs=3, selector__name="random", selector__select_every=1, bullet="false"
)


def test_figures_of_a_recipe_as_json(capsys: pytest.CaptureFixture[str]):
    answer = call(capsys, "plan", "digits_mart", *TINY, "--budget", "2 min", "--json")
    assert answer.status == 0, answer.err
    (figures,) = json.loads(answer.out)["recipes"]
    recipe = load("digits_mart", [text for text in TINY if text != "--set"])
    assert figures["batches"] == math.ceil(round(recipe.selector.fraction * 1212) / recipe.train.batch_size)
    assert (figures["recipe"], figures["epochs"], figures["budget"]) == ("digits_mart", 3, 120)
    step = sum(figures["seconds_per_step"].values())
    assert figures["seconds"]["training"] == pytest.approx(3 * figures["batches"] * step)
    assert 0 < figures["epochs_in_budget"] <= 120 / step / figures["batches"]
    around = figures["evaluation_seconds"] + figures["data_seconds"]
    assert figures["total"] == pytest.approx(sum(figures["seconds"].values()) + around)
    assert figures["peak_memory"] > 10**8
    assert figures["unknown"] == []


def test_a_time_that_is_none(capsys: pytest.CaptureFixture[str]):
    answer = call(capsys, "plan", "digits_mart", "--budget", "soon")
    assert (answer.status, answer.err.count("\n")) == (2, 1)
    assert answer.err.startswith("error: --budget: 'soon' is not a duration")


@cases("steps", [1, 5, 12])
def test_the_total_is_the_sum_of_its_parts(steps: int):
    costs = Costs(step=1.0, selection=7.0, callbacks={"a": 2.0}, checkpoint=0.25)
    calendar = Calendar(5, selects=lambda epoch: epoch == 1, due=lambda epoch, last: ["a"] if last else [])
    epochs = -(-steps // 5)
    assert costs.total(steps, calendar) == {
        "training": steps,
        "selection": 7.0 if epochs > 1 else 0.0,
        "validation": 2.0,
        "checkpoint": 0.25 * epochs,
    }


def test_the_evaluation_takes_what_its_passes_take():
    recipe = load("digits_mart")
    pgd, autoattack = recipe.evaluation.build(recipe.threat).values()
    assert pgd.passes(10, (32, 32)) == pgd.config.steps * pgd.config.restarts * len(pgd.config.radii)
    # APGD-CE, APGD-T and FAB-T on nine targets, of 100 iterations, and 5000 queries of Square.
    assert autoattack.passes(10, (32, 32)) == pytest.approx(100 * (1 + 9 + 9) + 5000 / 3)
