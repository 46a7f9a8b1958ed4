"""The in-process engine: its loop against engines of known truth, and its process with a stand-in for vLLM."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import sys
import threading
import time
from collections.abc import Awaitable, Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import psutil
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from benchbench.analysis.summary import summarise, summary_row
from benchbench.engines.direct_job import make_direct_job
from benchbench.errors import EngineError, LaunchStoppedError, WorkerDiedError
from benchbench.fidelity.answers import AnswerJob, Finished, GreedyAnswer
from benchbench.inprocess import engine_round as direct_loop
from benchbench.inprocess.async_llm import Ask, Tokens, request_metrics
from benchbench.inprocess.engine_round import DirectRound
from benchbench.inprocess.launcher import InprocessWorker
from benchbench.loadgen.job import DirectJob
from benchbench.model.served import caption_of
from benchbench.openai.target import Access, make_target
from benchbench.prompts.prefix_groups import prefixes
from benchbench.prompts.round_job import make_job
from benchbench.senders.http_worker import HttpWorker
from benchbench.spec import Cell, make_plan, spec_from_mapping
from benchbench.store.requests import round_table

VOCAB = (100, 4000)
ROOT = Path(__file__).parents[1]
FAKE = ROOT / "tests" / "fake"


# ---- The loop -------------------------------------------------------------------------------------------


def direct_job(outputs: Sequence[int], in_flight: int, **more: Any) -> DirectJob:
    count = len(outputs)
    usual = {"due_ns": [0] * count, "first_token_s": 30.0, "stall_s": 30.0, "payloads": [b"\1\0\0\0"] * count}
    return DirectJob(**{**usual, **more}, in_flight=in_flight, asked_input=[1] * count, asked_output=list(outputs))


@dataclass
class Engine:
    """Keeps its own truth: who was asked when, how many were in flight, what was handed out.

    `steps` are the tokens of each output (after the first), `break_off(index, tokens handed out)` may raise or wait.
    """

    step: int = 1
    one_by_one: bool = True
    break_off: Callable[[int, int], Any] = lambda _index, _done: None
    clock: Callable[[], float] = time.monotonic
    dead: str | None = None
    asked: list[tuple[int, int]] = field(default_factory=list)
    flying: set[int] = field(default_factory=set)
    most: int = 0
    aborted: list[int] = field(default_factory=list)

    def prepare(self, payloads: Sequence[bytes], outputs: Sequence[int], **_: bool) -> Ask:
        async def ask(index: int, tokens: Tokens) -> Finished:
            self.asked.append((index, time.time_ns()))
            self.flying.add(index)
            self.most = max(self.most, len(self.flying))
            try:
                done = 0
                while done < outputs[index]:
                    await asyncio.sleep(0)
                    if (wait := self.break_off(index, done)) is not None:
                        await wait
                    count = min(self.step, outputs[index] - done)
                    done += count
                    tokens(count, self.clock())
                return Finished(len(payloads[index]) // 4, 0, "length", {"mean_itl_ms": 1.0})
            except asyncio.CancelledError:
                self.aborted.append(index)
                raise
            finally:
                self.flying.discard(index)

        return ask

    def gone(self) -> str | None:
        return self.dead


def drive(engine: Engine, job: DirectJob, **more: Any) -> tuple[dict[str, Any], DirectRound]:
    async def run() -> tuple[Any, DirectRound]:
        driver = DirectRound(job, engine, **more)
        return await driver.run(), driver

    columns, driver = asyncio.run(run())
    return columns, driver


def tokens_of(columns: Any) -> list[list[int]]:
    """Each request's token counts, event by event."""
    ends = columns["event_offsets"]
    return [columns["event_tokens"][a:b].tolist() for a, b in pairwise(ends)]


