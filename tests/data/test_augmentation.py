import numpy as np
import pytest
import torch

from robustcords.data.augmentation import augment
from robustcords.rng import Noise


def noise_for(count, seed=5):
    return Noise(seed, torch.arange(100, 100 + count))


def reference(x, noise, crop, flip):
    """Pads, cuts and mirrors one image at a time, in NumPy."""
    corners = noise.integers(2 * crop + 1, (2,)).numpy()
    mirrored = noise.integers(2, draw=1).numpy()
    out = []
    for image, (top, left), mirror in zip(x.numpy(), corners, mirrored, strict=True):
        padded = np.pad(image, ((0, 0), (crop, crop), (crop, crop)))
        window = padded[:, top : top + image.shape[1], left : left + image.shape[2]] if crop else image
        out.append(window[:, :, ::-1] if flip and mirror else window)
    return torch.from_numpy(np.stack(out))


@pytest.mark.parametrize(("crop", "flip"), [(4, True), (4, False), (0, True), (1, True), (9, False), (0, False)])
@pytest.mark.parametrize("shape", [(16, 3, 8, 8), (5, 1, 7, 4), (1, 3, 32, 32)])
def test_equals_one_image_at_a_time(shape, crop, flip):
    x = torch.rand(shape, generator=torch.Generator().manual_seed(0))
    noise = noise_for(len(x))
    assert torch.equal(augment(x, noise, crop, flip), reference(x, noise, crop, flip))


@pytest.mark.parametrize("dtype", [torch.uint8, torch.bfloat16, torch.float64])
def test_keeps_dtype_and_memory_format(dtype):
    x = (torch.rand(8, 3, 10, 10, generator=torch.Generator().manual_seed(0)) * 255).to(dtype)
    expected = augment(x, noise_for(8), 2, True)
    found = augment(x.contiguous(memory_format=torch.channels_last), noise_for(8), 2, True)
    assert found.dtype == dtype
    assert torch.equal(found, expected)
    assert found.is_contiguous(memory_format=torch.channels_last)
    assert expected.is_contiguous()


def test_an_example_is_augmented_alike_in_every_batch():
    x, noise = torch.rand(12, 3, 8, 8), noise_for(12)
    rows = torch.tensor([7, 2, 9])
    assert torch.equal(augment(x, noise, 3, True)[rows], augment(x[rows], noise[rows], 3, True))
    assert augment(x[:0], noise[:0], 3, True).shape == (0, 3, 8, 8)


def test_leaves_its_input_alone():
    x = torch.rand(6, 3, 8, 8)
    before = x.clone()
    augment(x, noise_for(6), 2, True)
    assert torch.equal(x, before)


def test_every_shift_and_both_directions_are_equally_likely():
    # One bright pixel in the middle of each image tells where it was moved to.
    count, crop = 20_000, 1
    x = torch.zeros(count, 1, 5, 5)
    x[:, :, 2, 2] = 1
    places = augment(x, noise_for(count), crop, False).flatten(1).argmax(1).bincount(minlength=25).view(5, 5)
    expected = count / 9
    assert places.sum() == places[1:4, 1:4].sum() == count
    assert ((places[1:4, 1:4] - expected).abs() < 5 * expected**0.5).all()
    x = torch.zeros(count, 1, 1, 2)
    x[..., 0] = 1
    mirrored = augment(x, noise_for(count), 0, True)[:, 0, 0, 1].sum().item()
    assert abs(mirrored - count / 2) < 5 * (count / 4) ** 0.5
