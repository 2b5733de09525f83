from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from robustcords.report import intervals
from robustcords.report.intervals import Accuracy, Spread, difference, ratio

SLEEP = ([0.7, -1.6, -0.2, -1.2, -0.1, 3.4, 3.7, 0.8, 0.0, 2.0], [1.9, 0.8, 1.1, 0.1, -0.1, 4.4, 5.5, 1.6, 4.6, 3.4])
"""Student's own example (1908, The probable error of a mean), R's data set ``sleep``."""


def test_paired_t_by_students_example():
    one, other = ({seed: Accuracy(value, 9) for seed, value in enumerate(side)} for side in SLEEP)
    found = difference(one, other)
    # R: t.test(extra[group == 1], extra[group == 2], paired = TRUE), of sleep
    assert (found.low, found.high) == pytest.approx((-2.4598858, -0.7001142), abs=5e-8)
    assert found.value == pytest.approx(-1.58)
    assert found.how == "t interval, paired over 10 seeds"
    assert not found.noise


def test_welch_by_the_same_example_where_no_seed_is_common():
    sides = [
        {seed: Accuracy(v, 9) for seed, v in enumerate(side, start)} for side, start in zip(SLEEP, (0, 50), strict=True)
    ]
    found = difference(*sides)
    # R: t.test(extra ~ group, data = sleep)
    assert (found.low, found.high) == pytest.approx((-3.3654832, 0.2054832), abs=5e-8)
    assert found.how == "Welch's t interval, over different seeds"
    assert found.noise


def test_values_that_are_all_the_same_have_their_interval_without_a_warning():
    # Of a side without a spread Welch's interval is Student's of the other: one degree of freedom, t = 12.7062.
    reach = 12.706205 * 0.05
    assert intervals.welch([0.1, 0.1], [0.2, 0.3]) == pytest.approx((-0.15 - reach, -0.15 + reach), abs=1e-7)
    assert intervals.paired_t([0.1, 0.1, 0.1]) == pytest.approx((0.1, 0.1), abs=1e-12)
    found = ratio({0: 20.0, 1: 30.0}, {0: 10.0, 1: 15.0})
    assert (found.low, found.high) == pytest.approx((2.0, 2.0))


def test_only_seeds_that_both_have_are_paired():
    one = {seed: Accuracy(value, 9) for seed, value in {0: 0.5, 1: 0.6, 5: 0.0}.items()}
    other = {seed: Accuracy(value, 9) for seed, value in {0: 0.4, 1: 0.4, 7: 1.0}.items()}
    found = difference(one, other)
    assert found.value == pytest.approx(0.15)
    low, high = stats.t.interval(0.95, 1, loc=0.15, scale=0.05)
    assert (found.low, found.high) == pytest.approx((low, high))


def test_bootstrap_is_that_of_drawing_images():
    draw = np.random.default_rng(0)
    one, other = draw.random(400) < 0.6, draw.random(400) < 0.5
    gaps = one.astype(int) - other
    rows = draw.integers(400, size=(10_000, 400))
    expected = np.quantile(gaps[rows].mean(axis=1), [0.025, 0.975])
    found = intervals.bootstrap(gaps)
    assert found == pytest.approx(expected, abs=0.004)  # two such bootstraps differ by their 10,000 draws
    assert found == intervals.bootstrap(gaps)
    kept = stats.bootstrap((gaps,), np.mean, n_resamples=10_000, batch=1000, method="percentile", random_state=draw)
    assert found == pytest.approx(tuple(kept.confidence_interval), abs=0.004)
    error = gaps.std() / 20
    assert found == pytest.approx((gaps.mean() - 1.96 * error, gaps.mean() + 1.96 * error), abs=0.004)


def test_one_seed_is_compared_image_by_image():
    ours, theirs = np.arange(200) < 100, np.arange(200) < 90
    found = difference({3: Accuracy(0.5, 200, ours, "a")}, {3: Accuracy(0.45, 200, theirs, "a")})
    assert found.value == pytest.approx(0.05)
    assert found.how == "bootstrap, paired over 200 test images, seed 3"
    assert found.low is not None
    assert 0.02 <= found.low < 0.05
    assert not found.noise


def test_images_of_another_test_set_are_not_paired():
    one, other = (Accuracy(0.5, 4, np.array([1, 1, 0, 0], dtype=bool), name) for name in "ab")
    assert difference({0: one}, {1: other}).how == "binomial interval, not paired, over 4 test images, seeds 0 and 1"


def test_newcombe_by_his_own_example():
    # Newcombe 1998, Statistics in Medicine 17:873, table II, (a): 56/70 - 48/80, method 10.
    assert intervals.newcombe(56 / 70, 70, 48 / 80, 80) == pytest.approx((0.0524, 0.3339), abs=5e-5)
    assert intervals.newcombe(10 / 10, 10, 0 / 10, 10) == pytest.approx((0.6075, 1.0), abs=5e-5)


def test_speed_up_is_a_ratio():
    found = ratio({0: 20.0, 1: 40.0}, {0: 10.0, 1: 10.0})
    assert found.value == pytest.approx(8**0.5)
    logs = stats.t.interval(0.95, 1, loc=np.log(8) / 2, scale=np.log(2) / 2)
    assert (found.low, found.high) == pytest.approx(tuple(np.exp(logs)))
    assert found.noise
    assert ratio({0: 20.0}, {0: 5.0}).value == 4
    assert not ratio({0: 20.0}, {0: 5.0}).noise
    assert ratio({0: 20.0, 1: 40.0}, {2: 10.0}).value == 3


def test_spread_over_seeds():
    assert Spread({0: 0.25}).std is None
    found = Spread({0: 0.25, 1: 0.5, 2: 0.5})
    assert (found.mean, found.std) == pytest.approx((1.25 / 3, np.std([0.25, 0.5, 0.5], ddof=1)))
