"""The numbers of one round, out of its records. Pure: an Arrow table in, seconds and rates out.

Definitions (vLLM's `calculate_metrics` where equal; n is a request's output tokens):

    TTFT  = first token event received - request sent                      [s]
    TPOT  = (last token event - first token event) / (n - f)               [s/token]
            f: tokens of the first event; none where it holds all (vLLM: f = 1)
    ITL   = gap between successive token events                            [s]
    E2EL  = last token event received - request sent                       [s]
    stream tok/s = 1 / TPOT
    Sys tok/s    = output tokens in the window / window                    [tokens/s]

The window is, in static and open loads, first send of the round to last token; in a closed load of N >= 4 B requests,
B in flight, from the B-th to the B-th last completion, or until the first of several workers has no more to send, if
that is earlier: then the batch is not full any more. "Received" is the kernel's time of the read that completed the
event.

A closed load's latencies are all of one population, the steady requests: in the order of sending those from the refill
at the B-th completion to the one that B others follow, N - 3B in all (spare requests, which keep the batch full until
the last of them has ended, are not counted in N). The others are the cold wave of the first B, those sent as it ended,
and those that end while the load empties out (benchmarks/closed_steady.py measures what they would cost).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from benchbench.events.round_events import Events, Narrow, Recorded, gathered
from benchbench.prefixes.hits import WANTED, Hits, hits_of
from benchbench.queueing.places import Places, places_of
from benchbench.spec.schema import STEADY_BATCHES, WINDOW_BATCHES, Slo
from benchbench.store.arrow import Floats, Ints, array_of
from benchbench.store.requests import RequestStatus, round_facts
from benchbench.tails.ranked import percentiles

Mask = npt.NDArray[np.bool_]
_NS = 1e-9
NO_SLO = Slo()
LATE = 0.1  # of the steady requests, and of their mean E2EL


def _seconds(ns: Ints | Narrow) -> Floats:
    return np.multiply(ns, _NS, dtype=np.float64)


@dataclass(frozen=True, slots=True)
class RoundMetrics:
    """One round. Arrays have one entry a successful request, except `itl_ns` and `lag_ns` (one a gap, one an event).

    In a closed load with a window, TTFT, TPOT, E2EL, ITL, lengths and the share of goodput are of its steady requests.
    """

    requests: int
    failed: int
    ttft_s: Floats
    ttft_scheduled_s: Floats  # the same from the scheduled time: an open load's own queue counts
    tpot_s: Floats  # requests with more than one token
    e2el_s: Floats
    itl_ns: Narrow
    lag_ns: Narrow
    sys_tok_s: float | None
    run_tok_s: float | None  # tokens / whole round, vLLM's output_throughput
    total_tok_s: float | None
    req_s: float | None
    goodput_req_s: float | None
    windowed: bool  # False: a closed load too short for its window, whose figures are of the whole round
    settled: bool  # False: a closed load of fewer than 2 B steady requests, or whose batch emptied while they ran
    ttft_cold_s: Floats  # of the first batch of a closed load
    ttft_all_s: Floats  # of every request, whatever the load
    output_tokens: Floats  # received
    duration_s: float
    window_s: float  # of Sys tok/s
    shared_events: int  # token events whose read held another token event of the same request
    first_shared: int  # requests whose first token's read also held a later token,
    first_later: int  # and the later token events in these reads
    buffered: int  # requests of 4 or more events that came in one or two reads
    send_skew_s: float  # last send - first send of what was due together
    late_s: Floats  # sent - scheduled of every request sent, where the load schedules one by one (closed, open)
    block: int | None = None  # of a sweep with variants: which start of its variant
    pilot: int | None = None  # rounds of its cell's pilot, where they were chosen for it
    input_tokens: Floats = field(default_factory=partial(np.empty, 0))  # where known
    places: Places | None = None
    hits: Hits | None = None  # of shared prefixes; its `hit` is along `ttft_s`

    @property
    def itl_s(self) -> Floats:
        return _seconds(self.itl_ns)


def by_start(rounds: Sequence[RoundMetrics]) -> list[list[RoundMetrics]]:
    """The rounds of each start of the engine, in order; without blocks all are of one."""
    starts: dict[int | None, list[RoundMetrics]] = {}
    for r in rounds:
        starts.setdefault(r.block, []).append(r)
    return list(starts.values())


def in_blocks(rounds: Sequence[RoundMetrics]) -> bool:
    """Whether they are of a sweep with variants, whose unit of replication is the start."""
    return any(r.block is not None for r in rounds)


def over_starts(rounds: Sequence[RoundMetrics], figure: Callable[[RoundMetrics], float | None]) -> list[float]:
    """A figure's values that count as independent: one a round, or in a sweep with variants the mean of each start."""
    by_starts = [[value for r in start if (value := figure(r)) is not None] for start in by_start(rounds)]
    if not in_blocks(rounds):
        return [value for values in by_starts for value in values]
    return [float(np.mean(values)) for values in by_starts if values]


