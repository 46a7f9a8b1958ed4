"""The numbers of a round against a slow reference that reads like the definitions."""

from __future__ import annotations

import dataclasses
from collections import Counter
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from rounds_made import MS, Made, table_of
from scripts import load_benchmark

from benchbench.analysis.metrics import NO_SLO, RANKS, Pools, RoundMetrics, request_times, round_metrics
from benchbench.spec import Slo

MC = load_benchmark("closed_steady")
TICK = 1_000_003  # ns; times are few multiples of it, so that they often coincide


@st.composite
def made_requests(draw: st.DrawFn) -> Made:
    scheduled = draw(st.integers(0, 12))
    sent = scheduled + draw(st.integers(0, 6))
    gaps = draw(st.lists(st.integers(0, 4), max_size=7))
    at = [sent + 1 + sum(gaps[: k + 1]) for k in range(len(gaps))]
    tokens = [draw(st.sampled_from([1, 1, 1, 2, 5])) for _ in at]
    end = max([sent, *at]) + draw(st.integers(0, 3))
    status = draw(st.sampled_from(["ok", "ok", "ok", "failed"]))
    never_sent = status == "failed" and not at and draw(st.booleans())
    never_ended = status == "failed" and draw(st.integers(0, 3)) == 3
    counted = sum(tokens)
    return Made(
        events=[(TICK * time, count) for time, count in zip(at, tokens, strict=True)],
        status=status,
        scheduled=TICK * scheduled,
        sent=None if never_sent else TICK * sent,
        end=None if never_ended else TICK * end,
        told=draw(st.sampled_from([None, counted, counted, counted + 1, 1, 0])),
        told_input=draw(st.sampled_from([None, 3, 4])),
        lag=[draw(st.integers(0, 9)) for _ in at],
    )


ROUNDS = st.lists(made_requests(), max_size=13)
# Between the ticks, and no ratio of small counts of them: at a limit, rounding would decide.
LIMIT = st.none() | st.integers(0, 12).map(lambda ticks: (ticks + 0.50701) * TICK / 1e6)
SLOS = st.builds(Slo, ttft_ms=LIMIT, tpot_ms=LIMIT, e2el_ms=LIMIT)


def closed_window(requests: list[Made], batch: int) -> tuple[int, int] | None:
    """Play the load: `batch` in flight, each completion replaced while requests wait; up to the last replacement."""
    ends = [r.events[-1][0] if r.status == "ok" and r.events else r.end for r in requests]
    if None in ends or len(ends) < 4 * batch:
        return None
    waiting, begin = len(ends) - batch, 0
    for completed, end in enumerate(sorted(end for end in ends if end is not None), 1):
        waiting -= 1
        if completed == batch:
            begin = end
        if waiting == 0:
            return (begin, end) if end > begin else None
    return None


def sharing(requests: list[Made]) -> tuple[int, int, int, int]:
    """Events whose read held another of their request, first tokens so, what joined these, requests in <= 2 reads."""
    shared = first = later = buffered = 0
    for request in requests:
        times = [at for at, _ in request.events]
        reads = Counter(times)
        shared += sum(count for count in reads.values() if count > 1)
        first += bool(times) and reads[times[0]] > 1
        later += reads[times[0]] - 1 if times else 0
        buffered += (len(times) >= 4 and len(reads) <= 2) or (
            len(times) == 1 and sum(n for _, n in request.events) >= 4
        )
    return shared, first, later, buffered


def places(ok: list[Made], ttft: list[float]) -> tuple[float, float, int, bool] | None:
    spans = [(r.events[0][0], r.events[-1][0]) for r in ok]
    prompts = [4 if r.told_input is None else r.told_input for r in ok]
    most = max((sum(begin <= at < end for begin, end in spans) for at, _ in spans), default=0)
    return (min(ttft), max(ttft), most, 0 < max(prompts) <= 1.1 * min(prompts)) if ok else None


