import numpy as np
import pytest
import torch
from support.cases import cases

from robustcords.data.augmentations.crop_flip import CropFlip
from robustcords.data.augmentations.cutmix import CutMix
from robustcords.data.augmentations.mixing import Mixing
from robustcords.data.augmentations.mixup import MixUp
from robustcords.data.images import ImageSet
from robustcords.errors import UserError
from robustcords.rng import Noise, derive
from robustcords.runtime import collectives
from robustcords.selection.selector import everything
from robustcords.training.loader import BatchLoader

COUNT, CLASSES = 23, 4
CPU = torch.device("cpu")


def pairs(shape=(40, 3, 7, 5)):
    source = torch.Generator().manual_seed(0)
    images = tuple(torch.rand(shape, generator=source, dtype=torch.float64) for _ in range(2))
    labels = tuple(torch.randint(CLASSES, shape[:1], generator=source) for _ in range(2))
    return images, labels, Noise(3, torch.arange(50, 50 + shape[0]))


def mixed_labels(labels, shares):
    rows = np.zeros((len(shares), CLASSES))
    for row, first, second, share in zip(rows, *(y.tolist() for y in labels), shares, strict=True):
        row[first] += share
        row[second] += 1 - share
    return rows


# The quantile functions of Beta(alpha, alpha) that have a closed form.
QUANTILES = {1.0: lambda u: u, 0.5: lambda u: np.sin(np.pi * u / 2) ** 2}


def shares(alpha, probability, noise):
    drawn = QUANTILES[alpha](noise.uniform((), draw=1).double().numpy())
    return np.where(noise.uniform((), draw=2).numpy() < probability, drawn, 1.0)


@cases("alpha", QUANTILES)
@cases("probability", [1.0, 0.5, 0.0])
def test_mixup_is_the_mean_of_images_and_of_labels(alpha, probability):
    (x, partners), labels, noise = pairs()
    images, found = MixUp(alpha=alpha, probability=probability).mixed((x, partners), labels, CLASSES, noise)
    own = shares(alpha, probability, noise)
    weight = own.reshape(-1, 1, 1, 1)
    np.testing.assert_allclose(images.numpy(), weight * x.numpy() + (1 - weight) * partners.numpy(), atol=1e-12)
    np.testing.assert_allclose(found.numpy(), mixed_labels(labels, own), atol=1e-12)
    assert (own < 1).any() == (probability > 0)


@cases("alpha", QUANTILES)
@cases("probability", [1.0, 0.5, 0.0])
def test_cutmix_is_a_rectangle_of_the_partner_and_its_share_of_the_label(alpha, probability):
    (x, partners), labels, noise = pairs()
    images, found = CutMix(alpha=alpha, probability=probability).mixed((x, partners), labels, CLASSES, noise)
    expected, own = x.numpy().copy(), []
    centres = zip(noise.integers(7, draw=3).tolist(), noise.integers(5, draw=4).tolist(), strict=True)
    drawn = shares(alpha, probability, noise)
    for row, ((i, j), share) in enumerate(zip(centres, drawn, strict=True)):
        height, width = (int(length * np.sqrt(1 - share)) for length in (7, 5))
        rows = slice(max(i - height // 2, 0), min(i + height // 2, 7))
        columns = slice(max(j - width // 2, 0), min(j + width // 2, 5))
        expected[row, :, rows, columns] = partners[row, :, rows, columns]
        own.append(1 - (rows.stop - rows.start) * (columns.stop - columns.start) / 35)
    assert np.array_equal(images.numpy(), expected)
    np.testing.assert_allclose(found.numpy(), mixed_labels(labels, own), atol=1e-12)
    assert (min(own) < 1) == (probability > 0)


def test_shares_are_of_the_beta_distribution():
    noise, alpha = Noise(8, torch.arange(4000)), 3.0
    x = torch.zeros(4000, 1, 1, 1, dtype=torch.float64)
    found = MixUp(alpha=alpha).mixed((x, x + 1), (x.long().flatten(), x.long().flatten() + 1), 2, noise)[1][:, 0]
    variance = 1 / (4 * (2 * alpha + 1))
    assert float(found.mean()) == pytest.approx(0.5, abs=5 * (variance / 4000) ** 0.5)
    assert float(found.var()) == pytest.approx(variance, rel=0.1)


def loader(augmentation):
    pixels = torch.randint(256, (COUNT, 3, 6, 6), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    images = ImageSet(pixels, torch.arange(COUNT) % CLASSES, tuple("abcd"), torch.arange(COUNT) * 3)
    return BatchLoader(images, 8, augmentation, seed=4, device=CPU)


@pytest.mark.parametrize("name", [CutMix, MixUp])
@pytest.mark.parametrize("world", [2, 3])
def test_several_processes_have_shares_of_the_batch_of_one(name, world, monkeypatch):
    loads = loader(name(crop=1, flip=True))
    positions = loads.order(2, everything(COUNT))[1]
    whole = loads.load(positions, everything(COUNT), 2)
    monkeypatch.setattr(collectives, "world_size", lambda: world)
    parts = []
    for rank in range(world):
        monkeypatch.setattr(collectives, "rank", lambda rank=rank: rank)
        parts.append(loads.load(positions, everything(COUNT), 2))
    for key in ("x", "y", "weights"):
        assert torch.equal(torch.cat([getattr(part, key) for part in parts]), getattr(whole, key))
    assert torch.equal(torch.cat([part.noise.keys for part in parts]), whole.noise.keys)
    assert whole.geometry is None


class Partner(Mixing):
    def mix(self, x, partners, share, noise):
        return partners, torch.zeros(len(x))


class Mean(Mixing):
    def mix(self, x, partners, share, noise):
        return x.mean(dim=0), share


def test_partners_are_cropped_and_flipped_as_they_are_themselves():
    loads = loader(Partner(crop=2, flip=True))
    positions = torch.arange(COUNT)
    swapped = loads.load(positions, everything(COUNT), 0)
    alone = loader(CropFlip(crop=2, flip=True)).load(positions, everything(COUNT), 0)
    order = loads.augmentation.partners(Noise(derive(4, "mix", 0), alone.noise.keys))
    assert order.sort().values.tolist() == list(range(COUNT))
    assert order.tolist() != list(range(COUNT))
    assert torch.equal(swapped.x, alone.x[order])
    assert torch.equal(swapped.y.argmax(dim=1), alone.y[order])
    again, later = (loads.load(positions, everything(COUNT), epoch).x for epoch in (0, 1))
    assert torch.equal(again, swapped.x)
    assert not torch.equal(later, swapped.x)


def test_a_mix_that_is_none_is_refused():
    with pytest.raises(UserError, match=r"Mean: mix returned shape \(3, 6, 6\), expected \(8, 3, 6, 6\)"):
        loader(Mean()).load(torch.arange(8), everything(COUNT), 0)