@dataclass(frozen=True, slots=True)
class _Columns:
    table: pa.Table
    events: Events
    ok: Mask
    good: Mask  # ok, and something was received
    sent: Ints
    scheduled: Ints
    end: Ints
    output: Ints
    prompt: Ints
    full_until: float  # of a closed load that several workers sent: when the first of them left a place empty


def _columns(recorded: Recorded) -> _Columns:
    table, events = gathered(recorded)

    def ints(name: str) -> Ints:
        return array_of(table[name]).astype(np.int64)

    ok = np.array([status == RequestStatus.OK for status in table["status"].to_pylist()], np.bool_)
    reported, requested = ints("output_tokens"), ints("asked_input_tokens")
    prompt = ints("input_tokens")
    return _Columns(
        table=table,
        events=events,
        ok=ok,
        good=ok & (events.counts > 0),
        sent=ints("sent_ns"),
        scheduled=ints("scheduled_ns"),
        end=ints("end_ns"),
        output=np.where(reported >= 0, reported, events.tokens),
        prompt=np.where(prompt >= 0, prompt, requested),
        full_until=round_facts(table).get("full_until_ns", np.inf),
    )


class RequestTimes(NamedTuple):
    """TTFT, TPOT and E2EL in s of each request of a round; nan where a request failed, TPOT too of a single token.

    `steady`: whether a request is of those over which the cell's latencies are taken. `window`: that of Sys tok/s.
    """

    ttft_s: Floats
    tpot_s: Floats
    e2el_s: Floats
    steady: Mask
    window: tuple[int, int] | None


def request_times(recorded: Recorded, *, load: str, in_flight: int | None) -> RequestTimes:
    """What each request of a round took, in its table's order. `in_flight` is B of a closed load."""
    c = _columns(recorded)
    good, span = c.good, _window(c, c.good, load, in_flight)
    planned = len(c.ok) - round_facts(c.table).get("spare_sent", 0)
    times, steady = np.full((3, len(good)), np.nan), np.zeros(len(good), np.bool_)
    times[:, good] = _latencies(c, good)
    steady[good] = _populations(c, good, planned, in_flight if span and load == "closed" else None)[1]
    return RequestTimes(times[0], times[1], times[2], steady, span or _window(c, good, "open", None))


def _latencies(c: _Columns, good: Mask) -> tuple[Floats, Floats, Floats]:
    """TTFT, TPOT (nan without a token after the first event) and E2EL of the `good` requests."""
    first, last, sent = c.events.first_ns[good], c.events.last_ns[good], c.sent[good]
    following = c.output[good] - c.events.first_tokens[good]
    tpot = np.divide(_seconds(last - first), following, out=np.full(len(sent), np.nan), where=following > 0)
    return _seconds(first - sent), tpot, _seconds(last - sent)


