"""Prompts that share prefixes: which requests hit the server's cache, and whether it is seen when they do not."""

from __future__ import annotations

import json
from collections import Counter
from copy import deepcopy
from dataclasses import replace
from functools import cache
from pathlib import Path
from random import Random
from statistics import fmean
from typing import Any

import numpy as np
import pytest
from faulty import MACHINE, STEPS, Fault, carry_out
from hypothesis import given
from hypothesis import strategies as st

import benchbench
from benchbench.comparison.pairs import differences, pair, sides_of
from benchbench.datasets.laws import longest
from benchbench.engines.direct_job import DirectJob, make_direct_job
from benchbench.openai.target import Access, make_target
from benchbench.prefixes.hits import Hits, hits_of, together
from benchbench.prompts.prefix_groups import MISS, groups, prefixes, with_asked_hits
from benchbench.prompts.round_job import make_job
from benchbench.refills.quota import Quota
from benchbench.report.summary_table import markdown_table
from benchbench.spec import Cell, SpecError, make_plan, spec_from_mapping

VOCAB = (1000, 30_000)
SHARED = {"prefix_tokens": 32, "groups": 3, "hit_rate": 0.75}


def cells(**changes: Any) -> tuple[Cell, ...]:
    base = {
        "name": "s",
        "model": "m",
        "engine": {"kind": "endpoint", "url": "http://127.0.0.1:8000"},
        "grid": {"input": 48, "output": 4, "batch": 8},
        "prompts": {"vocab": list(VOCAB), "shared": SHARED},
    }
    return make_plan(spec_from_mapping(base | changes)).cells


def sent(cell: Cell, phase: str = "measured", number: int = 0, attempt: int = 0) -> list[list[int]]:
    job = make_job(cell, make_target("http://h:1", "completions", Access()), VOCAB, phase, number, attempt)
    return [json.loads(payload.split(b"\r\n\r\n", 1)[1])["prompt"] for payload in job.payloads]


def test_a_share_of_the_requests_begins_with_a_prefix_of_its_cell_and_all_else_is_fresh() -> None:
    cell = cells()[0]
    known = [row.tolist() for row in prefixes(cell, VOCAB)]
    rounds = [sent(cell, phase, n, a) for phase in ("warmup", "measured") for n in (0, 1) for a in (0, 1)]
    prompts = [tuple(prompt) for one in rounds for prompt in one]
    assert len(set(prompts)) == len(prompts) == 64, "no two rounds send the same prompt"
    assert {len(prompt) for prompt in prompts} == {48}
    assert len({prompt[32:] for prompt in prompts}) == 64, "what follows a prefix is fresh"
    misses = {prompt[:16] for prompt in prompts if list(prompt[:32]) not in known}
    assert len(misses) == 16, "no miss shares its beginning with anything"
    for one in rounds:
        counts = [sum(prompt[:32] == prefix for prompt in one) for prefix in known]
        assert sum(counts) == 6
        assert max(counts) - min(counts) <= 1, "groups take turns"
    assert rounds[0] == sent(cell, "warmup"), "all come again from the seed"


def test_variants_share_prefixes_and_shapes_do_not() -> None:
    cell, other = cells()[0], cells(engine={"kind": "endpoint", "url": "http://10.0.0.1:9"})[0]
    assert sent(cell) == sent(other)
    assert (prefixes(cell, VOCAB) == prefixes(other, VOCAB)).all()
    for changes in ({"seed": 1}, {"grid": {"input": 48, "output": 5, "batch": 8}}):
        assert not (prefixes(cell, VOCAB) == prefixes(cells(**changes)[0], VOCAB)).all()
    assert cell.key != cells(prompts={"vocab": list(VOCAB), "shared": SHARED | {"groups": 4}})[0].key


@given(st.integers(1, 60), st.integers(1, 100), st.integers(0, 99), st.booleans())
def test_exactly_so_many_hit_and_evenly_where_they_are_not_arrivals(
    n: int, percent: int, seed: int, is_open: bool
) -> None:
    load = {"kind": "open", "rate": 5.0, "requests": n} if is_open else {"kind": "closed", "requests": n}
    grid = {"input": 48, "output": 4} | ({} if is_open else {"batch": 1})
    prompts, k = {"shared": SHARED | {"hit_rate": percent / 100}}, round(n * percent / 100)
    if k == 0 or abs(k / n - percent / 100) > 0.01:
        with pytest.raises(SpecError, match="cannot have"):
            cells(load=load, grid=grid, prompts=prompts)
        return
    cell = cells(load=load, grid=grid, prompts=prompts)[0]
    of = groups(cell, np.random.default_rng(seed), n)
    assert (of != MISS).sum() == k
    if not is_open:
        hits = np.cumsum(of != MISS)
        assert all(abs(hits[k - 1] - k * hits[-1] / n) <= 1 for k in range(1, n + 1))
        assert (groups(cell, np.random.default_rng(seed), n + 7)[:n] == of).all(), "spare requests change nothing"


