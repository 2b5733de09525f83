"""Two processes do what one does, also started by Accelerate's launcher."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from command_line import ROOT, call, launched, settings
from digits_run import TINY, check_close
from ranks import ended, said, start


def test_a_shipped_recipe_trains_selects_evaluates_and_reports(tmp_path: Path):
    options = settings(
        model__width=4,
        model__depths="[1]",
        attack__steps=2,
        selector__select_every=1,
        train__epochs=2,
        train__precision="fp32",
        evaluation__limit=8,
        evaluation__pgd__steps=2,
        evaluation__pgd__restarts=1,
        evaluation__autoattack="{limit = 2, epsilons = [1.0]}",
    )
    out, err = launched(tmp_path, str(ROOT / "recipes" / "digits_mart.toml"), *options)
    run = tmp_path / "runs" / "digits_mart"
    report = json.loads((run / "report.json").read_text())
    assert report["environment"]["world_size"] == 2
    assert report["training"]["epochs"] == 2
    assert report["training"]["selections"] == [{"epoch": 0, "size": 364}, {"epoch": 1, "size": 364}]
    assert report["evaluation"]["last"]["examples"] == 8
    assert report["evaluation"]["last"]["autoattack_examples"] == 2
    assert 0 <= report["evaluation"]["last"]["autoattack"]["1.0"] <= report["evaluation"]["last"]["clean"] <= 1
    assert len((run / "metrics.jsonl").read_text().splitlines()) == 2
    assert not (tmp_path / "runs" / "digits_mart-2").exists()
    assert out.count(": accuracy in percent") == out.count("runs/digits_mart") == 1
    assert err.count("epoch 1/2") == err.count("epoch 2/2") == 1


def test_the_weights_are_those_of_one_process(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    (tmp_path / "tinynet.py").write_text(TINY)
    options = [
        "digits_mart",
        *settings(
            model__name="tinynet:TinyNet",
            selector__select_first="true",
            train__epochs=2,
            train__accumulation=2,
            train__averaging__kind="ema",
            train__averaging__decay=0.5,
            train__clip_gradient=1.0,
            train__precision="fp32",
            train__validate_every=1,
            evaluation__limit=50,
            evaluation__pgd="{steps = 5, restarts = 2, step_size = 0.05, epsilons = [0.1]}",
            evaluation__autoattack="false",
        ),
    ]
    two = start(2, tmp_path, ["run", *options, "--output", "two"])
    assert ended(two, within=120) == [0, 0], said(tmp_path, 0)
    assert json.loads((tmp_path / "two" / "environment.json").read_text())["world_size"] == 2
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.chdir(tmp_path)
    assert call(capsys, "run", *options, "--output", "one").status == 0
    check_close(Path("one"), Path("two"))
