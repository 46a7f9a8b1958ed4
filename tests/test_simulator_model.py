from __future__ import annotations

from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from benchbench.engines.simulator.model import BLOCK_TOKENS, BatchModel, Emission, FixedModel, Model, static_rate
from benchbench.engines.simulator.profiles import (
    Faults,
    FixedLaw,
    LinearLaw,
    ProfileError,
    SimProfile,
    SlowFirst,
    Stall,
    TableLaw,
    load_profile,
    scaled,
    shipped_profiles,
)
from benchbench.engines.simulator.step_laws import step_s
from benchbench.engines.simulator.vocabulary import RESERVED, decode, encode

SECOND = 10**9
PUBLISHED = [(128, 128, 1, 24.1), (128, 128, 32, 504.6), (1024, 256, 32, 508.6), (1024, 1024, 32, 509.8)]
PUBLISHED += [(2048, 1024, 32, 537.5)]

requests = st.lists(
    st.tuples(st.integers(0, 5 * SECOND), st.integers(1, 90), st.integers(1, 40)), min_size=1, max_size=12
)


def engine(law: LinearLaw, **options: Any) -> BatchModel:
    return BatchModel(SimProfile(law=law, max_model_len=2, **options))


@st.composite
def batch_models(draw: st.DrawFn) -> BatchModel:
    return engine(
        LinearLaw(base_s=0.01, per_seq_s=0.001, per_prefill_token_s=0.0001, per_kv_token_s=0.00001),
        max_num_seqs=draw(st.integers(1, 8)),
        max_num_batched_tokens=draw(st.integers(1, 100)),
        kv_tokens=draw(st.integers(130, 300)),  # one request always fits, all of them seldom do
        prefix_cache=draw(st.booleans()),
        tokens_per_event=draw(st.integers(1, 5)),
    )


def run(model: Model, late_ns: int = 0) -> list[Emission]:
    events: list[Emission] = []
    while (due := model.next_due_ns()) is not None:
        if isinstance(model, BatchModel):
            assert 0 < model.kv_used <= model.profile.kv_tokens
            assert 1 <= model.running <= model.profile.max_num_seqs
        events += model.take_due(due + late_ns)
    assert model.running == model.waiting == 0
    return events


