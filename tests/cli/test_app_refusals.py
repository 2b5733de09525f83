"""What a user can get wrong on the command line, in a recipe or in a folder of images: one line, and nothing done."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from support.cases import cases
from support.command_line import SMALL, Command, refused, settings


@cases(
    ("key", "value", "parts"),
    [
        ("selector__fractoin", 0.5, ['unknown key "fractoin"', "did you mean 'fraction'?"]),
        ("trian__epochs", 3, ["unknown table [trian]", "did you mean 'train'?"]),
        ("train__epochs", "'three'", ['[train] epochs = "three"', "whole number"]),
        ("train__epochs", 2.5, ["[train] epochs = 2.5", "whole number"]),
        ("selector__fraction", 0, ["[selector] fraction = 0", "> 0 and <= 1"]),
        ("selector__fraction", 1.5, ["[selector] fraction = 1.5", "> 0 and <= 1"]),
        ("threat__epsilon", -1, ["[threat] epsilon = -1", ">= 0"]),
        ("threat__epsilon", "8/0", ['[threat] epsilon = "8/0"', "fraction"]),
        ("attack__steps", "abc", ['[attack] steps = "abc"', "whole number"]),
        ("evaluation__pgd__steps", "abc", ['[evaluation] pgd.steps = "abc"', "whole number"]),
        ("loss__name", "matr", ["unknown loss 'matr'", "did you mean 'mart'?"]),
        ("data__name", "digit", ["unknown data 'digit'", "did you mean 'digits'?"]),
        ("model__name", "resnet8x", ["resnet8x", "did you mean 'resnet8'?"]),
        ("model__name", "no_such_module:Net", ["no_such_module"]),
        ("selector__name", "adv-glistr", ["did you mean 'adv-glister'?"]),
        ("data__path", "no/such/folder", ["data.path: digits ships with scikit-learn"]),
        ("train__batch_size", 2000, []),
        ("train__precision", "fp16", ["fp16", "needs a GPU"]),
        ("logging__trackers", '["aim"]', ["'aim'", "not installed"]),
        ("data__validation_fraction", 0.0001, ["validation_fraction > 0"]),
    ],
)
def test_a_recipe_that_makes_no_sense_is_one_line(command: Command, key: str, value: object, parts: list[str]):
    if key == "train__batch_size":
        options = settings(train__batch_size=2000, train__accumulation=66)
        parts = ["train.batch_size = 2000 gives batches of 65", "train.accumulation = 66"]
    else:
        options = settings(**{key: value})
    refused(command("run", "digits_mart", *SMALL, *options, "--output", "run"), *parts)


def pictures(folder: Path, counts: dict[str, int]) -> None:
    """Writes an image folder with so many images of each class."""
    for split in ("train", "test"):
        for label, (name, count) in enumerate(counts.items()):
            (folder / split / name).mkdir(parents=True)
            for number in range(count):
                color = (40 * label + 20, 7 * number % 256, 128)
                Image.new("RGB", (8, 8), color).save(folder / split / name / f"{number:03}.png")


def truncated(folder: Path) -> None:
    pictures(folder, {"cat": 3, "dog": 3})
    (folder / "train" / "dog" / "001.png").write_bytes(b"\x89PNG\r\n")


@pytest.mark.parametrize(
    ("make", "part"),
    [
        (lambda folder: None, "neither parquet files"),
        (lambda folder: pictures(folder, {"cat": 5}), "training needs at least two classes"),
        (lambda folder: pictures(folder, {"cat": 5, "dog": 0}), "dog: there are no images of this class"),
        (truncated, "001.png"),
    ],
)
def test_an_image_folder_that_cannot_be_used(
    command: Command, tmp_path_factory: pytest.TempPathFactory, make: Callable[[Path], None], part: str
):
    folder = tmp_path_factory.mktemp("images")
    make(folder)
    refused(command("run", "digits_mart", *SMALL, *settings(data__name=folder), "--output", "run"), str(folder), part)


def test_a_class_with_hardly_any_images_is_no_obstacle(command: Command, tmp_path_factory: pytest.TempPathFactory):
    folder = tmp_path_factory.mktemp("images")
    pictures(folder, {"cat": 40, "dog": 2, "owl": 1})
    options = settings(data__name=folder, data__validation_fraction=0.2, selector__fraction=0.9, train__batch_size=16)
    answer = command("run", "digits_mart", *SMALL, *options, "--output", "run")
    assert answer.status == 0, answer.err
    with np.load("run/selections/epoch_0001.npz") as content:
        assert len(set(content["indices"].tolist())) == round(0.9 * 34)


@cases(
    ("arguments", "parts"),
    [
        (["rnu"], ["No such command 'rnu'"]),
        (["run", "digits_mart", "--outptu", "x"], ["No such option: --outptu"]),
        (["run"], ["Missing argument 'RECIPE'"]),
        (["run", "no.toml"], ["no file and no shipped recipe is called 'no.toml'"]),
        (["run", "digits_matr"], ["did you mean 'digits_mart'?"]),
        (["run", "digits_mart", "--set", "train.epochs"], ["--set train.epochs: expected KEY=VALUE"]),
        (
            ["run", "digits_mart", "--output", "/proc/nowhere"],
            ["/proc/nowhere: cannot be written (No such file or directory)"],
        ),
        (["list", "los"], ["unknown kind 'los'; did you mean 'loss'?"]),
        (["validate", "no.toml"], ["'no.toml'"]),
        (["new", "x.toml", "--loss", "mrat"], ["did you mean 'mart'?"]),
        (["new", "x.toml", "--fraction", "1.5"], ["fraction = 1.5"]),
        (["new", "x.toml", "--fraction", "half"], ["--fraction", "number"]),
        (["new", "no/x.toml"], ["no/x.toml: No such file or directory"]),
    ],
)
def test_a_command_that_makes_no_sense_is_one_line(command: Command, arguments: list[str], parts: list[str]):
    refused(command(*arguments), *parts)
