"""The posterior of `bench bisect` over commits, its next block, and when it ends: pure, and simulated in small."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy.stats import multivariate_normal
from scripts import load_benchmark

from benchbench.stepsearch import step_posterior
from benchbench.stepsearch.next_block import Answer, Ask, Question, groups_of, next_block
from benchbench.stepsearch.step_posterior import Start, effect_of, posterior, several_steps

BENCHMARK = load_benchmark("bisection")
EFFECT = math.log(0.97)


def starts_of(*blocks: tuple[int, ...], step: int = 4, other: int = 99, noise: float = 0.004) -> list[Start]:
    rng = np.random.default_rng(1)
    return [
        Start(block, place, EFFECT * ((place >= step) + (place >= other)) + noise * float(rng.standard_normal()))
        for block, places in enumerate(blocks)
        for place in places
    ]


BLOCKS = ((0, 8), (8, 0), (0, 4), (3, 5), (0, 2, 6), (0, 7, 8))


def test_the_likelihood_is_that_of_the_linear_model_with_random_blocks_and_a_walk() -> None:
    starts = starts_of(*BLOCKS)
    values, places = np.array([s.value for s in starts]), np.array([s.place for s in starts])
    same = np.array([[a.block == b.block for b in starts] for a in starts])
    middles = [1, 3, 5, 7, 9.5, 12.5]  # of the blocks, in starts
    walked = np.array([[min(middles[a.block], middles[b.block]) for b in starts] for a in starts])
    ours = step_posterior._likelihoods(starts, range(1, 9))
    for drift, noise, scale in ((0, 14, 0), (2, 12, 1), (4, 16, 2), (6, 14, 1)):
        sd = step_posterior._NOISES[noise]
        level, walk = step_posterior._DRIFTS[drift]
        base = sd**2 * (np.eye(len(starts)) + level**2 * same + walk**2 * walked) + 10.0
        columns = [np.outer(places >= step, places >= step) for step in range(1, 9)]
        spread = step_posterior._SCALES[scale] ** 2
        none = multivariate_normal.logpdf(values, None, base)
        expected = [multivariate_normal.logpdf(values, None, base + spread * one) - none for one in columns]
        ratio = ours.stepped[drift, noise, scale] + math.log(len(step_posterior._SCALES)) - ours.none[drift, noise]
        assert ratio == pytest.approx(expected, abs=1e-2)


def test_the_step_is_where_the_starts_say_and_places_between_probes_share_it() -> None:
    state = posterior(starts_of(*BLOCKS), [1.0] * 8)
    assert state.weights.argmax() + 1 == 4
    assert state.differ > 0.999
    few = posterior(starts_of((0, 8), (8, 0), (0, 2, 6)), [1.0] * 8)
    assert few.weights[2:6] == pytest.approx(few.weights[2])
    assert posterior(starts_of((0, 8), (8, 0)), [3.0, *[1.0] * 7]).weights == pytest.approx([0.3, *[0.1] * 7])


def test_a_level_that_all_starts_of_all_blocks_share_means_nothing() -> None:
    starts = starts_of(*BLOCKS)
    moved = [start._replace(value=start.value + 7) for start in starts]
    assert posterior(moved, [1.0] * 8).weights == pytest.approx(posterior(starts, [1.0] * 8).weights)


def test_the_effect_has_an_interval_and_two_steps_are_told_from_one() -> None:
    effect = effect_of(starts_of(*BLOCKS), [1.0] * 8)
    assert effect.low < EFFECT < effect.high < 0
    assert effect.mean == pytest.approx(EFFECT, abs=0.01)
    assert several_steps(starts_of(*BLOCKS), [1.0] * 8)[0] < 0.2
    probability, places = several_steps(starts_of(*BLOCKS, *BLOCKS, step=3, other=6), [1.0] * 8)
    assert probability > 0.99
    assert places == (3, 6)


def test_first_the_ends_must_differ() -> None:
    question, flat = Question((1.0,) * 8), starts_of(*[(0, 8)] * 7, step=99)
    assert next_block(question, [], []) == Ask((0, 8))
    for blocks in range(7):
        assert next_block(question, flat[: 2 * blocks], [(0, 8)] * blocks) == Ask((0, 8))
    ended = next_block(question, flat, [(0, 8)] * 7)
    assert isinstance(ended, Answer)
    assert ended.reason == "no_difference"
    lost = next_block(question, [], [(0, 8)] * 3)  # blocks that came to nothing
    assert isinstance(lost, Answer)
    assert lost.reason == "budget"


def test_a_block_tells_places_apart_and_paired_it_has_the_good_build_too() -> None:
    starts = starts_of((0, 8), (8, 0), (0, 8))
    tried = [(0, 8)] * 3
    for paired in (False, True):
        asked = next_block(Question((1.0,) * 8, paired=paired), starts, tried)
        assert isinstance(asked, Ask)
        assert not paired or (asked.places[0] == 0 and len(asked.places) >= 2)
        assert set(asked.places) & set(range(1, 8))
    ended = next_block(Question((1.0,) * 8, starts=6), starts, tried)
    assert isinstance(ended, Answer)
    assert ended.reason == "budget"


def test_what_cannot_be_measured_shares_the_verdict_of_what_follows() -> None:
    question = Question((1.0,) * 8)
    assert groups_of(question, {3, 4}) == [(1, 1), (2, 2), (3, 5), (6, 6), (7, 7), (8, 8)]
    blocks = ((0, 8), (8, 0), (0, 2), (0, 5), (2, 5), (0, 2, 5))
    ended = next_block(question, starts_of(*blocks), blocks, {3, 4})
    assert ended == Answer("found", 3, 5, pytest.approx(1, abs=0.05))
    asked = next_block(question, starts_of(*blocks), blocks, {4})
    assert isinstance(asked, Ask)
    assert 3 in asked.places


def test_simulated_searches_name_the_commit() -> None:
    machine = BENCHMARK.MACHINES[0]._replace(commits=16, effect=math.log(0.95))
    found = BENCHMARK.searches(machine, BENCHMARK.ours, 20, {})
    assert sum(search.right for search in found) >= 19
    assert np.mean([search.starts for search in found]) < 16
    none = BENCHMARK.searches(machine._replace(effect=0.0), BENCHMARK.ours, 20, {})
    assert sum(search.reason == "no_difference" for search in none) >= 17
    assert not any(search.reason == "found" for search in none)