def test_the_records_hold_what_was_asked_and_the_engine_without_http_is_sent_the_same() -> None:
    cell = cells(load={"kind": "closed", "requests": 40}, grid={"input": 48, "output": 4, "batch": 2})[0]
    index = np.array([3, 0, 39], np.int32)
    columns: Any = with_asked_hits(
        {"index": index, "asked_input_tokens": index}, cell, {"phase": "measured", "round": 2, "attempt": 1}, {}
    )  # type: ignore[typeddict-item]
    known = [row.tolist() for row in prefixes(cell, VOCAB)]
    prompts = sent(cell, "measured", 2, 1)
    assert columns["asked_cached_tokens"].tolist() == [32 * (prompts[k][:32] in known) for k in index]
    direct = make_direct_job(cell, VOCAB, "measured", 2, 1)
    assert [np.frombuffer(one, "<i4").tolist() for one in direct.payloads] == prompts
    assert [np.frombuffer(one, "<i4").tolist() for one in direct.prefixes] == known
    plain = cells(prompts={"vocab": list(VOCAB)})[0]
    assert make_direct_job(plain, VOCAB, "measured", 0, 0).prefixes == ()


# ---- What a round's hits are -----------------------------------------------------------------------------


def hits(asked: list[int], cached: list[int], **server: int) -> Hits:
    columns = {"asked_cached_tokens": np.array(asked, np.int32), "cached_tokens": np.array(cached, np.int32)}
    good = np.ones(len(asked), np.bool_)
    return hits_of(columns.__getitem__, good, good, {"server": server or None})


def test_the_rate_is_of_tokens_and_judged_request_by_request() -> None:
    asked = [32] * 75 + [0] * 25
    right = hits(asked, asked)
    assert (right.rate, right.asked_rate, right.off) == (0.75, 0.75, False)
    swapped = hits(asked, asked[::-1])  # as many hits, but of the wrong requests
    assert (swapped.rate, swapped.off, swapped.short, swapped.over) == (0.75, True, 25, 25)
    near = [0, *asked[1:]]
    assert not hits(asked, near).off, "one point is allowed"
    assert hits(asked, [0, 0, *asked[2:]]).off
    both = {"requests": 200, "possible_tokens": 6400, "wanted": 150, "asked_tokens": 4800, "cached_tokens": 4800}
    assert together([right, swapped, None]) == replace(swapped, **both)
    assert together([None, None]) is None


def test_what_is_not_told_of_a_miss_is_nothing_and_of_all_is_unknown() -> None:
    asked = [32, 32, 32, 0]
    assert hits(asked, [32, 32, 32, -1]).rate == 0.75  # some versions of vLLM tell nothing of a miss
    silent = hits(asked, [-1] * 4)
    assert (silent.rate, silent.off, silent.unknown) == (None, False, 4)
    assert hits(asked, [-1] * 4, prefix_hits=96).unknown == 4, "the server's sum is not of each request"
    evicted = hits(asked, [-1] * 4, prefix_hits=0)
    assert (evicted.rate, evicted.off, evicted.short) == (0.0, True, 3)


# ---- Sweeps of the simulator -----------------------------------------------------------------------------

BUSY = MACHINE | {"delayed_stream"}  # what a busy machine does to short times
LAW = {**STEPS, "per_prefill_token_s": 0.0005}  # 48 tokens: 24 ms, the last 16 of them: 8
ONE_BY_ONE = {
    "grid": {"input": 48, "output": 2, "batch": 1},
    "load": {"kind": "closed", "requests": 8},
    "prompts": {"shared": SHARED},
}


def swept(folder: Path, status: str, reasons: str, options: dict[str, Any], **more: Any) -> tuple[Any, str]:
    """What `carry_out` gives, and the words of `bench explain`."""
    carried = carry_out(
        Fault(status, reasons, {"law": LAW, "prefix_cache": True, **options}, **{"changes": ONE_BY_ONE, **more}), folder
    )
    assert {*carried.row["reasons"].split(";")} - BUSY - {""} == {*reasons.split(";")} - {""}
    assert status == "valid" or carried.row["status"] == status
    path = max(folder.glob("*/*"))
    return carried, benchbench.open_run(path).explain()


