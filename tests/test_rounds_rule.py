"""How many rounds, what interval, and which rounds are odd: against scipy, by properties, and by Monte Carlo.

The Monte Carlo runs the whole-array rules of benchmarks/coverage.py, shown here to be the production ones.
"""

from __future__ import annotations

import math
import statistics

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from scipy import stats
from scripts import load_benchmark

from benchbench.analysis.stats import (
    Estimate,
    agree,
    drift,
    has_drift,
    outlier_rounds,
    rounds_needed,
    two_stage_estimate,
)

CELLS = 10_000
NOISES = [0.005, 0.01, 0.02, 0.03, 0.05]
ROUNDS = st.lists(st.floats(100.0, 200.0), min_size=5, max_size=20)
near = pytest.approx
mc = load_benchmark("coverage")


@given(ROUNDS, st.integers(2, 5), st.sampled_from([0.8, 0.9, 0.95, 0.99]))
def test_the_interval_is_of_all_rounds_with_the_pilots_spread(values: list[float], pilot: int, level: float) -> None:
    found = two_stage_estimate(values, pilot, level)
    assert found is not None
    assert found.low is not None
    assert found.high is not None
    assert (found.n, found.confidence, found.method) == (len(values), level, f"two-stage t, n0={pilot}")
    assert found.point == near(float(np.mean(values)), rel=1e-12)
    half = stats.t.ppf((1 + level) / 2, pilot - 1) * np.std(values[:pilot], ddof=1) / math.sqrt(len(values))
    assert found.high - found.point == near(float(half), rel=1e-6, abs=1e-9)
    assert found.low == near(max(0.0, found.point - float(half)), rel=1e-6, abs=1e-9)


def test_one_round_has_no_interval_and_two_have_one_whatever_the_pilot() -> None:
    assert two_stage_estimate([], 5) is None
    assert two_stage_estimate([3.5], 5) == Estimate(3.5, None, None, 0.95, 1, "one round")
    assert two_stage_estimate([3.5, 4.5], 1) == two_stage_estimate([3.5, 4.5], 2)
    assert rounds_needed([3.5], 1, 0.02) == 2


@given(ROUNDS, st.integers(2, 5), st.floats(0.001, 0.1))
def test_the_rounds_needed_are_the_fewest_that_give_the_width(values: list[float], pilot: int, rel_ci: float) -> None:
    needed = rounds_needed(values, pilot, rel_ci)
    start = values[:pilot]
    assert needed == rounds_needed(start, pilot, rel_ci)  # later rounds change nothing: it may be asked again
    assert needed >= pilot
    width = stats.t.ppf(0.975, pilot - 1) * np.std(start, ddof=1) / np.mean(start)
    assert width / math.sqrt(needed) <= rel_ci * (1 + 1e-9)
    assert needed == pilot or width / math.sqrt(needed - 1) >= rel_ci * (1 - 1e-9)


@given(st.integers(2, 10), st.floats(0.001, 1e6))
def test_pilots_that_are_unfinished_steady_or_zero_ask_for_no_more(pilot: int, value: float) -> None:
    assert rounds_needed([value, value * 9][: pilot - 1], pilot, 0.001) == pilot
    assert rounds_needed([value] * pilot, pilot, 0.001) == pilot
    assert rounds_needed([value, -value] * pilot, 2 * pilot, 0.001) == 2 * pilot


def _stopped(values: list[float], limit: int) -> tuple[int, Estimate]:
    """A cell run round by round, as a runner does."""
    n = 0
    while n < min(limit, rounds_needed(values[:n], mc.PILOT, mc.REL_CI)):
        n += 1
    estimate = two_stage_estimate(values[:n], mc.PILOT)
    assert estimate is not None
    return n, estimate


@pytest.mark.parametrize("limit", [20, 600])
@pytest.mark.parametrize("noise", NOISES)
def test_the_interval_holds_the_truth_95_times_in_100(noise: float, limit: int) -> None:
    rng = np.random.default_rng([limit, round(noise * 1000)])
    values = mc.draw(rng, CELLS, limit, noise)
    wanted = mc.needed(values)
    found = mc.two_stage(values, wanted, limit)
    assert 0.94 <= found.covered.mean() <= 0.96
    if limit == 600:
        assert not found.cut.any()
        assert (found.half <= 1.25 * mc.REL_CI).all()  # 2 % of the pilot's mean
    for cell in range(100):
        n, estimate = _stopped(values[cell].tolist(), limit)
        assert (n, wanted[cell]) == (found.rounds[cell], rounds_needed(values[cell].tolist(), mc.PILOT, mc.REL_CI))
        assert estimate.point == near(found.mean[cell], rel=1e-12)
        assert estimate.high == near(found.mean[cell] + found.half[cell], rel=1e-12)


def test_the_interval_of_every_metric_of_a_round_holds_its_truth() -> None:
    """Three correlated metrics of unequal noise; the one that needs most rounds decides for all."""
    rng = np.random.default_rng(7)
    common = rng.standard_normal((CELLS, 60))
    own = rng.standard_normal((3, CELLS, 60))
    metrics = [1 + noise * (0.8 * common + 0.6 * part) for noise, part in zip((0.005, 0.02, 0.03), own, strict=True)]
    wanted = np.max([mc.needed(values) for values in metrics], axis=0)
    for values in metrics:
        assert 0.94 <= mc.two_stage(values, wanted, 60).covered.mean() <= 0.96


