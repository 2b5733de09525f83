"""Wilson's interval, compared with its formula."""

import pytest
from scipy import stats
from support.cases import cases

from robustcords.report.intervals import wilson


@cases(("right", "count"), [(0, 1), (1, 1), (0, 200), (512, 1000), (9999, 10000), (10000, 10000)])
def test_it_is_that_of_wilson_1927(right: int, count: int):
    share, z = right / count, float(stats.norm.ppf(0.975))
    centre = share + z**2 / (2 * count)
    half = z * (share * (1 - share) / count + z**2 / (4 * count**2)) ** 0.5
    expected = (centre - half) / (1 + z**2 / count), (centre + half) / (1 + z**2 / count)
    assert wilson(right / count, count) == pytest.approx(expected, abs=1e-12)
