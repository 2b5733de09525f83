"""A small classification problem whose gradients look like those of a trained network."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader

from robustcords.attacks.pgd import PGD
from robustcords.data.images import Images, ImageSet
from robustcords.losses.mart import MART
from robustcords.losses.sat import SAT
from robustcords.losses.trades import TRADES
from robustcords.models.last_layer import CordsModel
from robustcords.selection.base import SelectionContext
from robustcords.selection.gradients.factors import LastLayerGradients
from robustcords.selection.gradients.groups import batches_of
from robustcords.selection.loaded import images_of
from robustcords.threats.base import ThreatModel

LOSSES = {"sat": SAT, "trades": TRADES, "mart": MART}
SIDE = 4


def images(sizes: list[int], seed: int = 0) -> ImageSet:
    """Float64 images of classes of given sizes, in mixed order."""
    source = torch.Generator().manual_seed(seed)
    labels = torch.repeat_interleave(torch.arange(len(sizes)), torch.tensor(sizes))
    labels = labels[torch.randperm(len(labels), generator=source)]
    centres = torch.rand(len(sizes), 3 * SIDE * SIDE, generator=torch.Generator().manual_seed(99), dtype=torch.float64)
    noise = torch.rand(len(labels), 3 * SIDE * SIDE, generator=source, dtype=torch.float64)
    x = (0.4 * centres[labels] + 0.6 * noise).view(-1, 3, SIDE, SIDE)
    return ImageSet(x, labels, tuple(map(str, range(len(sizes)))))


def network(classes: int, width: int = 8, seed: int = 0) -> nn.Module:
    """Float64 network with BatchNorm and dropout, so that a pass in the wrong mode shows."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        body = [nn.Flatten(), nn.Linear(3 * SIDE * SIDE, width), nn.BatchNorm1d(width), nn.ReLU(), nn.Dropout(0.2)]
        return nn.Sequential(*body, nn.Linear(width, classes)).double()


def read(loader: DataLoader[Any]) -> tuple[Images, list[list[int]]]:
    """What an adversarial pass takes of a loader."""
    return images_of(loader), batches_of(loader)


class Problem:
    """Loaders, a network and a context of one problem."""

    def __init__(self, sizes: list[int], *, batch: int = 16, validation: list[int] | None = None) -> None:
        self.train = images(sizes)
        self.validation = images(validation or [8] * len(sizes), seed=1)
        self.train_loader = DataLoader(self.train, batch_size=batch)
        self.val_loader = DataLoader(self.validation, batch_size=16)
        self.model = network(len(sizes))
        self.num_classes = len(sizes)

    def context(self, **changes: Any) -> SelectionContext:
        given: dict[str, Any] = {
            "train_loader": self.train_loader,
            "val_loader": self.val_loader,
            "model": self.model,
            "loss": MART(),
            "attack": PGD(ThreatModel(epsilon=0.05), steps=2, step_size=0.03),
            "num_classes": self.num_classes,
            "device": torch.device("cpu"),
            "seed": 5,
            "lr": 0.05,
        }
        return SelectionContext(**{**given, **changes})

    def cords_model(self) -> nn.Module:
        """The network as CORDS wants it, in eval mode."""
        return CordsModel(self.model.eval(), self.num_classes)


def factors(count: int, classes: int, width: int, terms: int, seed: int = 0) -> LastLayerGradients:
    """Float64 gradients of one class: features with a common mean, deltas of a softmax."""
    source = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=source, dtype=torch.float64)

    mean, head = normal(width).abs(), normal(classes, width)
    labels = torch.zeros(count, dtype=torch.int64)
    features = tuple((mean + normal(count, width)).relu() for _ in range(terms))
    deltas = tuple((h @ head.T / 3).softmax(dim=1) - F.one_hot(labels, classes) for h in features)
    return LastLayerGradients(deltas, features, labels)
