"""What is said of a source that does not give what the protocol asks for."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from support.cases import cases
from torch import Tensor

from robustcords.data.base import DataSource, Splits
from robustcords.data.folder import Folder
from robustcords.data.images import Images, ImageSet
from robustcords.data.loading import loaded
from robustcords.errors import UserError

LABELS = torch.arange(6) % 2
PIXELS = torch.rand(6, 1, 2, 3, generator=torch.Generator().manual_seed(0))
GIVEN = "data 'own': Own.load returned"


class Own(Images):
    """Images as they are to be, but for what a test changes."""

    def __init__(self, **changes: Any) -> None:
        self.labels, self.classes, self.pixels = LABELS, ("a", "b"), PIXELS
        vars(self).update(changes)

    def batch(self, rows: Tensor, device: torch.device | str = "cpu") -> tuple[Tensor, Tensor]:
        return self.pixels[rows].to(device), self.labels[rows].to(device)


def source(load: Any) -> DataSource:
    made = type("Own", (DataSource,), {"load": lambda _: load(), "__module__": "own"})
    return made(name="own")


def refused(load: Any) -> str:
    with pytest.raises(UserError) as caught:
        loaded(source(load))
    assert "\n" not in str(caught.value)
    return str(caught.value)


def wrong(**changes: Any) -> str:
    """Returns what is said of a test set that is another than it is to be."""
    text = refused(lambda: Splits(Own(), Own(**changes)))
    start = f"{GIVEN} a test set whose "
    assert text.startswith(start)
    return text.removeprefix(start)


def test_what_fits_is_handed_on():
    splits = Splits(Own(), ImageSet(PIXELS[:2], LABELS[:2], ("a", "b")), ("a note",))
    assert loaded(source(lambda: splits)) is splits
    empty = Splits(Own(), ImageSet(PIXELS[:0], LABELS[:0], ("a", "b")))
    assert loaded(source(lambda: empty)) is empty


def test_what_is_decoded_larger_is_seen_in_the_centre(tmp_path):
    for split in ("train", "test"):
        for name, size in (("a", (20, 15)), ("b", (9, 30))):
            (tmp_path / split / name).mkdir(parents=True)
            Image.effect_noise(size, 60).save(tmp_path / split / name / "0.png")
    splits = loaded(Folder(name="photos", path=str(tmp_path), image_size=6, resize=8))
    for images in (splits.train, splits.test):
        assert (images.shape, images.frames().shape) == ((1, 6, 6), (1, 8, 8))
        whole = images.frames().batch(torch.arange(2))[0]
        assert torch.equal(images.batch(torch.arange(2))[0], whole[:, :, 1:7, 1:7])
    with pytest.raises(ValueError, match="resize = 8 needs an image_size of at most that, and it is left out"):
        Folder(name="photos", resize=8)
    with pytest.raises(ValueError, match="at most that, and it is 9"):
        Folder(name="photos", resize=8, image_size=9)


def test_whole_sets_are_numbered_from_0_whatever_they_were_a_part_of():
    sets = [Own().subset(torch.tensor([5, 2, 4])), ImageSet(PIXELS, LABELS, ("a", "b")).subset(torch.tensor([5, 1]))]
    splits = loaded(source(lambda: Splits(*sets)))
    assert splits.train.numbers.tolist() == [0, 1, 2]
    assert splits.test.numbers.tolist() == [0, 1]
    assert splits.train.subset(torch.tensor([2, 0])).numbers.tolist() == [2, 0]


def test_a_source_that_fails():
    assert refused(lambda: 1 // 0).startswith(
        "data 'own': Own.load failed: ZeroDivisionError: integer division or modulo by zero (test_loading.py:"
    )
    assert (
        refused(lambda: Path("/no/such").read_text())
        == "data 'own': cannot be read: /no/such: No such file or directory"
    )
    assert refused(lambda: (1, 2)) == f"{GIVEN} a tuple, expected Splits(train, test)"


@cases(
    ("changes", "line"),
    [
        ({"labels": [0, 1]}, "labels are a list, expected a tensor"),
        (
            {"labels": LABELS.int()},
            "labels are torch.int32 of shape (6,) on cpu, expected torch.int64 of shape (6,) on cpu",
        ),
        (
            {"labels": LABELS.view(3, 2)},
            "labels are torch.int64 of shape (3, 2) on cpu, expected torch.int64 of shape (3,) on cpu",
        ),
        ({"labels": LABELS + 1}, "labels go from 1 to 2, expected 0 to 1"),
        ({"labels": LABELS - 1}, "labels go from -1 to 0, expected 0 to 1"),
        ({"classes": ["a", "b"]}, "classes are ['a', 'b'], expected a tuple of names"),
        ({"classes": ("a", 1)}, "classes are ('a', 1), expected a tuple of names"),
        ({"shape": torch.Size((1, 2))}, "shape is torch.Size([1, 2]), expected three whole numbers: C, H, W"),
        (
            {"shape": (3, 2, 3)},
            "batch gives torch.float32 of shape (2, 1, 2, 3), expected torch.float32 of shape (2, 3, 2, 3)",
        ),
        (
            {"pixels": PIXELS.double()},
            "batch gives torch.float64 of shape (2, 1, 2, 3), expected torch.float32 of shape (2, 1, 2, 3)",
        ),
        ({"pixels": 2 * torch.ones_like(PIXELS)}, "batch gives pixels from 2 to 2, expected [0, 1]"),
        ({"pixels": PIXELS * torch.nan}, "batch gives pixels from nan to nan, expected [0, 1]"),
        (
            {"batch": lambda rows, device="cpu": (PIXELS[rows], LABELS[rows.sort().values])},
            "batch gives labels tensor([0, 1]), expected tensor([1, 0])",
        ),
        (
            {"batch": lambda rows, device="cpu": (PIXELS[rows], torch.zeros(30, 2))},
            "batch gives labels tensor([[0., 0.], [0., 0.], [0., 0.], [0., 0.], [0., 0.],..., expected tensor([1, 0])",
        ),
        (
            {"batch": lambda rows, device="cpu": (PIXELS[: len(rows)], LABELS[rows])},
            "batch gives another image for a row that it is asked for alone",
        ),
        ({"subset": lambda rows: Own()}, "subset does not carry its rows' numbers along"),
    ],
)
def test_a_set_that_is_none(changes, line):
    assert wrong(**changes) == line


def test_a_set_that_cannot_be_read():
    def fail(*_: Any) -> Any:
        raise KeyError("row")

    assert wrong(batch=fail).startswith("images cannot be read: KeyError: 'row' (test_loading.py:")


def test_no_set_at_all():
    without = Own()
    del without.labels
    assert refused(lambda: Splits(without, Own())) == f"{GIVEN} a train set whose labels are not set"
    pair = (PIXELS, LABELS)
    assert refused(lambda: Splits(pair, Own())) == f"{GIVEN} a train set whose type is a tuple, expected an Images"


class Unnamed(Images):
    """Images whose classes are their labels' numbers."""

    def __init__(self, labels: list[int]) -> None:
        self.labels = torch.tensor(labels, dtype=torch.int64)

    def batch(self, rows: Tensor, device: torch.device | str = "cpu") -> tuple[Tensor, Tensor]:
        return PIXELS[rows], self.labels[rows]


