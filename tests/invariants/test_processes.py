"""Two processes do what one does, also started by Accelerate's launcher."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from support.command_line import ROOT, Command, launched, settings
from support.digits_run import TINY, check_close
from support.ranks import ended, said, start

SMALL = settings(
    data__train_limit=240,
    selector__select_first="true",
    selector__select_every=1,
    train__epochs=2,
    train__batch_size=33,
    train__accumulation=2,
    train__averaging__kind="ema",
    train__averaging__decay=0.5,
    train__clip_gradient=1.0,
    train__precision="fp32",
    train__validate_every=1,
    evaluation__limit=20,
    evaluation__pgd="{steps = 5, restarts = 2, step_size = 0.05, epsilons = [0.1]}",
    evaluation__autoattack="{limit = 2, epsilons = [1.0]}",
)


def check_run(run: Path, out: str, err: str) -> None:
    """Two processes have trained, selected and evaluated, and one of them has said so."""
    report = json.loads((run / "report.json").read_text())
    assert report["environment"]["world_size"] == 2
    assert report["training"]["epochs"] == 2
    assert report["training"]["selections"] == [{"epoch": 0, "size": 65}, {"epoch": 1, "size": 65}]
    assert report["evaluation"]["last"]["examples"] == 20
    assert report["evaluation"]["last"]["autoattack_examples"] == 2
    assert 0 <= report["evaluation"]["last"]["autoattack"]["1.0"] <= report["evaluation"]["last"]["clean"] <= 1
    assert len((run / "metrics.jsonl").read_text().splitlines()) == 2
    assert [path.name for path in run.parent.glob(f"{run.name}*")] == [run.name]
    assert out.count(": accuracy in percent") == out.count(run.name) == 1
    assert err.count("epoch 1/2") == err.count("epoch 2/2") == 1


def test_the_weights_are_those_of_one_process(tmp_path: Path, command: Command):
    (tmp_path / "tinynet.py").write_text(TINY)
    options = ["digits_mart", *SMALL, *settings(model__name="tinynet:TinyNet")]
    two = start(2, tmp_path, ["run", *options, "--output", "twofold"])
    assert ended(two, within=120) == [0, 0], said(tmp_path, 0)
    out, err = ("\n".join(line for rank in range(2) for line in said(tmp_path, rank, what)) for what in ("out", "err"))
    check_run(tmp_path / "twofold", out, err)
    assert command("run", *options, "--output", "one").status == 0
    check_close(Path("one"), Path("twofold"))


@pytest.mark.slow
def test_accelerates_launcher_starts_a_shipped_recipe(tmp_path: Path):
    options = settings(model__width=4, model__depths="[1]", attack__steps=2)
    out, err = launched(tmp_path, str(ROOT / "recipes" / "digits_mart.toml"), *SMALL, *options)
    check_run(tmp_path / "runs" / "digits_mart", out, err)
