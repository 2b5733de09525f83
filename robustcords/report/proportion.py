"""The interval of one accuracy."""

from __future__ import annotations

import math

_NORMAL = 1.959963984540054
"""The normal distribution's 97.5 % quantile."""


def wilson(share: float, count: int) -> tuple[float, float]:
    """Returns Wilson's 95 % score interval of a proportion (Wilson 1927).

    Args:
        share: the proportion in [0, 1]; taken as the nearest one of whole examples.
        count: how many examples it is of, >= 1.
    """
    share, squared = round(share * count) / count, _NORMAL**2 / count
    centre, half = share + squared / 2, math.sqrt(squared * (share * (1 - share) + squared / 4))
    return max(0.0, (centre - half) / (1 + squared)), min(1.0, (centre + half) / (1 + squared))
