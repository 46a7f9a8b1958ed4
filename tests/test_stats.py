"""Intervals over rounds: against scipy, and by how often they hold the truth."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from benchbench.analysis.stats import Estimate, two_stage_estimate
from benchbench.comparison.shifts import welch_shift

VALUES = st.lists(st.floats(1e-6, 1e6), min_size=2, max_size=20)


@given(VALUES, st.sampled_from([0.8, 0.9, 0.95, 0.99]))
def test_the_interval_is_students(values: list[float], confidence: float) -> None:
    found = two_stage_estimate(values, len(values), confidence)
    assert found is not None
    assert (found.n, found.confidence) == (len(values), confidence)
    spread = float(np.std(values, ddof=1)) / math.sqrt(len(values))
    half = float(stats.t.ppf((1 + confidence) / 2, len(values) - 1)) * spread
    mean = float(np.mean(values))
    assert found.point == pytest.approx(mean, rel=1e-9)
    assert found.low == pytest.approx(max(0.0, mean - half), rel=1e-7, abs=1e-9 * mean)
    assert found.high == pytest.approx(mean + half, rel=1e-7)


def test_what_can_be_negative_has_an_interval_on_both_sides_of_zero() -> None:
    interval = two_stage_estimate([-1.0, 2.0], 2)
    assert interval is not None
    half = float(stats.t.ppf(0.975, 1)) * 1.5
    assert (interval.low, interval.high) == (pytest.approx(0.5 - half), pytest.approx(0.5 + half))
    never_negative = two_stage_estimate([0.0, 2.0], 2)
    assert never_negative is not None
    assert never_negative.low == 0.0


def test_noise_of_unlike_many_starts_is_pooled_by_degrees_of_freedom() -> None:
    shift = welch_shift([1.0, 3.0], [4.0, 5.0, 9.0, 2.0])
    variances = np.var([1.0, 3.0], ddof=1), np.var([4.0, 5.0, 9.0, 2.0], ddof=1)
    assert shift.noise == pytest.approx(math.sqrt((variances[0] + 3 * variances[1]) / 4))


def test_one_round_has_no_interval_and_none_no_mean() -> None:
    assert two_stage_estimate([], 5) is None
    assert two_stage_estimate([3.5], 5) == Estimate(3.5, None, None, 0.95, 1, "one round")


@pytest.mark.parametrize("rounds", [2, 5, 12])
def test_a_95_percent_interval_holds_the_truth_95_times_in_100(rounds: int) -> None:
    cells = np.random.default_rng(rounds).normal(500.0, 5.0, (10_000, rounds)).tolist()
    found = [two_stage_estimate(cell, len(cell)) for cell in cells]
    held = sum(e.low <= 500.0 <= e.high for e in found if e and e.low is not None and e.high is not None)
    assert 9_400 <= held <= 9_600