def test_stopping_when_an_interval_looks_narrow_covers_less() -> None:
    values = mc.draw(np.random.default_rng(3), CELLS, 100, 0.03)
    found = mc.naive(values, 100)
    assert not found.cut.any()
    assert found.covered.mean() < 0.94
    first = values[0].tolist()
    looks = [two_stage_estimate(first[:n], n) for n in range(5, 101)]
    stop = next(one for one in looks if one and one.high and one.high - one.point <= mc.REL_CI * one.point)
    assert (stop.n, stop.point) == (found.rounds[0], near(found.mean[0], rel=1e-12))
    assert stop.high == near(found.mean[0] + found.half[0], rel=1e-12)


@given(ROUNDS)
def test_drift_is_the_line_of_least_squares(values: list[float]) -> None:
    assume(np.std(values) > 1e-3)
    line = stats.linregress(range(len(values)), values)
    found = drift(values)
    assert found is not None
    assert found[0] == near(line.slope * (len(values) - 1) / np.mean(values), abs=1e-9)
    assert found[1] == near(line.pvalue, rel=1e-5, abs=1e-9)
    backwards = drift(values[::-1])
    assert backwards is not None
    assert backwards == (near(-found[0], abs=1e-12), near(found[1], rel=1e-6, abs=1e-9))


def test_drift_of_too_few_equal_or_straight_rounds() -> None:
    assert drift([1.0, 2.0, 3.0]) is None
    assert drift([1.0, -1.0, 1.0, -1.0]) is None
    assert drift([7.0] * 6) == (0.0, 1.0)
    assert drift([8.0, 9.0, 10.0, 11.0, 12.0]) == (near(0.4), 0.0)


def test_a_drift_is_large_and_not_by_chance() -> None:
    steady = [100.0, 100.1, 99.9, 100.0, 99.9, 100.1]
    assert not has_drift(steady, 0.02)
    sloped = [value + number for number, value in enumerate(steady)]  # 1 % a round, 5 % over the cell
    assert has_drift(sloped, 0.02)
    assert has_drift(sloped[::-1], 0.02)
    assert not has_drift(sloped, 0.06)  # surely a drift, and smaller than the precision asked
    noisy = [98.0, 103.0, 97.0, 104.0, 98.0, 106.0]
    fitted = drift(noisy)
    assert fitted is not None
    assert fitted[0] > 0.02
    assert not has_drift(noisy, 0.02)  # large, and by chance


def test_the_monte_carlos_drifts_and_outliers_are_ours() -> None:
    values = mc.draw(np.random.default_rng(5), 300, mc.LIMIT, 0.02) + 0.005 * np.arange(mc.LIMIT)
    rounds = np.minimum(mc.needed(values), mc.LIMIT)
    changes, chances = mc.drifts(values, rounds)
    drifting, flagged = mc.drifting(values, rounds), mc.outliers(values, rounds)
    assert 0 < drifting.sum() < len(values)
    assert 0 < flagged.sum() < len(values)
    for cell, n in enumerate(rounds.tolist()):
        run = values[cell, :n].tolist()
        assert drift(run) == (near(changes[cell], rel=1e-9), near(chances[cell], rel=1e-6))
        assert has_drift(run, mc.REL_CI) == drifting[cell]
        assert bool(outlier_rounds(run)) == flagged[cell]


@given(ROUNDS, st.integers(0, 19), st.sampled_from([0.5, 2.0, 1024.0]))
def test_outliers_follow_their_rounds(values: list[float], turn: int, scale: float) -> None:
    found = outlier_rounds(values)
    turn %= len(values)
    moved = outlier_rounds([scale * value for value in values[turn:] + values[:turn]])
    assert sorted((index + turn) % len(values) for index in moved) == found
    middle = statistics.median(values)
    spread = 1.4826 * statistics.median(abs(value - middle) for value in values)
    assert found == [
        index for index, value in enumerate(values) if abs(value - middle) > max(5 * spread, 0.001 * middle)
    ]


def test_a_stalled_round_is_flagged_and_small_differences_are_not() -> None:
    assert outlier_rounds([100.0, 101.0, 99.0, 100.5, 160.0, 99.5]) == [4]
    assert outlier_rounds([100.0, 100.0, 100.0, 100.0, 100.09]) == []  # MAD is 0; within 0.1 % all the same
    assert outlier_rounds([100.0, 100.0, 100.0, 100.0, 100.11]) == [4]
    assert outlier_rounds([100.0, 100.0, 900.0]) == []  # too few to tell which is odd


@given(st.floats(1e-3, 1e6), st.floats(0.001, 0.5))
def test_warm_up_rounds_agree_within_the_share_of_their_mean(value: float, rel: float) -> None:
    inside, outside = (value * (2 + part * rel) / (2 - part * rel) for part in (0.99, 1.01))
    assert agree(value, value, 0)
    assert agree(value, inside, rel)
    assert agree(inside, value, rel)
    assert not agree(value, outside, rel)
    assert not agree(outside, value, rel)
