"""Torchvision's classification sets: their classes, how to request a split, and the usual augmentation."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

_TRAIN_FLAG = ({"train": True}, {"train": False})
_TRAIN_TEST = ({"split": "train"}, {"split": "test"})
_TRAIN_VAL = ({"split": "train"}, {"split": "val"})
_TRAINVAL_TEST = ({"split": "trainval"}, {"split": "test"})


@dataclass(frozen=True)
class VisionSet:
    """One set of torchvision's.

    Attributes:
        cls: its class in ``torchvision.datasets``.
        splits: the constructor's arguments for the training and the test set.
        crop: usual pixels of zero padding for random crops.
        flip: whether horizontal flips are usual: not where a mirrored image is another class or no image at all.
        download: whether torchvision can fetch it; the others have to be obtained by hand.
        first_label: the number of the first class, where it is not 0.
    """

    cls: str
    splits: tuple[Mapping[str, Any], Mapping[str, Any]] = _TRAIN_TEST
    crop: int = 4
    flip: bool = True
    download: bool = True
    first_label: int = 0


def _emnist(split: str, first_label: int = 0) -> VisionSet:
    train, test = ({"split": split, **flag} for flag in _TRAIN_FLAG)
    return VisionSet("EMNIST", (train, test), crop=0, flip=False, first_label=first_label)


SETS: dict[str, VisionSet] = {
    "cifar10": VisionSet("CIFAR10", _TRAIN_FLAG),
    "cifar100": VisionSet("CIFAR100", _TRAIN_FLAG),
    "clevr": VisionSet("CLEVRClassification", _TRAIN_VAL, first_label=3),
    "country211": VisionSet("Country211"),
    "dtd": VisionSet("DTD"),
    "emnist_balanced": _emnist("balanced"),
    "emnist_byclass": _emnist("byclass"),
    "emnist_bymerge": _emnist("bymerge"),
    "emnist_digits": _emnist("digits"),
    "emnist_letters": _emnist("letters", first_label=1),
    "fashion_mnist": VisionSet("FashionMNIST", _TRAIN_FLAG, crop=0, flip=False),
    "fer2013": VisionSet("FER2013", download=False),
    "fgvc_aircraft": VisionSet("FGVCAircraft", _TRAINVAL_TEST),
    "flowers102": VisionSet("Flowers102"),
    "food101": VisionSet("Food101"),
    "gtsrb": VisionSet("GTSRB", flip=False),
    "imagenet": VisionSet("ImageNet", _TRAIN_VAL, download=False),
    "imagenette": VisionSet("Imagenette", _TRAIN_VAL),
    "kmnist": VisionSet("KMNIST", _TRAIN_FLAG, crop=0, flip=False),
    "mnist": VisionSet("MNIST", _TRAIN_FLAG, crop=0, flip=False),
    "oxford_pets": VisionSet("OxfordIIITPet", _TRAINVAL_TEST),
    "pcam": VisionSet("PCAM"),
    "places365": VisionSet("Places365", ({"split": "train-standard", "small": True}, {"split": "val", "small": True})),
    "qmnist": VisionSet("QMNIST", ({"what": "train"}, {"what": "test"}), crop=0, flip=False),
    "rendered_sst2": VisionSet("RenderedSST2", flip=False),
    "stanford_cars": VisionSet("StanfordCars"),
    "stl10": VisionSet("STL10"),
    "svhn": VisionSet("SVHN", flip=False),
    "usps": VisionSet("USPS", _TRAIN_FLAG, crop=0, flip=False),
}
"""Recipe name -> set. Sets without a training and a test split of the same classes are not here."""

CLASSES = {
    **dict.fromkeys(("cifar10", "fashion_mnist", "imagenette", "kmnist", "mnist"), 10),
    **dict.fromkeys(("qmnist", "stl10", "svhn", "usps"), 10),
    **dict.fromkeys(("cifar100", "fgvc_aircraft"), 100),
    **{"flowers102": 102, "food101": 101, "gtsrb": 43, "imagenet": 1000, "oxford_pets": 37, "places365": 365},
}
"""How many classes the sets have that are most read from elsewhere than torchvision's own files."""
