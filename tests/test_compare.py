"""The verdict between two builds: by properties, by hand, against scipy, and by a small Monte Carlo.

The Monte Carlo runs the whole-array rules of benchmarks/power.py, shown here to be the production ones.
"""

from __future__ import annotations

import itertools
import math
import random
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from scipy import stats
from scripts import load_benchmark

from benchbench.comparison.outlying_starts import outlying_starts
from benchbench.comparison.shifts import chance_to_decide, detectable, holm
from benchbench.comparison.verdicts import (
    BETTER,
    PRIMARY,
    Comparisons,
    Effect,
    Sample,
    compare,
    noise,
    power,
)

near = pytest.approx
FLIPPED = {"faster": "slower", "slower": "faster", "equivalent": "equivalent", "undecided": "undecided"}
mc = load_benchmark("power")


def cell(ratios: Sequence[float], name: str = "a", metric: str = "sys_tok_s", base: float = 100.0) -> list[Sample]:
    """A cell whose blocks have these ratios, above 1 where the candidate is better."""
    return [Sample(name, metric, block, base, base * ratio ** BETTER[metric]) for block, ratio in enumerate(ratios)]


def by_key(compared: Comparisons) -> dict[object, Effect]:
    cells: dict[object, Effect] = {(one.cell, one.metric): one for one in compared.cells}
    relative = {("relative", one.cell, one.metric): one for one in compared.relative}
    return cells | {one.metric: one for one in compared.overall} | relative


def same(a: Effect, b: Effect) -> None:
    """Equal up to rounding, apart from `base` and `candidate`."""
    assert (a.verdict, a.warnings, a.more_blocks, a.ratio.n) == (b.verdict, b.warnings, b.more_blocks, b.ratio.n)
    for name in ("p_value", "p_adjusted", "noise", "mde", "mde_family"):
        expected = getattr(b, name)
        assert getattr(a, name) == (expected if expected is None else near(expected, rel=1e-6))
    for end in ("point", "low", "high"):
        expected = getattr(b.ratio, end)
        assert getattr(a.ratio, end) == (expected if expected is None else near(expected, rel=1e-9))


