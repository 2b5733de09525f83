from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from robustcords.report import intervals
from robustcords.report.intervals import Accuracy, Spread, difference, ratio


def test_paired_t_is_scipys():
    one, other = [0.41, 0.43, 0.44, 0.40], [0.40, 0.41, 0.45, 0.36]
    expected = stats.ttest_rel(one, other).confidence_interval(0.95)
    found = difference({n: Accuracy(v, 9) for n, v in enumerate(one)}, {n: Accuracy(v, 9) for n, v in enumerate(other)})
    assert (found.low, found.high) == pytest.approx((expected.low, expected.high), rel=1e-12)
    assert found.value == pytest.approx(0.015)
    assert found.how == "t interval, paired over 4 seeds"
    assert found.noise


def test_welch_is_scipys_where_no_seed_is_common():
    one, other = [0.41, 0.43, 0.44], [0.30, 0.35]
    expected = stats.ttest_ind(one, other, equal_var=False).confidence_interval(0.95)
    sides = [{seed: Accuracy(v, 9) for seed, v in enumerate(side, start)} for side, start in ((one, 0), (other, 7))]
    found = difference(*sides)
    assert (found.low, found.high) == pytest.approx((expected.low, expected.high), rel=1e-12)


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
