"""95 % intervals over seeds."""

import math
import random

import pytest

from adadfq_lab.studies.intervals import difference, half_width


@pytest.mark.parametrize("n", range(2, 11))
def test_half_width_covers_the_mean_95_times_in_100(n):
    """Drawn from a normal distribution of known mean, the interval of n values misses the mean in 5 % of 4,000 trials."""
    dice = random.Random(n)
    missed = 0
    for _ in range(4000):
        values = [dice.gauss(3.0, 2.0) for _ in range(n)]
        missed += abs(sum(values) / n - 3.0) > half_width(values)
    assert missed / 4000 == pytest.approx(0.05, abs=4 * math.sqrt(0.05 * 0.95 / 4000))


def test_half_width_by_hand():
    assert half_width([86.0]) is None
    assert half_width([85.0, 86.0, 87.0]) == pytest.approx(4.303 / math.sqrt(3))


def test_difference_by_hand():
    """Means 3 and 1 with variances 1 and 1 of three values each: 2 +- 2.776 sqrt(2/3), four degrees of freedom (Welch)."""
    found = difference([2, 3, 4], [0, 1, 2])
    assert found is not None
    assert found == pytest.approx((2.0, 2.776 * (2 / 3) ** 0.5), abs=1e-3)
    assert difference([1.0], [1.0, 2.0]) is None
    assert difference([1.0, 1.0], [3.0, 3.0]) == (-2.0, 0.0)


def test_difference_has_fewer_degrees_where_variances_differ():
    """One noisy and one exact method: only the noisy one's two degrees of freedom are left, t = 4.303."""
    found = difference([80.0, 81.0, 82.0], [70.0, 70.0, 70.0])
    assert found == pytest.approx((11.0, 4.303 * (1 / 3) ** 0.5), abs=1e-3)


def test_degrees_of_freedom_are_not_lost_to_rounding():
    """Eight noisy values against exact ones have seven degrees of freedom, t = 2.365, though floats make 6.999999 of them."""
    noisy = [80.0 + step for step in (0.0, 0.1, 0.3, 0.4, 0.6, 0.7, 0.9, 1.1)]
    mean = sum(noisy) / 8
    error = (sum((value - mean) ** 2 for value in noisy) / 7 / 8) ** 0.5
    for scale in range(1, 40):
        found = difference([scale * value for value in noisy], [0.0, 0.0])
        assert found is not None and found[1] == pytest.approx(2.365 * scale * error, rel=1e-9)