def reference(requests: list[Made], load: str, batch: int, slo: Slo) -> dict[str, Any]:
    ok = [r for r in requests if r.status == "ok" and r.events]
    sends = [r.sent for r in requests if r.sent is not None]
    received = [event for r in requests for event in r.events]
    output = {id(r): sum(n for _, n in r.events) if r.told is None else r.told for r in ok}
    ttft = {id(r): (r.events[0][0] - (r.sent or 0)) / 1e9 for r in ok}
    e2el = {id(r): (r.events[-1][0] - (r.sent or 0)) / 1e9 for r in ok}
    tpot = {
        id(r): (r.events[-1][0] - r.events[0][0]) / 1e9 / (output[id(r)] - r.events[0][1])
        for r in ok
        if output[id(r)] > r.events[0][1]
    }

    def good(r: Made) -> bool:
        limits = [(ttft, slo.ttft_ms), (tpot, slo.tpot_ms), (e2el, slo.e2el_ms)]
        return all(limit is None or values.get(id(r), 0.0) <= limit / 1e3 for values, limit in limits)

    window = closed_window(requests, batch) if load == "closed" and received else None
    steady, cold, settled = ok, [], load != "closed"
    if window:
        order = sorted(requests, key=lambda r: -1 if r.sent is None else r.sent)
        rank = {id(r): place for place, r in enumerate(order)}
        # From the refill that the B-th completion brought to the one that B others follow.
        steady = [r for r in ok if 2 * batch - 1 <= rank[id(r)] < len(requests) - 1 - batch]
        cold = [r for r in ok if rank[id(r)] < batch]
        limit_s = 0.1 * sum(e2el[id(r)] for r in steady) / max(1, len(steady))
        late = [r for r in steady if (r.events[-1][0] - window[1]) / 1e9 > limit_s]
        settled = len(requests) >= 5 * batch and len(late) <= 0.1 * len(steady)
    whole = (min(sends) - 1, max(at for at, _ in received)) if received else None
    windowed = load != "closed" or window is not None
    begin, end = window or whole or (0, 0)
    seconds = (end - begin - (window is None)) / 1e9

    def rate(of: int) -> float | None:
        return of / seconds if received else None

    def inside(at: int) -> bool:
        return begin < at <= end

    tokens = sum(n for at, n in received if inside(at))
    prompts = sum(4 if r.told_input is None else r.told_input for r in ok if inside(r.events[0][0]))
    done = [r for r in ok if inside(r.events[-1][0])]
    duration = (whole[1] - whole[0] - 1) / 1e9 if whole else 0.0
    shared, first_shared, first_later, buffered = sharing(requests)
    per_s, met = rate(len(done)), [good(r) for r in steady]
    goodput = None if slo == NO_SLO or per_s is None else per_s * sum(met) / len(met) if met else 0.0
    return {
        "requests": len(requests),
        "failed": sum(r.status != "ok" for r in requests),
        "ttft_s": [ttft[id(r)] for r in steady],
        "ttft_cold_s": [ttft[id(r)] for r in cold],
        "ttft_all_s": list(ttft.values()),
        "output_tokens": [output[id(r)] for r in steady],
        "input_tokens": [4 if r.told_input is None else r.told_input for r in steady],
        "ttft_scheduled_s": [(r.events[0][0] - (r.scheduled or 0)) / 1e9 for r in steady],
        "tpot_s": [tpot[id(r)] for r in steady if id(r) in tpot],
        "e2el_s": [e2el[id(r)] for r in steady],
        "itl_ns": [b - a for r in steady for (a, _), (b, _) in pairwise(r.events)],
        "lag_ns": [lag for r in requests for lag in r.lag],
        "sys_tok_s": rate(tokens),
        "run_tok_s": sum(n for _, n in received) / duration if whole else None,
        "total_tok_s": rate(tokens + prompts),
        "req_s": rate(len(done)),
        "goodput_req_s": goodput,
        "windowed": windowed,
        "settled": settled,
        "duration_s": duration,
        "window_s": seconds if received else 0.0,
        "block": None,
        "pilot": None,
        "places": places(ok, list(ttft.values())),
        "hits": None,
        "shared_events": shared,
        "first_shared": first_shared,
        "first_later": first_later,
        "buffered": buffered,
        "send_skew_s": (max(sends) - min(sends)) / 1e9 if load == "static" and sends else 0.0,
        "late_s": [
            (r.sent - r.scheduled) / 1e9
            for r in requests
            if r.sent is not None and r.scheduled is not None and load != "static"
        ],
    }


