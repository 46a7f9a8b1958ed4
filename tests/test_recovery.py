"""Accuracy recovery: formulas, what they say of the published card, and how often their intervals are right."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import binomtest

from benchbench.accuracy.recovery import Evaluation, accuracy, recover
from benchbench.accuracy.results import Score, published
from benchbench.accuracy.section import evaluation_section, sentence


def score(point: float, n: int | None = None, samples: Sequence[float] = (), **more: object) -> Score:
    answers = {("t", number, ""): float(right) for number, right in enumerate(samples)}
    stderr = math.sqrt(point * (1 - point) / (n - 1)) if n and not samples and 0 < point < 1 else None
    return Score(**{"task": "t", "shots": 0, "point": point, "n": n, "stderr": stderr, "samples": answers, **more})


def answered(answers: Sequence[float]) -> Score:
    return score(float(np.mean(answers)), len(answers), list(answers))


def test_the_published_rows_are_both_inside_sampling_error() -> None:
    mmlu = recover(published("MMLU (5-shot)=86.2"), score(0.8548, 14042, task="mmlu", shots=5))
    gsm8k = recover(published("GSM8K (8-shot) = 92.0 %"), score(0.937, 1319, task="gsm8k", shots=8))
    assert [round(100 * recovery.ratio.point, 1) for recovery in (mmlu, gsm8k)] == [99.2, 101.8]
    assert [recovery.verdict for recovery in (mmlu, gsm8k)] == ["inside", "inside"]
    assert [recovery.assumed_n for recovery in (mmlu, gsm8k)] == [14042, 1319]
    assert accuracy(mmlu.base).low is None  # nobody has told how sure the published score is
    assert sentence(gsm8k, "BF16", "INT8") == (
        "GSM8K (8-shot): INT8 is 1.7 points above BF16, within sampling error (95 % CI -0.3 to +3.7 points; "
        "BF16 assumed to have 1,319 questions too): no evidence of a change."
    )
    # By hand: sqrt(0.862 * 0.138 / 14042 + 0.8548 * 0.1452 / 14042) = 0.004163
    assert mmlu.difference.high is not None
    assert mmlu.difference.high - mmlu.difference.point == pytest.approx(1.96 * 0.004163, rel=1e-3)


def test_two_published_scores_have_no_interval_and_no_verdict() -> None:
    recovery = recover(published("t=92"), published("t=93"))
    assert (recovery.verdict, recovery.ratio.low, recovery.assumed_n) == ("unknown", None, None)
    assert "it may be chance" in sentence(recovery, "a", "b")


@pytest.mark.parametrize("text", ["mmlu", "mmlu=x", "=86", "mmlu=101", "mmlu=86,n=", "mmlu=-3"])
def test_a_published_score_that_is_none_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="--published"):
        published(text)


@given(right=st.integers(0, 500), n=st.integers(1, 500))
def test_without_a_standard_error_the_interval_is_wilsons(right: int, n: int) -> None:
    estimate = accuracy(Score(task="t", shots=0, point=min(right, n) / n, n=n))
    low, high = binomtest(min(right, n), n).proportion_ci(method="wilson")
    assert (estimate.low, estimate.high) == pytest.approx((low, high), abs=1e-9)


pairs = st.lists(st.tuples(st.sampled_from([0.0, 1.0]), st.sampled_from([0.0, 1.0])), min_size=2, max_size=60)


@given(pairs)
def test_paired_answers_agree_with_mcnemar_and_swapping_the_sides_swaps_all(answers: list[tuple[float, float]]) -> None:
    base, candidate = (answered(side) for side in zip(*answers, strict=True))
    recovery, back = recover(base, candidate), recover(candidate, base)
    n, b, c = len(answers), answers.count((1.0, 0.0)), answers.count((0.0, 1.0))
    assert recovery.only == (b, c)
    assert recovery.p == pytest.approx(binomtest(b, b + c).pvalue if b + c else 1)
    assert (recovery.verdict == "inside") == (recovery.p is not None and recovery.p >= 0.05)
    variance = (b + c - (b - c) ** 2 / n) / n / (n - 1)  # of the mean of n differences -1, 0, 1
    half = recovery.difference.high and recovery.difference.high - recovery.difference.point
    assert half == (pytest.approx(1.95996 * math.sqrt(variance), rel=1e-4) if variance > 1e-9 else None)
    assert {recovery.verdict, back.verdict} in ({"inside"}, {"above", "below"})
    assert recovery.difference.point == pytest.approx(-back.difference.point)
    if recovery.ratio.low is not None:
        assert back.ratio.high == pytest.approx(1 / recovery.ratio.low)


@pytest.mark.parametrize(("paired", "about"), [(True, 0.95), (False, 1.0)])
def test_the_intervals_hold_the_truth_as_often_as_they_say(paired: bool, about: float) -> None:
    """Models that mostly fail at the same questions: 88 % and 86 % right, 81 % both. Unpaired is much too careful."""
    rng, held, times, n = np.random.default_rng(6), 0, 400, 500
    for _ in range(times):
        u = rng.random(n)
        base, candidate = u < 0.88, (u < 0.84) | (u > 0.98)
        first, other = (answered(side.astype(float)) for side in (base, candidate))
        if not paired:
            first, other = (score(side.point, n) for side in (first, other))
        ratio = recover(first, other).ratio
        assert ratio.low is not None
        assert ratio.high is not None
        held += ratio.low <= 0.86 / 0.88 <= ratio.high
    assert held / times == pytest.approx(about, abs=0.025)


def test_what_was_not_asked_alike_is_said_and_not_paired() -> None:
    base = answered([1, 0, 1, 1])
    other = Score(task="t", shots=0, point=0.5, n=2, samples={("t", 0, ""): 1.0, ("t", 1, ""): 0.0}, chat=True)
    recovery = recover(base, other)
    assert recovery.only is None
    assert set(recovery.warnings) == {
        "the questions differ: not paired",
        "a chat template for the candidate only",
    }
    text = evaluation_section(Evaluation("e", {"a<b": [base], "c|d": [other]}, "a<b"))
    assert "| Benchmark | a\\<b | c\\|d | Recovery |" in text
    assert "Note: t (0-shot): 2 questions are too few" in text


def test_a_baseline_that_got_nothing_right_has_no_recovery() -> None:
    recovery = recover(answered([0, 0, 0]), answered([1, 0, 0]))
    assert math.isnan(recovery.ratio.point)
    assert "| \N{EN DASH} |" in evaluation_section(
        Evaluation("e", {"a": [recovery.base], "b": [recovery.candidate]}, "a")
    )