@st.composite
def runs(draw: st.DrawFn) -> list[Sample]:
    """A few cells and blocks with start-to-start noise, some values missing, some cells without any spread."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    cells, blocks = draw(st.integers(1, 4)), draw(st.integers(1, 6))
    spread, change = draw(st.sampled_from([0.0, 0.003, 0.1])), draw(st.sampled_from([-0.05, -0.005, 0.0, 0.02]))
    missing = draw(st.sampled_from([0.0, 0.2]))
    luck = spread * rng.standard_normal((2, blocks))
    found = []
    for metric, number, block in itertools.product(
        draw(st.permutations(["sys_tok_s", "ttft", "tpot"])), range(cells), range(blocks)
    ):
        logs = luck[:, block] + spread * rng.standard_normal(2) + (0, change)
        base, new = (None if rng.random() < missing else float(np.exp(number + log)) for log in logs)
        found.append(Sample(f"cell {number}", metric, block, base, new))
    return found


@settings(max_examples=50)  # of several cells and blocks each
@given(runs(), st.booleans())
def test_swapping_the_builds_inverts_the_ratio_and_flips_the_verdict(samples: list[Sample], paired: bool) -> None:
    there = compare(samples, paired=paired)
    back = by_key(compare([replace(one, base=one.candidate, candidate=one.base) for one in samples], paired=paired))
    assert by_key(there).keys() == back.keys()
    for key, one in by_key(there).items():
        other = back[key]
        ratio = other.ratio
        inverse = replace(
            ratio, point=1 / ratio.point, low=ratio.high and 1 / ratio.high, high=ratio.low and 1 / ratio.low
        )
        same(one, replace(other, ratio=inverse, verdict=FLIPPED[other.verdict]))


@settings(max_examples=50)  # of several cells and blocks each
@given(runs(), st.booleans(), st.randoms(use_true_random=False))
def test_neither_units_nor_order_matter(samples: list[Sample], paired: bool, rnd: random.Random) -> None:
    def scaled(one: Sample) -> Sample:
        factor = 1e3 * (1 + len(one.cell) + int(one.cell[-1])) * (1 + one.block if paired else 1)
        return replace(one, base=one.base and one.base * factor, candidate=one.candidate and one.candidate * factor)

    before = by_key(compare(samples, paired=paired))
    changed = [scaled(one) for one in samples]
    rnd.shuffle(changed)
    after = by_key(compare(changed, paired=paired))
    assert before.keys() == after.keys()
    for key, one in before.items():
        same(one, after[key])


@settings(max_examples=50)  # of several cells and blocks each
@given(runs(), st.booleans(), st.sampled_from([0.001, 0.01, 0.05]))
def test_interval_p_and_verdict_are_those_of_scipy_and_of_the_rule(
    samples: list[Sample], paired: bool, margin: float
) -> None:
    compared = compare(samples, paired=paired, margin=margin)
    for one in compared.cells:
        rows = [row for row in samples if (row.cell, row.metric) == (one.cell, one.metric)]
        if paired:
            rows = [row for row in rows if row.base and row.candidate]
        sign = BETTER[one.metric]
        base, new = (
            sign * np.log([value for row in rows if (value := getattr(row, side))]) for side in ("base", "candidate")
        )
        assert one.ratio.point == near(math.exp(new.mean() - base.mean()))
        assert (one.candidate / one.base) ** sign == near(one.ratio.point)
        if one.p_value is None:
            assert (one.ratio.low, one.p_adjusted, one.verdict) == (None, None, "undecided")
            assert min(len(base), len(new)) < 2 or max(np.ptp(base), np.ptp(new)) < 1e-8
            continue
        test = stats.ttest_rel(new, base) if paired else stats.ttest_ind(new, base, equal_var=False)
        wide, narrow = (np.exp(test.confidence_interval(level)) for level in (0.95, 0.9))
        assert one.p_value == near(float(test.pvalue), rel=1e-6, abs=1e-300)
        assert (one.ratio.low, one.ratio.high) == near((wide[0], wide[1]), rel=1e-9)
        expected = "undecided"
        if 1 / (1 + margin) < narrow[0] and narrow[1] < 1 + margin:
            expected = "equivalent"
        elif one.p_adjusted is not None and one.p_adjusted <= 0.05:
            expected = "faster" if one.ratio.point > 1 else "slower"
        assert one.verdict == expected
    primary = [one for one in compared.cells if one.metric in PRIMARY and one.p_value is not None]
    assert [one.p_adjusted for one in primary] == holm([one.p_value for one in primary if one.p_value is not None])


P_VALUES = st.lists(st.floats(0, 1), min_size=1, max_size=6)


@given(P_VALUES)
def test_holm_is_closed_testing_with_bonferroni(p_values: list[float]) -> None:
    adjusted = holm(p_values)
    for index in range(len(p_values)):
        groups = (
            group
            for size in range(1, len(p_values) + 1)
            for group in itertools.combinations(range(len(p_values)), size)
            if index in group
        )
        expected = max(min(1.0, len(group) * min(p_values[i] for i in group)) for group in groups)
        assert adjusted[index] == near(expected, rel=1e-12)
    ranked = sorted(zip(p_values, adjusted, strict=True))
    assert all(p <= raised <= 1 for p, raised in ranked)
    assert [raised for _, raised in ranked] == sorted(adjusted)


def test_by_hand() -> None:
    """d = 2, 4: mean 3, sd sqrt 2, standard error 1 (in percent); t = 3 with 1 degree, p = 1 - (2/pi) arctan 3."""
    samples = cell([math.exp(0.02), math.exp(0.04)], metric="ttft", base=0.05)
    one = compare(samples).cells[0]
    assert one.ratio.point == near(math.exp(0.03))
    assert (one.ratio.low, one.ratio.high) == near((math.exp(0.03 - 0.127062), math.exp(0.03 + 0.127062)), rel=1e-6)
    assert one.p_value == near(1 - 2 / math.pi * math.atan(3))
    assert one.noise == near(0.01)
    assert (one.base, one.candidate) == near((0.05, 0.05 * math.exp(-0.03)))
    assert (one.verdict, one.warnings) == ("undecided", ("only two starts of one side: a very wide interval",))
    # Holm by hand: 0.01 x 3, then 0.02 x 2, then 0.03 x 1, which must not be below the one before.
    assert holm([0.03, 0.01, 0.02]) == near([0.04, 0.03, 0.04])


@pytest.mark.parametrize(
    ("ratios", "verdict"),
    [
        ([1.031, 1.030, 1.029, 1.030], "faster"),
        ([1 / 1.031, 1 / 1.030, 1 / 1.029, 1 / 1.030], "slower"),
        ([1.004, 1.005, 1.006, 1.005], "equivalent"),  # significant too: less than the margin comes first
        ([1.009, 1.011, 1.010, 1.011], "faster"),
        ([1.03, 0.98, 1.04, 1.00], "undecided"),
    ],
)
def test_verdicts(ratios: list[float], verdict: str) -> None:
    compared = compare(cell(ratios))
    assert [compared.cells[0].verdict, compared.overall[0].verdict] == [verdict, verdict]
    assert (compared.cells[0].more_blocks is None) == (verdict != "undecided")


def test_the_geometric_mean_is_of_cells_within_a_block_first() -> None:
    """Two cells with opposite noise in each block: each undecided, their mean steady."""
    swings = np.array([0.05, -0.05, 0.04, -0.04])
    tiny = np.array([0.001, -0.001, 0.0005, -0.0005])
    compared = compare(
        cell(np.exp(0.03 + swings).tolist()) + cell(np.exp(0.03 - swings + 2 * tiny).tolist(), "b", base=7.0)
    )
    assert [one.verdict for one in compared.cells] == ["undecided", "undecided"]
    (overall,) = compared.overall
    assert (overall.verdict, overall.cells, overall.ratio.n) == ("faster", ("a", "b"), 4)
    assert overall.ratio.point == near(math.exp(0.03))
    assert overall.noise == near(np.std(tiny, ddof=1) / math.sqrt(2))


def test_a_cell_is_compared_with_the_rest_of_the_grid_without_what_a_start_does_to_all() -> None:
    rng = np.random.default_rng(1)
    common, own = 0.01 * np.array([3, -3, 2, -2, 1, -1]), 0.002 * rng.standard_normal((5, 6))
    logs = common + own + 0.03 * (np.arange(5) == 3)[:, None]
    compared = compare([row for name, of in zip("abcde", logs, strict=True) for row in cell(np.exp(of).tolist(), name)])
    assert {one.verdict for one in compared.cells} == {"undecided"}
    found = {one.cell: one for one in compared.relative}
    expected = stats.ttest_1samp(logs[3] - np.delete(logs, 3, axis=0).mean(axis=0), 0)
    assert found["d"].p_value == near(float(expected.pvalue))
    assert (found["d"].verdict, found["d"].ratio.point) == ("faster", near(1.03, abs=0.004))
    assert {name for name, one in found.items() if one.verdict == "faster"} == {"d"}
    p_values = [one.p_value for one in compared.relative if one.p_value is not None]
    assert [one.p_adjusted for one in compared.relative] == holm(p_values)
    alone = compare([row for name in "ab" for row in cell([1.01, 1.02, 1.03], name)])
    assert alone.relative == ()  # of two cells nothing tells which one differs


def test_a_start_far_from_the_others_is_named_and_no_other() -> None:
    rng = np.random.default_rng(2)

    def starts(sd: float, blocks: int, far: float = 0.0) -> list[Sample]:
        logs = sd * rng.standard_normal((4, blocks, 2))
        logs[:, 1, 1] += math.log1p(far)
        return [
            Sample(f"cell {n}", metric, block, *np.exp(BETTER[metric] * logs[n, block]).tolist())
            for metric in PRIMARY
            for n in range(4)
            for block in range(blocks)
        ]

    for blocks in (3, 6):
        for far in (-0.1, 0.15):
            found = outlying_starts(starts(0.007, blocks, far))
            assert [one[:3] for one in found] == [("candidate", metric, 1) for metric in PRIMARY]
            assert [one.change for one in found] == [near(far, abs=0.02), near(1 / (1 + far) - 1, abs=0.02)]
    assert not outlying_starts(starts(0.007, 2, -0.1))  # of two starts nothing tells which one is off
    assert sum(bool(outlying_starts(starts(0.02, 6))) for _ in range(100)) == 0
    assert sum(bool(outlying_starts(starts(0.1, 6))) for _ in range(100)) < 5


def test_a_secondary_metric_costs_the_primary_ones_nothing() -> None:
    primary = cell([1.05, 1.04, 1.06]) + cell([1.01, 1.02, 1.04], metric="ttft")
    alone = compare(primary)
    beside = compare(primary + cell([1.1, 1.2, 1.1], metric="tpot"))
    assert (beside.cells[:2], beside.overall[:2]) == (alone.cells, alone.overall)
    assert [one.p_adjusted == one.p_value for one in beside.cells] == [False, True, True]


def test_no_interval_and_no_verdict_without_a_spread() -> None:
    for ratios, method in (([1.5], "one start"), ([1.5] * 6, "no spread"), ([1.0] * 6, "no spread")):
        for paired in (True, False):
            compared = compare(cell(ratios), paired=paired)
            for one in (compared.cells[0], compared.overall[0]):
                assert (one.ratio.point, one.ratio.low, one.ratio.high) == (near(ratios[0]), None, None)
                assert (one.verdict, one.p_value, one.mde, one.ratio.method) == ("undecided", None, None, method)
                assert len(one.warnings) == 1
    # Such a cell is not tested, so it does not count in the family either.
    both = compare(cell([1.5] * 3) + cell([1.02, 1.03, 1.01], "b")).cells
    assert both[1].p_adjusted == both[1].p_value


def test_what_is_missing_is_named_and_the_rest_compared() -> None:
    """Candidate died in block 2 after cell a; cell c is invalid in block 0; cell d has never worked."""
    lost = {("b", 2), ("c", 2), ("c", 0), *(("d", block) for block in range(5))}
    samples = [
        replace(one, candidate=None) if (one.cell, one.block) in lost else one
        for name in "abcd"
        for one in cell([1.02, 1.03, 1.025, 1.03, 1.02], name)
    ]
    compared = compare(samples)
    assert compared.left_out == (("d", "sys_tok_s"),)
    assert [(one.cell, one.ratio.n, one.warnings) for one in compared.cells] == [
        ("a", 5, ()),
        ("b", 4, ("4 of 5 starts",)),
        ("c", 3, ("3 of 5 starts",)),
    ]
    (overall,) = compared.overall
    assert (overall.cells, overall.left_out, overall.ratio.n) == (("a", "b"), ("c",), 4)
    assert overall.warnings == ("4 of 5 starts",)
    # Without any common ground there is no mean, and that is said.
    apart = [replace(one, block=number) for number, one in enumerate(cell([1.0]) + cell([1.0], "b") + cell([1.0], "c"))]
    nothing = compare(apart)
    assert (nothing.overall, len(nothing.cells)) == ((), 3)
    assert nothing.warnings == ("no geometric mean of sys_tok_s: no cell has a value in every start",)
    assert compare([]) == Comparisons((), (), (), (), ())


def test_two_separate_runs_say_that_they_were_not_interleaved() -> None:
    samples = cell([1.03, 1.02, 1.025, 1.03])
    longer = [*samples, Sample("a", "sys_tok_s", 4, 100.0, None), Sample("a", "sys_tok_s", 5, 100.1, None)]
    compared = compare(longer, paired=False)
    assert compared.warnings[0].startswith("not interleaved")
    (one,) = compared.cells
    assert (one.ratio.n, one.warnings, one.ratio.method) == (4, ("4 of 6 starts",), "Welch's t over starts, logs")
    assert compare(longer).cells[0].ratio.n == 4


def test_a_win_within_the_noise_floor_is_not_called() -> None:
    win = cell([1.03, 1.031, 1.029, 1.03]) + cell([1.08, 1.081, 1.079, 1.08], "b")
    aa = cell(np.exp([0.03, -0.03, 0.02, -0.02]).tolist()) + cell(np.exp([0.01, -0.02, 0.03, -0.02]).tolist(), "b")
    floor = noise(aa)
    assert [(one.cells, one.metric, one.degrees) for one in floor] == [
        (("a",), "sys_tok_s", 3),
        (("b",), "sys_tok_s", 3),
        (("a", "b"), "sys_tok_s", 3),
    ]
    sd = math.sqrt((0.03**2 + 0.02**2) * 2 / 3 / 2)
    assert floor[0].sd == near(sd)
    assert floor[0].bound((4, 4)) == near(float(stats.t.ppf(0.975, 3)) * sd / math.sqrt(2))
    assert [one.verdict for one in compare(win).cells] == ["faster", "faster"]
    held, called = compare(win, floor=floor).cells
    assert (held.verdict, called.verdict) == ("undecided", "faster")
    assert held.warnings == ("within the noise floor of 4.80 %: no verdict",)
    assert held.more_blocks is not None
    assert floor[0].bound([4 + held.more_blocks] * 2) < math.log(1.03) < floor[0].bound([3 + held.more_blocks] * 2)
    assert compare(win[::-1], floor=floor).overall[0].warnings == ()
    unknown = compare(win, floor=floor[1:]).cells[0]
    assert (unknown.verdict, unknown.warnings) == (
        "faster",
        ("not in the noise run: no noise floor applied",),
    )


@given(st.integers(1, 200), st.floats(1e-4, 0.05), st.floats(0, 8))
def test_power_is_that_of_the_noncentral_t(degrees: int, alpha: float, effect: float) -> None:
    critical = stats.t.isf(alpha / 2, degrees)
    expected = stats.nct.sf(critical, degrees, effect) + stats.nct.cdf(-critical, degrees, effect)
    assume(math.isfinite(expected))
    assert chance_to_decide(effect, 1.0, degrees, alpha) == near(float(expected), abs=1e-3)
    assert chance_to_decide(detectable(degrees, alpha), 1.0, degrees, alpha) == near(0.8, abs=1e-6)


def test_power_and_minimum_detectable_effect_agree() -> None:
    one = compare(cell([1.01, 1.02, 0.99, 1.0, 1.01, 0.98]) + cell([1.0, 1.1, 1.0, 1.0, 0.9, 1.0], "b")).cells[0]
    assert one.noise is not None
    assert one.mde is not None
    assert one.mde_family is not None
    assert power(one.mde, one.noise, 6) == near(0.8, abs=1e-6)
    assert power(one.mde_family, one.noise, 6, tests=2) == near(0.8, abs=1e-6)
    assert power(0.02, 0.007, 6, tests=2) == near(0.91, abs=0.01)
    assert power(-0.01, 0.007, 6) == near(power(1 / 0.99 - 1, 0.007, 6))
    assert power(0.5, 0.007, 1) == 0.0


def test_equivalence_by_simulation() -> None:
    """The chance that |mean| + t s stays below a margin, or |mean| exceeds t s, against 200,000 draws."""
    rng = np.random.default_rng(5)
    mean, s = rng.normal(0.3, 0.5, 200_000), 0.5 * np.sqrt(rng.chisquare(5, 200_000) / 5)
    decided = (np.abs(mean) > stats.t.isf(0.01, 5) * s) | (np.abs(mean) + stats.t.isf(0.05, 5) * s < 1.4)
    assert chance_to_decide(0.3, 0.5, 5, 0.02, 1.4) == near(decided.mean(), abs=0.005)
    assert chance_to_decide(0.0, 1e-3, 5, 0.0, 1.0) == near(1.0)


@pytest.mark.parametrize(("shift", "spread"), [(0.02, 0.03), (0.0, 0.02), (0.006, 0.006), (-0.01, 0.01)])
def test_more_blocks_are_the_fewest_that_probably_decide(shift: float, spread: float) -> None:
    d = shift + spread * np.array([1, -1, 1, -1, 0.0])
    one = compare(cell(np.exp(d).tolist())).cells[0]
    assert one.verdict == "undecided"
    assert one.more_blocks is not None
    chances = [
        chance_to_decide(shift, np.std(d, ddof=1) / math.sqrt(n), n - 1, 0.05, math.log(1.01))
        for n in (5 + one.more_blocks - 1, 5 + one.more_blocks)
    ]
    assert chances[0] < 0.8 <= chances[1]


def test_hopeless_is_said() -> None:
    assert compare(cell([1.5, 0.7, 1.3, 0.8])).cells[0].more_blocks is None


@pytest.mark.parametrize(
    ("samples", "words"),
    [
        ([Sample("a", "speed", 0, 1.0, 1.0)], "cell a, speed, block 0: unknown metric"),
        ([Sample("a", "ttft", 3, 1.0, 0.0)], "cell a, ttft, block 3: 0.0 is not"),
        ([Sample("a", "ttft", 3, math.nan, 1.0)], "cell a, ttft, block 3: nan is not"),
        ([Sample("a", "ttft", 3, 1.0, 1.0)] * 2, "cell a, ttft, block 3: given twice"),
    ],
)
def test_bad_input_is_named(samples: list[Sample], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        compare(samples)


def test_a_margin_must_be_above_0() -> None:
    with pytest.raises(ValueError, match="margin must be above 0, not 0"):
        compare([], margin=0)


def test_the_simulations_rules_are_the_production_ones() -> None:
    rounds = mc.draw(np.random.default_rng(3), mc.ROUGH, 20, 4)
    change = np.array([[[0.0, 0.02, 0.05, -0.01]] * 2])
    cells, wholes = mc.by_blocks(rounds, change)
    d = mc.differences(rounds) + change[..., None]
    calls, whole_calls = mc.calls((cells, wholes))
    for run in range(len(rounds)):
        compared = compare(
            one
            for index, metric in enumerate(PRIMARY)
            for number in range(4)
            for one in cell(np.exp(d[run, index, number]).tolist(), str(number), metric)
        )
        for found, p, called, values in (
            (compared.cells, cells[run], calls[run], d[run]),
            (compared.overall, wholes[run], whole_calls[run], d[run].mean(axis=1)),
        ):
            assert [one.p_value for one in found] == near(p.ravel().tolist(), rel=1e-9)
            equal = mc.equivalent(values).ravel()
            assert [one.verdict == "equivalent" for one in found] == equal.tolist()
            assert [one.verdict in {"faster", "slower"} for one in found] == (called.ravel() & ~equal).tolist()


def test_false_alarms_coverage_and_power() -> None:
    """1,100 rough runs of 18 cells; a twentieth of them has a standard error of 0.7 points."""
    found = mc.assess_all(list(mc.METHODS), 1, mc.ROUGH, 1_100, 18)
    ours = found[mc.OURS]
    assert ours.alarm_cells <= 0.06
    assert ours.alarm_whole <= 0.065
    assert 0.94 <= ours.covered_cells <= 0.965
    assert 0.93 <= ours.covered_whole <= 0.97
    assert ours.power_whole[1] >= 0.8
    assert (ours.power_all >= ours.power_one - 0.03).all()
    for name, other in found.items():
        if "blocks" not in name and "noise floor" not in name:
            assert other.covered_whole < 0.92, name
            assert other.alarm_whole > 0.08, name