def submit_all(model: Model, arrivals: list[tuple[int, int, int]], prefix: tuple[int, ...] = ()) -> None:
    for i, (arrival, prompt, output) in enumerate(sorted(arrivals)):
        model.submit(i, arrival, prompt, output, prefix[: prompt // BLOCK_TOKENS])


@given(batch_models(), requests)
@settings(max_examples=200)
def test_every_token_is_told_once_in_order_and_within_budget_whatever_is_preempted(
    model: BatchModel, arrivals: list[tuple[int, int, int]]
) -> None:
    submit_all(model, arrivals, prefix=(1, 2, 3, 4, 5))
    events = run(model)
    assert [event.planned_ns for event in events] == sorted(event.planned_ns for event in events)
    for i, (arrival, prompt, output) in enumerate(sorted(arrivals)):
        own = [event for event in events if event.request_id == i]
        assert sum(event.n_tokens for event in own) == output
        assert [event.finished for event in own] == [False] * (len(own) - 1) + [True]
        assert own[0].n_tokens == 1
        assert all(event.n_tokens == model.profile.tokens_per_event for event in own[1:-1])
        assert arrival <= own[0].scheduled_ns < own[0].planned_ns
        assert all(a.planned_ns < b.planned_ns for a, b in pairwise(own))
        assert 0 <= own[0].cached_tokens < prompt
    assert model.kv_used == 0


@given(batch_models(), requests, st.integers(0, 3 * SECOND))
@settings(max_examples=50)
def test_a_late_caller_changes_no_plan(model: BatchModel, arrivals: list[tuple[int, int, int]], late_ns: int) -> None:
    submit_all(model, arrivals)
    on_time = run(model)
    again = BatchModel(model.profile)
    submit_all(again, arrivals)
    assert run(again, late_ns) == on_time


@given(batch_models(), requests, st.data())
@settings(max_examples=100)
def test_aborted_requests_are_silent_and_give_back_their_place(
    model: BatchModel, arrivals: list[tuple[int, int, int]], data: st.DataObject
) -> None:
    submit_all(model, arrivals)
    gone: set[int] = set()
    told = dict.fromkeys(range(len(arrivals)), 0)
    while (due := model.next_due_ns()) is not None:
        if data.draw(st.booleans()):  # also between the beginning of a step and its end
            victim = data.draw(st.sampled_from(sorted(told)))
            model.abort(victim)
            gone.add(victim)
        for event in model.take_due(due):
            assert event.request_id not in gone
            told[event.request_id] += event.n_tokens
    assert model.kv_used == model.running == model.waiting == 0
    assert all(told[i] == output for i, (_, _, output) in enumerate(sorted(arrivals)) if i not in gone)


def linear(**limits: Any) -> BatchModel:
    defaults = {"max_num_seqs": 64, "max_num_batched_tokens": 1000, "kv_tokens": 10_000}
    return engine(LinearLaw(base_s=1.0), **{**defaults, **limits})


def when(events: list[Emission], request_id: int) -> list[float]:
    return [event.planned_ns / SECOND for event in events if event.request_id == request_id]


def test_a_request_that_arrives_in_mid_step_joins_the_next_one() -> None:
    model = linear()
    submit_all(model, [(0, 5, 3), (SECOND // 2, 5, 2), (10 * SECOND, 5, 1)])
    events = run(model)
    assert when(events, 0) == [1, 2, 3]
    assert when(events, 1) == [2, 3]
    assert when(events, 2) == [11]  # an idle engine begins when a request arrives


def test_a_long_prompt_is_computed_in_chunks_beside_running_requests() -> None:
    model = linear(max_num_batched_tokens=10)
    submit_all(model, [(0, 5, 6), (1, 25, 2)])
    events = run(model)
    assert when(events, 0) == [1, 2, 3, 4, 5, 6]
    assert when(events, 1) == [4, 5]  # 9 + 9 + 7 prompt tokens: the running request has its token first


def test_the_youngest_is_preempted_and_computes_its_tokens_again() -> None:
    model = linear(kv_tokens=40)
    submit_all(model, [(0, 15, 12), (1, 15, 12)])
    events = run(model)
    assert model.counters["num_preemptions_total"] == 1
    # 15 + 15 prompt tokens leave 10 places: both decode until they are used, then the older goes on alone.
    assert when(events, 0) == list(range(1, 13))
    assert when(events, 1)[:5] == [2, 3, 4, 5, 6]
    assert when(events, 1)[5] == 13
    assert len(when(events, 1)) == 12


def test_a_known_prefix_is_not_computed_but_for_its_last_token() -> None:
    model = engine(LinearLaw(base_s=1.0, per_prefill_token_s=1.0), max_num_seqs=1, kv_tokens=1000)
    blocks = (11, 12, 13)
    for i, prefix in enumerate([blocks, blocks, (11, 99, 13)]):
        model.submit(i, 0, 48, 1, prefix)
    events = run(model)
    assert [event.cached_tokens for event in events] == [0, 32, 16]
    assert [event.planned_ns / SECOND for event in events] == [49, 49 + 17, 49 + 17 + 33]
    assert (model.counters["prefix_cache_queries_total"], model.counters["prefix_cache_hits_total"]) == (144, 48)
    model.reset_prefix_cache()
    model.submit(3, 200 * SECOND, 48, 1, blocks)
    assert [event.cached_tokens for event in run(model)] == [0]


def test_fixed_model_gives_each_request_its_own_clock() -> None:
    model = FixedModel(SimProfile(law=FixedLaw(ttft_s=0.1, itl_s=0.01), tokens_per_event=2))
    model.submit(7, 5 * SECOND, 10, 4)
    model.submit(8, 5 * SECOND + 1, 10, 1)
    model.abort(99)
    events = run(model)
    ms = 10**6
    assert [(e.request_id, e.planned_ns - 5 * SECOND, e.n_tokens, e.finished) for e in events] == [
        (7, 100 * ms, 1, False),
        (8, 100 * ms + 1, 1, True),
        (7, 120 * ms, 2, False),
        (7, 130 * ms, 1, True),
    ]


def test_pace_slows_first_rounds_drifts_and_stalls() -> None:
    faults = Faults(drift=0.1, slow_first=SlowFirst(count=1, factor=3.0), stall=Stall(every=2, for_s=1.0))
    model = linear(faults=faults)
    ends = []
    for round_ in range(3):
        model.submit(round_, 100 * round_ * SECOND, 1, 2)
        ends.append([event.planned_ns / SECOND - 100 * round_ for event in run(model)])
    assert ends == [[3, 7], [pytest.approx(1.1), pytest.approx(3.2)], [pytest.approx(1.2), pytest.approx(3.4)]]


def test_requests_that_could_never_fit_are_refused() -> None:
    with pytest.raises(ValueError, match="do not fit"):
        linear(kv_tokens=10).submit(0, 0, 8, 3)


def test_table_law_meets_its_entries_and_interpolates_in_log2_of_the_batch() -> None:
    law = TableLaw(
        inputs=[100, 200],
        batches=[1, 4],
        decode_s=[[1.0, 3.0], [2.0, 6.0]],
        prefill_base_s=1.5,
        prefill_per_token_s=0.1,
    )
    assert step_s(law, 4, 200, 0, 0) == 6.0
    assert step_s(law, 2, 100, 0, 0) == pytest.approx(2.0)
    assert step_s(law, 4, 150, 0, 0) == pytest.approx(4.5)
    assert step_s(law, 64, 5000, 0, 0) == 6.0
    assert step_s(law, 0, 0, 10, 0) == pytest.approx(2.5)
    assert step_s(law, 4, 200, 10, 0) == pytest.approx(7.0)


@pytest.mark.parametrize(("prompt", "output", "batch", "published"), PUBLISHED)
def test_w7900d_reproduces_the_published_rates(prompt: int, output: int, batch: int, published: float) -> None:
    assert static_rate(load_profile("w7900d"), prompt, output, batch) == pytest.approx(published, rel=0.005)


def test_w7900d_is_derived_as_its_header_says() -> None:
    law = load_profile("w7900d").law
    assert isinstance(law, TableLaw)
    for row in law.decode_s:
        assert row[0] / row[5] == pytest.approx(law.decode_s[0][0] / law.decode_s[0][5], rel=1e-4)
        assert all(b - a == pytest.approx((row[5] - row[0]) / 5, abs=2e-6) for a, b in pairwise(row))


def test_a_static_rate_is_the_models_and_scales_with_the_profile() -> None:
    assert static_rate(load_profile("fixed"), 10, 5, 2) == pytest.approx(2 * 5 / (0.1 + 4 * 0.01 + 0.0001))
    for name in shipped_profiles():
        whole, tenth = (static_rate(scaled(load_profile(name), x), 100, 10, 1) for x in (1.0, 0.1))
        assert tenth == pytest.approx(10 * whole, rel=1e-5)


def test_scale_touches_durations_only() -> None:
    options = {"keep_alive_s": 4, "faults": {"stall": {"every": 3, "for_s": 2}, "drift": 0.5}}
    before, after = load_profile("w7900d", options), scaled(load_profile("w7900d", options), 0.5)
    assert (after.keep_alive_s, after.faults.stall.for_s, after.faults.stall.every) == (2, 1, 3)  # type: ignore[union-attr]
    assert (after.faults.drift, after.max_model_len) == (before.faults.drift, before.max_model_len)
    with pytest.raises(ProfileError, match="above 0"):
        scaled(before, 0)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"tokens_per_evnt": 2}, r"tokens_per_evnt: unknown key, .* \(allowed: law, seed, .*tokens_per_event"),
        ({"faults": {"drfit": 1}}, r"faults\.drfit: unknown key, did you mean drift\? \(allowed: wrong_usage, "),
        ({"faults": {"stall": {"every": 0}}}, r"every: must be at least 1, is 0; .*for_s: is missing"),
        ({"faults": {"reset_share": 1.5}}, r"faults\.reset_share: must be at most 1, is 1\.5"),
        ({"prefix_cache": 1}, "prefix_cache: must be true or false, is 1"),
        ({"max_num_seqs": True}, "max_num_seqs: must be a whole number, is true"),
        ({"law": {"base_s": -1}}, r"law\.base_s: must be at least 0, is -1"),
        ({"law": {"base_s": float("nan")}}, r"law\.base_s: must be a finite number, is nan"),
        ({"law": {"kind": "fixed", "ttft_s": 1}}, r"law\.itl_s: is missing"),
        (
            {"law": {"kind": "quadratic"}},
            r'law\.kind: unknown kind "quadratic" \(allowed: fixed, linear, table\)',
        ),
        ({"kv_tokens": 100}, r"kv_tokens \(100\) must be at least max_model_len \(4096\)"),
    ],
)
def test_bad_options_are_named(options: dict[str, object], message: str) -> None:
    with pytest.raises(ProfileError, match=message):
        load_profile("tiny", options)


def test_unknown_profiles_name_the_shipped_ones() -> None:
    with pytest.raises(ProfileError, match="fixed, tiny, w7900d"):
        load_profile("w9000")


@given(st.lists(st.integers(RESERVED, 200_063)))
def test_tokenizing_a_decoded_text_gives_the_same_ids(ids: list[int]) -> None:
    assert encode(decode(ids), 200_064) == ids


@given(st.text())
def test_any_text_has_ordinary_ids(text: str) -> None:
    assert all(RESERVED <= token < 9000 for token in encode(text, 9000))