@settings(max_examples=60)
@given(st.lists(st.integers(1, 6), min_size=1, max_size=12), st.integers(1, 12), st.integers(1, 3), st.booleans())
def test_every_token_is_counted_and_no_more_are_in_flight_than_asked(
    outputs: list[int], in_flight: int, step: int, paced: bool
) -> None:
    engine = Engine(step=step, one_by_one=False)
    due = [k * 100_000 for k in range(len(outputs))] if paced else [0] * len(outputs)
    columns, driver = drive(engine, direct_job(outputs, in_flight, due_ns=due, paced=paced))
    assert columns["status"] == ["ok"] * len(outputs)
    assert [sum(tokens) for tokens in tokens_of(columns)] == outputs == columns["output_tokens"].tolist()
    assert all(tokens[:-1] == [step] * (len(tokens) - 1) for tokens in tokens_of(columns))
    order = [index for index, _ in engine.asked]
    assert (sorted(order) if paced else order) == list(range(len(outputs)))
    assert engine.most <= in_flight
    assert paced or engine.most == min(in_flight, len(outputs))
    asked_ns = np.array([at for _, at in sorted(engine.asked)])
    assert (columns["sent_ns"] <= asked_ns).all()
    assert (columns["sent_ns"] >= columns["scheduled_ns"]).all()
    first, last = (
        columns["event_ns"][columns["event_offsets"][:-1]],
        columns["event_ns"][columns["event_offsets"][1:] - 1],
    )
    assert (first >= columns["sent_ns"]).all()
    assert (columns["end_ns"] >= last).all()
    if paced:
        assert (columns["scheduled_ns"] - driver.facts.started_ns).tolist() == due
    else:
        assert (columns["scheduled_ns"][:in_flight] == driver.facts.started_ns).all()
    assert (columns["lag_ns"] >= 0).all()


def test_outputs_put_together_because_we_were_late_share_a_stamp_and_the_engines_own_groups_do_not() -> None:
    late, _ = drive(Engine(step=3), direct_job([7], 1))
    assert tokens_of(late) == [[1] * 7]
    assert len(set(late["event_ns"][:3])) == 1 < len(set(late["event_ns"]))
    grouped, _ = drive(Engine(step=3, one_by_one=False), direct_job([7], 1))
    assert tokens_of(grouped) == [[3, 3, 1]]


def test_lag_is_the_time_since_the_engines_stamp_and_none_where_its_clock_is_another() -> None:
    ages = iter([0.0, 0.004])

    def two_ms_wait(_index: int, _done: int) -> Any:
        return asyncio.sleep(0.005)

    columns, _ = drive(Engine(break_off=two_ms_wait, clock=lambda: time.monotonic() - next(ages)), direct_job([2], 1))
    assert columns["lag_ns"][1] >= 4_000_000 > columns["lag_ns"][0]
    for offset in (1e6, -1e6, -time.monotonic()):  # ahead, behind, not stamped at all
        columns, _ = drive(Engine(clock=lambda: time.monotonic() + offset), direct_job([2], 1))  # noqa: B023 - used at once
        assert columns["lag_ns"].tolist() == [0, 0]


def failures(columns: Any) -> list[tuple[str, str, str]]:
    return list(zip(columns["error_kind"], columns["error_phase"], columns["error_detail"], strict=True))


GOOD = ("", "", "")


def test_what_an_engine_raises_fails_its_request_and_no_other() -> None:
    def broken(index: int, done: int) -> None:
        if index == 1:
            raise ValueError("the prompt is too long")
        if index == 2 and done == 2:
            raise RuntimeError from KeyError("cache")

    columns, _ = drive(Engine(break_off=broken), direct_job([3, 3, 3, 3, 3], 2))
    assert failures(columns) == [
        GOOD,
        ("status", "wait", "ValueError: the prompt is too long"),
        ("stream", "stream", "KeyError: 'cache'"),
        GOOD,
        GOOD,
    ]
    assert columns["output_tokens"].tolist() == [3, -1, 2, 3, 3]


def test_a_silent_engine_fails_what_waits_and_the_places_are_used_again() -> None:
    def silent(index: int, done: int) -> Any:
        return asyncio.sleep(600) if (index, done) in {(0, 0), (1, 1)} else None

    engine = Engine(break_off=silent)
    columns, _ = drive(engine, direct_job([2] * 6, 2, first_token_s=0.1, stall_s=0.15))
    assert failures(columns) == [
        ("timeout", "wait", "no token within 0.1 s"),
        ("stall", "stream", "no token for 0.15 s"),
        *[GOOD] * 4,
    ]
    assert sorted(engine.aborted) == [0, 1]


