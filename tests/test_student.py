"""Student's t of our own beside scipy's."""

from __future__ import annotations

import math

import pytest
from scipy.special import stdtr, stdtrit

from benchbench.student.t_distribution import t_quantile, two_sided_p

DEGREES = (1, 1.3, 2, 2.5, 3, 4, 5, 7.7, 9, 10, 19, 29, 64.2, 99, 500, 1_000, 9_999)
PROBABILITIES = (1e-9, 1e-4, 0.005, 0.025, 0.1, 0.3, 0.499, 0.501, 0.6, 0.8, 0.95, 0.975, 0.99, 0.9995, 1 - 1e-5)


@pytest.mark.parametrize("degrees", DEGREES)
def test_quantiles(degrees: float) -> None:
    for probability in PROBABILITIES:
        assert t_quantile(probability, degrees) == pytest.approx(float(stdtrit(degrees, probability)), rel=1e-10)
    assert t_quantile(0.5, degrees) == 0
    assert (t_quantile(0, degrees), t_quantile(1, degrees)) == (-math.inf, math.inf)


@pytest.mark.parametrize("degrees", DEGREES)
def test_p_values(degrees: float) -> None:
    for t in (1e-6, 0.01, 0.3, 0.67, 1.0, 1.5, 1.96, 3.0, 4.5, 12.7, 100.0, 1e4):
        assert two_sided_p(t, degrees) == two_sided_p(-t, degrees)
        assert two_sided_p(t, degrees) == pytest.approx(2 * float(stdtr(degrees, -t)), rel=1e-9, abs=1e-300)
    assert two_sided_p(0.0, degrees) == 1
    assert two_sided_p(math.inf, degrees) == 0
    assert math.isnan(two_sided_p(math.nan, degrees))


def test_the_textbook() -> None:
    """W. S. Gosset's own table, as printed in any book: 5 % two-sided."""
    printed = {1: 12.706, 2: 4.303, 3: 3.182, 4: 2.776, 5: 2.571, 9: 2.262, 19: 2.093, 29: 2.045, 120: 1.980}
    assert {degrees: round(t_quantile(0.975, degrees), 3) for degrees in printed} == printed
