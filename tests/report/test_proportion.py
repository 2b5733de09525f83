"""Wilson's interval, compared with SciPy's."""

import pytest
from scipy import stats

from robustcords.report.proportion import wilson


@pytest.mark.parametrize(("right", "count"), [(0, 1), (1, 1), (0, 200), (512, 1000), (9999, 10000), (10000, 10000)])
def test_it_is_that_of_scipy(right: int, count: int):
    expected = stats.binomtest(right, count).proportion_ci(0.95, method="wilson")
    assert wilson(right / count, count) == pytest.approx((expected.low, expected.high), abs=1e-12)
