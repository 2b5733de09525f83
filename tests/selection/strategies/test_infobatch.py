"""InfoBatch: what it keeps, that weights are unbiased, and that it needs no pass over the data."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from support.cases import cases
from support.small_problem import Problem
from torch import nn

from robustcords.config.registry import find
from robustcords.errors import UserError
from robustcords.recipe import recipe
from robustcords.selection.observer import LastLosses
from robustcords.selection.strategies.infobatch import InfoBatch

COUNT = 40
LOSSES = torch.rand(COUNT, generator=torch.Generator().manual_seed(3)) ** 2
PROBLEM = Problem([COUNT // 2, COUNT // 2])


class NeverAsked(nn.Module):
    """A model that no pass may go through."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        raise AssertionError("the model was asked")


def select(losses: torch.Tensor = LOSSES, *, seed: int = 0, progress: float = 0.5, **options: Any) -> Any:
    seen = LastLosses(COUNT)
    seen.observe(torch.arange(COUNT), losses)
    context = PROBLEM.context(seed=seed, progress=progress, observer=seen, model=NeverAsked())
    rows, weights = InfoBatch.from_context(InfoBatch.Config(**options), context).select(COUNT, None)
    return np.array(rows), weights.numpy()


@cases("prune", [0.0, 0.3, 0.5, 0.9])
def test_only_what_is_below_the_mean_is_left_out_and_what_is_kept_of_it_counts_more(prune: float):
    rows, weights = select(prune=prune)
    learned = np.flatnonzero(LOSSES.double().numpy() < LOSSES.double().numpy().mean())
    others = np.setdiff1d(np.arange(COUNT), learned)
    assert set(others) <= set(rows)
    assert (np.diff(rows) > 0).all()
    expected = np.where(np.isin(rows, learned), 1 / (1 - prune), 1.0)
    np.testing.assert_allclose(weights, expected, rtol=1e-6)
    assert (len(rows) < COUNT) == (prune > 0)


def test_the_expected_weight_of_every_example_is_1():
    draws, total = 600, np.zeros(COUNT)
    for seed in range(draws):
        rows, weights = select(seed=seed)
        total[rows] += weights
    # An example's weight is 0 or 2: one standard error of its mean is draws ** -0.5.
    assert np.abs(total / draws - 1).max() < 4 * draws**-0.5
    assert abs(total.mean() / draws - 1) < 4 * (draws * COUNT) ** -0.5


@cases(("progress", "everything"), [(0.0, False), (0.874, False), (0.875, True), (0.99, True)])
def test_the_last_eighth_of_the_epochs_trains_on_everything(progress: float, everything: bool):
    rows, weights = select(progress=progress)
    assert (len(rows) == COUNT) == everything
    assert (weights == 1).all() == everything


def test_what_no_step_has_seen_is_kept_and_is_in_no_mean():
    losses = LOSSES.clone()
    losses[::2] = torch.nan
    rows, _ = select(losses, prune=0.99)
    known = LOSSES[1::2].mean()
    assert set(range(0, COUNT, 2)) <= set(rows)
    assert {row for row in range(1, COUNT, 2) if LOSSES[row] >= known} <= set(rows)
    assert len(rows) < COUNT
    assert len(select(torch.full((COUNT,), torch.nan))[0]) == COUNT


def test_another_selection_draws_others_and_the_same_one_the_same():
    assert select(seed=1)[0].tolist() == select(seed=1)[0].tolist() != select(seed=2)[0].tolist()


def test_the_draw_is_keyed_by_the_example():
    """An example keeps its fate where others are held out."""
    context = Problem([COUNT // 2, COUNT // 2]).context(observer=LastLosses(COUNT), progress=0.1)
    images = context.train_loader.dataset
    rows, _ = select(seed=5)
    held_out = images.subset(torch.arange(10, COUNT))
    seen = LastLosses(COUNT - 10)
    seen.observe(torch.arange(COUNT - 10), LOSSES[10:])
    loader = torch.utils.data.DataLoader(held_out, batch_size=16)
    part = replace(context, train_loader=loader, observer=seen, seed=5)
    found, _ = InfoBatch.from_context(InfoBatch.Config(), part).select(COUNT - 10, None)
    below = min(LOSSES.mean(), LOSSES[10:].mean())
    learned = {row for row in range(10, COUNT) if LOSSES[row] < below}
    assert {row + 10 for row in found} & learned == set(rows.tolist()) & learned


def test_its_size_is_for_it_to_decide():
    with pytest.raises(
        UserError,
        match=r"selector.fraction=0.3: .* fraction = 0.3: the losses decide how many .*: set it to 1.0",
    ):
        recipe.load("digits_infobatch", ["selector.fraction=0.3"])
    assert find("selector", "infobatch").varies
