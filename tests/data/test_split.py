from fractions import Fraction

import pytest
import torch
from support.cases import cases

from robustcords.data.split import sample, stratified_split, training_sample


def labels_with(counts):
    labels = torch.repeat_interleave(torch.arange(len(counts)), torch.tensor(counts))
    return labels[torch.randperm(len(labels), generator=torch.Generator().manual_seed(7))]


@cases("counts", [[50] * 10, [100, 37, 3, 2, 1], [7, 7, 7], [0, 5, 9], [1, 1, 1, 40]])
@cases("fraction", [0.0, 0.01, 0.1, 0.25, 0.5, 0.7])
def test_is_a_stratified_partition(counts, fraction):
    labels = labels_with(counts)
    train, held_out = stratified_split(labels, fraction, seed=3)
    assert torch.equal(torch.cat([train, held_out]).sort().values, torch.arange(len(labels)))
    assert torch.equal(train, train.sort().values)
    assert torch.equal(held_out, held_out.sort().values)
    assert train.dtype == held_out.dtype == torch.int64
    assert len(held_out) == round(fraction * len(labels))
    kept = labels[train].bincount(minlength=len(counts))
    for count, left in zip(counts, kept.tolist(), strict=True):
        quota = Fraction(count * len(held_out), len(labels))
        if count >= 2:
            assert left >= 1
            # Within one of the exact share, and one more where classes of one example are passed over.
            assert abs(count - left - quota) < 2


def test_largest_remainders_get_the_rest():
    # Quotas for 5 of 20: 2.25, 1.75, 1.0; the one left over goes to the second class.
    _, held_out = stratified_split(labels_with([9, 7, 4]), 0.25, seed=0)
    assert labels_with([9, 7, 4])[held_out].bincount().tolist() == [2, 2, 1]


def test_a_fraction_near_one_leaves_an_example_of_every_class():
    labels = labels_with([10, 5, 2])
    train, held_out = stratified_split(labels, 0.99, seed=0)
    assert labels[train].bincount().tolist() == [1, 1, 1]
    assert len(held_out) == 14


def test_depends_on_the_seed_alone():
    labels = labels_with([100] * 5)
    before = torch.random.get_rng_state()
    first, again, other = (stratified_split(labels, 0.2, seed)[1] for seed in (1, 1, 2))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert torch.equal(before, torch.random.get_rng_state())


def test_every_example_is_held_out_by_some_seed():
    labels = labels_with([6, 6])
    seen = torch.cat([stratified_split(labels, 0.25, seed)[1] for seed in range(60)])
    assert seen.unique().numel() == 12


@cases("fraction", [-0.1, 1.0, float("nan")])
def test_refuses_impossible_fractions(fraction):
    with pytest.raises(ValueError, match="outside"):
        stratified_split(torch.zeros(3, dtype=torch.int64), fraction, seed=0)


def test_a_sample_of_everything_is_everything():
    labels = labels_with([5, 3])
    for limit in (0, 8, 100):
        rows, kind = sample(labels, limit)
        assert (rows.tolist(), kind) == (list(range(8)), "all")


@pytest.mark.parametrize("labels", [labels_with([40] * 5), torch.arange(200) % 5], ids=["random", "in turn"])
def test_the_first_are_taken_of_a_set_in_random_order(labels):
    rows, kind = sample(labels, 50)
    assert (rows.tolist(), kind) == (list(range(50)), "first")


@cases("limit", [3, 7, 20, 59])
@cases("counts", [[20, 20, 20], [50, 8, 2], [30, 0, 30]])
def test_of_class_folders_every_class_has_its_share(counts, limit):
    labels = torch.repeat_interleave(torch.arange(len(counts)), torch.tensor(counts))
    rows, kind = sample(labels, limit)
    assert kind == "stratified"
    assert len(rows) == limit == rows.unique().numel()
    assert torch.equal(rows, rows.sort().values)
    found = labels[rows].bincount(minlength=len(counts)).tolist()
    for count, taken in zip(counts, found, strict=True):
        assert taken >= min(count, 1)
        assert abs(taken - Fraction(count * limit, sum(counts))) < 2
    if limit < 40:
        assert rows.tolist() != list(range(limit))


def test_a_class_that_the_first_lack_and_folders_read_twice_make_a_sample():
    rare = torch.cat([labels_with([60, 40]), torch.full((2,), 2)])
    assert sample(rare, 30)[1] == "stratified"
    assert 2 in rare[sample(rare, 30)[0]]
    halves = torch.cat([torch.repeat_interleave(torch.arange(3), 10)] * 2)
    assert sample(halves, 45)[1] == "stratified", "the first 45 have every class, and not in proportion"


def test_fewer_images_than_classes_are_of_different_classes():
    labels = torch.repeat_interleave(torch.arange(10), 6)
    assert labels[sample(labels, 4)[0]].unique().numel() == 4


def test_a_sample_is_the_same_every_time_and_draws_from_no_global_generator():
    labels = torch.repeat_interleave(torch.arange(4), 25)
    before = torch.random.get_rng_state()
    assert torch.equal(sample(labels, 30)[0], sample(labels, 30)[0])
    assert torch.equal(before, torch.random.get_rng_state())


def test_a_training_sample_is_of_all_classes_in_proportion_and_of_the_seed():
    labels = torch.tensor([0] * 60 + [1] * 30 + [2] * 9 + [3])
    rows = training_sample(labels, 20, seed=0)
    assert labels[rows].bincount().tolist() == [11, 6, 2, 1]  # one each; of 16 more 9.8, 4.8, 1.3 and none
    assert rows.tolist() == sorted(set(rows.tolist()))
    assert torch.equal(rows, training_sample(labels, 20, seed=0))
    assert not torch.equal(rows, training_sample(labels, 20, seed=1))
    assert training_sample(labels, 0, seed=0).tolist() == list(range(100))
    assert len(training_sample(labels, 1000, seed=0)) == 100
