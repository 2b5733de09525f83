"""Strategies that learn from the losses of training: what they are told, on how many processes, resumed or not."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from support.ranks import joined
from support.small_run import After, chooser, fitted, made_up, network
from torch.nn import functional as F

from robustcords.errors import Interrupted, UserError
from robustcords.selection.observer import Observer
from robustcords.storage.run_directory import RunDirectory

EPOCHS = 4


def options(run: Path | None = None, **changes: Any) -> dict[str, Any]:
    """A run that two processes can share, with a selection before each of its epochs."""
    return {
        "loss": "standard",
        "selector": chooser("infobatch", loss="standard", epochs=EPOCHS, fraction=1.0, anneal=0.25),
        "settings": {"epochs": EPOCHS, "batch_size": 12, "accumulation": 2},
        "run": run,
        **changes,
    }


def reference() -> torch.Tensor:
    """The loss of every example under the initial weights, in float64."""
    x, y = made_up().batch(torch.arange(len(made_up())))
    return F.cross_entropy(network().double()(x.double()), y, reduction="none").detach()


def test_the_losses_of_training_are_those_of_the_examples():
    """With a rate of 0 the weights stay, so each loss is that of the initial ones."""
    done = fitted(**options(), lr=0.0)
    torch.testing.assert_close(done.selector.observer.losses.double(), reference(), rtol=1e-5, atol=1e-6)


def test_the_normaliser_is_that_of_the_epoch(tmp_path: Path):
    done = fitted(**options(tmp_path / "run"), lr=0.0)
    losses, rows = reference(), RunDirectory(tmp_path / "run").rows()
    sizes = [row["subset_size"] for row in rows]
    assert sizes[0] == sizes[3] == len(losses) > max(sizes[1:3])
    for epoch in (1, 2):
        with (tmp_path / "run" / "selections" / f"epoch_{epoch:04d}.npz").open("rb") as file:
            chosen = np.load(file)
            indices, weights = torch.from_numpy(chosen["indices"]), torch.from_numpy(chosen["weights"]).double()
        mean = (weights * losses[indices]).sum() / weights.sum()
        assert rows[epoch]["train_loss"] == pytest.approx(float(mean), rel=1e-5)
        assert rows[epoch]["selection"]["effective_size"] == pytest.approx(
            float(weights.sum() ** 2 / weights.square().sum())
        )
    subset = done.selector.current
    assert subset.normaliser == 1.0
    doubled = type(subset)(subset.indices, 2 * subset.weights, normaliser=1.5)
    assert (doubled.total(torch.arange(4)), type(subset)(*vars(doubled).values()).total(torch.arange(2))) == (6.0, 3.0)


def part(rank: int, folder: Path) -> None:
    done = fitted(**options(folder / "several"))
    save_file({"losses": done.selector.observer.losses}, folder / f"{rank}.safetensors")


def test_all_processes_are_told_the_losses_of_the_global_batch(tmp_path: Path):
    joined(part, 2, tmp_path)
    alone = fitted(**options(tmp_path / "alone"))
    found = [load_file(tmp_path / f"{rank}.safetensors")["losses"] for rank in range(2)]
    assert torch.equal(*found)
    torch.testing.assert_close(found[0], alone.selector.observer.losses, rtol=1e-4, atol=1e-5)
    selections = [sorted((tmp_path / run / "selections").iterdir()) for run in ("alone", "several")]
    assert [path.read_bytes() for path in selections[0]] == [path.read_bytes() for path in selections[1]]


@pytest.mark.parametrize("looks", [2, 9])
def test_a_resumed_run_is_the_uninterrupted_one_to_the_bit(looks: int, tmp_path: Path):
    whole = fitted(**options(tmp_path / "whole"))
    with pytest.raises(Interrupted):
        fitted(**options(tmp_path / "parts"), interruption=After(looks))
    again = fitted(**options(tmp_path / "parts"))
    assert torch.equal(whole.selector.observer.losses, again.selector.observer.losses)
    files = sorted(path.relative_to(tmp_path / "whole") for path in (tmp_path / "whole").glob("[sw]*/*"))
    assert len(files) == EPOCHS + 1
    for file in files:
        assert (tmp_path / "whole" / file).read_bytes() == (tmp_path / "parts" / file).read_bytes(), file


class Forgetful(Observer):
    """Keeps what a checkpoint cannot."""

    def observe(self, rows: torch.Tensor, losses: torch.Tensor) -> None: ...

    def state_dict(self) -> dict[str, Any]:
        return {"seen": {1}}

    def load_state_dict(self, state: dict[str, Any]) -> None: ...


def test_an_observer_that_cannot_be_kept_is_one_line():
    selector = chooser("infobatch", fraction=1.0)
    selector.observer = Forgetful(9)
    with pytest.raises(UserError, match=r"^selector 'infobatch': its observer: state_dict: /seen: a checkpoint cannot"):
        selector.check(network())
