"""Names of parquet files, and shards that are not the parts of one whole."""

import shutil
from pathlib import Path

import pytest
from support.cases import cases
from support.made_data import table

from robustcords import data
from robustcords.data.shards import shard
from robustcords.errors import UserError

LABELS = [0, 1, 0, 1]


@cases(
    ("name", "split", "of", "number", "total"),
    [
        ("train.parquet", "train", ".", None, None),
        ("train-00001-of-00002.parquet", "train", ".", 1, 2),
        ("data/test-00000-of-00001-b42a775f407cee45.parquet", "test", "data", 0, 1),
        ("default/train/0003.parquet", "train", "default", 3, None),
        ("train/part-00000-0d3f5a2e-1b2c-4d5e-8f90-123456789abc-c000.snappy.parquet", "train", "part", 0, None),
        ("cifar10-train.parquet", "train", "cifar10", None, None),
        ("cifar100_test-1.parquet", "test", "cifar100", 1, None),
        ("Validation 2.parquet", "validation", ".", 2, None),
        ("train/clean.parquet", "train", "clean", None, None),
        ("clean/train-hard.parquet", "train", "clean/hard", None, None),
        ("fog-train/0.parquet", "train", "fog", 0, None),
        ("train (1).parquet", "train", ".", None, None),
        ("Copy of train.parquet", "train", ".", None, None),
        ("train - Copy (2).parquet", "train", ".", None, None),
        ("unsupervised.parquet", None, "unsupervised", None, None),
    ],
)
def test_what_names_say(name, split, of, number, total):
    part = shard(Path("set"), Path("set") / name)
    assert (part.split, part.set, part.number, part.total) == (split, of, number, total)


def load(root):
    return data.source(str(root))(name=str(root)).load()


def named(root, *names):
    """Writes a training file of each name, each of another brightness, and a test file."""
    for light, name in enumerate(names):
        table(root / name, LABELS, light)
    table(root / "test.parquet", LABELS)
    return root


@pytest.mark.parametrize(
    "names",
    [
        ["train-00000-of-00002.parquet", "train-00001-of-00002.parquet"],
        ["train-1-of-2.parquet", "train-2-of-2.parquet"],
        ["train/0000.parquet", "train/0001.parquet", "train/0003.parquet"],
        ["train0.parquet", "train1.parquet"],
        ["train/part-0.parquet", "train/part-1.parquet"],
    ],
)
def test_shards_of_one_whole_are_read_in_order(tmp_path, names):
    images = load(named(tmp_path, *names)).train.images
    assert images[:, 0, 0, 0].tolist() == [light for light in range(len(names)) for _ in LABELS]


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (
            ["train-00000-of-00002.parquet", "train-00001-of-00002.parquet", "train-00000-of-00003.parquet"],
            r"train-00000-of-00003\.parquet: is next to train-00000-of-00002\.parquet|"
            r"train-00000-of-00002\.parquet: is next to",
        ),
        (
            ["train-00000-of-00003.parquet", "train-00002-of-00003.parquet"],
            "3 files, of which 1 are missing, .*number 1",
        ),
        (["train-00001-of-00002.parquet"], "2 files, of which 1 are missing, the first number 0"),
        (["train-1-of-3.parquet", "train-3-of-3.parquet"], "3 files, of which 1 are missing, the first number 2"),
        (
            ["train-0-of-2.parquet", "train-1-of-2.parquet", "train-7-of-2.parquet"],
            "one of 2 files, but there is a number 7",
        ),
        (
            ["train-0-of-1-0123456789abcdef.parquet", "train-0-of-1-fedcba9876543210.parquet"],
            "train-0-of-1-fed.*: the same part of the train split as .*train-0-of-1-012",
        ),
        (["train-00000-of-00001.parquet", "train-0-of-1.parquet"], "the same part of the train split"),
        (["train.parquet", "train (1).parquet"], "the same part of the train split"),
        (["train.parquet", "Train.parquet"], "the same part of the train split"),
        (["train.parquet", "training.parquet"], "the same part of the train split"),
        (["train.parquet", "train-00000-of-00001.parquet"], r"is next to .*numbered alike"),
        (["train.parquet", "train-0.parquet"], r"is next to .*numbered alike"),
    ],
)
def test_files_that_do_not_belong_together(tmp_path, names, message):
    with pytest.raises(UserError, match=message) as error:
        load(named(tmp_path, *names))
    assert "\n" not in str(error.value)


def test_a_copy_under_another_number(tmp_path):
    named(tmp_path, "train-0.parquet")
    shutil.copy(tmp_path / "train-0.parquet", tmp_path / "train-1.parquet")
    with pytest.raises(UserError, match=r"train-1\.parquet: the same part of the train split as .*train-0\.parquet"):
        load(tmp_path)
