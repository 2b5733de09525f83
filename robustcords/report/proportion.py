"""The interval of one accuracy."""

from __future__ import annotations


def wilson(share: float, count: int) -> tuple[float, float]:
    """Returns Wilson's 95 % score interval of a proportion (Wilson 1927).

    Args:
        share: the proportion in [0, 1]; taken as the nearest one of whole examples.
        count: how many examples it is of, >= 1.
    """
    from scipy import stats  # only now: a report of one run needs nothing else of it

    interval = stats.binomtest(round(share * count), count).proportion_ci(0.95, method="wilson")
    return float(interval.low), float(interval.high)