@cases(
    ("labels", "line"),
    [
        ([], "length is 0, expected at least one image"),
        ([1, 2, 2], "labels go from 1 to 2, and no image has 0: number the classes from 0 on without gaps, or name"),
        ([0, 4, 2], "labels go from 0 to 4, and no image has 1, 3: number the classes from 0 on without gaps, or name"),
    ],
)
def test_a_training_set_without_images_or_with_gaps_in_its_labels(labels: list[int], line: str):
    assert refused(lambda: Splits(Unnamed(labels), Unnamed(labels))).startswith(f"{GIVEN} a train set whose {line}")


def test_a_class_with_a_name_may_have_no_images_and_so_may_a_test_set():
    named = Own(classes=("a", "b", "c"))
    loaded(source(lambda: Splits(named, Own(classes=("a", "b", "c")))))
    loaded(source(lambda: Splits(Unnamed([0, 1, 1]), Unnamed([]))))


def test_sets_that_do_not_go_together():
    line = f"{GIVEN} sets of different classes: ('a', 'b') and ('a', 'c')"
    assert refused(lambda: Splits(Own(), Own(classes=("a", "c")))) == line
    line = f"{GIVEN} sets of different shape: (1, 2, 3) and (1, 2, 2)"
    assert refused(lambda: Splits(Own(), Own(pixels=PIXELS[..., :2]))) == line
