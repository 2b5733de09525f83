"""What selection makes of loaders: images that give batches themselves, or are read through the loader."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from support.cases import cases
from support.small_problem import Problem, images
from torch import nn
from torch.utils.data import DataLoader, Dataset, Subset, TensorDataset, default_collate

from robustcords.data.images import Part
from robustcords.engine.memory_format import lay_out
from robustcords.losses.mart import MART
from robustcords.losses.standard import Standard
from robustcords.selection.gradients.adversarial_pass import adversarial_pass
from robustcords.selection.gradients.groups import batches_of, labels_of
from robustcords.selection.loaded import LoadedImages, images_of
from robustcords.selection.strategies.adv_glister import AdvGLISTERStrategy
from robustcords.selection.strategies.adv_gradmatch import AdvGradMatchStrategy

SIZES = [9, 7, 6]


class Reading(Dataset[Any]):
    """Pairs, and more, that say nothing of their labels; counts what is read."""

    def __init__(self) -> None:
        self.images = images(SIZES)
        self.read: list[int] = []

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, row: int) -> Any:
        self.read.append(row)
        return *self.images[row], "a name"


def flipped(pairs: list[Any]) -> Any:
    return default_collate([(x.flip(2), y) for x, y in pairs])


def test_images_are_asked_themselves():
    whole = images(SIZES)
    assert images_of(DataLoader(whole, batch_size=4)) is whole
    part = images_of(DataLoader(Subset(whole, [5, 3, 8]), batch_size=4))
    assert isinstance(part, Part)
    assert torch.equal(part.batch(torch.tensor([1]))[0], whole.images[[3]])
    assert torch.equal(labels_of(DataLoader(Subset(whole, [5, 3, 8]), batch_size=4)), whole.labels[[5, 3, 8]])


def test_a_loader_that_collates_in_its_own_way_is_read_through():
    whole = images(SIZES)
    loader = DataLoader(whole, batch_size=4, collate_fn=flipped)
    x, y = images_of(loader).batch(torch.tensor([2, 0]))
    assert torch.equal(x, whole.images[[2, 0]].flip(3))
    assert torch.equal(y, whole.labels[[2, 0]])


@pytest.mark.parametrize("workers", [0, 2])
def test_any_other_data_set_is_read_through_its_loader(workers):
    dataset = Reading()
    loaded = images_of(DataLoader(dataset, batch_size=4, num_workers=workers))
    assert isinstance(loaded, LoadedImages)
    assert len(loaded) == sum(SIZES)
    assert loaded.shape == (3, 4, 4)
    assert loaded.classes == ("0", "1", "2")
    assert torch.equal(loaded.labels, dataset.images.labels)
    assert torch.equal(loaded.numbers, torch.arange(sum(SIZES)))
    state = torch.random.get_rng_state()
    parts = [[7, 2], [3]]
    for rows, (x, y) in zip(parts, loaded.batches(parts, "cpu"), strict=True):
        assert torch.equal(x, dataset.images.images[rows])
        assert torch.equal(y, dataset.images.labels[rows])
    assert torch.equal(torch.random.get_rng_state(), state)


def test_labels_are_read_of_the_loaders_rows_and_only_where_nothing_says_them():
    dataset = Reading()
    rows = [3, 5, 6, 9]
    labels = labels_of(DataLoader(dataset, sampler=rows, batch_size=3))
    assert torch.equal(labels, dataset.images.labels[rows])
    assert dataset.read == rows
    dataset.targets = dataset.images.labels.tolist()  # type: ignore[attr-defined]
    assert torch.equal(labels_of(DataLoader(dataset, sampler=rows, batch_size=3)), labels)
    assert dataset.read == rows


@cases("strategy", [AdvGradMatchStrategy, AdvGLISTERStrategy])
@cases("granularity", ["per_class", "per_batch", "full"])
def test_both_ways_lead_to_the_same_selection(strategy, granularity):
    problem = Problem(SIZES, batch=4)
    config = strategy.Config(granularity=granularity)
    expected = strategy.from_context(config, problem.context()).select(8, problem.model.state_dict())
    loaders = [
        DataLoader(TensorDataset(part.images, part.labels), batch_size=loader.batch_size)
        for part, loader in ((problem.train, problem.train_loader), (problem.validation, problem.val_loader))
    ]
    context = problem.context(train_loader=loaders[0], val_loader=loaders[1])
    rows, weights = strategy.from_context(config, context).select(8, problem.model.state_dict())
    assert rows == expected[0]
    assert torch.equal(weights, expected[1])
    assert torch.equal(context.numbers, torch.arange(len(problem.train)))


class Noting(nn.Module):
    """Notes how the images that it is given lie in memory."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 4, 3, padding=1)
        self.last = nn.Linear(4, len(SIZES))
        self.layouts: set[bool] = set()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.layouts.add(x.is_contiguous(memory_format=torch.channels_last))
        return self.last(self.first(x).relu().mean((2, 3)))


@pytest.mark.parametrize("layout", ["channels_last", "contiguous"])
def test_batches_have_the_layout_of_the_model(layout):
    problem = Problem(SIZES)
    model = lay_out(Noting().double(), torch.device("cpu"), layout)
    batches = batches_of(problem.train_loader)
    for loss, attack in ((Standard(), None), (MART(), problem.context().attack)):
        adversarial_pass(model, problem.train, batches, loss, attack, seed=0, num_classes=3, device="cpu")
    assert model.layouts == {layout == "channels_last"}
