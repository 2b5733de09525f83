import numpy as np
import torch
from support.cases import cases

from robustcords.data.augmentations.crop_flip import CropFlip
from robustcords.data.vision import Vision
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


@cases(("crop", "flip"), [(4, True), (4, False), (0, True), (1, True), (9, False), (0, False)])
@cases("shape", [(16, 3, 8, 8), (5, 1, 7, 4), (1, 3, 32, 32)])
def test_equals_one_image_at_a_time(shape, crop, flip):
    x = torch.rand(shape, generator=torch.Generator().manual_seed(0))
    noise = noise_for(len(x))
    assert torch.equal(CropFlip(crop=crop, flip=flip)(x, noise), reference(x, noise, crop, flip))


@cases("dtype", [torch.uint8, torch.bfloat16, torch.float64])
def test_keeps_dtype_and_memory_format(dtype):
    x = (torch.rand(8, 3, 10, 10, generator=torch.Generator().manual_seed(0)) * 255).to(dtype)
    expected = CropFlip(crop=2, flip=True)(x, noise_for(8))
    found = CropFlip(crop=2, flip=True)(x.contiguous(memory_format=torch.channels_last), noise_for(8))
    assert found.dtype == dtype
    assert torch.equal(found, expected)
    assert found.is_contiguous(memory_format=torch.channels_last)
    assert expected.is_contiguous()


def test_an_example_is_augmented_alike_in_every_batch():
    x, noise = torch.rand(12, 3, 8, 8), noise_for(12)
    rows = torch.tensor([7, 2, 9])
    assert torch.equal(CropFlip(crop=3, flip=True)(x, noise)[rows], CropFlip(crop=3, flip=True)(x[rows], noise[rows]))
    assert CropFlip(crop=3, flip=True)(x[:0], noise[:0]).shape == (0, 3, 8, 8)


def test_leaves_its_input_alone():
    x = torch.rand(6, 3, 8, 8)
    before = x.clone()
    CropFlip(crop=2, flip=True)(x, noise_for(6))
    assert torch.equal(x, before)


def test_every_shift_and_both_directions_are_equally_likely():
    # One bright pixel in the middle of each image tells where it was moved to.
    count, crop = 20_000, 1
    x = torch.zeros(count, 1, 5, 5)
    x[:, :, 2, 2] = 1
    places = CropFlip(crop=crop, flip=False)(x, noise_for(count)).flatten(1).argmax(1).bincount(minlength=25).view(5, 5)
    expected = count / 9
    assert places.sum() == places[1:4, 1:4].sum() == count
    assert ((places[1:4, 1:4] - expected).abs() < 5 * expected**0.5).all()
    x = torch.zeros(count, 1, 1, 2)
    x[..., 0] = 1
    mirrored = CropFlip(crop=0, flip=True)(x, noise_for(count))[:, 0, 0, 1].sum().item()
    assert abs(mirrored - count / 2) < 5 * (count / 4) ** 0.5


@cases(("crop", "flip"), [(2, True), (3, False), (0, True), (0, False)])
def test_the_geometry_takes_pixels_there_and_back(crop, flip):
    noise, shape = noise_for(8), (8, 3, 5, 6)
    source = torch.Generator().manual_seed(0)
    x, kept = (torch.rand(shape, generator=source) for _ in range(2))
    geometry = CropFlip(crop=crop, flip=flip).geometry(noise)
    assert torch.equal(geometry.apply(x), CropFlip(crop=crop, flip=flip)(x, noise))
    # Pixels that are numbered from 1 tell where each one came from; 0 is padding.
    numbered = torch.arange(1, 31).view(1, 1, 5, 6).expand(8, 1, 5, 6)
    origin = reference(numbered, noise, crop, flip).flatten(1).numpy()
    expected, zeros = kept.numpy().reshape(8, 3, 30).copy(), np.zeros((8, 3, 30), dtype=np.float32)
    for image, places in enumerate(origin):
        for pixel, place in enumerate(places):
            if place:
                for target in (expected, zeros):
                    target[image, :, place - 1] = x[image].flatten(1)[:, pixel]
    assert torch.equal(geometry.undo(x, into=kept), torch.from_numpy(expected).view(shape))
    assert torch.equal(geometry.undo(x), torch.from_numpy(zeros).view(shape))
    rows = torch.tensor([5, 0])
    assert torch.equal(geometry[rows].undo(x[rows]), geometry.undo(x)[rows])


@cases(("options", "crop", "flip"), [({}, 4, False), ({"crop": 1}, 1, False), ({"flip": True}, 4, True)])
def test_what_is_left_out_is_usual_for_the_data_set(options, crop, flip):
    config = CropFlip.resolved(CropFlip.Config(**options), Vision(name="svhn"))
    assert (config.crop, config.flip) == (crop, flip)
    x = torch.rand(4, 1, 3, 3)
    assert torch.equal(CropFlip()(x, noise_for(4)), x)
