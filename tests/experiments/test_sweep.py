"""Grids of runs: every combination once, under a name of its own."""

from __future__ import annotations

import pytest
from support.cases import cases

from robustcords.errors import UserError
from robustcords.experiments.sweep import grid


def test_every_combination_is_a_run_of_its_own():
    tasks = grid(["digits_mart"], ["seed=0,1", "selector.fraction=0.1, 0.5", "loss.beta=1"], ["train.epochs=3"])
    found = {
        task.name: (task.recipe.seed, task.recipe.selector.fraction, task.recipe.loss.beta, task.recipe.train.epochs)
        for task in tasks
    }
    assert found == {
        f"seed={seed},selector.fraction={fraction},loss.beta=1": (seed, fraction, 1.0, 3)
        for seed in (0, 1)
        for fraction in (0.1, 0.5)
    }


def test_values_may_be_tables_lists_and_strings():
    option = 'selector=false,{name = "random", fraction = 0.2}'
    tasks = grid(["digits_mart"], [option, "evaluation.checkpoints=['last'],['best', 'last']", "loss.name=sat,trades"])
    assert len(tasks) == len({task.name for task in tasks}) == 8
    assert all("/" not in task.name and len(task.name) < 200 for task in tasks)
    selectors = [task.recipe.selector and (task.recipe.selector.name, task.recipe.selector.fraction) for task in tasks]
    assert selectors == [None] * 4 + [("random", 0.2)] * 4
    assert [task.recipe.loss.name for task in tasks] == ["sat", "trades"] * 4


def test_several_recipes_go_over_the_same_grid():
    names = [task.name for task in grid(["digits_mart", "digits_trades"], ["seed=3"])]
    assert names == ["digits_mart,seed=3", "digits_trades,seed=3"]
    assert [task.name for task in grid(["digits_mart"], [])] == ["digits_mart"]


@cases(
    ("over", "message"),
    [
        (["seed"], "--over seed: expected KEY=V1,V2,..., for example --over seed=0,1,2"),
        (["seed="], "--over seed=: expected KEY=V1,V2,..., for example --over seed=0,1,2"),
        (["seed=0,,1"], "--over seed=0,,1: expected KEY=V1,V2,..., for example --over seed=0,1,2"),
        (["seed=0", "seed=1"], "--over seed: given twice; write all its values in one"),
        (["seed=1,1"], "two runs of the sweep would both be called seed=1; name each recipe and value once"),
        (["loss.beta=1,1.0"], "loss.beta=1 and loss.beta=1.0 of the sweep are the same run; name each recipe and value "
         "once"),
        ([f"{key}=" + ",".join(map(str, range(1, 101))) for key in ("seed", "train.epochs", "loss.beta", "data.path")],
         "--over: 100000000 runs; at most 10000 are made at once"),
        (["seed=" + ",".join(map(str, range(10_001)))], "--over: 10001 runs; at most 10000 are made at once"),
        (["loss.name=mart,tradess"], "--over loss.name=tradess: [loss] name = \"tradess\": unknown loss 'tradess'; did "
         "you mean 'trades'? (one of: grad_align, mart, nuat, sat, standard, trades)"),
    ],
)  # fmt: skip
def test_what_makes_no_sense_is_said_in_one_line(over: list[str], message: str):
    with pytest.raises(UserError) as refused:
        grid(["digits_mart"], over)
    assert str(refused.value) == message
