"""A proxy makes the selections of another model's training."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from support.cases import cases
from support.small_run import chooser, fitted, network
from torch import nn


class Counting(nn.Module):
    """A network that counts its passes in eval mode, as attacks and selections make them."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner, self.passes = inner, 0

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.passes += not self.training
        return self.inner(x)


def small() -> nn.Module:
    torch.manual_seed(3)
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 4), nn.ReLU(), nn.Linear(4, 3))


@cases("name", ["adv-glister", "adv-gradmatch", "loss", "rcs"])
def test_selections_are_those_that_the_proxy_would_make_of_itself(name: str):
    target = Counting(network())
    with_proxy, by_itself = chooser(name, loss="mart", proxy=small()), chooser(name, loss="mart")
    with_proxy.check(target)
    before = target.passes
    found, expected = with_proxy.select(2, target), by_itself.select(2, small())
    assert target.passes == before
    assert torch.equal(found.indices, expected.indices)
    assert torch.equal(found.weights, expected.weights)
    assert not torch.equal(found.indices, chooser(name, loss="mart").select(2, network()).indices)


def test_a_training_selects_by_its_proxy(tmp_path: Path):
    target = Counting(network())
    fitted(
        model=target,
        loss="standard",  # whose training makes no attack, so that passes in eval mode would be the selection's
        selector=chooser("adv-gradmatch", loss="standard", proxy=small(), select_first=True),
        run=tmp_path / "run",
    )
    tried = Counting(network())
    fitted(model=tried, loss="standard")
    assert target.passes == tried.passes, "the trainer and its selector check the loss once"
    expected = chooser("adv-gradmatch", loss="standard").select(0, small())
    with (tmp_path / "run" / "selections" / "epoch_0000.npz").open("rb") as file:
        assert np.load(file)["indices"].tolist() == expected.indices.tolist()
