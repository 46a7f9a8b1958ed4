"""What is progress: tokens, however they are cut into reads, and no heartbeat, role or empty delta."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
from answers import CHUNKED, chunk, event
from hypothesis import given
from hypothesis import strategies as st

from benchbench.loadgen import liveness as module
from benchbench.loadgen.exchange import Log
from benchbench.loadgen.liveness import LOOKS, Liveness

S = 1_000_000_000
FIRST_S, STALL_S = 20, 4
TOKENS = [
    {"choices": [{"text": " a"}]},
    {"choices": [{"text": "", "token_ids": [7]}]},
    {"choices": [{"delta": {"role": "assistant", "content": "a"}}]},
    {"choices": [{"delta": {"content": None, "thinking": "a"}}]},
    {"choices": [{"delta": {"tool_calls": [{"index": 0, "function": {"arguments": "{"}}]}}]},
]
BEATS = [
    {},
    {"choices": []},
    {"choices": [{"delta": {}}]},
    {"choices": [{"delta": {"role": "assistant", "content": ""}}]},
    {"choices": [{"text": "", "token_ids": []}]},
    {"choices": [{"delta": {"content": None, "tool_calls": []}}], "usage": {"completion_tokens": 0}},
    [],
    {"choices": 3},
]


class Stream:
    """Exchange 0 of a round, sent at 0 s, with a clock that the test sets."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.log, self.now = Log(), 0
        job: Any = SimpleNamespace(first_token_s=FIRST_S, stall_s=STALL_S)
        self.liveness = Liveness(self.log, job)
        monkeypatch.setattr(module, "time", SimpleNamespace(monotonic_ns=lambda: self.now))

    def read(self, *reads: bytes, owner: int = 0) -> None:
        for data in reads:
            self.log.add(owner, data, b"", 0)

    def check(self, at_s: float, index: int = 0) -> str:
        self.now = int(at_s * S)
        self.liveness.update()
        return self.liveness.overdue(index, 0, self.now) or ""


@pytest.fixture
def stream(monkeypatch: pytest.MonkeyPatch) -> Stream:
    return Stream(monkeypatch)


@pytest.mark.parametrize("beat", [*BEATS, None], ids=str)
def test_heartbeats_prolong_nothing(stream: Stream, beat: object) -> None:
    data = chunk(b": keep-alive\n\n" if beat is None else event(beat))
    stream.read(CHUNKED)
    for at in range(1, FIRST_S + 1):
        stream.read(data)
        assert stream.check(at) == ""
    stream.read(data)
    assert stream.check(FIRST_S + 0.1) == "timeout"


@pytest.mark.parametrize("token", TOKENS, ids=str)
@pytest.mark.parametrize("beat", BEATS, ids=str)
def test_after_a_token_heartbeats_stall(stream: Stream, token: object, beat: object) -> None:
    stream.read(CHUNKED, chunk(event(token)))
    assert stream.check(FIRST_S - 1) == ""
    for tenth in range(10 * (FIRST_S + STALL_S)):
        stream.read(chunk(event(beat)))
        if reason := stream.check(FIRST_S - 1 + tenth / 10):
            break
    assert reason == "stall"
    assert tenth / 10 > STALL_S


def test_a_role_leaves_the_first_token_all_its_time(stream: Stream) -> None:
    stream.read(CHUNKED, chunk(event(BEATS[3])))
    assert [stream.check(at) for at in (1, STALL_S + 2, FIRST_S - 0.1)] == [""] * 3
    stream.read(chunk(event(TOKENS[0])))
    assert [stream.check(FIRST_S + late) for late in (0, 1, STALL_S)] == [""] * 3
    assert stream.check(FIRST_S + STALL_S + 0.1) == "stall"


def test_tokens_and_silence_stall_long_before_a_first_token_is_due(stream: Stream) -> None:
    stream.read(CHUNKED, chunk(event(TOKENS[0])))
    assert [stream.check(1), stream.check(1.1 + STALL_S)] == ["", "stall"]


def test_a_running_usage_that_grows_is_progress_and_one_that_stands_is_none(stream: Stream) -> None:
    def told(count: int) -> bytes:
        return chunk(event({"choices": [{"text": ""}], "usage": {"completion_tokens": count}}))

    stream.read(CHUNKED)
    for at in range(2 * FIRST_S):
        stream.read(told(at))
        assert stream.check(at) == ""
    for at in range(2 * FIRST_S, 4 * FIRST_S):
        stream.read(told(2 * FIRST_S - 1))
        reason = stream.check(at)
        if reason:
            break
    assert reason == "stall"


@pytest.mark.parametrize(("data", "reason"), [(TOKENS[0], ""), (BEATS[3], "timeout")])
def test_reads_that_were_moved_away_are_looked_at_there(stream: Stream, data: object, reason: str) -> None:
    stream.read(CHUNKED, chunk(event(data)))
    stream.check(FIRST_S - 1)
    reads = list(stream.log.reads)
    stream.log.drop(2, SimpleNamespace(reads_of=lambda _owner, start, end: reads[start:end]))  # type: ignore[arg-type]
    assert stream.check(FIRST_S + 1) == reason


def test_few_streams_are_parsed_in_one_check(stream: Stream) -> None:
    owners = range(3 * LOOKS)
    for owner in owners:
        stream.read(chunk(event({})), owner=owner)
    stream.check(1)
    reasons = []
    for k in range(3):
        stream.now = (FIRST_S + 1 + k) * S
        stream.liveness.update()
        reasons.append([stream.liveness.overdue(owner, 0, stream.now) for owner in owners].count("timeout"))
    assert reasons == [LOOKS, 2 * LOOKS, 3 * LOOKS]


@given(
    st.lists(st.sampled_from([*TOKENS, *BEATS[:6]]), min_size=1, max_size=12),
    st.integers(1, 40),
    st.booleans(),
)
def test_the_newest_token_is_found_however_it_is_cut(parts: list[object], size: int, whole: bool) -> None:
    """One event a second, in reads of `size` bytes, each event a chunk or cut over two."""
    with pytest.MonkeyPatch.context() as patch:
        stream = Stream(patch)
        stream.liveness._job = SimpleNamespace(first_token_s=100, stall_s=50)  # type: ignore[assignment]
        for at, part in enumerate(parts):
            data = event(part)
            data = chunk(data) if whole else chunk(data[:9]) + chunk(data[9:])
            stream.read(*[data[k : k + size] for k in range(0, len(data), size)])
            assert stream.check(at + 1) == ""
        newest = max((at + 1 for at, part in enumerate(parts) if part in TOKENS), default=0)
        limit = newest + 50 if newest else 100
        assert stream.check(limit) == ""
        assert stream.check(limit + 60) == ("stall" if newest else "timeout")
