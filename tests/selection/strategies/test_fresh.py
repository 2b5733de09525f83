"""Fresh random subsets: one permutation after another, consumed slice by slice."""

from __future__ import annotations

import pytest
import torch
from pydantic import ValidationError
from support.cases import cases
from torch import nn

from robustcords.attacks.pgd import PGD
from robustcords.data.images import ImageSet
from robustcords.losses.sat import SAT
from robustcords.selection.selector import SubsetSelector
from robustcords.selection.strategies.random import RandomSubset
from robustcords.threats.base import ThreatModel


def selector(size: int, fraction: float, seed: int = 0) -> SubsetSelector:
    images = ImageSet(torch.zeros((size, 1, 2, 2)), torch.arange(size) % 3, ("a", "b", "c"))
    config = RandomSubset.Config(fraction=fraction, fresh=True)
    attack = PGD(ThreatModel())
    return SubsetSelector(RandomSubset, config).bind(images, loss=SAT(), attack=attack, epochs=50, seed=seed)


MODEL = nn.Sequential(nn.Flatten(), nn.Linear(4, 3))


@cases(("size", "fraction"), [(20, 0.3), (20, 0.5), (21, 0.4), (7, 0.9), (10, 1.0), (9, 0.12)])
def test_no_image_comes_again_before_all_have_come(size: int, fraction: float):
    chosen = selector(size, fraction)
    budget = chosen.budget
    drawn = [chosen.subset(epoch, MODEL).indices.tolist() for epoch in range(40)]
    assert all(len(set(rows)) == len(rows) == budget for rows in drawn)
    stream = [row for rows in drawn for row in rows]
    # Whatever is consumed, counts differ by one at most but for what the slice at a permutation's end put off.
    for end in range(budget, len(stream), budget):
        counts = torch.tensor(stream[:end]).bincount(minlength=size)
        assert int(counts.max() - counts.min()) <= 1 + (budget > size - budget)
    whole = len(stream) // size * size
    if budget * 2 <= size:
        for start in range(0, whole, size):
            assert sorted(stream[start : start + size]) == list(range(size))
    assert all(chosen.subset(0, MODEL).weights == 1)


def test_another_epoch_and_another_seed_have_others():
    first, other = selector(30, 0.3), selector(30, 0.3, seed=1)
    rows = [first.subset(epoch, MODEL).indices.tolist() for epoch in range(3)]
    assert rows[0] != rows[1] != rows[2]
    assert rows[0] != other.subset(0, MODEL).indices.tolist()


@cases("stop", [1, 3, 4, 7])
def test_a_resumed_run_draws_what_the_uninterrupted_one_does(stop: int):
    whole = selector(20, 0.3)
    expected = [whole.subset(epoch, MODEL).indices.tolist() for epoch in range(10)]
    begun = selector(20, 0.3)
    for epoch in range(stop):
        begun.subset(epoch, MODEL)
    resumed = selector(20, 0.3)
    resumed.load_state_dict(begun.state_dict())
    assert [resumed.subset(epoch, MODEL).indices.tolist() for epoch in range(stop, 10)] == expected[stop:]


def test_it_says_what_does_not_go_with_it():
    assert (RandomSubset.Config(fresh=True).select_every, RandomSubset.Config(fresh=True).select_first) == (1, True)
    assert RandomSubset.Config().select_every == 20
    dumped = RandomSubset.Config(fresh=True, fraction=0.2)
    assert RandomSubset.Config(**dumped.model_dump()) == dumped
    with pytest.raises(ValidationError, match="fresh = true draws in every epoch: leave select_every out"):
        RandomSubset.Config(fresh=True, select_every=20)
