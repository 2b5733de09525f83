from collections.abc import Callable

import pytest
import torch
from support.cases import cases
from torch import Tensor

from robustcords import Augmentation, Noise
from robustcords.config import registry
from robustcords.data.augmentations.check import check_augmentation
from robustcords.data.images import ImageSet
from robustcords.errors import UserError


class Own(Augmentation):
    function: Callable[[Tensor, Noise], Tensor]

    def __call__(self, x: Tensor, noise: Noise) -> Tensor:
        return self.function(x, noise)


def checked(augmentation: Augmentation) -> None:
    x = torch.rand(4, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    images = ImageSet(x, torch.arange(4), tuple("abcd"))
    check_augmentation(augmentation, images, torch.device("cpu"), count=4)


@cases("name", registry.names("augmentation"))
def test_each_one_passes(name):
    checked(registry.find("augmentation", name)())


@cases(
    ("function", "message"),
    [
        (lambda x, noise: x + noise.normal(x.shape[1:]), r"returned pixels from -\d.* to \d.*, expected \[0, 1\]"),
        (lambda x, noise: x * torch.nan, "returned pixels from nan to nan"),
        (lambda x, noise: x[:, :, 1:], r"returned shape \(4, 3, 7, 8\), expected \(4, 3, 8, 8\)"),
        (lambda x, noise: x.double(), "returned torch.float64, expected torch.float32"),
        (lambda x, noise: x.mul_(0.5), "modifies its input images"),
        (lambda x, noise: x * torch.rand(len(x), 1, 1, 1), "changes an image differently when it is alone"),
        (lambda x, noise: (x + x.mean(dim=0)) / 2, "changes an image differently when it is alone"),
    ],
)
def test_what_an_augmentation_may_not_do_is_one_line(function, message):
    own = Own()
    own.function = function
    with pytest.raises(UserError, match=f"augmentation .*:Own {message}"):
        checked(own)
