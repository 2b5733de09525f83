"""Perturbations stored for every training image, from one epoch to the next."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any

import psutil
import torch
from torch import Tensor

from robustcords.data.augmentations.geometry import Geometry
from robustcords.data.images import Images
from robustcords.errors import UserError
from robustcords.losses.context import Moment
from robustcords.runtime import collectives


@dataclass(frozen=True)
class Stored:
    """Stored state of some images of a batch.

    Attributes:
        rows: (b,) int64, their rows among all images.
        delta: (b, C, H, W) perturbations, in the coordinates of the unaugmented images.
        value: (b,) one number per image.
        epoch: (b,) int64, the epoch of the last attack; -1 for never.
    """

    rows: Tensor
    delta: Tensor
    value: Tensor
    epoch: Tensor


class Perturbations:
    """A perturbation, a number and an epoch for every training image, the same in all processes.

    Args:
        name: of the attack, for messages.
        train: the training split.
        device: of the storage.

    Raises:
        UserError: there is not enough memory, or not enough for a checkpoint of them.
    """

    def __init__(self, name: str, train: Images, device: torch.device) -> None:
        kind = train.first(1)[0].dtype
        _refuse_without_room(name, len(train), train.shape, kind.itemsize, device)
        self.delta = torch.zeros((len(train), *train.shape), dtype=kind, device=device)
        self.value = torch.zeros(len(train), dtype=kind, device=device)
        self.epoch = torch.full((len(train),), -1, device=device)
        self._places = torch.zeros(int(train.numbers.max()) + 1, dtype=torch.int64)
        self._places[train.numbers] = torch.arange(len(train))
        self._places = self._places.to(device)
        self.moment: Moment | None = None
        self._geometry: Geometry | None = None
        self._noted: list[Stored] = []

    def begin(self, moment: Moment, geometry: Geometry) -> None:
        """Begins a training step, in which `of` and `note` may be called.

        Args:
            moment: where training is.
            geometry: of this process's share of the batch.
        """
        self.moment, self._geometry, self._noted = moment, geometry, []

    def end(self) -> None:
        """Writes what all processes noted since `begin`; a collective call."""
        assert self.moment is not None
        nothing = Stored(self._places[:0], self.delta[:0], self.value[:0], self.epoch[:0])
        columns = zip(*(vars(each).values() for each in [nothing, *self._noted]), strict=True)
        rows, delta, value, epoch = (torch.cat(collectives.gather_rows(torch.cat(column))) for column in columns)
        self.delta[rows], self.value[rows], self.epoch[rows] = delta, value, epoch
        self.abandon()

    def abandon(self) -> None:
        """Ends a step without writing anything."""
        self.moment, self._geometry, self._noted = None, None, []

    def of(self, numbers: Tensor) -> tuple[Stored, Geometry]:
        """Returns the stored state of some images of the batch, and their geometry.

        Args:
            numbers: (b,) int64, the images' numbers in the full training set.
        """
        assert self._geometry is not None
        rows = self._places[numbers]
        noise = self._geometry.noise
        geometry = replace(self._geometry, noise=replace(noise, keys=numbers.to(noise.keys.device)))
        return Stored(rows, self.delta[rows], self.value[rows], self.epoch[rows]), geometry

    def note(self, stored: Stored) -> None:
        """Notes the new state of some images, which is written when the step ends."""
        self._noted.append(stored)

    def state_dict(self) -> dict[str, Any]:
        """Returns the whole storage."""
        return {"delta": self.delta, "value": self.value, "epoch": self.epoch}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restores what `state_dict` returned."""
        for name in ("delta", "value", "epoch"):
            getattr(self, name).copy_(state[name])


def _refuse_without_room(
    name: str, count: int, shape: tuple[int, int, int], bytes_each: int, device: torch.device
) -> None:
    """Checks that there is memory for a perturbation of every image, and for a checkpoint of them.

    Raises:
        UserError: there is not.
    """
    needed = count * math.prod(shape) * bytes_each
    main = psutil.virtual_memory().available
    places = {"main memory": (3 * needed if device.type == "cpu" else 2 * needed, main)}
    if device.type == "cuda":
        places["the GPU's memory"] = needed, torch.cuda.mem_get_info(device)[0]
    for place, (wanted, free) in places.items():
        if wanted > free:
            size = " x ".join(map(str, shape))
            raise UserError(
                f"attack {name} keeps a perturbation of each of {count} images of {size}, which with their checkpoint "
                f"takes {wanted / 1e9:.1f} GB of {place}, and {free / 1e9:.1f} GB are free; n_fgsm keeps none"
            )