@given(ROUNDS, st.sampled_from(["static", "closed", "open"]), st.integers(1, 3), SLOS)
def test_every_number_is_its_definition(requests: list[Made], load: str, batch: int, slo: Slo) -> None:
    found = round_metrics(table_of(requests), load=load, in_flight=batch, slo=slo)
    expected = reference(requests, load, batch, slo)
    assert expected.keys() == {field.name for field in dataclasses.fields(RoundMetrics)}
    for name, value in expected.items():
        got = getattr(found, name)
        got = got.tolist() if isinstance(got, np.ndarray) else got
        assert got == (pytest.approx(value, rel=1e-9, abs=0) if value is not None else None), name


@given(ROUNDS, st.sampled_from(["static", "closed", "open"]), st.integers(1, 3))
def test_what_each_request_took_is_what_the_rounds_latencies_are_of(
    requests: list[Made], load: str, batch: int
) -> None:
    table = table_of(requests)
    times, whole = request_times(table, load=load, in_flight=batch), round_metrics(table, load=load, in_flight=batch)
    assert times.ttft_s[times.steady].tolist() == whole.ttft_s.tolist()
    assert times.e2el_s[times.steady].tolist() == whole.e2el_s.tolist()
    assert times.tpot_s[times.steady & ~np.isnan(times.tpot_s)].tolist() == whole.tpot_s.tolist()
    told = [request.status == "ok" and len(request.events) > 0 for request in requests]
    assert (~np.isnan(times.ttft_s)).tolist() == (~np.isnan(times.e2el_s)).tolist() == told


def steady(count: int, batch: int, tokens: int) -> list[Made]:
    """A closed load as a steady server sees it: every stream a token each 10 ms, a cold wave of 500 ms first."""
    made = []
    for k in range(count):
        wave, place = divmod(k, batch)
        sent = (500 * (wave > 0) + wave * tokens * 10 + place) * MS
        first = sent + (500 * (wave == 0) + 10) * MS
        made.append(Made(events=[(first + 10 * MS * j, 1) for j in range(tokens)], sent=sent, told=tokens))
    return made


def test_the_closed_window_leaves_the_cold_wave_and_the_tail_out() -> None:
    requests = steady(count=20, batch=4, tokens=10)
    found = round_metrics(table_of(requests), load="closed", in_flight=4)
    assert found.sys_tok_s == pytest.approx(4 * 100, rel=0.02)  # four streams of 100 tok/s
    assert found.run_tok_s == pytest.approx(200 / 1.003, rel=1e-9)  # the cold wave is half of the whole run
    assert found.windowed


def test_a_closed_loads_latencies_are_of_its_steady_requests_and_the_cold_wave_stands_beside() -> None:
    found = round_metrics(table_of(steady(count=20, batch=4, tokens=10)), load="closed", in_flight=4)
    assert found.ttft_s.tolist() == pytest.approx([0.01] * 8)  # N - 3B: without those sent while the load emptied out
    assert found.ttft_cold_s.tolist() == pytest.approx([0.51] * 4)
    assert found.e2el_s.tolist() == pytest.approx([0.1] * 8)
    assert found.output_tokens.tolist() == [10] * 8
    assert len(found.ttft_all_s) == 20
    assert found.settled


def test_spare_requests_and_those_that_ran_on_while_the_load_emptied_out_are_not_of_the_steady_ones() -> None:
    requests = steady(count=24, batch=4, tokens=10)
    found = round_metrics(table_of(requests, {"spare_sent": 4}), load="closed", in_flight=4)
    assert (len(found.e2el_s), found.settled) == (8, True)
    long = requests[8]  # of the steady ones: as if all spare requests had been too few for it
    long.events = [*long.events, (requests[-1].events[-1][0] + 1000 * MS, 1)]
    assert not round_metrics(table_of(requests, {"spare_sent": 4}), load="closed", in_flight=4).settled


