"""How many rounds, what interval, and which rounds are odd: against scipy, by properties, and by Monte Carlo.

The Monte Carlo runs the whole-array rules of benchmarks/coverage.py, shown here to be the production ones.
"""

from __future__ import annotations

import math
import statistics
from dataclasses import fields
from typing import Any

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from scipy import stats
from scripts import load_benchmark

from benchbench.analysis.evidence import is_noisy, needed_rounds, pilot_for, pilot_of, wanted_rounds
from benchbench.analysis.metrics import RoundMetrics
from benchbench.analysis.stats import Estimate, agree, rounds_needed, two_stage_estimate
from benchbench.explain.outliers import OUTLIER_BOUNDS, outlier_rounds
from benchbench.report.summary_table import markdown_table
from benchbench.spec.cell import CellInfo
from benchbench.steadiness.steadiness import (
    drift,
    drift_of,
    has_drift,
    order_of,
    order_warnings,
    rounds_to_confirm,
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


def test_the_monte_carlos_rules_are_ours() -> None:
    values = mc.draw(np.random.default_rng(5), 6 * mc.SWEEP, mc.LIMIT, 0.02) + 0.005 * np.arange(mc.LIMIT)
    rounds = np.minimum(mc.needed(values), mc.LIMIT)
    changes, chances = mc.drifts(values, rounds)
    drifting, flagged, long = mc.drifting(values, rounds), mc.outliers(values, rounds), mc.long_pilots(values)
    outcome, drifts = mc.cells_run(values, long)
    assert 0 < drifting.sum() < len(values)
    assert 0 < flagged.sum() < len(values)
    assert 0 < drifts.sum() < len(values)
    assert 0 < long.sum() < len(values)
    noisy: list[bool] = []
    for cell, n in enumerate(rounds.tolist()):
        run = values[cell, :n].tolist()
        assert drift(run) == (near(changes[cell], rel=1e-9), near(chances[cell], rel=1e-6))
        assert has_drift(run, mc.REL_CI) == drifting[cell]
        assert bool(outlier_rounds(run)) == flagged[cell]
        noisy = [] if cell % mc.SWEEP == 0 else noisy
        info, all_rounds = cell_of(), rounds_of(values[cell].tolist())
        assert pilot_for(info, noisy) == (mc.LONG_PILOT if long[cell] else mc.PILOT)
        noisy.append(is_noisy(info, all_rounds))
        measured = _run_cell(values[cell].tolist(), pilot_for(info, noisy[:-1]))
        assert len(measured) == outcome.rounds[cell]
        needed = needed_rounds(info, measured)
        assert (needed > mc.LIMIT) == outcome.cut[cell]
        rates = [r.sys_tok_s or 0.0 for r in measured]
        assert drift_of(rates, needed, mc.LIMIT, mc.REL_CI)[0] == drifts[cell]
        estimate = two_stage_estimate(rates, pilot_of(info, measured))
        assert estimate is not None
        assert estimate.high == near(outcome.mean[cell] + outcome.half[cell], rel=1e-12)


def test_the_monte_carlos_warnings_are_ours() -> None:
    values = mc.draw(np.random.default_rng(8), 8 * mc.SWEEP, mc.LIMIT, 0.02)
    for kind in ("AR(1) of 0.5", "settling by 3 %"):
        shaped = mc._unsteady(values.copy(), 0.02, kind)
        shaped[: 4 * mc.SWEEP] = values[: 4 * mc.SWEEP]
        rounds = np.minimum(mc.needed(shaped), mc.LIMIT)
        lag1, trend = mc.warned(shaped, rounds)
        assert np.any([lag1, trend], axis=0).tolist() == [False] * 4 + [True] * 4
        for sweep in range(8):
            cells = range(sweep * mc.SWEEP, (sweep + 1) * mc.SWEEP)
            lines = order_warnings([row_of(shaped[cell, : rounds[cell]].tolist()) for cell in cells])
            assert len(lines) == int(lag1[sweep]) + int(trend[sweep])
            assert any("autocorrelation" in line for line in lines) == lag1[sweep]


def row_of(values: list[float], **more: Any) -> dict[str, Any]:
    """The columns of summary.csv that the order of rounds is judged by."""
    lag1, trend = order_of(values) or (None, None)
    return {"status": "valid", "rounds": len(values), "starts": None, "lag1": lag1, "trend": trend, **more}


def cell_of(**changes: Any) -> CellInfo:
    base: dict[str, Any] = {
        "key": "k", "index": 0, "variant": "", "input": 4, "output": 3, "batch": 2, "rate": None, "load": "static",
        "requests": 2, "rounds_min": mc.PILOT, "rounds_max": mc.LIMIT, "rel_ci": mc.REL_CI, "warmup": 0,
        "capped": False, "prompts": "token_ids", "output_mode": "exact", "slo": {}, "validity": {},
    }  # fmt: skip
    return CellInfo(**base | changes)


def rounds_of(values: list[float], pilot: int | None = None, block: int | None = None) -> list[RoundMetrics]:
    """Rounds of which only their Sys tok/s is known."""
    rest = {field.name: None for field in fields(RoundMetrics)}
    return [RoundMetrics(**rest | {"sys_tok_s": v, "pilot": pilot, "block": block}) for v in values]  # type: ignore[arg-type]


def _run_cell(values: list[float], pilot: int) -> list[RoundMetrics]:
    """A cell run round by round, as measure.cells does."""
    info, rounds = cell_of(), list[RoundMetrics]()
    while len(rounds) < min(info.rounds_max, wanted_rounds(info, rounds)):
        rounds += rounds_of([values[len(rounds)]], pilot)
    return rounds


def test_a_drift_is_confirmed_by_five_more_rounds_or_refuted() -> None:
    chance = [100.0, 101.1, 102.0, 103.2, 104.0]
    steady, onward = [101.0, 99.5, 102.0, 100.1, 101.2], [105.1, 106.0, 107.2, 107.9, 109.1]
    assert has_drift(chance, 0.02)
    assert rounds_to_confirm(chance, 5, 20, 0.02) == 10
    assert [rounds_to_confirm(chance + onward[:k], 5, 20, 0.02) for k in range(6)] == [10] * 6  # asked again: the same
    assert rounds_to_confirm(chance[:4], 5, 20, 0.02) == 5  # not before the interval's rounds are there
    assert drift_of(chance + onward, 5, 20, 0.02) == (True, True)
    assert drift_of(chance + steady, 5, 20, 0.02) == (False, False)
    # No room, or a time budget that came first: said, and not confirmed.
    assert rounds_to_confirm(chance, 5, 5, 0.02) == 5
    assert drift_of(chance, 5, 5, 0.02) == (True, False)
    assert drift_of(chance, 5, 20, 0.02) == drift_of(chance + steady[:2], 5, 20, 0.02) == (True, False)


def test_fewer_rounds_confirm_where_max_allows_no_five_but_not_too_few() -> None:
    sloped = [100.0 + number + (-1) ** number for number in range(20)]
    assert rounds_to_confirm(sloped[:16], 16, 20, 0.02) == 20
    assert rounds_to_confirm(sloped[:18], 18, 20, 0.02) == 20
    assert rounds_to_confirm(sloped[:20], 20, 20, 0.02) == 20
    assert rounds_to_confirm(sloped[:5], 5, 8, 0.02) == 5
    assert rounds_to_confirm(sloped[:7], 6, 9, 0.02) in {6, 9}


def test_rounds_that_are_too_few_anyway_drift_only_when_that_is_sure() -> None:
    likely = [100.0, 101.1, 101.7, 103.5, 103.8]
    assert has_drift(likely, 0.02)
    assert not has_drift(likely, 0.02, 0.001)
    straight = [100.0, 101.01, 102.0, 103.01, 104.0]
    assert drift_of(likely, 30, 5, 0.02) == (False, False)
    assert drift_of(straight, 30, 5, 0.02) == (True, False)


@given(ROUNDS, st.integers(2, 10), st.integers(5, 25))
def test_more_rounds_are_asked_for_within_max_and_only_for_a_drift(values: list[float], needed: int, most: int) -> None:
    wanted = rounds_to_confirm(values, needed, most, 0.02)
    assert wanted <= most
    first = min(needed, most)
    assert first <= wanted <= first + 5
    assert wanted == first or has_drift(values[:first], 0.02)


def test_the_pilot_is_chosen_by_other_cells_and_kept_with_the_rounds() -> None:
    assert [
        pilot_for(cell_of(), earlier) for earlier in ([], [True], [False], [True, False], [True, False, False])
    ] == [*(5, 8, 5, 8, 5)]
    assert pilot_for(cell_of(rounds_max=6), [True]) == 6
    assert pilot_for(cell_of(rounds_min=12), [True]) == 12
    assert pilot_for(cell_of(rounds_min=1, rounds_max=1), [True]) == 1
    noisy = [100.0, 104.0, 97.0, 102.0, 99.0]
    assert is_noisy(cell_of(), rounds_of(noisy))
    assert not is_noisy(cell_of(), rounds_of(noisy[:4]))  # a cell that was given up
    assert not is_noisy(cell_of(rel_ci=0.1), rounds_of(noisy))
    assert needed_rounds(cell_of(), rounds_of(noisy, pilot=8)) == 8  # until the pilot is finished
    assert needed_rounds(cell_of(), rounds_of(noisy)) == rounds_needed(noisy, 5, 0.02) > 8


@pytest.mark.parametrize("noise", NOISES)
def test_intervals_hold_with_the_pilot_of_a_noisy_sweep_and_rounds_that_confirm(noise: float) -> None:
    values = mc.draw(np.random.default_rng([9, round(noise * 1000)]), 200 * mc.SWEEP, mc.LIMIT, noise)
    outcome, drifts = mc.cells_run(values, mc.long_pilots(values))
    assert 0.943 <= outcome.covered.mean() <= 0.96
    assert mc._sweeps(drifts) <= 0.12
    before = mc.two_stage(values, mc.needed(values), mc.LIMIT)
    assert noise == 0.005 or mc._sweeps(mc.drifting(values, before.rounds)) > 0.2
    assert noise != 0.03 or outcome.cut.mean() < 0.5 * before.cut.mean()


def test_a_pilot_chosen_by_its_own_spread_covers_less() -> None:
    values = mc.draw(np.random.default_rng(4), 400 * mc.SWEEP, mc.LIMIT, 0.03)
    own = mc.cells_run(values, mc.needed(values) >= mc.LONG_PILOT)[0]
    assert own.covered.mean() < 0.942


@pytest.mark.parametrize("n", [4, 5, 8, 10, 17, 40])
def test_one_steady_cell_in_100_has_an_outlier_whatever_its_rounds(n: int) -> None:
    values = mc.draw(np.random.default_rng(n), 40_000, n, 0.01)
    assert 0.007 <= mc.outliers(values, np.full(len(values), n)).mean() <= 0.013


@given(ROUNDS)
def test_the_order_of_rounds_is_two_correlations(values: list[float]) -> None:
    assume(np.std(values) > 0.5)
    order = order_of(values)
    assert order is not None
    away = np.array(values) - np.mean(values)
    assert order[0] == near(float((away[1:] * away[:-1]).sum() / (away**2).sum()), abs=1e-9)
    assert order[1] == near(float(np.corrcoef(values, np.arange(len(values)))[0, 1]), abs=1e-9)


def test_the_order_of_rounds_that_are_few_or_equal_is_not_judged() -> None:
    assert order_of([1.0, 2.0, 3.0]) is None
    assert order_of([100.0, 100.01, 100.02, 100.03, 100.04]) is None  # within 0.1 %
    assert order_of([100.0, 101.0, 102.0, 103.0]) == (near(0.25), near(1.0))


def test_a_sweep_whose_cells_all_settle_is_warned_of_and_invalid_cells_have_no_say() -> None:
    settling = [97.0, 99.0, 99.8, 100.1, 99.9]
    rows = [row_of([value + 0.1 * k for value in settling]) for k in range(12)]
    (lines,) = [order_warnings(rows)]
    assert any("rises over the rounds" in line and "warm up longer" in line for line in lines)
    assert any("falls over the rounds" in line for line in order_warnings([row_of(settling[::-1])] * 12))
    assert order_warnings([row | {"status": "invalid"} for row in rows]) == []
    assert order_warnings(rows[:1]) == []  # one short cell is no evidence
    assert order_warnings([{"status": "valid", "rounds": 5}, row_of([1.0] * 5), row_of(settling, lag1=math.nan)]) == []
    assert order_warnings([row | {"rounds": 15, "starts": 5} for row in rows]) == lines
    assert all(line in markdown_table([{"input": 1, "output": 1, "batch": 1, **row} for row in rows]) for line in lines)


@given(ROUNDS, st.integers(0, 19), st.sampled_from([0.5, 2.0, 1024.0]))
def test_outliers_follow_their_rounds(values: list[float], turn: int, scale: float) -> None:
    found = outlier_rounds(values)
    turn %= len(values)
    moved = outlier_rounds([scale * value for value in values[turn:] + values[:turn]])
    assert sorted((index + turn) % len(values) for index in moved) == found
    middle = statistics.median(values)
    spread = 1.4826 * statistics.median(abs(value - middle) for value in values)
    bound = OUTLIER_BOUNDS[len(values)]
    assert found == [
        index for index, value in enumerate(values) if abs(value - middle) > max(bound * spread, 0.001 * middle)
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
