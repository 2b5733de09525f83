import math

import pytest
import torch
from support.cases import cases
from torchvision.transforms.functional import resized_crop

from robustcords.data.augmentations.resized_crop import ResizedCrop
from robustcords.data.center_crop import CenterCropped
from robustcords.data.folder import Folder
from robustcords.data.images import ImageSet
from robustcords.data.vision import Vision
from robustcords.rng import Noise, derive
from robustcords.selection.selector import everything
from robustcords.training.loader import BatchLoader

NOISE = Noise(5, torch.arange(100, 140))
CPU = torch.device("cpu")


def reference_box(size, scale, ratio, noise):
    """Torchvision's loop, for one image, with the numbers that are drawn for it."""
    height, width = size
    areas, shapes = noise.uniform((2, 10)).double()[0].tolist()
    for area, shape in zip(areas, shapes, strict=True):
        target = height * width * (scale[0] + (scale[1] - scale[0]) * area)
        aspect = math.exp(math.log(ratio[0]) + (math.log(ratio[1]) - math.log(ratio[0])) * shape)
        w, h = round(math.sqrt(target * aspect)), round(math.sqrt(target / aspect))
        if 0 < w <= width and 0 < h <= height:
            row, column = noise.uniform((2,), draw=1)[0].tolist()
            return [int(row * (height - h + 1)), int(column * (width - w + 1)), h, w]
    w, h = width, height
    if width / height < ratio[0]:
        h = round(width / ratio[0])
    elif width / height > ratio[1]:
        w = round(height * ratio[1])
    return [(height - h) // 2, (width - w) // 2, h, w]


@cases("size", [(32, 32), (24, 40), (7, 60), (60, 7)])
@cases(("scale", "ratio"), [([0.08, 1.0], [3 / 4, 4 / 3]), ([0.9, 1.0], [0.5, 2.0])])
def test_rectangles_are_drawn_as_torchvision_draws_them(size, scale, ratio):
    boxes = ResizedCrop(scale=scale, ratio=ratio).boxes(size, NOISE)
    assert boxes.tolist() == [reference_box(size, scale, ratio, NOISE[row : row + 1]) for row in range(40)]
    assert len(boxes.unique(dim=0)) > (1 if min(size) > 7 else 0)


@cases(("size", "frame"), [(24, (32, 32)), (40, (32, 32)), (None, (20, 33)), (3, (30, 30))])
@cases("flip", [True, False])
def test_pixels_are_those_of_torchvisions_function_on_the_same_rectangles(size, frame, flip):
    x = torch.rand(40, 3, *frame, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    before = x.clone()
    augmentation = ResizedCrop(size=size, flip=flip)
    found = augmentation(x, NOISE)
    mirrored = NOISE.integers(2, draw=2).tolist()
    for image, box, mirror, made in zip(x, augmentation.boxes(frame, NOISE).tolist(), mirrored, found, strict=True):
        expected = resized_crop(image, *box, [size or frame[0], size or frame[1]], antialias=True)
        expected = expected.flip(2) if flip and mirror else expected
        torch.testing.assert_close(made, expected, rtol=0, atol=1e-12)
    assert torch.equal(x, before)
    rows = torch.tensor([30, 2])
    torch.testing.assert_close(augmentation(x[rows], NOISE[rows]), found[rows], rtol=0, atol=1e-12)


def test_all_of_a_frame_is_left_as_it_is():
    x = torch.rand(40, 3, 9, 9)
    torch.testing.assert_close(ResizedCrop(scale=[1.0, 1.0], ratio=[1.0, 1.0])(x, NOISE), x, rtol=0, atol=1e-6)


@cases(
    ("source", "flip", "size"),
    [
        (Vision(name="imagenette", image_size=8, resize=12), True, 8),
        (Vision(name="svhn"), False, None),
        (Folder(name="photos", image_size=8), False, 8),
    ],
)
def test_what_is_left_out_follows_from_the_data(source, flip, size):
    config = ResizedCrop.resolved(ResizedCrop.Config(), source)
    assert (config.flip, config.size) == (flip, size)
    assert ResizedCrop.resolved(ResizedCrop.Config(flip=not flip, size=5), source).flip is not flip


@cases(
    ("options", "message"),
    [
        ({"scale": [0.5, 0.1]}, "the smallest value comes first"),
        ({"ratio": [2.0, 0.5]}, "the smallest value comes first"),
        ({"scale": [0.5, 1.5]}, "less than or equal to 1"),
        ({"scale": [0.0, 1.0]}, "greater than 0"),
        ({"scale": [0.1]}, "at least 2"),
    ],
)
def test_ranges_that_are_none(options, message):
    with pytest.raises(ValueError, match=message):
        ResizedCrop.Config(**options)


def test_the_loader_crops_from_whole_frames():
    source = torch.Generator().manual_seed(0)
    frames = ImageSet(
        torch.randint(256, (9, 3, 12, 12), dtype=torch.uint8, generator=source), torch.arange(9) % 2, ("a", "b")
    )
    train = CenterCropped(frames, 8).subset(torch.tensor([8, 1, 4, 5]))
    loader = BatchLoader(train, 4, ResizedCrop(size=8), seed=3, device=CPU)
    batch = loader.load(torch.arange(4), everything(4), epoch=2)
    rows = torch.tensor([8, 1, 4, 5])
    expected = ResizedCrop(size=8)(frames.batch(rows)[0], Noise(derive(3, "augment", 2), rows))
    assert torch.equal(batch.x, expected)
    assert batch.geometry is None
