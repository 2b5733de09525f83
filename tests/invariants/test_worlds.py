"""A run goes on with another number of processes than it began with."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from support.ranks import joined
from support.small_run import After, chooser, fitted, made_up, network
from torch import Tensor, nn

from robustcords.errors import Interrupted
from robustcords.methods.efforts.bullet import Bullet
from robustcords.storage.run_directory import RunDirectory
from robustcords.training.config import AveragingConfig


class AfterSteps(After):
    """Is looked at once a step; selections and validations are not stopped."""

    def check(self) -> None:
        pass


class PartlyUsed(nn.Module):
    """Has a parameter that no step uses, and one that some processes use in some steps."""

    def __init__(self) -> None:
        super().__init__()
        self.unused, self.sometimes = nn.Parameter(torch.ones(2)), nn.Parameter(torch.ones(3))
        self.inner = network()

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.inner(x)
        return logits + 0 * self.sometimes if x[0].mean() > 0.5 else logits


def options(run: Path) -> dict[str, Any]:
    """Returns a run without BatchNorm, whose batches one, two and three processes can share."""
    return {
        "model": PartlyUsed(),
        "loss": "mart",
        "effort": Bullet,
        "selector": chooser("adv-glister", loss="mart", select_first=True),
        "validation": made_up(12, seed=1),
        "settings": {"batch_size": 12, "accumulation": 2, "averaging": AveragingConfig(), "validate_every": 1},
        "run": run,
    }


def part(_: int, folder: Path, looks: int) -> None:
    """Goes on with the run until it has gone on after so many steps."""
    with pytest.raises(Interrupted):
        fitted(**options(folder / "parts"), interruption=AfterSteps(looks))


@pytest.mark.parametrize("parts", [[(3, 1), (2, 2)], [(1, 2), (3, 1)]])
def test_a_run_goes_on_with_other_processes(parts: list[tuple[int, int]], tmp_path: Path):
    (tmp_path / "parts").mkdir()
    steps = []
    for world, looks in parts:
        joined(part, world, tmp_path, looks)
        steps.append(RunDirectory(tmp_path / "parts").checkpoints.latest()[1]["progress"]["steps"])
    fitted(**options(tmp_path / "parts"))
    whole = fitted(**options(tmp_path / "whole"))
    assert 0 < steps[0] < steps[1] < whole.progress.steps
    one, other = (load_file(tmp_path / run / "weights" / "last.safetensors") for run in ("whole", "parts"))
    for name in one:
        torch.testing.assert_close(one[name], other[name], rtol=1e-4, atol=1e-6)
    first, second = (RunDirectory(tmp_path / run).rows() for run in ("whole", "parts"))
    for row, again in zip(first, second, strict=True):
        assert row["train_loss"] == pytest.approx(again["train_loss"], rel=1e-5)
        assert (row["counts"], row["validation"]) == (again["counts"], again["validation"])
    selections = [sorted((tmp_path / run / "selections").iterdir()) for run in ("whole", "parts")]
    assert [path.read_bytes() for path in selections[0]] == [path.read_bytes() for path in selections[1]]