@pytest.mark.parametrize("tokens", [1, 2, 16])
def test_the_closed_window_of_waves_in_lock_step_holds_whole_waves(tokens: int) -> None:
    """Batch 8, a step of 40 ms a token, and 10 ms until the next wave is sent."""
    requests = []
    for k in range(32):
        sent = k // 8 * (40 * tokens + 10) * MS + (k % 8)
        events = [(k // 8 * (40 * tokens + 10) * MS + 40 * MS * (j + 1), 1) for j in range(tokens)]
        requests.append(Made(events, sent=sent, end=events[-1][0], told=tokens))
    found = round_metrics(table_of(requests), load="closed", in_flight=8)
    assert found.windowed
    assert found.sys_tok_s == pytest.approx(8 * tokens / (0.04 * tokens + 0.01), rel=1e-6)


def test_a_closed_load_of_fewer_than_four_batches_has_no_window_and_the_whole_runs_rate() -> None:
    requests = steady(count=15, batch=4, tokens=10)
    found = round_metrics(table_of(requests), load="closed", in_flight=4)
    assert not found.windowed
    assert found.sys_tok_s == found.run_tok_s
    assert len(found.ttft_s) == 15


@pytest.mark.parametrize(
    ("law", "batch", "kind", "workers"),
    [
        ("LAW", 8, "equal", (1,)),
        ("LAW", 32, "equal", (1,)),
        ("HEAVY", 32, "equal", (1, 3)),
        ("HEAVY", 8, "half to all", (1, 2)),
        ("HEAVY", 8, "exponential", (1, 2)),
    ],
)
def test_the_rule_finds_the_steady_state_of_an_engine_within_two_percent(
    law: str, batch: int, kind: str, workers: tuple[int, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Mean and p99 of TTFT, TPOT and E2EL, and Sys tok/s, at N = 4 x batch, where all requests would be far off.

    However many workers share the batch.
    """
    monkeypatch.setattr(MC, "LONG", 12_000)
    for sharing in workers:
        rows = {}
        for times, choice, row in MC.errors(getattr(MC, law), batch, 16 * batch, 32, kind, pool=4000, workers=sharing):
            assert times == 4
            rows[choice] = row
            if choice == "the rule":  # the last of this length; the next ones need as many runs again
                break
        sampling = {"exponential": 6, "half to all": 1.5, "equal": 0}[kind]  # of 1,500 requests, in %
        assert max(map(abs, rows["the rule"])) < 2 + sampling
        assert max(map(abs, rows["all"])) > 9


def test_a_closed_round_whose_ends_are_not_all_known_has_no_window() -> None:
    requests = steady(count=20, batch=4, tokens=10)
    requests[7] = Made(status="failed", sent=None, end=None)
    found = round_metrics(table_of(requests), load="closed", in_flight=4)
    assert not found.windowed
    assert found.sys_tok_s == found.run_tok_s


def test_several_tokens_in_an_event_leave_tpot_right() -> None:
    one_each = Made(events=[(10 * MS * k, 1) for k in range(1, 10)], told=9)
    grouped = Made(events=[(10 * MS, 1), (50 * MS, 4), (90 * MS, 4)], told=9)
    first_too = Made(events=[(40 * MS, 4), (80 * MS, 4), (90 * MS, 1)], told=9)
    all_at_once = Made(events=[(40 * MS, 9)], told=9)
    found = round_metrics(table_of([one_each, grouped, first_too, all_at_once]), load="static", in_flight=None)
    assert found.tpot_s.tolist() == pytest.approx([0.01] * 3)
    assert found.itl_s.tolist() == pytest.approx([0.01] * 8 + [0.04] * 3 + [0.01])


@given(st.lists(st.lists(st.integers(0, 10**12), max_size=40), min_size=1, max_size=4))
def test_pools_are_the_rounds_joined(values: list[list[float]]) -> None:
    template = round_metrics(table_of([Made([(10 * MS, 1), (20 * MS, 1)])]), load="static", in_flight=None)
    rounds = [dataclasses.replace(template, itl_ns=np.array(part, np.int64)) for part in values]
    joined, pool = np.multiply([value for part in values for value in part], 1e-9), Pools(rounds)["itl_s"]
    if not len(joined):
        assert pool == (None, dict.fromkeys(RANKS))
        return
    assert pool.mean == pytest.approx(joined.mean(), rel=1e-15)
    assert pool.percentiles == {q: float(np.percentile(joined, q)) for q in RANKS}
    assert all((r.itl_ns == np.array(part)).all() for r, part in zip(rounds, values, strict=True))
