"""Recipes that tests write, and the one line that says what is wrong with one."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from robustcords.errors import UserError
from robustcords.recipe import recipe

Write = Callable[..., str]

BASE = 'data.name = "digits"\nmodel.name = "resnet8"\n'
GLISTER = '[selector]\nname = "adv-glister"\nfraction = 0.3\nselect_every = 7\n'
_FIRST = "attack, augmentation, awp, bullet, callbacks, data, effort, evaluation, logging, loss, method"
TABLES = f"{_FIRST}, model, optimizer, schedule, seed, selector, threat, train"


def message(source: str, *overrides: str) -> str:
    """Returns what loading a recipe is refused with."""
    with pytest.raises(UserError) as caught:
        recipe.load(source, overrides)
    text = str(caught.value)
    assert len(text.splitlines()) == 1
    return text
