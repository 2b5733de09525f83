"""Means over seeds, and 95 % confidence intervals of accuracies and differences."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import scipy  # its parts load at first use: a report of one run needs few of them

CONFIDENCE = 0.95
RESAMPLES = 10_000
_SEED = 20230213
_SAME = 1e-9
"""Accuracies and their differences that are closer than this are the same but for rounding."""


@dataclass(frozen=True)
class Spread:
    """A figure over the seeds of a method.

    Attributes:
        values: seed to value; at least one.
    """

    values: Mapping[int, float]

    @property
    def mean(self) -> float:
        """The mean over seeds."""
        return float(np.mean(list(self.values.values())))

    @property
    def std(self) -> float | None:
        """The sample standard deviation (n - 1) over seeds; None for one seed."""
        return float(np.std(list(self.values.values()), ddof=1)) if len(self.values) > 1 else None


@dataclass(frozen=True)
class Estimate:
    """A difference or ratio with its 95 % confidence interval.

    Attributes:
        value: the estimate.
        low: the interval's lower end; None where there is no interval.
        high: the upper end.
        how: which interval it is, and over what.
        null: the value that means "no difference": 0, or 1 for a ratio.
        seeds: how many of the method's runs it is of.
    """

    value: float
    low: float | None
    high: float | None
    how: str
    null: float = 0.0
    seeds: int = 1

    @property
    def noise(self) -> bool:
        """Whether the interval holds "no difference"; an estimate without an interval is not called noise."""
        return self.low is not None and self.high is not None and self.low <= self.null <= self.high


@dataclass(frozen=True)
class Accuracy:
    """One run's accuracy.

    Attributes:
        value: in [0, 1].
        examples: how many test images it is of.
        right: (n,) bool, which of them were right; None where it is not known.
        images: tells test sets apart: outcomes of equal ones are compared image by image.
    """

    value: float
    examples: int
    right: npt.NDArray[np.bool_] | None = None
    images: str = ""


def difference(ones: Mapping[int, Accuracy], others: Mapping[int, Accuracy]) -> Estimate:
    """Returns how much more accurate one method is than another, with the best interval that the runs allow.

    At least two seeds in common: the t interval of the paired differences. No seed in common, but two or more each:
    Welch's. Otherwise a single run of each is compared, of the common seed if there is one: by bootstrapping the test
    images that both were evaluated on, or where single images are not known by Newcombe's interval of two independent
    proportions. An interval for a single run says what other test images would change, not what another seed would.
    Seeds whose differences are all the same, as a few test images can make them, say nothing of their spread: then a
    single run of each is compared too.

    Args:
        ones: seed to accuracy; at least one.
        others: of the method that it is compared with.
    """
    common = sorted(ones.keys() & others.keys())
    if len(common) > 1:
        gaps = [ones[seed].value - others[seed].value for seed in common]
        if np.ptp(gaps) > _SAME:
            how = f"t interval, paired over {len(common)} seeds"
            return Estimate(float(np.mean(gaps)), *paired_t(gaps), how, seeds=len(common))
    if not common and min(len(ones), len(others)) > 1:
        one, other = ([accuracy.value for accuracy in side.values()] for side in (ones, others))
        if np.ptp(one) + np.ptp(other) > _SAME:
            value = float(np.mean(one) - np.mean(other))
            return Estimate(value, *welch(one, other), "Welch's t interval, over different seeds", seeds=len(ones))
    mine, theirs = (common[0], common[0]) if common else (min(ones), min(others))
    seeds = f"seed {mine}" if mine == theirs else f"seeds {mine} and {theirs}"
    return _of_two_runs(ones[mine], others[theirs], seeds)


def _of_two_runs(one: Accuracy, other: Accuracy, seeds: str) -> Estimate:
    value = one.value - other.value
    if one.right is None or other.right is None or one.images != other.images:
        interval = newcombe(one.value, one.examples, other.value, other.examples)
        sizes = " and ".join(map(str, dict.fromkeys((one.examples, other.examples))))
        return Estimate(value, *interval, f"binomial interval, not paired, over {sizes} test images, {seeds}")
    count = min(len(one.right), len(other.right))
    gaps = one.right[:count].astype(np.int64) - other.right[:count]
    how = f"bootstrap, paired over {count} test images, {seeds}"
    return Estimate(float(gaps.mean()), *bootstrap(gaps), how)


def ratio(ones: Mapping[int, float], others: Mapping[int, float]) -> Estimate:
    """Returns how many times larger one method's figure is, with a t interval of the logarithms' differences.

    Args:
        ones: seed to a figure > 0.
        others: of the method that it is compared with.

    Returns:
        The geometric mean over the seeds in common; without two of them there is no interval, and without any it is
        the ratio of the means.
    """
    common = sorted(ones.keys() & others.keys())
    if not common:
        value = float(np.mean(list(ones.values())) / np.mean(list(others.values())))
        return Estimate(value, None, None, "ratio of means, over different seeds", null=1.0, seeds=len(ones))
    logs = [math.log(ones[seed] / others[seed]) for seed in common]
    value = math.exp(float(np.mean(logs)))
    if len(common) == 1:
        return Estimate(value, None, None, f"one timing each, seed {common[0]}: no interval", null=1.0)
    low, high = paired_t(logs)
    how = f"t interval, paired over {len(common)} seeds"
    return Estimate(value, math.exp(low), math.exp(high), how, null=1.0, seeds=len(common))


def paired_t(gaps: Sequence[float]) -> tuple[float, float]:
    """Returns Student's 95 % interval of the mean of two or more differences, that of `scipy.stats.ttest_1samp`."""
    return _interval(scipy.stats.ttest_1samp, gaps, 0.0)