def test_a_round_ends_though_the_engine_answers_no_abort(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(direct_loop, "ABORT_S", 0.05)

    async def deaf() -> None:
        try:
            await asyncio.sleep(600)
        finally:
            await asyncio.sleep(600)

    columns, _ = drive(Engine(break_off=lambda _index, _done: deaf()), direct_job([2] * 3, 3, first_token_s=0.05))
    assert columns["error_kind"] == ["timeout"] * 3


def test_a_request_that_was_given_up_and_goes_on_all_the_same_is_not_heard_any_more() -> None:
    async def stubborn() -> None:
        with contextlib.suppress(asyncio.CancelledError):
            await asyncio.sleep(600)

    def break_off(index: int, _done: int) -> Any:
        return stubborn() if index == 0 else asyncio.sleep(0.002)

    engine = Engine(break_off=break_off)
    columns, _ = drive(engine, direct_job([1] + [3] * 6, 1, first_token_s=0.05))
    assert failures(columns) == [("timeout", "wait", "no token within 0.05 s"), *[GOOD] * 6]
    assert tokens_of(columns) == [[], *[[1] * 3] * 6]
    asked = dict(engine.asked)
    ended = dict(enumerate(columns["end_ns"].tolist()))
    assert all(asked[index] >= ended[index - 1] for index in range(1, 7)), "two requests had one place"


@pytest.mark.parametrize("paced", [False, True])
def test_a_dead_engine_fails_all_that_is_left(paced: bool) -> None:
    async def after_the_first() -> None:  # both are due now: on a busy machine the second may be sent first
        while 0 not in dict(engine.asked) or 0 in engine.flying:  # noqa: ASYNC110 - nobody would set an event
            await asyncio.sleep(0)

    def dies(index: int, done: int) -> Awaitable[None] | None:
        if (index, done) == (1, 1):
            engine.dead = "the core is gone"
        if engine.dead:
            raise RuntimeError("no core")
        return after_the_first() if (index, done) == (1, 0) else None

    engine = Engine(break_off=dies)
    due = [0, 0, *[10**14] * 3] if paced else [0] * 5  # the others are due tomorrow
    columns, driver = drive(engine, direct_job([1, 2, 2, 2, 2], 1 if not paced else 5, due_ns=due, paced=paced))
    assert failures(columns) == [
        GOOD,
        ("stream", "stream", "the core is gone"),
        *[("stream", "send", "the core is gone")] * 3,
    ]
    assert driver.died == "the core is gone"


def test_an_engine_that_dies_while_all_wait_is_noticed() -> None:
    engine = Engine()

    def waits(_index: int, _done: int) -> Any:
        engine.dead = "killed"
        return asyncio.sleep(600)

    engine.break_off = waits
    columns, _ = drive(engine, direct_job([2, 2], 2))
    assert failures(columns) == [("stream", "wait", "killed")] * 2


def test_wrong_lengths_and_ends_without_a_token_are_failures() -> None:
    class Short(Engine):
        def prepare(self, *_: Sequence[Any], **__: bool) -> Ask:
            async def ask(index: int, tokens: Tokens) -> Finished:
                if index:
                    tokens(index, 0.0)
                return Finished(1, None, "abort" if index == 2 else "stop")

            return ask

    exact, _ = drive(Short(), direct_job([3, 3, 3], 3))
    assert [kind for kind, _, _ in failures(exact)] == ["protocol", "short_output", "stream"]
    served, _ = drive(Short(), direct_job([3, 3, 3], 3, exact=False))
    assert failures(served) == [
        ("protocol", "wait", "the engine finished without a token"),
        GOOD,
        ("stream", "stream", "the engine ended the request: abort"),
    ]


def test_a_cancelled_round_has_no_columns_and_aborts_its_requests() -> None:
    engine = Engine(break_off=lambda _index, done: asyncio.sleep(600) if done == 1 else None)

    async def run() -> Any:
        driver = DirectRound(direct_job([2, 2], 2), engine)
        asyncio.get_running_loop().call_later(0.05, driver.cancel)
        return await driver.run(), driver.facts.cancelled, sorted(engine.aborted)

    assert asyncio.run(run()) == (None, True, [0, 1])


def test_the_engines_own_metrics_are_those_of_vllms_server() -> None:
    stamps = {"queued_ts": 10.0, "scheduled_ts": 10.25, "first_token_ts": 10.5, "last_token_ts": 12.25}
    assert request_metrics(SimpleNamespace(**stamps, num_generation_tokens=8)) == {
        "time_to_first_token_ms": 250.0,
        "generation_time_ms": 1750.0,
        "mean_itl_ms": 250.0,
        "queue_time_ms": 250.0,
        "tokens_per_second": 4.0,
    }
    assert request_metrics(SimpleNamespace(**dict.fromkeys(stamps, 0.0), num_generation_tokens=0)) == {}


# ---- The process ----------------------------------------------------------------------------------------


def cells(**changes: Any) -> tuple[Cell, ...]:
    base = {
        "name": "s",
        "model": "tiny",
        "engine": {"kind": "vllm_inprocess", "python": sys.executable},
        "grid": {"input": 16, "output": 8, "batch": 4},
        "rounds": {"warmup": 0, "min": 1, "max": 1},
        "timeouts": {"first_token_s": 20.0, "stall_s": 20.0},
        "order": "as_written",
    }
    return make_plan(spec_from_mapping(base | changes)).cells


LOADS = [
    {},
    {"load": {"kind": "closed", "requests": 16}},
    {"load": {"kind": "open", "rate": 400, "requests": 10}, "grid": {"input": 16, "output": 8}},
]


@pytest.mark.parametrize("changes", LOADS)
def test_prompts_and_times_are_those_of_http(changes: dict[str, Any]) -> None:
    (direct,) = cells(**changes)
    (http,) = cells(**changes, engine={"kind": "endpoint", "url": "http://127.0.0.1:8000"})
    target = make_target("http://127.0.0.1:8000", "completions", Access())
    place = ("measured", 3, 1)
    theirs, ours = make_job(http, target, VOCAB, *place), make_direct_job(direct, VOCAB, *place)
    prompts = [json.loads(one.split(b"\r\n\r\n", 1)[1])["prompt"] for one in theirs.payloads]
    assert [np.frombuffer(one, "<i4").tolist() for one in ours.payloads] == prompts
    common = (
        "due_ns",
        "in_flight",
        "asked_input",
        "asked_output",
        "first_token_s",
        "stall_s",
        "exact",
        "paced",
        "spare",
    )
    assert [getattr(ours, name) for name in common] == [getattr(theirs, name) for name in common]
    short = make_direct_job(direct, VOCAB, *place, output=2)
    assert short.asked_output == make_job(http, target, VOCAB, *place, output=2).asked_output
    assert (max(short.asked_output), len(short.asked_output)) == (2, direct.requests)


def test_over_http_too_a_round_that_begins_when_its_server_is_gone_fails_at_once() -> None:
    (http,) = cells(engine={"kind": "endpoint", "url": "http://127.0.0.1:1"}, load={"kind": "closed", "requests": 16})
    target = make_target("http://127.0.0.1:1", "completions", Access())
    ready, fire = os.pipe()
    os.write(fire, b"x")
    with HttpWorker() as worker:
        worker.ready()
        worker.watch = (ready, lambda: "it is gone")
        for number in range(3):
            job = make_job(http, target, VOCAB, "measured", number, 0)
            columns, _ = worker.run(job)
            assert columns["status"] == ["failed"] * 16
            assert columns["index"].tolist() == list(range(16))
    for fd in (ready, fire):
        os.close(fd)


def test_a_table_says_that_there_was_no_http() -> None:
    grid = {"input": 1, "output": 1, "batch": 1}
    spec = spec_from_mapping({"name": "s", "model": "m", "engine": {"kind": "vllm_inprocess"}, "grid": grid})
    assert "without HTTP" in "".join(caption_of(spec))


@contextlib.contextmanager
def worker_of(log: Path, does: dict[str, Any] | None = None, nice: int = 0, **args: Any) -> Iterator[InprocessWorker]:
    """A worker with the stand-in for vLLM; afterwards no process of it is left."""
    env = {"PYTHONPATH": os.pathsep.join([str(FAKE), str(ROOT)]), "FAKE_VLLM_SEEN": str(log.with_suffix(".seen"))}
    args |= {"hf-overrides": does or {}}
    engine = cells(engine={"kind": "vllm_inprocess", "args": args, "env": env, "nice": nice})[0].engine
    worker = InprocessWorker(engine, "tiny", log)
    pids = [worker.process.pid]
    try:
        worker.ready()
        pids += [child.pid for child in psutil.Process(worker.process.pid).children(recursive=True)]
        yield worker
    finally:
        worker.close()
        worker.close()
        assert [pid for pid in pids if psutil.pid_exists(pid)] == []


def run(worker: InprocessWorker, cell: Cell, number: int = 0, **changes: Any) -> tuple[Any, dict[str, Any]]:
    return worker.run(replace(make_direct_job(cell, VOCAB, "measured", number, 0), **changes))


def seen(log: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in log.with_suffix(".seen").read_text().splitlines()]


def test_a_process_drives_all_loads_and_its_rounds_are_records_like_any(tmp_path: Path) -> None:
    log = tmp_path / "log"
    with worker_of(log, **{"enable-per-request-metrics": True, "disable-log-stats": True}) as worker:
        facts = worker.facts
        assert (facts["version"], facts["vocab_size"], facts["max_model_len"]) == ("0.33.0.fake", 5000, 4096)
        assert (facts["kv_tokens"], facts["config"]["model"], facts["config"]["quantization"]) == (1024, "tiny", None)
        assert [note.split()[0].removeprefix("engine.args.") for note in facts["notes"]] == [
            "enable-per-request-metrics",
            "disable-log-stats",
        ]
        for changes in LOADS:
            (cell,) = cells(**changes)
            columns, told = run(worker, cell)
            assert tokens_of(columns) == [[1] * count for count in columns["asked_output_tokens"]]
            assert columns["input_tokens"].tolist() == [16] * cell.requests
            assert columns["cached_tokens"].tolist() == [0] * cell.requests
            assert set(columns["tokens_from"]) == {"ids"}
            assert set(columns["finish_reason"]) == {"length"}
            server = told["server"]
            assert (server["foreign_tokens"], server["missing_tokens"], server["preemptions"]) == (0, 0, 0)
            assert server["generation_tokens"] == sum(columns["asked_output_tokens"])
            assert (told["stamps"], told["kernel_stamps"], told["engine_died"]) == ("in process", True, "")
            assert json.loads(columns["server_metrics"][0]).keys() == {
                *("time_to_first_token_ms", "generation_time_ms", "mean_itl_ms", "queue_time_ms", "tokens_per_second"),
            }
            row = summary_row(summarise(cell.info, [round_table(columns, {}, told)], []))
            assert (row["requests"], row["failed"], row["foreign_tokens"]) == (cell.requests, 0, 0)
            assert not {"user_stamps", "input_unverified", "grouped_tokens", "shared_reads"} & set(
                row["reasons"].split(";")
            )
    first, *asked = seen(log)
    assert (first["max_tokens"], len(asked)) == (1, 4 + 16 + 10)
    wanted = [
        np.frombuffer(one, "<i4").tolist() for one in make_direct_job(cells()[0], VOCAB, "measured", 0, 0).payloads
    ]
    assert [one["ids"] for one in asked[:4]] == wanted
    assert len({one["id"] for one in asked}) == len(asked)
    same = {"temperature": 0, "max_tokens": 8, "min_tokens": 8, "ignore_eos": True, "detokenize": False}
    assert {**asked[0], "id": "", "ids": []} == {**same, "repetition_penalty": 1.1, "id": "", "ids": []}


def test_fixed_questions_are_answered_with_log_probabilities_and_a_death_ends_them(tmp_path: Path) -> None:
    job = AnswerJob(payloads=[b"\1\0\0\0", b"\2\0\0\0"], output=3, exact=True, top=5)
    with worker_of(tmp_path / "log") as worker:
        run(worker, cells()[0])
        first, second = worker.answer(job, time.monotonic() + 60)
        assert (
            first
            == second
            == GreedyAnswer((7, 7, 7), (-0.1,) * 3, ({7: -0.1, 8: -9999.0, 9: -2.0, 10: -3.0, 11: -4.0},) * 3)
        )
        asked = seen(tmp_path / "log")[-2:]
        assert [(one["ids"], one["seed"], one["logprobs"], one["min_tokens"]) for one in asked] == [
            ([1], 0, 5, 3),
            ([2], 0, 5, 3),
        ]
        assert tokens_of(run(worker, cells()[0], 1)[0]) == [[1] * 8] * 4
        ready, fire = os.pipe()
        os.write(fire, b"x")
        with pytest.raises(LaunchStoppedError):
            worker.answer(job, time.monotonic() + 60, ready)
    with worker_of(tmp_path / "log2", {"crash": 2}) as worker, pytest.raises(WorkerDiedError, match="kernel is broken"):
        worker.answer(job, time.monotonic() + 60)


def test_groups_of_the_engine_lengths_as_served_and_a_cache_that_knows_the_prompt(tmp_path: Path) -> None:
    with worker_of(tmp_path / "log", **{"stream-interval": 3}) as worker:
        (cell,) = cells()
        columns, _ = run(worker, cell)
        assert tokens_of(columns) == [[1, 3, 3, 1]] * 4
        (served,) = cells(output="as_served")
        columns, told = run(worker, served, 1)
        assert columns["output_tokens"].tolist() == [7] * 4
        assert set(columns["status"]) == {"ok"}
        columns, told = run(worker, cell)
        assert columns["cached_tokens"].tolist() == [15] * 4
        assert told["server"]["prefix_hits"] == 60
        columns, told = run(worker, cell, reset_prefix_cache=True)
        assert (columns["cached_tokens"].tolist(), told["prefix_cache_reset"]) == ([0] * 4, True)


def test_shared_prefixes_come_after_the_reset_and_turns_one_after_the_other(tmp_path: Path) -> None:
    log = tmp_path / "log"
    (shared,) = cells(prompts={"shared": {"prefix_tokens": 8, "groups": 2, "hit_rate": 0.5}})
    talk = {
        "load": {"kind": "closed"},
        "prompts": {"shared": {"turns": 3}},
        "grid": {"input": 16, "output": 2, "batch": 2},
    }
    (talking,) = cells(**talk)
    with worker_of(log) as worker:
        run(worker, shared)
        columns, told = run(worker, shared, 1, reset_prefix_cache=True)
        assert (told["prefix_cache_reset"], told["server"]["foreign_tokens"]) == (True, 0)
        assert columns["input_tokens"].tolist() == [16] * 4
        columns, _ = run(worker, talking)
        assert columns["input_tokens"].tolist() == columns["asked_input_tokens"].tolist()
        assert {*columns["status"]} == {"ok"}
    known = [row.tolist() for row in prefixes(shared, VOCAB)]
    questions = [(one["ids"], one["max_tokens"]) for one in seen(log)]
    assert questions[1:3] == questions[7:9] == [(ids, 1) for ids in known]
    assert sum(ids[:8] in known for ids, _ in questions[9:13]) == 2
    spoken = [tuple(ids) for ids, _ in questions[13:]]
    assert {len(ids) for ids in spoken} == {16, 34, 52}
    for at, ids in enumerate(spoken[2:], 2):  # the first two begin at any turn
        if len(ids) > 16:
            assert any(ids[: len(before)] == before for before in spoken[:at] if len(before) == len(ids) - 18)


def test_tokens_that_come_late_share_a_read_and_a_refused_prompt_is_a_failed_request(tmp_path: Path) -> None:
    with worker_of(tmp_path / "log", {"late": 2}, **{"max-model-len": 20}) as worker:
        columns, told = run(worker, cells(grid={"input": 16, "output": 4, "batch": 1})[0])
        assert tokens_of(columns) == [[1] * 4]
        assert len(set(columns["event_ns"])) == 3
        columns, told = run(worker, cells()[0])
        assert failures(columns) == [("status", "wait", "ValueError: the prompt is too long")] * 4
        assert told["engine_died"] == ""


def test_a_core_that_crashes_fails_the_round_with_the_reason_from_its_log(tmp_path: Path) -> None:
    with worker_of(tmp_path / "log", {"crash": 6}) as worker:
        columns, told = run(worker, cells(load={"kind": "closed", "requests": 16})[0])
        kinds = columns["error_kind"]
        assert kinds.count("") >= 1
        assert set(kinds) == {"", "stream"}
        reasons = {detail for detail in columns["error_detail"] if detail}
        assert reasons == {told["engine_died"]}
        assert "the kernel is broken" in told["engine_died"]
        columns, told = run(worker, cells()[0], 1)  # nothing hangs when it is used all the same
        assert set(columns["error_kind"]) == {"stream"}


def test_a_core_that_is_killed_and_one_that_hangs(tmp_path: Path) -> None:
    with worker_of(tmp_path / "log", {"slow": 1}, nice=6) as worker:
        (core,) = psutil.Process(worker.process.pid).children()
        assert (core.nice(), psutil.Process(worker.process.pid).nice()) == (6, psutil.Process().nice())
        threading.Timer(0.5, core.kill).start()
        columns, told = run(worker, cells()[0])
        assert set(columns["error_kind"]) == {"stream"}
        assert "EngineCore" in told["engine_died"]
        assert "SIGKILL" in told["engine_died"]
        assert set(columns["error_detail"]) == {told["engine_died"]}
    with worker_of(tmp_path / "log2", {"hang": 3}) as worker:
        (cell,) = cells(timeouts={"first_token_s": 20.0, "stall_s": 0.5})
        columns, told = run(worker, cell)
        assert columns["error_kind"] == ["", "", "stall", "stall"]
        assert columns["output_tokens"].tolist() == [8, 8, 1, 1]
        assert told["engine_died"] == ""


def test_a_cancel_ends_the_round_and_the_next_one_works(tmp_path: Path) -> None:
    with worker_of(tmp_path / "log", {"slow": 1}) as worker:
        ready, fire = os.pipe()
        os.write(fire, b"x")
        columns, told = worker.run(make_direct_job(cells()[0], VOCAB, "measured", 0, 0), ready)
        assert (columns, told["cancelled"]) == (None, True)
        for fd in (ready, fire):
            os.close(fd)
        columns, _ = run(worker, cells(grid={"input": 16, "output": 1, "batch": 1})[0])
        assert columns["status"] == ["ok"]


def test_a_killed_process_is_told_and_nothing_of_it_is_left(tmp_path: Path) -> None:
    with worker_of(tmp_path / "log", {"slow": 1}) as worker:
        threading.Timer(0.5, os.kill, (worker.process.pid, signal.SIGKILL)).start()
        with pytest.raises(WorkerDiedError, match="SIGKILL"):
            run(worker, cells()[0])
        with pytest.raises(WorkerDiedError, match="SIGKILL"):
            run(worker, cells()[0])


def refusal(tmp_path: Path, engine: dict[str, Any], stop: int | None = None) -> EngineError:
    env = {"PYTHONPATH": os.pathsep.join([str(FAKE), str(ROOT)])}
    spec = cells(engine={"kind": "vllm_inprocess", "env": env, **engine})[0].engine
    with pytest.raises(EngineError) as caught, InprocessWorker(spec, "tiny", tmp_path / "log") as worker:
        worker.ready(stop)
    return caught.value


def test_what_prevents_a_start_is_said_with_the_key_at_fault(tmp_path: Path) -> None:
    unknown = refusal(tmp_path, {"args": {"no-such-flag": 1}})
    assert unknown.key == "engine.args"
    assert "vLLM 0.33.0.fake refuses them: unrecognized arguments: --no-such-flag 1" in unknown.message
    missing = refusal(tmp_path, {"args": {"model": "missing"}})
    assert "missing is not a local folder" in missing.message
    absent = refusal(tmp_path, {"env": {"PYTHONPATH": str(ROOT)}})
    assert (absent.key, "vLLM is not installed" in absent.message) == ("engine.python", True)
    bare = tmp_path / "bare"
    bare.write_text(f'#!/bin/sh\nexec {sys.executable} -I -S "$@"\n')
    bare.chmod(0o755)
    without = refusal(tmp_path, {"python": str(bare)})
    assert (without.key, "benchbench" in without.message) == ("engine.python", True)
    nowhere = refusal(tmp_path, {"python": str(tmp_path / "nowhere")})
    assert (nowhere.key, "nowhere" in nowhere.message) == ("engine.python", True)
    folder = refusal(tmp_path, {"cwd": str(tmp_path / "nofolder")})
    assert (folder.key, "nofolder" in folder.message) == ("engine.cwd", True)


def test_a_start_can_be_stopped_and_has_a_limit(tmp_path: Path) -> None:
    ready, fire = os.pipe()
    os.write(fire, b"x")
    spec = cells()[0].engine
    with pytest.raises(LaunchStoppedError), InprocessWorker(spec, "tiny", tmp_path / "log") as worker:
        worker.ready(ready)
    for fd in (ready, fire):
        os.close(fd)
    late = refusal(tmp_path, {"ready": {"timeout_s": 0.01}})
    assert "not ready within 0.01 s" in late.message
