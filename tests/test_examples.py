"""The examples in docstrings of what is public run, and what they show is what comes out."""

from __future__ import annotations

import doctest
import inspect
from typing import Any

import pytest
import torch
from support.cases import cases
from support.small_run import made_up, network

import robustcords
from robustcords.runtime.accelerator import start
from robustcords.runtime.progress import Display

EXAMPLES = {
    name: test
    for name in robustcords.__all__
    if inspect.isclass(found := getattr(robustcords, name))
    if (test := doctest.DocTestParser().get_doctest(inspect.getdoc(found) or "", {}, name, None, 0)).examples
}


def around() -> dict[str, Any]:
    """Returns the public names, and what examples take for granted."""
    train, held_out, test = made_up(), made_up(12, seed=1), made_up(6, seed=2)
    x, y = train.batch(torch.arange(4))
    threat, loss = robustcords.ThreatModel(), robustcords.SAT()
    names = {name: getattr(robustcords, name) for name in robustcords.__all__}
    data = {"train": train, "held_out": held_out, "test": test, "x": x, "y": y, "numbers": torch.arange(4)}
    parts = {"threat": threat, "loss": loss, "attack": robustcords.PGD(threat), "model": network()}
    others = {"seed": 0, "epoch": 0, "torch": torch, "start": start, "Display": Display}
    return {**names, **data, **parts, **others, "noise": robustcords.Noise(0, torch.arange(4))}


@cases("name", EXAMPLES)
def test_an_example_runs(name: str, capsys: pytest.CaptureFixture[str]):
    EXAMPLES[name].globs.update(around())
    failed = doctest.DocTestRunner().run(EXAMPLES[name]).failed
    assert not failed, capsys.readouterr().out
