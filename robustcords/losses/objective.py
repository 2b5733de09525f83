"""The objective that an attack maximises."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor
from torch.nn import functional as F

from robustcords.errors import UserError, nearest

Start = Literal["uniform", "gaussian", "signs"]


@dataclass(frozen=True)
class Objective:
    """What an attack makes as large as it can.

    Attributes:
        value: logits (B, classes), float32, to one number per example (B,).
        start: where this objective wants a random start: ``"uniform"`` in the ball; ``"gaussian"`` close to the image,
            for objectives such as ``KL(p || p')`` whose gradient is zero at the image itself; or ``"signs"``, half a
            radius from it in every pixel.
        relative_to_clean: whether it compares with the clean logits, so that this is the case. Beside the image it is
            then a small difference of numbers that rounding in bfloat16 or float16 leaves little of, and the first step
            wants float32 (see `in_float32`).
        labels: (B,) int64 of the batch, for attacks that ask what is classified correctly; None where nobody has said.

    Raises:
        UserError: there is no such start, which attacks would take for none at all.
    """

    value: Callable[[Tensor], Tensor]
    start: Start = "uniform"
    relative_to_clean: bool = False
    labels: Tensor | None = None

    def __post_init__(self) -> None:
        if self.start not in get_args(Start):
            raise UserError(f"start = {self.start!r} is no random start{nearest(str(self.start), get_args(Start))}")


def classes_of(y: Tensor) -> Tensor:
    """Returns one class an example (B,) int64: of mixed labels (B, classes) that with the largest share."""
    return y.argmax(dim=1) if y.is_floating_point() else y


def cross_entropy_of(y: Tensor) -> Objective:
    """Returns cross-entropy with labels as an objective, from a uniform start (Madry et al. 2018)."""
    return Objective(lambda logits: F.cross_entropy(logits, y, reduction="none"), labels=classes_of(y))


def margin_of(y: Tensor) -> Objective:
    """Returns the margin ``max_{k != y} z_k - z_y`` as an objective: unlike cross-entropy it does not saturate.

    It is what Carlini and Wagner 2017 (section V, f_6, without the cut at 0) minimise the negative of.
    """
    labels = classes_of(y)

    def margin(logits: Tensor) -> Tensor:
        own = F.one_hot(labels, logits.shape[1]).bool()
        return logits.masked_fill(own, -torch.inf).amax(1) - logits[own]

    return Objective(margin, labels=labels)
