"""What a key of ``[train]`` means for resuming a run, and for comparing it with others."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, cast

import pytest
from support.cases import cases

from robustcords.config.schema import Role, roles
from robustcords.experiments.run import differing_keys, plain
from robustcords.recipe.recipe import load
from robustcords.recipe.roles import role_of
from robustcords.report.grouping import group, method_of
from robustcords.report.runs import Run
from robustcords.training.config import TrainConfig

OTHER = {
    "epochs": 3,
    "steps": 40,
    "budget": '"5 min"',
    "batch_size": 32,
    "accumulation": 2,
    "precision": "bf16",
    "compile": True,
    "cuda_graphs": False,
    "memory_format": "contiguous",
    "validate_every": 3,
    "checkpoint_every": "10 min",
    "keep_checkpoints": 7,
    "time_limit": "1 h",
    "sync_batchnorm": True,
    "shuffle_window": 200,
    "clip_gradient": 1.0,
    "averaging": True,
}
"""Another value of every key."""
METHOD = {"epochs", "steps", "budget", "batch_size", "accumulation", "validate_every", "clip_gradient", "averaging"} | {
    "sync_batchnorm",
    "shuffle_window",
}
COMPUTATION = {"precision", "compile", "cuda_graphs", "memory_format"}
RESUMED_WITH = {"checkpoint_every", "compile", "cuda_graphs", "keep_checkpoints", "memory_format", "time_limit"}

USUAL = ("train.precision=fp32", "train.memory_format=channels_last")


def run(*changes: str) -> Run:
    tables = plain(load("digits_mart", [*USUAL, *changes]))
    return cast("Run", SimpleNamespace(recipe=SimpleNamespace(tables=tables), seed=0))


def test_the_tables_name_every_key():
    assert OTHER.keys() == TrainConfig.model_fields.keys()


@cases("key", OTHER)
def test_a_run_is_resumed_with_another_value_where_that_changes_nothing(key: str):
    text = str(OTHER[key]).lower()
    own, other = (load("digits_mart", [*USUAL, *changes]) for changes in ([], [f"train.{key}={text}"]))
    refused = differing_keys(own, other)
    assert bool(refused) == (key not in RESUMED_WITH), refused
    assert all(each.startswith(f"train.{key}") for each in refused if each != "train.epochs")


@cases("key", OTHER)
def test_runs_that_differ_in_it_are_of_two_methods_or_of_one(key: str):
    text = str(OTHER[key]).lower()
    runs = [run(), run(f"train.{key}={text}")]
    assert (method_of(runs[0]) != method_of(runs[1])) == (key in METHOD)
    # The same seed in two ways of computing is told apart; the same seed twice is one run.
    assert len(group(runs)) == (2 if key in METHOD | COMPUTATION else 1)


def test_a_key_that_says_nothing_is_of_the_method_for_good():
    class Wider(TrainConfig):
        added: Any = None

    assert roles(Wider) == {**roles(TrainConfig), "added": Role("method", changeable=False)}


@cases(
    ("key", "role"),
    {
        "data.path": Role("repetition", changeable=True),
        "data.workers": Role("computation", changeable=True),
        "data.train_limit": Role("method"),
        "logging.trackers": Role("record", changeable=True),
        "seed": Role("repetition"),
        "evaluation.pgd.steps": Role("record"),
        "train.averaging.kind": Role("method"),
        "loss.beta": Role("method"),
    }.items(),
)
def test_keys_of_every_table_have_a_role(key: str, role: Role):
    assert role_of(key) == role


@pytest.mark.parametrize("change", ["callbacks.dynamics=true", "callbacks.overfitting=false"])
def test_callbacks_are_no_part_of_the_method_but_of_the_run(change: str):
    assert method_of(run()) == method_of(run(change))
    assert differing_keys(load("digits_mart"), load("digits_mart", [change]))[0].startswith("callbacks.")
