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
    """What an attack maximises.

    Attributes:
        value: logits (B, classes), float32, to one number per example (B,).
        start: the random start that it asks for: ``"uniform"`` in the ball; ``"gaussian"`` close to the image, for
            objectives such as ``KL(p || p')`` whose gradient is zero at the image itself; or ``"signs"``, half a radius
            from it in every pixel.
        relative_to_clean: whether it compares with the clean logits, and so has no gradient at the image. Close to the
            image it is a small difference that rounding to bfloat16 or float16 destroys, so the first step is computed
            in float32 (see `in_float32`).
        labels: (B,) int64 of the batch, for attacks that ask what is classified correctly; None if unknown.

    Raises:
        UserError: there is no such start.
    """

    value: Callable[[Tensor], Tensor]
    start: Start = "uniform"
    relative_to_clean: bool = False
    labels: Tensor | None = None

    def __post_init__(self) -> None:
        if self.start not in get_args(Start):
            raise UserError(f"start = {self.start!r} is no random start{nearest(str(self.start), get_args(Start))}")


def classes_of(y: Tensor) -> Tensor:
    """Returns the class of each example (B,) int64; for mixed labels (B, classes) the one with the largest share."""
    return y.argmax(dim=1) if y.is_floating_point() else y


def cross_entropy_of(y: Tensor) -> Objective:
    """Returns cross-entropy with labels as an objective, from a uniform start (Madry et al. 2018)."""
    return Objective(lambda logits: F.cross_entropy(logits, y, reduction="none"), labels=classes_of(y))


def margin_of(y: Tensor) -> Objective:
    """Returns the margin ``max_{k != y} z_k - z_y`` as an objective: unlike cross-entropy it does not saturate.

    It is the negative of f_6 of Carlini and Wagner 2017, section V, without the cut at 0.
    """
    labels = classes_of(y)

    def margin(logits: Tensor) -> Tensor:
        label_mask = F.one_hot(labels, logits.shape[1]).bool()
        return logits.masked_fill(label_mask, -torch.inf).amax(1) - logits[label_mask]

    return Objective(margin, labels=labels)