def round_metrics(recorded: Recorded, *, load: str, in_flight: int | None, slo: Slo = NO_SLO) -> RoundMetrics:
    """All numbers of one round. `in_flight` is B of a closed load."""
    c = _columns(recorded)
    table, events, good, facts = c.table, c.events, c.good, round_facts(c.table)
    span = _window(c, good, load, in_flight)
    planned = len(c.ok) - facts.get("spare_sent", 0)
    cold, steady = _populations(c, good, planned, in_flight if span and load == "closed" else None)
    first, last = events.first_ns[good], events.last_ns[good]
    output = c.output[good]
    ttft, tpot_all, e2el = _latencies(c, good)
    met = _met(ttft, tpot_all, e2el, slo)
    whole = _window(c, good, "open", None)
    rates = _rates(c, good, load, span or whole)
    started = c.sent[c.sent > 0]
    return RoundMetrics(
        requests=len(c.ok),
        failed=int((~c.ok).sum()),
        ttft_s=ttft[steady],
        ttft_cold_s=ttft[cold],
        ttft_all_s=ttft,
        output_tokens=output[steady].astype(np.float64),
        input_tokens=c.prompt[good][steady][c.prompt[good][steady] >= 0].astype(np.float64),
        ttft_scheduled_s=_seconds(first - c.scheduled[good])[steady],
        tpot_s=tpot_all[steady & ~np.isnan(tpot_all)],
        e2el_s=e2el[steady],
        itl_ns=events.gaps_of(np.flatnonzero(good)[steady]),
        lag_ns=events.lags_ns,
        sys_tok_s=rates[0],
        run_tok_s=(rates if load != "closed" else _rates(c, good, "open", whole))[0],
        total_tok_s=rates[1],
        req_s=rates[2],
        goodput_req_s=_goodput(rates[2], met[steady]) if slo.is_set else None,
        windowed=span is not None or load != "closed",
        settled=load != "closed" or _settled(planned, in_flight or 1, span, last[steady], e2el[steady]),
        duration_s=float(whole[1] - whole[0]) * _NS if whole else 0.0,
        window_s=float(chosen[1] - chosen[0]) * _NS if (chosen := span or whole) else 0.0,
        shared_events=events.shared,
        first_shared=events.first_shared,
        first_later=events.first_later,
        buffered=events.buffered,
        late_s=_seconds((c.sent - c.scheduled)[(c.sent > 0) & (c.scheduled > 0) & (load != "static")]),
        send_skew_s=float(started.max() - started.min()) * _NS if load == "static" and len(started) else 0.0,
        block=table["block"][0].as_py() if "block" in table.column_names and len(table) else None,
        pilot=facts.get("pilot"),
        places=places_of(first, last, ttft, c.prompt[good], shared=WANTED in table.column_names),
        hits=hits_of(lambda name: array_of(table[name]), good, steady, facts) if WANTED in table.column_names else None,
    )


def _met(ttft: Floats, tpot: Floats, e2el: Floats, slo: Slo) -> Mask:
    met = np.ones(len(ttft), np.bool_)
    for values_s, limit_ms in ((ttft, slo.ttft_ms), (tpot, slo.tpot_ms), (e2el, slo.e2el_ms)):
        if limit_ms is not None:
            met &= ~(values_s > limit_ms / 1e3)  # a TPOT that does not exist breaks no limit
    return met


def _goodput(req_s: float | None, met: Mask) -> float | None:
    """Requests per second times the share of requests that met every limit."""
    return None if req_s is None else req_s * float(met.mean()) if len(met) else 0.0


def _populations(c: _Columns, good: Mask, planned: int, in_flight: int | None) -> tuple[Mask, Mask]:
    """Of the `good` requests: the cold wave, and the steady ones.

    By the order of sending, in which lengths play no part: to take those that *ended* in the window instead would
    prefer short ones. `in_flight`: None without a window and in other loads, where all are steady and none is cold.
    """
    everyone = np.ones(int(good.sum()), np.bool_)
    if in_flight is None:
        return ~everyone, everyone
    rank = np.empty(len(c.sent), np.int64)
    rank[np.argsort(c.sent, kind="stable")] = np.arange(len(rank))
    rank = rank[good]
    return rank < in_flight, (rank >= 2 * in_flight - 1) & (rank < planned - in_flight - 1)


