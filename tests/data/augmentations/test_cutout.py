import numpy as np
import torch
from support.cases import cases

from robustcords.data.augmentations.crop_flip import CropFlip
from robustcords.data.augmentations.cutout import Cutout
from robustcords.rng import Noise, derive

NOISE = Noise(5, torch.arange(100, 140))


@cases("size", [1, 2, 3, 5, 40])
def test_a_square_around_a_uniform_centre_is_painted_over_one_image_at_a_time(size):
    x = torch.rand(40, 3, 7, 5, generator=torch.Generator().manual_seed(0))
    found = Cutout(size=size, fill=0.25, crop=2, flip=True)(x, NOISE)
    keyed = Noise(derive(NOISE.seed, "change"), NOISE.keys)
    centres = zip(keyed.integers(7).tolist(), keyed.integers(5, draw=1).tolist(), strict=True)
    expected = CropFlip(crop=2, flip=True)(x, NOISE).numpy()
    for image, (row, column) in zip(expected, centres, strict=True):
        top, left = row - size // 2, column - size // 2
        image[:, max(0, top) : top + size, max(0, left) : left + size] = 0.25
    assert np.array_equal(found.numpy(), expected)


def test_nothing_else_changes_and_every_pixel_is_as_likely_to_be_the_centre():
    count = 9_000
    x = torch.zeros(count, 1, 3, 3)
    painted = Cutout(size=1, fill=1.0)(x, Noise(1, torch.arange(count)))
    assert (painted.flatten(1).sum(1) == 1).all()
    assert not x.any()
    places = painted.sum(dim=0).flatten()
    assert ((places - count / 9).abs() < 5 * (count / 9) ** 0.5).all()
