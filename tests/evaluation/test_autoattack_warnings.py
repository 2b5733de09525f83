"""AutoAttack's own warnings, from models that provoke them to report.json, report.md and the terminal."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from support.brief import shorten
from support.command_line import call
from support.masked_models import trained, write
from torch import Tensor, nn

from robustcords.evaluation.attacks import autoattack

RANDOMISED = "it seems to be a randomized defense!"
ZERO = "there are points with zero gradient!"
MASKED = "Square Attack lowered the accuracy by"


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        ("honest", []),
        ("randomised", [RANDOMISED]),
        ("quantised", [ZERO, MASKED]),
        pytest.param("shattered", [MASKED], marks=pytest.mark.slow),
    ],
)
def test_warnings_reach_every_report(
    kind: str,
    expected: list[str],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
):
    if kind != "shattered":  # whose images Square breaks after thousands of queries
        shorten(monkeypatch)
    monkeypatch.chdir(tmp_path)
    write(tmp_path, kind)
    line = ["evaluate", ".", "--attack", "autoattack", "--epsilon", "0.25", "--limit", "12"]
    answer = call(capsys, *line, "--output", "report.json")
    assert answer.status == 0, answer.err
    told = answer.out.splitlines()
    warnings = json.loads(Path("report.json").read_text())["evaluation"]["last"]["autoattack_warnings"]
    if kind == "randomised":  # what else is seen of such a model is up to chance
        warnings = warnings[:1]
    assert len(warnings) == len(expected)
    assert all(found.startswith(start) for found, start in zip(warnings, expected, strict=True))
    text = Path("report.md").read_text().splitlines()
    assert ("AutoAttack warns" in "".join(text)) == bool(expected)
    assert all(f"AutoAttack warns (last): {found}" in text for found in warnings)
    assert all(f"AutoAttack warns (last): {found}" in told for found in warnings)


@pytest.mark.usefixtures("brief")
def test_a_model_that_takes_gradients_accuses_no_model_after_it():
    class Dynamic(nn.Module):
        """Purifies its input by a gradient step of its own."""

        def __init__(self, inner: nn.Module) -> None:
            super().__init__()
            self.inner = inner

        def forward(self, x: Tensor) -> Tensor:
            with torch.enable_grad():
                free = x.detach().requires_grad_()
                (gradient,) = torch.autograd.grad(self.inner(free).logsumexp(1).sum(), free)
            return self.inner(x + 1e-3 * gradient)

    _, model, images = trained("honest")
    x, y = images.batch(torch.arange(3))
    settings = {"norm": "Linf", "epsilon": 0.5, "version": "standard", "seed": 0}
    assert any("dynamic defense" in text for text in autoattack.run(Dynamic(model), x, y, **settings)[1])
    assert autoattack.run(model, x, y, **settings)[1] == []
