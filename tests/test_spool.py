"""What a long round has received goes through a file and another process: the same columns come out."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import closing
from multiprocessing.connection import Pipe
from pathlib import Path
from threading import Thread
from typing import Any

import numpy as np
import orjson
import psutil
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rounds_made import job

from benchbench.engines.simulator import SimulatorProcess
from benchbench.linux import Poller, to_stamp
from benchbench.loadgen.columns import collect
from benchbench.loadgen.connection import Pools
from benchbench.loadgen.exchange import STAMP, Ended, Exchange, Failure, Log
from benchbench.loadgen.job import Job, RoundJob
from benchbench.loadgen.liveness import Liveness
from benchbench.loadgen.round import Round
from benchbench.openai.target import Access, make_target
from benchbench.spool import collector, flat
from benchbench.spool import spool as module
from benchbench.spool.spool import Spool
from benchbench.store.requests import ErrorKind, ErrorPhase, RoundColumns

STREAMS = [path.read_bytes() for path in sorted((Path(__file__).parent / "data" / "sse").glob("*.txt"))]
T0 = 1_764_000_000_000_000_000


class Driven:
    """A round of these streams, cut into pieces of `size` bytes and received in turn, `at_once` at a time."""

    def __init__(self, streams: list[bytes], size: int, at_once: int, broken: int = -1) -> None:
        self.log, self.done = Log(), list[Exchange]()
        self.job = job([4] * len(streams), [8] * len(streams), exact=True)
        self.liveness = Liveness(self.log, self.job)
        self._streams, self._size, self._at_once, self._broken = streams, size, at_once, broken

    def steps(self) -> Iterator[list[Exchange]]:
        """Receive; after each read those that run."""
        waiting, running = list(enumerate(self._streams)), list[tuple[Exchange, bytes, int]]()
        now = T0
        while waiting or running:
            while waiting and len(running) < self._at_once:
                index, raw = waiting.pop(0)
                exchange = Exchange(index, b"", self.log, now, sent_ns=now, target=index % 2)
                running.append((exchange, raw, 0))
            exchange, raw, place = running.pop(0)
            now += 1_000_003
            data = raw[place : place + self._size]
            exchange.took(data, to_stamp(now), now + 17 * exchange.index)
            is_broken = exchange.index == self._broken and place > len(raw) // 2
            if is_broken:
                exchange.failure = Failure(ErrorKind.STREAM, ErrorPhase.STREAM, "connection lost")
            if is_broken or place + self._size >= len(raw):
                exchange.end_ns = now
                self.done.append(exchange)
            else:
                running.append((exchange, raw, place + self._size))
            yield [exchange for exchange, _, _ in running]


def plainly(driven: Driven) -> RoundColumns:
    for _ in driven.steps():
        pass
    return collect(sorted(driven.done, key=lambda e: e.index), driven.log, driven.job)


def spooled(driven: Driven, spool: Spool, every: int) -> dict[str, Any]:
    spool.begin(driven.job)
    spool.crowd = 0
    for step, _ in enumerate(driven.steps()):
        if step % every == 0 and len(driven.log.reads) > 1:  # the last one stays, as with a crowd
            driven.liveness.update()
            spool.move(driven.log, driven.liveness, driven.done, is_idle=True)
    return spool.finish(driven.log, sorted(driven.done, key=lambda e: e.index))


def assert_same(one: Any, two: Any) -> None:
    assert list(one) == list(two)
    for name in one:
        if isinstance(one[name], list):
            assert one[name] == two[name], name
        else:
            assert one[name].dtype == two[name].dtype, name
            assert one[name].tolist() == two[name].tolist(), name


class Here(Spool):
    """A spool that is read in this process."""

    def _gathered(self) -> dict[str, Any]:
        fd, job = self._opened().fileno(), self._job
        return collector.gathered(fd, self._place, exact=job.exact, secrets=job.secrets)


@given(
    st.lists(st.sampled_from(STREAMS), min_size=1, max_size=12),
    st.integers(1, 700),
    st.integers(1, 5),
    st.integers(1, 40),
    st.integers(-1, 11),
    st.sampled_from([1, 300, 1 << 20]),
)
@settings(max_examples=60)
def test_columns_are_those_of_the_sending_process(
    streams: list[bytes], size: int, at_once: int, every: int, broken: int, together: int
) -> None:
    size = max(size, len(max(streams, key=len)) // 100)
    plain = plainly(Driven(streams, size, at_once, broken))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(collector, "TOGETHER", together)
        patch.setattr(flat, "LONG", size)
        patch.setattr(flat, "BLOCK", at_once)
        patch.setattr(module, "SLICE_ENDED", 1)
        spool = Here()
        for _ in range(2):  # one round after the other
            assert_same(plain, spooled(Driven(streams, size, at_once, broken), spool, every))
        spool.close()


@given(st.lists(st.sampled_from(STREAMS), min_size=1, max_size=6), st.integers(20, 400), st.data())
@settings(max_examples=40)
def test_reads_that_were_moved_can_be_looked_at(streams: list[bytes], size: int, data: st.DataObject) -> None:
    driven, plain = Driven(streams, size, 3), Driven(streams, size, 3)
    with closing(Here()) as spool:
        spool.begin(driven.job)
        spool.crowd = 0
        for _, running in zip(plain.steps(), driven.steps(), strict=True):
            if len(driven.log.reads) > 5:
                driven.liveness.update()
                spool.move(driven.log, driven.liveness, driven.done, is_idle=True)
            start = data.draw(st.integers(0, len(plain.log)))
            end = data.draw(st.integers(start, len(plain.log)))
            for exchange in running:
                own = exchange.index, start, end
                assert driven.log.reads_of(*own) == plain.log.reads_of(*own)
        assert driven.log.counts() == plain.log.counts()


def test_the_process_that_decodes_is_asked_again_when_it_was_killed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("benchbench.loadgen.job.LONG_TOKENS", 1)
    streams = [STREAMS[3]] * 8
    plain = plainly(Driven(streams, 50, 3))
    with closing(Spool()) as spool:
        for killed in (False, True, False):
            if killed:
                os.kill(spool._collector._process.pid, signal.SIGKILL)  # type: ignore[union-attr]
            assert_same(plain, spooled(Driven(streams, 50, 3), spool, 2))
        size = os.fstat(spool._opened().fileno()).st_size
    assert size == 0


def test_a_secret_that_a_server_quotes_is_not_in_the_file() -> None:
    class Secret(Job):
        secrets = frozenset({"sk-very-secret"})  # type: ignore[assignment]

    spool, log = Here(), Log()
    spool.begin(Secret(**{name: getattr(job([1], [1], exact=True), name) for name in Job.__slots__}))
    log.add(0, b"HTTP/1.1 401 no\r\n\r\nwrong key sk-very-secret.", to_stamp(T0), T0)
    spool._move(log, 1)
    content = os.pread(spool._opened().fileno(), 1 << 16, 0)
    assert b"sk-very-secret" not in content
    assert b"wrong key **************." in content
    spool.close()


def test_without_room_on_disk_the_round_fails_and_says_where(monkeypatch: pytest.MonkeyPatch) -> None:
    driven, spool = Driven(STREAMS[:2], 50, 2), Here()
    monkeypatch.setattr(os, "pwritev", lambda *_: 7)
    with closing(spool), pytest.raises(OSError, match=r"cannot be written \(no room\): TMPDIR says to which disk"):
        spooled(driven, spool, 2)


def test_long_columns_go_through_a_pipe_in_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(flat, "LONG", 10)
    monkeypatch.setattr(flat, "PIECE", 64)
    columns = {"event_ns": np.arange(100), "event_tokens": np.arange(3, dtype=np.int32), "status": ["ok"]}
    ours, theirs = Pipe()
    thread = Thread(target=flat.say, args=(ours, columns, {"started_ns": 1}))
    thread.start()
    heard, facts = flat.hear(theirs)
    thread.join()
    assert_same(columns, heard)
    assert facts == {"started_ns": 1}
    ours.send("ready")
    assert flat.hear(theirs) == "ready"


class Kept(Here):
    """A spool that keeps a copy of all that it takes, as a log without one would have."""

    def __init__(self) -> None:
        super().__init__()
        self.whole, self.exchanges = Log(), list[Exchange]()

    def _move(self, log: Log, count: int) -> None:
        before = log.base, Log()
        for name in ("owners", "reads", "stamps", "users"):
            setattr(before[1], name, getattr(log, name)[:])
        super()._move(log, count)
        moved = log.base - before[0]
        for name, each in {"owners": 1, "reads": 1, "stamps": STAMP, "users": 1}.items():
            setattr(self.whole, name, getattr(self.whole, name) + getattr(before[1], name)[: each * moved])

    def _records(self, ended: Sequence[Exchange]) -> list[Ended]:
        self.exchanges += ended
        return super()._records(ended)


@pytest.mark.parametrize("paced", [False, True])
def test_a_round_that_is_spooled_while_it_runs(monkeypatch: pytest.MonkeyPatch, *, paced: bool) -> None:
    monkeypatch.setattr("benchbench.loadgen.job.LONG_TOKENS", 1)
    monkeypatch.setattr(module, "CROWD", 8)
    monkeypatch.setattr(module, "SLICE", 5)
    count, tokens = 40, 30
    with SimulatorProcess("fixed", scale=0.01) as server, closing(Kept()) as spool:
        target = make_target(server.url, "completions", Access())
        asked = {"model": "sim", "max_tokens": tokens, "stream": True, "ignore_eos": True, "prompt": [7] * 4}
        round_job = RoundJob(
            payloads=[target.request(orjson.dumps(asked))] * count,
            due_ns=[2_000_000 * k for k in range(count)],
            in_flight=count if paced else 4,
            asked_input=[4] * count,
            asked_output=[tokens] * count,
            first_token_s=30,
            stall_s=30,
            paced=paced,
            targets=(target,),
            connect_s=30,
        )
        spool.begin(round_job)
        driver = Round(round_job, Pools(Poller()), lambda _fd: None, spool=spool)
        left = driver.run()
        driver.pools.close()
        assert len(left) < count
        assert len(driver.log.reads) <= 2 * module.CROWD + count * tokens // 10
        columns = spool.finish(driver.log, left)
        assert driver.facts.spooled_bytes <= spool.size == sum(map(len, spool.whole.reads))
    exchanges = sorted(spool.exchanges, key=lambda exchange: exchange.index)
    assert_same(collect(exchanges, spool.whole, round_job), columns)
    assert columns["error_detail"] == [""] * count
    assert set(np.diff(columns["event_offsets"])) == {tokens}


def test_the_process_that_decodes_ends_with_the_one_that_sends() -> None:
    code = """
import sys, time
from benchbench.spool.spool import Collector, Spool
spool = Spool()
print(Collector(spool._opened())._process.pid, flush=True)
time.sleep(60)
"""
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) as sender:
        pid = int(sender.stdout.readline())  # type: ignore[union-attr]
        sender.kill()
        psutil.wait_procs([psutil.Process(pid)], timeout=20)
    assert not psutil.pid_exists(pid)
