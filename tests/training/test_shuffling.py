"""The order of an epoch, in blocks."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from robustcords.data.images import ImageSet
from robustcords.selection.selector import Subset, everything
from robustcords.training.loader import BatchLoader
from robustcords.training.shuffling import BLOCK, classes_in_a_batch, shuffled

COUNT = 40 * BLOCK
SORTED = torch.arange(COUNT) // (4 * BLOCK)  # ten classes, as class folders list them


def drawn(numbers: Tensor, window: int | None, seed: int = 0) -> Tensor:
    return shuffled(numbers, window, torch.Generator().manual_seed(seed))


def test_without_a_window_all_are_shuffled():
    for window in (None, COUNT):
        assert torch.equal(
            drawn(torch.arange(COUNT), window), torch.randperm(COUNT, generator=torch.Generator().manual_seed(0))
        )


@pytest.mark.parametrize("numbers", [torch.arange(COUNT), torch.arange(COUNT)[::3].flip(0)], ids=["all", "a subset"])
def test_every_example_comes_once_and_a_stretch_is_of_few_blocks(numbers: Tensor):
    window = 5 * BLOCK
    order = drawn(numbers, window)
    assert torch.equal(order.sort().values, torch.arange(len(numbers)))
    stretches = numbers[order].tensor_split(-(-len(numbers) // window))
    per_block = len(numbers) * BLOCK // COUNT
    most = max(len((stretch // BLOCK).unique()) for stretch in stretches)
    assert most <= window // per_block + 2
    # Shuffled in it: neighbours are no more often of one block than chance has it.
    same = [(part[1:] // BLOCK == part[:-1] // BLOCK).double().mean() for part in stretches]
    assert float(torch.stack(same).mean()) < 2 * per_block / window
    assert not torch.equal(order, drawn(numbers, window, seed=1))
    assert len({int(numbers[drawn(numbers, window, seed)[0]]) // BLOCK for seed in range(9)}) > 3


def test_the_loader_goes_by_the_rows_of_the_full_set():
    labels = torch.arange(COUNT) % 2
    images = ImageSet(torch.zeros((COUNT, 1, 1, 1), dtype=torch.uint8), labels, ("a", "b")).subset(
        torch.arange(COUNT).flip(0)
    )
    loader = BatchLoader(images, 50, seed=3, device=torch.device("cpu"), window=2 * BLOCK)
    rows = torch.arange(COUNT)[::2]
    batches = loader.order(1, Subset(rows, torch.ones(len(rows))))
    assert torch.equal(torch.cat(batches).sort().values, torch.arange(len(rows)))
    first = torch.cat(batches[:4])
    assert len((images.numbers[rows[first]] // BLOCK).unique()) <= 5
    whole = BatchLoader(images, 50, seed=3, device=torch.device("cpu"))
    assert not torch.equal(torch.cat(whole.order(1, everything(COUNT))), torch.cat(loader.order(1, everything(COUNT))))


@pytest.mark.parametrize(("labels", "cautions"), [(SORTED, 1), (torch.arange(COUNT) % 10, 0)], ids=["sorted", "mixed"])
def test_batches_of_few_classes_are_said(labels: Tensor, cautions: int):
    images = ImageSet(torch.zeros((COUNT, 1, 1, 1), dtype=torch.uint8), labels, tuple("abcdefghij"))
    told = BatchLoader(images, 50, seed=0, device=torch.device("cpu"), window=3 * BLOCK).cautions()
    assert len(told) == cautions
    assert all("train.shuffle_window = 300: a batch has images of" in text for text in told)
    assert BatchLoader(images, 50, seed=0, device=torch.device("cpu")).cautions() == []


def test_how_many_classes_a_batch_has():
    batches = [torch.arange(start, start + 16) for start in range(0, COUNT, 16)]
    assert classes_in_a_batch(SORTED, batches) == (1.0, pytest.approx(10 * (1 - 0.9**16)))
    # One batch of 32 out of ten equal classes has 10 (1 - 0.9^32) = 9.66 of them, drawn from all.
    found, expected = classes_in_a_batch(SORTED, drawn(torch.arange(COUNT), None).split(32))
    assert found == pytest.approx(expected, rel=0.02)
    few, _ = classes_in_a_batch(SORTED, drawn(torch.arange(COUNT), 4 * BLOCK).split(32))
    assert 3 < few < 4.1  # four blocks
