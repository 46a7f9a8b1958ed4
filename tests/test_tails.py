"""The upper bound of a percentile: what it is of independent values, and of rounds that differ."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats
from scripts import load_benchmark

from benchbench.tails.tail_bound import LEVELS, allowed_beyond, chi2_low, tail_bound

TAILS = load_benchmark("tails")


@given(st.integers(1, 400), st.sampled_from([0.01, 0.025, 0.05, 0.3]))
def test_the_quantile_of_chi_square_is_scipys(degrees: int, probability: float) -> None:
    assert chi2_low(probability, degrees) == pytest.approx(float(stats.chi2.ppf(probability, degrees)), rel=1e-9)


@given(st.integers(1, 20_000), st.sampled_from([0.1, 0.01]))
def test_so_few_of_independent_values_lie_beyond(count: int, tail: float) -> None:
    allowed = allowed_beyond(count, tail)
    if allowed is None:
        assert stats.binom.cdf(0, count, tail) > 0.05
    else:
        whole = math.floor(allowed + 1e-9)
        assert stats.binom.cdf(whole, count, tail) <= 0.05 * (1 + 1e-6)
        assert stats.binom.cdf(whole + 1, count, tail) > 0.05


@given(
    st.sampled_from(list(TAILS.LAWS)),
    st.sampled_from([0.0, 0.1, 0.6]),
    st.integers(2, 12),
    st.integers(1, 60),
    st.integers(0, 99),
)
def test_the_arrays_of_the_benchmark_give_the_same(law: str, share: float, rounds: int, batch: int, seed: int) -> None:
    values = TAILS.draw(np.random.default_rng(seed), law, share, 2, rounds, batch)
    for percent in (50, 90, 99):
        arrays = TAILS.bounds(values, percent)
        single = [tail_bound(list(cell), percent).upper for cell in values]
        assert [None if math.isnan(upper) else upper for upper in arrays.tolist()] == single


@given(st.lists(st.lists(st.floats(0, 9), max_size=300), max_size=12), st.sampled_from([50, 90, 99]))
def test_a_bound_is_a_value_at_the_percentile_or_above(groups: list[list[float]], percent: int) -> None:
    arrays = [np.array(group, np.float64) for group in groups]
    bound = tail_bound(arrays, percent)
    pooled = np.concatenate([np.array([]), *arrays])
    assert bound.samples == len(pooled)
    assert bound.effective <= max(1, len(pooled))
    if bound.upper is None:
        assert bound.effective < bound.needed or bound.groups < 2
    else:
        assert bound.effective > bound.needed - 1
        assert bound.upper in pooled
        assert bound.upper >= np.percentile(pooled, percent) - 1e-12


def test_rounds_that_differ_count_for_less() -> None:
    rng = np.random.default_rng(1)
    own = rng.standard_normal((30, 64))
    alike = tail_bound(list(own), 90)
    apart = tail_bound(list(own + 2 * rng.standard_normal((30, 1))), 90)
    assert alike.effective > 5 * apart.effective
    assert alike.needed == 29
    assert tail_bound([], 99).needed == 299
    same = tail_bound([np.ones(200)] * 10, 90)
    assert same.upper == 1
    assert 90 / 100 in LEVELS


@pytest.mark.parametrize("law", list(TAILS.LAWS))
@pytest.mark.parametrize(("rounds", "batch", "share"), [(10, 32, 0.0), (10, 32, 0.2), (20, 64, 0.05), (30, 8, 0.5)])
def test_it_holds_in_95_of_100_cells(law: str, rounds: int, batch: int, share: float) -> None:
    rng = np.random.default_rng(0)
    truth = float(np.percentile(TAILS.draw(rng, law, share, 1_000_000, 1, 1), 90))
    upper = TAILS.bounds(TAILS.draw(rng, law, share, 600, rounds, batch), 90)
    assert (upper < truth).mean() <= 0.05