def welch(one: Sequence[float], other: Sequence[float]) -> tuple[float, float]:
    """Returns Welch's 95 % interval of the difference between two means, that of `scipy.stats.ttest_ind`.

    Args:
        one: two or more values.
        other: of the mean that is subtracted; not all the same if those of ``one`` are.
    """
    return _interval(scipy.stats.ttest_ind, one, other, equal_var=False)


def _interval(test: Callable[..., Any], *samples: Any, **options: Any) -> tuple[float, float]:
    """Returns the 95 % interval of one of scipy's tests."""
    with warnings.catch_warnings():
        # Of values that are all the same: their deviation is 0, which is right, but rounding could have made it so.
        warnings.filterwarnings("ignore", message="Precision loss", category=RuntimeWarning)
        interval = test(*samples, **options).confidence_interval(CONFIDENCE)
    return float(interval.low), float(interval.high)


def bootstrap(gaps: npt.NDArray[np.int64]) -> tuple[float, float]:
    """Returns the 95 % percentile interval of the mean difference between two models over the same images.

    It is that of `scipy.stats.bootstrap`, which draws every image of every resample and takes 800 times as long for
    10,000 images.

    Args:
        gaps: (n,) of -1, 0 and 1: one model right minus the other right.
    """
    # Images with equal differences are alike to the mean: drawing n of them with replacement is drawing how many of
    # each kind come, which is multinomial.
    kinds = np.array([(gaps == kind).sum() for kind in (-1, 0, 1)])
    drawn = np.random.default_rng(_SEED).multinomial(len(gaps), kinds / len(gaps), size=RESAMPLES)
    means = (drawn[:, 2] - drawn[:, 0]) / len(gaps)
    low, high = np.quantile(means, [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2])
    return float(low), float(high)


def newcombe(one: float, count: int, other: float, others: int) -> tuple[float, float]:
    """Returns the 95 % interval of the difference between independent proportions (Newcombe 1998, method 10).

    Args:
        one: a proportion in [0, 1].
        count: how many examples it is of.
        other: the proportion that is subtracted.
        others: how many examples that is of.
    """
    (low, high), (other_low, other_high) = wilson(one, count), wilson(other, others)
    gap = one - other
    return gap - math.hypot(one - low, other_high - other), gap + math.hypot(high - one, other - other_low)


def wilson(share: float, count: int) -> tuple[float, float]:
    """Returns Wilson's 95 % score interval of a proportion (Wilson 1927).

    Args:
        share: the proportion in [0, 1]; taken as the nearest one of whole examples.
        count: how many examples it is of, >= 1.
    """
    interval = scipy.stats.binomtest(round(share * count), count).proportion_ci(CONFIDENCE, method="wilson")
    return float(interval.low), float(interval.high)
