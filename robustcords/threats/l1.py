"""The l1 ball, intersected with the box of valid pixels."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import ClassVar

import torch
from torch import Tensor

from robustcords.config.schema import Radius, Share
from robustcords.rng import Noise
from robustcords.threats.base import ThreatModel, moved

_MOST = 60
"""Halvings of an interval that leave none in float64; a handful of steps is usual."""


class L1(ThreatModel):
    """``sum |delta_j| <= epsilon``: few pixels by much (Chen et al. 2018; Croce and Hein 2021).

    In high dimensions the ball and the box [0, 1] overlap little, so that an image that is projected onto one and then
    clipped to the other ends up far inside both. This class projects onto their intersection (Croce and Hein 2021,
    Prop. 2.1, https://arxiv.org/abs/2103.01208).

    Attributes:
        epsilon: the radius: the number of pixel channels that could change from black to white. Results on CIFAR-10 are
            usually reported at 12.
        step_share: share of pixels and channels that one step changes, those with the steepest gradient. A single step
            uses the radius well if it changes about 2 epsilon of them.

    Example:
        >>> attack = PGD(L1(epsilon=12.0), steps=10)
    """

    norm: str = "l1"
    epsilon: Radius = 12.0
    step_share: Share = 0.01
    autoattack_norm: ClassVar[str | None] = "L1"

    @classmethod
    def radius_name(cls) -> str:
        """Returns how messages call a radius or step."""
        return "an l1 radius or step"

    def diameter(self, shape: Sequence[int]) -> float:
        """Returns the number of pixels and channels."""
        return float(math.prod(shape))

    def project(self, x_adv: Tensor, x: Tensor) -> Tensor:
        """Returns the point in the ball and in the box that is nearest to ``x_adv``, rounded towards ``x``.

        It is ``x + sign(delta) min(room, max(|delta| - threshold, 0))``, with ``delta = x_adv - x`` and the ``room``
        that the box leaves in its direction.
        """
        image = x.double()
        delta = x_adv.double() - image
        room = torch.where(delta > 0, self.bounds[1] - image, image - self.bounds[0])
        threshold = _threshold(delta.abs().flatten(1), room.flatten(1), self.epsilon).view(-1, 1, 1, 1)
        return moved(x, delta.sign() * torch.minimum((delta.abs() - threshold).clamp(min=0), room))

    def ascend(self, x_adv: Tensor, gradient: Tensor, step_size: float | Tensor) -> Tensor:
        """Returns a step along the signs of the steepest entries of the gradient (Tramer and Boneh 2019, SLIDE).

        All of them move by the same amount, in total by ``step_size``. Entries that are at the box's bound are skipped.
        """
        low, high = self.bounds
        stopped = ((x_adv <= low) & (gradient < 0)) | ((x_adv >= high) & (gradient > 0))
        flat = gradient.masked_fill(stopped, 0).flatten(1)
        count = max(1, round(self.step_share * flat.shape[1]))
        steepest = flat.abs().topk(count, dim=1).indices
        signs = torch.zeros_like(flat).scatter(1, steepest, flat.gather(1, steepest).sign())
        alike = signs / signs.abs().sum(1, keepdim=True).clamp(min=1)
        return x_adv + step_size * alike.view_as(x_adv)

    def uniform_start(self, x: Tensor, noise: Noise) -> Tensor:
        """Returns points drawn uniformly from the ball, projected onto the box by `project`.

        ``d`` of ``d + 1`` exponential numbers, divided by their sum, are uniform in the ball's part with no negative
        entry (Devroye 1986, ch. 5); signs are drawn.
        """
        shape = x.shape[1:]
        lengths = -(1 - noise.uniform((shape.numel() + 1,)).double()).log()
        signs = noise.uniform((shape.numel(),), draw=1).sub(0.5).sign()
        delta = self.epsilon * signs * lengths[:, 1:] / lengths.sum(1, keepdim=True)
        return self.project(x + delta.view(-1, *shape).to(x.dtype), x)


def _threshold(length: Tensor, room: Tensor, epsilon: float) -> Tensor:
    """Returns the smallest ``t >= 0`` (B, 1) with ``sum_j min(room_j, max(length_j - t, 0)) <= epsilon``.

    The sum falls in t and is piecewise linear, so Newton's method ends on the piece that t is on. As the room makes it
    neither convex nor concave, a step that leaves the interval known to hold t gives way to the middle of it.

    Args:
        length: (B, d) float64, >= 0.
        room: (B, d) float64, >= 0.
        epsilon: >= 0.
    """
    slack = epsilon * 1e-12  # by so much sums may differ in how they round
    low, high = length.new_zeros(len(length), 1), length.amax(1, keepdim=True)
    t = low
    for _ in range(_MOST):
        change = (length - t).clamp(min=0)
        over = torch.minimum(change, room).sum(1, keepdim=True) - (epsilon - slack)
        low, high = torch.where(over > 0, t, low), torch.where(over > 0, high, t)
        settled = (over.abs() <= slack) | (high <= low)
        if bool(settled.all()):
            break
        moving = ((change > 0) & (change < room)).sum(1, keepdim=True)
        newton = t + over / moving
        inside = (newton > low) & (newton < high)
        t = torch.where(settled, t, torch.where(inside, newton, (low + high) / 2))
    return torch.where(settled, t, high)
