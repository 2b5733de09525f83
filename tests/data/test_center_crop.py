import pytest
import torch

from robustcords.data.center_crop import CenterCropped
from robustcords.data.images import ImageSet, Part

CLASSES = ("a", "b", "c")


def frames():
    pixels = torch.randint(256, (7, 3, 10, 12), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    return ImageSet(pixels, torch.arange(7) % 3, CLASSES)


def test_it_is_the_middle_of_every_image():
    whole = frames()
    images = CenterCropped(whole, 6)
    rows = torch.tensor([5, 0, 5])
    x, y = images.batch(rows)
    assert torch.equal(x, whole.images[rows, :, 2:8, 3:9].float() / 255)
    assert torch.equal(y, whole.labels[rows])
    assert (images.shape, len(images), images.classes) == ((3, 6, 6), 7, CLASSES)
    assert torch.equal(next(iter(images.batches([[5, 0, 5]], "cpu")))[0], x)
    assert images.fingerprint() == whole.fingerprint()
    cut = ImageSet(whole.images[:, :, 2:8, 3:9], whole.labels, CLASSES)
    assert images.digest(torch.arange(7)) == cut.digest(torch.arange(7))


@pytest.mark.parametrize("take", [CenterCropped.subset, Part])
def test_parts_and_moves_keep_frames_and_numbers(take):
    rows = torch.tensor([4, 1])
    part = take(CenterCropped(frames(), 6), rows).resident(torch.device("cpu"))
    assert torch.equal(part.batch(torch.tensor([1]))[0], CenterCropped(frames(), 6).batch(torch.tensor([1]))[0])
    assert torch.equal(part.numbers, rows)
    assert part.frames().shape == (3, 10, 12)
    assert torch.equal(part.frames().batch(torch.tensor([0]))[0], frames().batch(torch.tensor([4]))[0])
    assert torch.equal(part.frames().numbers, rows)


def test_other_sets_are_their_own_frames():
    whole = frames()
    assert whole.frames() is whole
