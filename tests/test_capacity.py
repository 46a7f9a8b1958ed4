"""The search for the largest load that meets a limit: its statistics, its answers, and that it resumes."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.optimize import isotonic_regression
from scripts import load_benchmark

from benchbench.boundary.boundary_search import Answer, Probe, Question, next_probe
from benchbench.boundary.certify import LOOKS, Verdict, error_of, judged
from benchbench.boundary.isotonic import crossing, rising

BENCHMARK = load_benchmark("capacity")


@given(st.lists(st.tuples(st.floats(-10, 10), st.floats(0.5, 20)), min_size=1, max_size=20))
def test_the_regression_is_the_isotonic_one(points: list[tuple[float, float]]) -> None:
    values, weights = [value for value, _ in points], [weight for _, weight in points]
    assert rising(values, weights) == pytest.approx(isotonic_regression(values, weights=weights).x.tolist(), abs=1e-9)


def test_the_crossing_lies_between_the_loads_on_either_side() -> None:
    assert crossing([1, 4, 16], [-1.0, -0.5, 0.5]) == pytest.approx(8)
    assert crossing([1, 4], [-1, -1]) is None
    assert crossing([1, 4], [1, 2]) is None


def test_all_tests_together_spend_the_error() -> None:
    spent = math.fsum(error_of(number, 0.05) for number in range(100_000))
    assert spent == pytest.approx(0.05, rel=1e-4)
    assert spent < 0.05


def test_a_verdict_needs_rounds_that_differ_and_stands_once_given() -> None:
    low = [-0.1, -0.11, -0.12, -0.1, -0.11]
    assert judged(low[:4], 0.0175) == Verdict.OPEN
    assert judged(low, 0.0175) == Verdict.HOLDS
    assert judged([-x for x in low], 0.0175) == Verdict.FAILS
    assert judged([*low, 9.0, 9.0], 0.0175) == Verdict.HOLDS
    assert judged([-0.1] * 5, 0.0175) == Verdict.OPEN
    assert judged([-0.1] * LOOKS[-1], 0.0175) == Verdict.UNDECIDED


def test_a_load_at_the_limit_is_called_wrongly_no_more_often_than_allowed() -> None:
    rng, error, runs = np.random.default_rng(3), 0.05, 2000
    verdicts = [judged(rng.standard_normal(LOOKS[-1]).tolist(), error) for _ in range(runs)]
    allowed = error * runs + 3 * math.sqrt(error * runs)
    assert verdicts.count(Verdict.HOLDS) <= allowed
    assert verdicts.count(Verdict.FAILS) <= allowed


@pytest.mark.parametrize("server", BENCHMARK.SERVERS, ids=lambda server: server.name)
def test_answers_hold_the_truth(server: BENCHMARK.Server) -> None:  # type: ignore[name-defined]
    right, *_ = BENCHMARK.row(server, BENCHMARK.ours, 100, 60)
    assert right >= 0.95


@pytest.mark.parametrize(
    ("capacity", "expected"),
    [
        (1e6, Answer(64.0, None, "always")),
        (0.01, Answer(None, 1.0, "never")),
        (6.5, Answer(6.0, 7.0, "width")),
        (1.5, Answer(1.0, 2.0, "width")),
        (63.5, Answer(63.0, 64.0, "width")),
    ],
)
def test_with_little_noise_the_answer_is_exact(capacity: float, expected: Answer) -> None:
    server = BENCHMARK.Server("", capacity, 2, 0.001, 0.001)
    rng = np.random.default_rng(1)
    assert BENCHMARK.ours(server, rng, 1, Question(1, 64, width=0.01))[:3] == expected


def test_a_rate_is_found_to_the_width() -> None:
    server = BENCHMARK.Server("", 7.77, 2, 0.001, 0.001)
    found = BENCHMARK.ours(server, np.random.default_rng(1), 1, Question(0.5, 100, whole=False))
    assert found.reason == "width"
    assert found.holds_at < 7.77 < found.fails_at
    assert found.fails_at - found.holds_at <= 0.05 * found.fails_at * (1 + 1e-9)


@given(st.integers(0, 10_000), st.integers(1, 60), st.floats(0.3, 3000), st.floats(0.001, 2), st.booleans())
def test_every_search_ends_within_its_budget(seed: int, budget: int, capacity: float, luck: float, whole: bool) -> None:
    server, rng = BENCHMARK.Server("", capacity, 1, luck), np.random.default_rng(seed)
    question = Question(1, 1000, whole=whole, rounds=budget)
    probes: list[Probe] = []
    while not isinstance(step := next_probe(question, probes), Answer):
        assert sum(len(probe.excess) for probe in probes) < budget
        assert 1 <= step.load <= 1000
        assert not whole or step.load == int(step.load)
        assert step.rounds >= 1
        probes.append(Probe(step.load, step.test, server.rounds(rng, step.load, step.rounds, 100)))
    if step.holds_at and step.fails_at and step.reason == "width":
        assert step.fails_at - step.holds_at <= max(1.0 * whole, 0.05 * step.fails_at) + 1e-9
    assert next_probe(question, probes) == step
