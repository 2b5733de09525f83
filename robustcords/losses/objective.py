"""What an attack maximises."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, get_args

from torch import Tensor

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
        anchored: whether it compares with the clean logits, so that this is the case. Beside the image it is then a
            small difference of numbers that rounding in bfloat16 or float16 leaves little of, and the first step wants
            float32 (see `in_float32`).

    Raises:
        UserError: there is no such start, which attacks would take for none at all.
    """

    value: Callable[[Tensor], Tensor]
    start: Start = "uniform"
    anchored: bool = False

    def __post_init__(self) -> None:
        if self.start not in get_args(Start):
            raise UserError(f"start = {self.start!r} is no random start{nearest(str(self.start), get_args(Start))}")
