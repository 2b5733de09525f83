import numpy as np
import pytest
from PIL import Image


@pytest.fixture
def pixels():
    """Ten colour images (10, 5, 6, 3), uint8."""
    return np.random.default_rng(0).integers(0, 256, (10, 5, 6, 3), dtype=np.uint8)


@pytest.fixture
def class_folders(tmp_path, pixels):
    """A folder with train/{cat,dog} of three images each and test/{cat,dog} of two each."""
    root = tmp_path / "pets"
    rows = iter(pixels)
    for split, count in (("train", 3), ("test", 2)):
        for name in ("cat", "dog"):
            folder = root / split / name
            folder.mkdir(parents=True)
            for number in range(count):
                Image.fromarray(next(rows)).save(folder / f"{number}.png")
    return root
