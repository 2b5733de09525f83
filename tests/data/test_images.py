"""Sets of images, in memory and elsewhere."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator

import pytest
import torch
from support.cases import cases
from torch import Tensor
from torch.utils.data import DataLoader, TensorDataset

from robustcords import PGD, SAT, AdversarialTraining, EvaluationConfig, ThreatModel, TrainConfig, Trainer, evaluate
from robustcords.data.images import Images, ImageSet, Part
from robustcords.errors import UserError

COUNT = 1500  # more than are digested at a time
PIXELS = torch.randint(256, (COUNT, 3, 4, 5), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
LABELS = torch.randint(3, (COUNT,), generator=torch.Generator().manual_seed(1))
ROWS = torch.randperm(COUNT, generator=torch.Generator().manual_seed(2))[:1100]
CLASSES = ("ant", "bee", "cat")


class Elsewhere(Images):
    """What an author of a data set has to write, and no more."""

    def __init__(self) -> None:
        self.labels = LABELS

    def batch(self, rows: Tensor, device: torch.device | str = "cpu") -> tuple[Tensor, Tensor]:
        return (PIXELS[rows].float() / 255).to(device), LABELS[rows].to(device)


def in_memory() -> ImageSet:
    return ImageSet(PIXELS, LABELS, CLASSES)


SETS = {"in memory": in_memory, "elsewhere": Elsewhere, "part": lambda: Part(Elsewhere(), torch.arange(COUNT))}


@cases("make", SETS.values())
def test_every_set_gives_the_same(make):
    images = make()
    assert len(images) == COUNT
    assert images.shape == (3, 4, 5)
    assert len(images.classes) == 3
    assert torch.equal(images.numbers, torch.arange(COUNT))
    x, y = images.batch(ROWS)
    assert x.dtype == torch.float32
    assert torch.equal(x, PIXELS[ROWS].float() / 255)
    assert torch.equal(y, LABELS[ROWS])
    assert images.fingerprint() == hashlib.sha256(LABELS.numpy().tobytes()).hexdigest()
    parts = [[4, 1], [], [7]]
    for rows, (x, y) in zip(parts, images.batches(parts, "cpu"), strict=True):
        assert torch.equal(x, PIXELS[rows].float() / 255)
        assert torch.equal(y, LABELS[rows])
    x, y = images.subset(torch.tensor([5, 3])).first(3)
    assert torch.equal(y, LABELS[[5, 3, 5]])
    assert torch.equal(x, PIXELS[[5, 3, 5]].float() / 255)


@cases("make", SETS.values())
def test_a_batch_is_nobody_elses(make):
    images = make()
    images.batch(ROWS)[0].zero_()
    assert images.batch(ROWS)[0].any()


@cases("make", SETS.values())
def test_subsets_of_subsets_remember_the_rows_of_the_whole_set(make):
    part = make().subset(ROWS).subset(torch.tensor([2, 9, 4]))
    assert torch.equal(part.numbers, ROWS[[2, 9, 4]])
    assert torch.equal(part.labels, LABELS[ROWS[[2, 9, 4]]])
    assert torch.equal(part.batch(torch.tensor([2, 0]))[0], PIXELS[ROWS[[4, 2]]].float() / 255)
    assert torch.equal(part.subset(torch.tensor([1])).numbers, ROWS[[9]])
    assert part.shape == (3, 4, 5)
    assert torch.equal(part.resident(torch.device("cpu")).numbers, part.numbers)
    ((x, _),) = part.batches([[1]], "cpu")
    assert torch.equal(x, PIXELS[ROWS[[9]]].float() / 255)


@cases("make", SETS.values())
@cases("workers", [0, 2])
def test_a_loader_can_be_made_of_every_set(make, workers):
    loaded = list(DataLoader(make().subset(ROWS[:10]), batch_size=4, num_workers=workers))
    assert [len(y) for _, y in loaded] == [4, 4, 2]
    assert torch.equal(torch.cat([x for x, _ in loaded]), PIXELS[ROWS[:10]].float() / 255)
    assert torch.equal(torch.cat([y for _, y in loaded]), LABELS[ROWS[:10]])
    image, label = make()[7]
    assert torch.equal(image, PIXELS[7].float() / 255)
    assert label == int(LABELS[7])


def as_before(tensors: dict[str, Tensor]) -> str:
    """The digest by which version 0.1 found an evaluation's finished chunks again."""
    digest = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)};".encode())
        digest.update(tensor.contiguous().numpy().tobytes())
    return digest.hexdigest()


@cases("rows", [ROWS, torch.arange(COUNT), torch.tensor([3]), ROWS[:0]])
def test_the_digest_of_images_in_memory_stays(rows):
    expected = as_before({"images": PIXELS[rows], "labels": LABELS[rows]})
    assert in_memory().digest(rows) == expected
    assert Part(in_memory(), torch.arange(COUNT)).digest(rows) == expected
    floats = ImageSet(PIXELS.float() / 255, LABELS, CLASSES).digest(rows)
    assert floats == as_before({"images": PIXELS[rows].float() / 255, "labels": LABELS[rows]})
    assert floats == Elsewhere().digest(rows) != expected


def test_the_digest_tells_pixels_and_labels_apart():
    def changed() -> Iterator[ImageSet]:
        yield in_memory()
        yield ImageSet(255 - PIXELS, LABELS, CLASSES)
        yield ImageSet(PIXELS, 2 - LABELS, CLASSES)

    assert len({images.digest(ROWS) for images in changed()}) == 3


def test_classes_without_names_are_numbered():
    assert Elsewhere().classes == ("0", "1", "2")


def test_images_in_memory_move_unless_they_are_too_large(monkeypatch):
    images = in_memory().subset(ROWS)
    meta = torch.device("meta")
    moved = images.resident(meta)
    assert moved.images.device == meta
    assert moved.labels.device == moved.numbers.device == torch.device("cpu")
    assert torch.equal(moved.numbers, ROWS)
    monkeypatch.setattr("robustcords.data.images._RESIDENT_BYTES", images.images.nbytes - 1)
    assert images.resident(meta) is images
    elsewhere = Elsewhere()
    assert elsewhere.resident(meta) is elsewhere


def test_a_torch_data_set_is_refused_with_what_makes_images_of_it():
    pairs, model, threat = TensorDataset(torch.zeros(2, 4), torch.zeros(2)), torch.nn.Linear(4, 2), ThreatModel()
    says = "a TensorDataset, expected Images; ImageSet.from_dataset makes them of a Dataset$"
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with pytest.raises(UserError, match=f"^train: {says}"):
        Trainer(model, AdversarialTraining(SAT(), PGD(threat)), pairs, optimizer, TrainConfig())
    with pytest.raises(UserError, match=f"^data: {says}"):
        evaluate(model, pairs, EvaluationConfig(), threat, seed=0)
