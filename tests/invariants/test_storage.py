"""A run is the same to the bit wherever its images are: in memory, decoded on disk, or encoded on disk."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from support.ranks import joined
from support.small_run import ATTACK, After, chooser, fitted, made_up, vector

from robustcords import data
from robustcords.data.augmentations.mixup import MixUp
from robustcords.data.images import Images
from robustcords.data.loading import loaded
from robustcords.data.on_disk import on_disk
from robustcords.data.split import stratified_split
from robustcords.errors import Interrupted, UserError
from robustcords.evaluation.evaluate import robust_accuracy

WAYS: dict[str, dict[str, Any]] = {
    "memory": {"storage": "memory"},
    "kept": {"storage": "disk", "workers": 1},
    "decoded": {"storage": "disk", "cache": False, "workers": 0},
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Class folders of small images."""
    root, images = tmp_path_factory.mktemp("folders"), made_up()
    for number, (pixels, label) in enumerate(zip(images.images, images.labels.tolist(), strict=True)):
        split = "test" if number % 5 == 4 else "train"
        (root / split / images.classes[label]).mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels[0].numpy()).save(root / split / images.classes[label] / f"{number:02d}.png")
    return root


def splits(folder: Path, way: str) -> tuple[Images, Images, Images]:
    found = loaded(data.source(str(folder))(name=str(folder), **WAYS[way]))
    assert bool(on_disk(found.train)) is (way != "memory")
    kept, held_out = stratified_split(found.train.labels, 0.2, 0)
    return found.train.subset(kept), found.train.subset(held_out), found.test


def options(folder: Path, way: str, run: Path | None = None) -> dict[str, Any]:
    train, validation, _ = splits(folder, way)
    return {
        "train": train,
        "validation": validation,
        "selector": chooser("adv-glister", train, epochs=2, select_first=True, fraction=0.7),
        "augmentation": MixUp(name="mixup", crop=1, flip=True),
        "settings": {"epochs": 2, "batch_size": 12, "validate_every": 1},
        "run": run,
    }


@pytest.fixture(scope="module")
def expected(folder: Path) -> torch.Tensor:
    return vector(fitted(**options(folder, "memory")))


@pytest.mark.parametrize("way", ["kept", "decoded"])
def test_training_and_selection_and_evaluation_are_the_same(way: str, folder: Path, expected: torch.Tensor):
    made = fitted(**options(folder, way))
    assert torch.equal(vector(made), expected)
    accuracies = [robust_accuracy(made.model, splits(folder, each)[2], ATTACK, seed=1) for each in ("memory", way)]
    assert accuracies[0] == accuracies[1]


@pytest.mark.parametrize("ways", [("kept", "decoded"), ("decoded", "memory")])
def test_a_run_goes_on_with_images_elsewhere(
    ways: tuple[str, str], folder: Path, expected: torch.Tensor, tmp_path: Path
):
    with pytest.raises(Interrupted):
        fitted(**options(folder, ways[0], tmp_path / "run"), interruption=After(8))
    assert torch.equal(vector(fitted(**options(folder, ways[1], tmp_path / "run"))), expected)


class Gone(After):
    """Moves a folder away after it has been looked at so many times; never asks to stop."""

    def __init__(self, looks: int, folder: Path) -> None:
        super().__init__(looks)
        self.folder = folder

    @property
    def requested(self) -> int:  # type: ignore[override]
        if super().requested and self.folder.exists():
            self.folder.rename(self.folder.with_name("elsewhere"))
        return 0


def test_a_run_whose_images_vanish_is_resumed_to_the_bit(folder: Path, expected: torch.Tensor, tmp_path: Path):
    images = shutil.copytree(folder, tmp_path / "images")
    with pytest.raises(UserError, match=r"^[^\n]*/images/train/[^\n]*No such file or directory[^\n]*$"):
        fitted(**options(images, "decoded", tmp_path / "run"), interruption=Gone(8, images / "train"))
    (images / "elsewhere").rename(images / "train")
    assert torch.equal(vector(fitted(**options(images, "decoded", tmp_path / "run"))), expected)


def part(_: int, folder: Path, runs: Path) -> None:
    for way in WAYS:
        fitted(**options(folder, way, runs / way))


@pytest.mark.parametrize("world", [2, pytest.param(3, marks=pytest.mark.slow)])
def test_several_processes_read_the_same_in_every_way(world: int, folder: Path, tmp_path: Path):
    for way in WAYS:
        (tmp_path / way).mkdir()
    joined(part, world, folder, tmp_path)
    one, *others = (load_file(tmp_path / way / "weights" / "last.safetensors") for way in WAYS)
    assert all(torch.equal(one[name], other[name]) for other in others for name in one)
