"""The tables of ``evaluation.attacks``, as deep as an attack's options go."""

from __future__ import annotations

import tomllib
from typing import Any

import pytest
from support.cases import cases

from robustcords.config.schema import Table
from robustcords.errors import UserError
from robustcords.evaluation.attacks.base import EvaluationAttack, EvaluationAttackConfig, Radii
from robustcords.recipe.recipe import dump, load, parse


class Shares(Table):
    """An option that is a table; its name is that of a table that ``true`` switches on elsewhere."""

    selector: bool = False


class Deep(EvaluationAttack):
    """Has an option that is a table."""

    class Config(EvaluationAttackConfig):
        shares: Shares = Shares()
        epsilons: Radii | None = None

    def attack_batch(self, model: Any, x: Any, y: Any, noise: Any, threat: Any) -> Any:
        return x


def loaded(entry: str) -> Any:
    return load("digits_mart", [f"evaluation.attacks=[{{name = '{__name__}:Deep'{entry}}}]"])


def test_an_option_may_be_a_table():
    recipe = loaded(", shares = {selector = true}")
    assert recipe.evaluation.attacks[0].options.shares == Shares(selector=True)
    assert parse(tomllib.loads(dump(recipe))) == recipe


@cases(
    ("entry", "message"),
    [
        (", shares = {selektor = true}", "unknown key \"selektor\"; did you mean 'selector'"),
        (", shares = {selector = 3}", "shares.selector = 3: must be true or false"),
        (", shares = 3", "shares = 3: must be a table"),
        (", options = {epsilons = [0.1]}", 'unknown key "options"'),
    ],
)
def test_what_is_wrong_in_one_is_said(entry: str, message: str):
    with pytest.raises(UserError) as refused:
        loaded(entry)
    assert message in str(refused.value)
