import pytest
import torch
from sklearn.datasets import load_digits

from robustcords import data
from robustcords.errors import UserError


def test_digits_are_scikit_learns():
    splits = data.source("digits")(name="digits").load()
    assert (len(splits.train), len(splits.test)) == (1347, 450)
    for part in (splits.train, splits.test):
        assert part.images.shape[1:] == (1, 8, 8)
        assert part.images.dtype == torch.uint8
        assert part.labels.dtype == torch.int64
        assert part.classes == tuple("0123456789")
        assert part.labels.bincount().min() >= len(part) // 10 - 3
    # Undoing the scaling gives each of the 1797 originals exactly once.
    images = torch.cat([splits.train.images, splits.test.images]).double() * 16 / 255
    labels = torch.cat([splits.train.labels, splits.test.labels])
    found = sorted(zip(images.round().flatten(1).tolist(), labels.tolist(), strict=True))
    original = load_digits()
    assert found == sorted(zip(original.data.tolist(), original.target.tolist(), strict=True))


def test_digits_are_the_same_every_time_and_not_augmented():
    source = data.source("digits")()
    assert torch.equal(source.load().test.images, source.load().test.images)
    assert (source.crop, source.flip) == (0, False)


def test_digits_are_read_from_nowhere_else(tmp_path):
    with pytest.raises(UserError, match=r"data\.path: digits ships with scikit-learn"):
        data.source("digits")(path=str(tmp_path)).load()
