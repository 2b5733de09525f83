"""Catastrophic overfitting: seen where it is, not where it is not, and on a run that really does it."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console
from support.command_line import call, settings
from support.small_run import epoch_end
from torch import nn

from robustcords.errors import RunError
from robustcords.runtime.progress import Display
from robustcords.training.callbacks import overfitting
from robustcords.training.callbacks.overfitting import OverfittingProbe

RISES = [(0.3, 0.2), (0.5, 0.3), (0.6, 0.4)]


def probe(monkeypatch: pytest.MonkeyPatch, action: Any) -> tuple[OverfittingProbe, Any, io.StringIO]:
    """Returns a probe, a function that lets it look at given accuracies, and what it says."""
    said = io.StringIO()
    made = OverfittingProbe(range(128), "training", "pgd", action=action)  # type: ignore[arg-type]
    found: dict[str, float] = {}
    monkeypatch.setattr(overfitting, "robust_accuracy", lambda model, images, attack, **_: (1.0, found[attack]))

    def look(epoch: int, training: float, pgd: float) -> dict[str, float]:
        found.update(training=training, pgd=pgd)
        return made.after_epoch(epoch_end(nn.Identity(), epoch, display=Display(console=Console(file=said, width=200))))

    return made, look, said


def test_a_collapse_is_told_once(monkeypatch: pytest.MonkeyPatch):
    _, look, said = probe(monkeypatch, "warn")
    for epoch, (training, pgd) in enumerate([*RISES, (0.9, 0.1), (0.95, 0.0)]):
        assert look(epoch, training, pgd) == {"training": training, "pgd": pgd}
    assert said.getvalue() == (
        "warning: catastrophic overfitting in epoch 4: of 128 training images 90% withstand the training attack and "
        "10% PGD-10 (at best 40%); use more attack steps, attack n_fgsm, loss grad_align or a smaller radius\n"
    )


def test_or_ends_the_run(monkeypatch: pytest.MonkeyPatch):
    _, look, _ = probe(monkeypatch, "stop")
    look(0, *RISES[2])
    with pytest.raises(RunError, match=r"^catastrophic overfitting in epoch 2: "):
        look(1, 0.9, 0.2)


def test_robustness_that_never_was_is_told_too(monkeypatch: pytest.MonkeyPatch):
    _, look, said = probe(monkeypatch, "warn")
    look(0, 0.4, 0.0)
    assert said.getvalue() == ""
    look(1, 0.8, 0.0)
    assert "80% withstand the training attack and 0% PGD-10 (at best 0%)" in said.getvalue()


@pytest.mark.parametrize("then", [(0.65, 0.21), (0.1, 0.05)], ids=["robustness halves not", "both fall"])
def test_what_is_no_collapse(monkeypatch: pytest.MonkeyPatch, then: tuple[float, float]):
    _, look, said = probe(monkeypatch, "stop")
    for epoch, pair in enumerate([*RISES, then]):
        look(epoch, *pair)
    assert said.getvalue() == ""


def test_it_goes_on_from_a_checkpoint(monkeypatch: pytest.MonkeyPatch):
    first, look, _ = probe(monkeypatch, "stop")
    look(0, *RISES[2])
    second, look, _ = probe(monkeypatch, "stop")
    second.load_state_dict(first.state_dict())
    with pytest.raises(RunError):
        look(1, 0.9, 0.2)


def test_only_weak_attacks_are_looked_at(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any):
    monkeypatch.chdir(tmp_path)
    small = settings(
        data__train_limit=240,
        train__epochs=1,
        train__batch_size=33,
        model__width=2,
        model__depths="[1]",
        bullet="false",
        evaluation__pgd="false",
        evaluation__autoattack="false",
    )
    for name, change in {
        "weak": "attack.name=fgsm",
        "strong": "attack.steps=10",
        "off": "callbacks.overfitting=false",
        "weakened": "bullet={steps = {boundary = 2, robust = 1}}",
    }.items():
        more = ["--set", change] + (["--set", "attack.name=fgsm"] if name == "off" else [])
        assert call(capsys, "run", "digits_mart", *small, *more, "--output", name).status == 0
        row = json.loads((Path(name) / "metrics.jsonl").read_text().splitlines()[0])
        assert ("probe" in row) == name.startswith("weak")


def test_a_run_that_overfits_is_stopped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any):
    """One step from the image itself, far shorter than the radius."""
    monkeypatch.chdir(tmp_path)
    attack = {"attack__name": "fgsm", "attack__random_start": "none", "attack__step_size": 0.0375}
    attack["threat__epsilon"] = 0.25
    whole = settings(
        **attack, loss__name="sat", bullet="false", selector="false", callbacks__overfitting__action="stop"
    )
    answer = call(capsys, "run", "digits_mart", *whole, *settings(train__precision="fp32"), "--output", "run")
    assert answer.status == 1
    assert "catastrophic overfitting in epoch " in answer.err.splitlines()[-1]
    rows = [json.loads(line) for line in Path("run/metrics.jsonl").read_text().splitlines()]
    assert all(row["probe"]["training"] < 0.5 or row["probe"]["pgd"] > 0.05 for row in rows)
    assert len(rows) < 30