def _settled(planned: int, in_flight: int, span: tuple[int, int] | None, last: Ints, e2el: Floats) -> bool:
    """Whether the steady requests are enough, and at most LATE of them ran on, by more than LATE of their time, while
    the batch emptied: as where answers of very unequal lengths had used up all spare requests.
    """
    if span is None or planned < STEADY_BATCHES * in_flight:
        return False
    late = _seconds(last - span[1]) > LATE * (e2el.mean() if len(e2el) else 0.0)
    return not len(late) or float(late.mean()) <= LATE


def _window(c: _Columns, good: Mask, load: str, in_flight: int | None) -> tuple[int, int] | None:
    """(begin, end] of the round's window in ns, None when a closed load has none or nothing was received.

    Failed requests count as completions: they too are replaced. Where an end is not known, neither is the window.
    """
    started = c.sent[c.sent > 0]
    if not len(started) or not c.events.counts.any():
        return None
    if load != "closed":
        return int(started.min()), c.events.latest_ns
    ends = np.where(good, c.events.last_ns, c.end)
    ends.sort()
    batch = in_flight or 1
    if len(ends) < WINDOW_BATCHES * batch or ends[0] < 0:
        return None
    begin, end = int(ends[batch - 1]), int(min(ends[len(ends) - batch - 1], c.full_until))
    return (begin, end) if end > begin else None


def _rates(
    c: _Columns, good: Mask, load: str, span: tuple[int, int] | None
) -> tuple[float | None, float | None, float | None]:
    """(output tok/s, input + output tok/s, req/s) in a window; prompts count where their first token is."""
    if span is None or span[1] <= span[0]:
        return None, None, None
    begin, end = span
    if load != "closed":
        begin -= 1  # the whole round: everything that was received counts
    seconds = (span[1] - span[0]) * _NS
    output = float(c.events.tokens_in(begin, end).sum())
    first, last = c.events.first_ns[good], c.events.last_ns[good]
    prompts = c.prompt[good][(first > begin) & (first <= end)]
    total = output + float(prompts.sum()) if (prompts >= 0).all() else None  # of prompts whose length nobody told
    done = (last > begin) & (last <= end)
    return output / seconds, None if total is None else total / seconds, float(done.sum()) / seconds


def pooled(rounds: Sequence[RoundMetrics], name: str) -> Floats:
    """One of the array fields of all rounds, joined; of one round its own."""
    arrays = [getattr(r, name) for r in rounds]
    return arrays[0] if len(arrays) == 1 else np.concatenate([*arrays, []])


RANKS = (50, 90, 99, 100)


class Pool(NamedTuple):
    """An array field of all rounds: mean, and percentile of each of RANKS by numpy's linear rule; None of nothing."""

    mean: float | None
    percentiles: Mapping[int, float | None]


_COUNTED = {"itl_s": "itl_ns", "lag_s": "lag_ns"}  # fields that are kept as whole ns


def in_own_unit(name: str) -> tuple[str, float]:
    """The field that holds what is asked for, and its unit."""
    return (_COUNTED[name], _NS) if name in _COUNTED else (name, 1.0)


class Pools(dict[str, Pool]):
    """Field of RoundMetrics (`itl_s` and `lag_s` for those in ns) -> its pool over rounds, made when asked for."""

    def __init__(self, rounds: Sequence[RoundMetrics]) -> None:
        super().__init__()
        self._rounds = rounds

    def __missing__(self, name: str) -> Pool:
        field_name, unit = in_own_unit(name)
        if not any(len(getattr(r, field_name)) for r in self._rounds):
            return Pool(None, dict.fromkeys(RANKS))
        values = np.concatenate([getattr(r, field_name) for r in self._rounds])  # a copy, to be put in order
        mean = float(values.mean()) * unit
        self[name] = Pool(mean, dict(zip(RANKS, percentiles(values, RANKS, unit), strict=True)))
        return self[name]