def test_the_asked_hits_come_and_their_ttft_stands_apart(tmp_path: Path) -> None:
    carried, words = swept(tmp_path, "valid", "", {"report_cached": True})
    row = carried.row
    assert row["hit_rate"] == 0.75
    takes = {True: list[float](), False: list[float]()}
    ours = {True: list[float](), False: list[float]()}
    for record in carried.records:
        truth = carried.truth[record["response_id"]]
        assert record["cached_tokens"] == record["asked_cached_tokens"] == truth["cached_tokens"]
        hit = record["asked_cached_tokens"] > 0
        takes[hit].append((truth["planned_ns"][0] - truth["received_ns"]) / 1e6)
        if 1 <= record["index"] < 6:  # the steady ones
            ours[hit].append((record["event_ns"][0] - record["sent_ns"]) / 1e6)
    assert fmean(takes[False]) - fmean(takes[True]) == pytest.approx(16, abs=1), "TTFT is of the uncached tokens"
    assert row["ttft_hit_ms"] == pytest.approx(fmean(ours[True]))
    assert row["ttft_miss_ms"] == pytest.approx(fmean(ours[False]))
    assert min(row["ttft_hit_ms"], row["ttft_miss_ms"]) < row["ttft_ms"] < max(row["ttft_hit_ms"], row["ttft_miss_ms"])
    assert "75.0 % of the prefixes' tokens came from the cache, asked 75.0 % (6 of 8 requests, 32 tokens each)" in words
    table = markdown_table([row])
    assert "| TTFT (ms) | TTFT of hits (ms) | TTFT of misses (ms) |" in table
    assert "TTFT is of the mixture" in table


@pytest.mark.parametrize(
    ("reasons", "options", "more", "why"),
    [
        ("hit_rate_unknown", {}, {}, "cached tokens of 8 of 8 requests were not told"),
        # Room for one prompt: a prefix is gone before its requests come.
        ("hit_rate", {"report_cached": True, "max_model_len": 64, "kv_tokens": 64}, {}, "was evicted"),
        ("hit_rate", {"report_cached": True, "prefix_cache": False}, {}, "6 of 6 requests that were to hit"),
        # The second sweep sends the misses of the first again.
        ("hit_rate", {"report_cached": True}, {"runs": 2}, "2 requests found more than was asked"),
        (
            "hit_rate",
            {"report_cached": True},
            {"changes": {**ONE_BY_ONE, "prompts": {"shared": {**SHARED, "prefix_tokens": 40}}}},
            "each hit is of 32 tokens of 40, as a cache keeps whole blocks: let prompts.shared.prefix_tokens",
        ),
    ],
    ids=["not told", "evicted", "no cache", "misses known", "no whole blocks"],
)  # fmt: skip
def test_hits_that_did_not_come_as_asked_are_no_result(
    tmp_path: Path, reasons: str, options: dict[str, Any], more: dict[str, Any], why: str
) -> None:
    _, words = swept(tmp_path, "invalid", reasons, options, **more)
    assert why in words


def test_a_reset_before_each_round_comes_before_the_prefixes(tmp_path: Path) -> None:
    changes = {**ONE_BY_ONE, "rounds": {"reset_prefix_cache": True}}
    carried, _ = swept(tmp_path, "valid", "", {"report_cached": True}, changes=changes, runs=2)
    assert carried.row["hit_rate"] == 0.75


def test_builds_with_other_hits_are_not_compared(tmp_path: Path) -> None:
    runs = []
    for number, rate in enumerate((0.75, 0.5)):
        options = {"law": STEPS, "report_cached": True, "prefix_cache": True}
        engine = {"kind": "simulator", "profile": "fixed", "options": options}
        data = {"name": f"s{number}", "model": "sim", "engine": engine, "rounds": {"warmup": 0, "min": 1, "max": 1},
                **ONE_BY_ONE, "prompts": {"vocab": list(VOCAB), "shared": SHARED | {"hit_rate": rate}}}  # fmt: skip
        outcome = benchbench.sweep(spec_from_mapping(data), out=tmp_path / str(number), plots=False)
        assert outcome.state == "complete"
        runs.append(benchbench.open_run(tmp_path / str(number)))
    assert any(line.startswith("shared prefixes: ") for line in differences(*runs))
    result = pair(sides_of(runs[0])[0], sides_of(runs[1])[0])
    assert "confounded" in next(iter(result.missing.values()))
    assert result.samples == ()


# ---- Conversations ---------------------------------------------------------------------------------------

TURNS = {"load": {"kind": "closed"}, "prompts": {"vocab": list(VOCAB), "shared": {"turns": 4}}}
GROWN = [32, 72, 112, 152]  # of 32 new tokens a turn, and 8 of an answer


def conversing(batch: int) -> Cell:
    return cells(grid={"input": 32, "output": 8, "batch": batch}, **TURNS)[0]


