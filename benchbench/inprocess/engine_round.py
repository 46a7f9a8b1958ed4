"""The round of an in-process engine: a request is a call, tokens are callbacks, all on one asyncio loop.

No engine is imported here. The loads are those of `loop.py`: static, closed and open rounds differ only in when a
request is due and how many may be in flight.
"""

from __future__ import annotations

import asyncio
import contextlib
import selectors
import time
from dataclasses import dataclass

import numpy as np

from benchbench.complaints.server_words import DETAIL, is_broken
from benchbench.decoding.response import Response
from benchbench.fidelity.answers import Finished
from benchbench.inprocess.async_llm import InprocessEngine, Tokens
from benchbench.linux import clock_offset_ns
from benchbench.loadgen.columns import NO_ANSWER, all_ended, columns_of
from benchbench.loadgen.exchange import Exchange, Failure, Log
from benchbench.loadgen.job import DirectJob, RoundFacts
from benchbench.refills.quota import Quota
from benchbench.store.requests import ErrorKind, ErrorPhase, RoundColumns

ABORT_S = 5.0  # how long given-up requests may take to tell the engine; then they are left to themselves
LEAD_NS = 10_000_000  # an open load begins so much later: its places are made meanwhile
_now = time.time_ns


class StallSelector(selectors.DefaultSelector):
    """The selector of an asyncio loop, which notes the longest time between two looks of the loop at its sockets."""

    def __init__(self) -> None:
        super().__init__()
        self.longest_ns = 0
        self._woke_ns = time.monotonic_ns()

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        self.longest_ns = max(self.longest_ns, time.monotonic_ns() - self._woke_ns)
        events = super().select(timeout)
        self._woke_ns = time.monotonic_ns()
        return events


@dataclass(slots=True)
class _Flight:
    """A request on its way: its task, and when (monotonic) a check first saw so many events of it."""

    task: asyncio.Task[None] | None
    since_ns: int
    events: int = 0


