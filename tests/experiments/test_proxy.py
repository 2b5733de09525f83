"""A recipe's proxy: trained before the run, kept in its directory, resumed, counted as selection."""

from __future__ import annotations

import json
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support.command_line import SMALL, Command, settings
from support.written import Write, message

from robustcords.errors import Interrupted
from robustcords.training.trainer import Trainer

QUICK = [
    *SMALL,
    *settings(selector__proxy__epochs=2, selector__proxy__model__width=4, model__width=6, train__batch_size=40),
]


def lines(file: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in Path(file).read_text().splitlines()]


def test_a_proxy_is_trained_first_and_selects_and_is_resumed(command: Command, monkeypatch: pytest.MonkeyPatch):
    assert command("run", "digits_proxy", *QUICK, "--output", "whole").status == 0
    rows = [lines(file) for file in ("whole/metrics.jsonl", "whole/proxy/metrics.jsonl")]
    assert [row["subset_size"] for row in rows[1]] == [216, 216]
    assert rows[0][0]["seconds"]["selection"] > sum(row["seconds"]["total"] for row in rows[1])
    assert rows[0][0]["seconds"]["total"] > rows[0][0]["seconds"]["selection"]
    assert rows[0][1]["seconds"]["selection"] < sum(row["seconds"]["total"] for row in rows[1])

    proxy = settings(selector__proxy__weights="whole/proxy/weights/last.safetensors")
    arguments = ("select", "digits_proxy", "--weights", "whole/weights/last.safetensors", "--output", "chosen.npz")
    assert command(*arguments, *QUICK, *proxy).status == 0
    chosen, first = np.load("chosen.npz"), np.load("whole/selections/epoch_0000.npz")
    assert chosen["indices"].tolist() == first["indices"].tolist()

    save, calls = Trainer.save_checkpoint, []

    def stopped(self: Trainer) -> None:
        save(self)
        calls.append(self)
        if len(calls) == 1:
            raise Interrupted(signal.SIGTERM)

    monkeypatch.setattr(Trainer, "save_checkpoint", stopped)
    assert command("run", "digits_proxy", *QUICK, "--output", "parts").status == 128 + signal.SIGTERM
    assert not Path("parts/proxy/weights/last.safetensors").exists()
    assert command("run", "digits_proxy", *QUICK, "--output", "parts", "--resume").status == 0
    files = [path.relative_to("whole") for path in sorted(Path("whole").glob("**/*.safetensors"))]
    for file in [*(file for file in files if "checkpoints" not in file.parts), Path("selections/epoch_0001.npz")]:
        assert (Path("whole") / file).read_bytes() == (Path("parts") / file).read_bytes(), file
    assert [row["epoch"] for row in lines("parts/proxy/metrics.jsonl")] == [0, 1]


def test_an_effort_that_goes_by_validations_gets_them_for_the_proxy_too(command: Command):
    options = settings(
        effort__name="curriculum", effort__most=1, effort__enough=0.01, attack__steps=1, train__validate_every=1
    )
    assert command("run", "digits_proxy", *QUICK, *options, "--output", "run").status == 0
    assert [row["counts"]["pgd-1"] > 0 for row in lines("run/proxy/metrics.jsonl")] == [False, True]


def test_what_a_proxy_cannot_be_is_one_line(command: Command, write: Write):
    answer = command("run", "digits_proxy", *QUICK, *settings(selector__name="random"))
    assert (answer.status, answer.err.splitlines()[-1]) == (
        2,
        "error: [selector.proxy]: selector 'random' uses no model; leave the table out",
    )
    answer = command("select", "digits_proxy", "--weights", "w.safetensors", "--output", "chosen.npz")
    assert "this command trains no proxy; set selector.proxy.weights to a file" in answer.err
    missing = settings(selector__proxy__weights="gone.safetensors")
    answer = command("select", "digits_proxy", *missing, "--weights", "w.safetensors", "--output", "chosen.npz")
    assert "selector.proxy.weights: gone.safetensors: there is no such file" in answer.err
    text = message(write('extends = "digits_mart"\n[selector.proxy.model]\nname = "resnet8"\n'))
    assert "[selector.proxy]" in text
    assert "epochs, to train the proxy for, or weights, a file of them, is missing" in text