def test_a_turn_begins_with_the_whole_prompt_of_the_turn_before() -> None:
    cell = conversing(3)
    assert (cell.input, longest(cell), cell.requests) == (92, 160, 3 * (3 + 4))
    prompts = sent(cell)
    assert [len(prompt) for prompt in prompts] == GROWN * (len(prompts) // 4)
    for place, prompt in enumerate(prompts):
        if place % 4:
            assert prompt[: GROWN[place % 4 - 1]] == prompts[place - 1]
    firsts = {tuple(prompt[:16]) for prompt in prompts[::4] + sent(cell, number=1)[::4]}
    assert len(firsts) == 2 * len(prompts) // 4, "no two conversations begin alike"
    direct = make_direct_job(cell, VOCAB, "measured", 0, 0)
    assert [np.frombuffer(one, "<i4").tolist() for one in direct.payloads] == prompts


@cache
def conversations(batch: int) -> DirectJob:
    return make_direct_job(conversing(batch), VOCAB, "measured", 0, 0)


@given(st.integers(1, 9), st.randoms(use_true_random=False))
def test_a_turn_is_sent_when_the_one_before_has_ended_and_all_turns_are_equally_many(batch: int, luck: Random) -> None:
    job = deepcopy(conversations(batch))  # a quota changes the order of its job
    quota, running, ended, order = Quota(job), list[int](), set[int](), list[int]()
    while len(order) < quota.sendable or running:
        while len(order) < quota.sendable and len(running) < batch:
            running.append(len(order))
            order.append(quota.payload(len(order)))
            if order[-1] % 4 and len(order) > batch:
                assert order[-1] - 1 in ended
        index = running.pop(luck.randrange(len(running)))
        ended.add(order[index])
        quota.ended(index)
    assert len({*order}) == len(order) >= quota.planned == batch * 7
    assert job.asked_input[: len(order)] == [GROWN[number % 4] for number in order]
    first_wave = sorted(job.asked_output[:batch])
    assert first_wave == sorted(-(-8 * k // batch) for k in range(1, batch + 1))
    assert {*job.asked_output[batch : len(order)]} == {8}
    assert max(Counter(number % 4 for number in order[:batch]).values()) <= -(-batch // 4), "they begin at all turns"


def test_conversations_hit_what_was_said_before(tmp_path: Path) -> None:
    changes = {"grid": {"input": 32, "output": 16, "batch": 2}, "load": {"kind": "closed"},
               "prompts": {"shared": {"turns": 2}}}  # fmt: skip
    carried, words = swept(tmp_path, "valid", "", {"report_cached": True}, changes=changes)
    for record in carried.records:
        truth = carried.truth[record["response_id"]]
        hit = record["index"] >= 2 and record["asked_input_tokens"] == 80
        assert record["asked_cached_tokens"] == record["cached_tokens"] == truth["cached_tokens"] == 32 * hit
    assert (carried.row["hit_rate"], carried.row["input"]) == (1.0, 56)
    assert "32 tokens each" in words
    assert "Conversations: 100 % of the tokens of turns before" in markdown_table([carried.row])


def test_a_conversation_whose_blocks_are_not_whole_is_no_result(tmp_path: Path) -> None:
    changes = {"grid": {"input": 40, "output": 16, "batch": 1}, "load": {"kind": "closed"},
               "prompts": {"shared": {"turns": 2}}}  # fmt: skip
    _, words = swept(tmp_path, "invalid", "hit_rate", {"report_cached": True}, changes=changes)
    assert "each hit is of 32 tokens of 40" in words


# ---- What cannot be asked --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"grid": {"input": 32, "output": 4, "batch": 8}}, "prompts.shared.prefix_tokens: is 32, but a prompt of 32"),
        ({"grid": {"input": 48, "output": 4, "batch": 5}}, "(allowed: multiples of 1/5, or rounds of 4, 8, ... req"),
        ({"prompts": {"kind": "text", "shared": SHARED}}, "prompts.kind: prompts.shared needs token ids"),
        ({"prompts": {"shared": {"hit_rate": 0.5}}}, "prompts.shared.prefix_tokens: is missing"),
        ({"prompts": {"shared": {"turns": 4}}}, "prompts.shared.turns: needs a closed load"),
        ({**TURNS, "load": {"kind": "closed", "requests": 48}}, "of 48 requests (allowed: load.requests: 56"),
        ({**TURNS, "prompts": {"shared": {**SHARED, "turns": 4}}}, "prompts.shared.turns: stands beside a prefix"),
        ({"prompts": {"shared": SHARED | {"hit_rate": 0}}}, "prompts.shared.hit_rate: must be above 0, is 0"),
    ],
)  # fmt: skip
def test_what_cannot_be_reached_is_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(SpecError) as error:
        cells(**changes)
    assert message in str(error.value)


def test_a_key_without_shared_prefixes_is_what_it_was() -> None:
    plain = cells(prompts={"vocab": list(VOCAB)})[0]
    assert plain.key == cells(prompts={"vocab": list(VOCAB), "shared": None})[0].key