class DirectRound:
    """Runs one job: `run()` gives the round's columns, None when it was cancelled; nothing that an engine does raises.

    `died`: why the engine is gone, empty while it lives. Of each token event the stamp is the clock when the engine's
    output reached us, and the lag the time since the engine core stamped that output (0 where it does not say): the
    way between the processes, the engine's own front end, and our being late.
    """

    def __init__(self, job: DirectJob, engine: InprocessEngine, turns: StallSelector | None = None) -> None:
        self.job, self.engine, self.turns = job, engine, turns
        self.facts = RoundFacts()
        self.died = ""
        self._exchanges: list[Exchange] = []  # place = index: requests are taken in order
        self._payloads: list[int] = []
        self._responses: list[Response] = []
        self._finished: dict[int, Finished] = {}
        self._stamps: list[int] = []
        self._lags: list[int] = []
        self._flying: dict[int, _Flight] = {}
        self._places: set[asyncio.Task[None]] = set()
        self._ended, self._quota = 0, Quota(job)
        self._over = asyncio.Event()
        self._begun_ns = 0
        self._log = Log()  # stays empty: there are no bytes

    def cancel(self) -> None:
        """End the round now; without columns."""
        self.facts.cancelled = True
        self._over.set()

    def die(self, reason: str) -> None:
        """The engine is dead: what is open has failed, and so has what was still to come."""
        self.died = self.died or reason
        while len(self._exchanges) < self._quota.planned:
            self._take()
        for exchange in self._exchanges:
            if not exchange.end_ns:
                self._fail(exchange, ErrorKind.STREAM, reason)

    async def run(self) -> RoundColumns | None:
        job = self.job
        outputs = tuple(job.asked_output)  # of payloads: of conversations the job's change as they are sent
        self._ask = self.engine.prepare(job.payloads, outputs, exact=job.exact, detokenize=job.detokenize)
        offset_ns, cpu_ns, wall_ns = clock_offset_ns(), time.process_time_ns(), _now()
        if self.turns:
            self.turns.longest_ns = 0
        self.facts.started_ns = self._begun_ns = _now() + (LEAD_NS if job.paced else 0)
        for _ in range(min(job.in_flight, len(job.payloads))):
            self._open_place(first=True)
        check_s = min(0.1, job.first_token_s / 4, job.stall_s / 4)
        while not self._over.is_set():
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._over.wait(), check_s)
            self.facts.clock_step_ns = max(self.facts.clock_step_ns, abs(clock_offset_ns() - offset_ns))
            self._check()
        self.facts.turn_max_ns = self.turns.longest_ns if self.turns else 0
        self.facts.spare_sent = len(self._exchanges) - self._quota.planned
        self.facts.cpu_ns, self.facts.wall_ns = time.process_time_ns() - cpu_ns, _now() - wall_ns
        for task in self._places:
            task.cancel()
        await asyncio.wait(self._places, timeout=ABORT_S)
        return None if self.facts.cancelled else self._columns()

    # -- one place in flight

    def _open_place(self, *, first: bool = False) -> None:
        self._places.add(asyncio.create_task(self._place(first=first)))

    async def _place(self, *, first: bool) -> None:
        """One of the places in flight: takes the next request, waits until it is due, sends it, sees it through.

        Nothing stands between the end of a request and the sending of the next.
        """
        while not self._over.is_set() and len(self._exchanges) < self._quota.sendable:
            exchange = self._take(first=first)
            first = False
            if self.job.paced:
                await _until(exchange.scheduled_ns)
            if self._over.is_set():
                return
            self._flying[exchange.index] = _Flight(asyncio.current_task(), time.monotonic_ns())
            exchange.sent_ns = _now()
            try:
                finished = await self._ask(self._payloads[exchange.index], self._listener(exchange))
            except Exception as error:  # noqa: BLE001 - whatever an engine raises is a failed request
                if not exchange.end_ns:
                    self._broken(exchange, error)
            else:
                if not exchange.end_ns:
                    exchange.end_ns = _now()
                    self._finished[exchange.index] = finished
                    self._count_end(exchange)
            if self._flying.pop(exchange.index, None) is None:
                return  # given up meanwhile, and another place opened instead

    def _take(self, *, first: bool = False) -> Exchange:
        index, scheduled_ns = len(self._exchanges), self._begun_ns if first else _now()
        if self.job.paced:
            scheduled_ns = self._begun_ns + self.job.due_ns[index]
        exchange = Exchange(index, b"", self._log, scheduled_ns)
        self._payloads.append(self._quota.payload(index))
        self._exchanges.append(exchange)
        self._responses.append(Response(tokens_from="ids"))
        return exchange

    def _listener(self, exchange: Exchange) -> Tokens:
        response, stamps, lags = self._responses[exchange.index], self._stamps, self._lags
        places, counts, one_by_one = response.event_read, response.event_tokens, self.engine.one_by_one

        def tokens(count: int, engine_s: float) -> None:
            now, lag = _now(), time.monotonic_ns() - int(engine_s * 1e9)
            if exchange.end_ns:  # it was given up
                return
            if not 0 <= lag <= now - exchange.sent_ns:  # the engine's clock is not ours: another host, or none
                lag = 0
            # Outputs that we were too late for were put together: events of one stamp, as of one read.
            repeat, share = (count, 1) if one_by_one else (1, count)
            for _ in range(repeat):
                places.append(len(stamps))
                counts.append(share)
                stamps.append(now)
                lags.append(lag)

        return tokens

    # -- what goes wrong

    def _count_end(self, exchange: Exchange) -> None:
        self._ended += 1
        self._quota.ended(exchange.index)
        if self._ended == max(self._quota.planned, len(self._exchanges)):
            self._over.set()

    def _fail(self, exchange: Exchange, kind: ErrorKind, detail: str) -> None:
        events = self._responses[exchange.index].event_read
        phase = ErrorPhase.STREAM if events else ErrorPhase.WAIT if exchange.sent_ns else ErrorPhase.SEND
        exchange.failure = Failure(kind, phase, detail[:DETAIL])
        exchange.end_ns = _now()
        self._quota.close()
        self._count_end(exchange)

    def _broken(self, exchange: Exchange, error: Exception) -> None:
        if gone := self.engine.gone():
            self.die(gone)
        else:
            kind = ErrorKind.STATUS if isinstance(error, ValueError) else ErrorKind.STREAM
            self._fail(exchange, kind, why(error))

    def _check(self) -> None:
        """Fail what has waited too long, and everything when the engine is dead; a place's own error is raised."""
        if self._over.is_set():
            return
        if gone := self.engine.gone():
            self.die(gone)
            return
        for task in self._places:
            if task.done() and not task.cancelled() and (error := task.exception()):
                raise error
        job, now = self.job, time.monotonic_ns()
        for index, flight in list(self._flying.items()):
            events = len(self._responses[index].event_read)
            if events != flight.events:
                flight.events, flight.since_ns = events, now
            waited_s = (now - flight.since_ns) / 1e9
            if not events and waited_s > job.first_token_s:
                self._give_up(index, ErrorKind.TIMEOUT, f"no token within {job.first_token_s:g} s")
            elif events and waited_s > job.stall_s:
                self._give_up(index, ErrorKind.STALL, f"no token for {job.stall_s:g} s")

    def _give_up(self, index: int, kind: ErrorKind, detail: str) -> None:
        """Fail a request and open a place for another; its own task may never hear of it when the engine hangs."""
        self._fail(self._exchanges[index], kind, detail)
        flight = self._flying.pop(index)
        if flight.task:
            flight.task.cancel()
        self._open_place()

    # -- afterwards

    def _columns(self) -> RoundColumns:
        for index, response in enumerate(self._responses):
            response.output_tokens = sum(response.event_tokens)
            if (finished := self._finished.get(index)) is None:
                if not response.event_read:
                    self._responses[index] = Response(problem=NO_ANSWER)
                continue
            response.done = True
            response.input_tokens, response.cached_tokens = finished.input_tokens, finished.cached_tokens
            response.finish_reason, response.server_metrics = finished.finish_reason, finished.server_metrics
            if is_broken(finished.finish_reason):
                response.problem = (ErrorKind.STREAM, f"the engine ended the request: {finished.finish_reason}")
            elif not response.event_read:
                response.problem = (ErrorKind.PROTOCOL, "the engine finished without a token")
        stamps, lags = np.array(self._stamps, np.int64), np.array(self._lags, np.int64)
        ended, job = all_ended(self._exchanges, self.job), self.job
        return columns_of(ended, self._responses, stamps, lags, exact=job.exact, secrets=job.secrets)


def why(error: BaseException) -> str:
    """An exception in one line; where it says nothing, the one that caused it."""
    while not str(error).strip() and error.__cause__ is not None:
        error = error.__cause__
    return " ".join(f"{type(error).__name__}: {error}".split())


async def _until(at_ns: int) -> None:
    """Wait until the wall clock shows `at_ns`; the loop's timers are late by up to a millisecond, so the last is spent
    looking.
    """
    while (left := at_ns - _now()) > 1_500_000:  # noqa: ASYNC110 - a time is no event
        await asyncio.sleep((left - 1_000_000) / 1e9)
    while _now() < at_ns:  # noqa: ASYNC110
        await asyncio.sleep(0)
