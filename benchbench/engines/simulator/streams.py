"""Requests in the engine: admitted, told token by token as the model plans it, broken off where a fault says so.

This is the timed path. What can be made before a token is due is made before; a due event is then a few joins,
the clock, and one send.
"""

from __future__ import annotations

import dataclasses
import heapq
import os
import random
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from benchbench.engines.simulator import render
from benchbench.engines.simulator.api import ApiError, Generation, parse_generation
from benchbench.engines.simulator.http import Connection, HttpRequest
from benchbench.engines.simulator.ledger import Ledger, Truth
from benchbench.engines.simulator.model import Emission
from benchbench.engines.simulator.predict import build_model
from benchbench.engines.simulator.profiles import Faults, SimProfile
from benchbench.engines.simulator.vocabulary import Vocabulary

CHAT_PATH = "/v1/chat/completions"
GENERATION_PATHS = ("/v1/completions", CHAT_PATH)


class Wire(Protocol):
    """How streams reach their clients."""

    def send(self, connection: Connection, data: bytes) -> None: ...

    def answered(self, connection: Connection, *, keep_alive: bool) -> None:
        """The response is complete: take the connection's next request, or close it."""

    def leave(self, connection: Connection, *, reset: bool = False) -> None:
        """Close the connection now, with RST if `reset`."""


@dataclass(slots=True)
class _Stream:
    connection: Connection
    answer: render.Answer
    truth: Truth
    keep_alive: bool
    breaks: str | None  # reset | cut | error | silence
    role_due: bool  # the chat's role-only chunk is still to come
    told: int = 0  # tokens written
    ready: bytes = b""  # the next event, if it was made in time


class Streams:
    def __init__(self, profile: SimProfile, models: Sequence[str], wire: Wire) -> None:
        self.profile, self.models, self.wire = profile, models, wire
        self.model = build_model(profile)
        self.ledger = Ledger(models[0], profile)
        self.vocabulary = Vocabulary(profile.vocab_size)
        self._streams: dict[int, _Stream] = {}
        self._unready: dict[int, _Stream] = {}  # whose next event could be made beforehand
        self._comments: list[tuple[int, int]] = []  # heap of (due ns, request): keep-alive comments
        self._asked = 0  # requests so far

    def next_due_ns(self) -> int | None:
        due = self.model.next_due_ns()
        if self._comments:
            comment = self._comments[0][0]
            return comment if due is None else min(due, comment)
        return due

    def work(self, now_ns: int) -> None:
        """Write all that is due by `now_ns`."""
        for emission in self.model.take_due(now_ns):
            stream = self._streams.get(emission.request_id)
            if stream:  # its client may have left during this very loop
                self._emit(emission.request_id, stream, emission)
        while self._comments and self._comments[0][0] <= now_ns:
            due, number = heapq.heappop(self._comments)
            stream = self._streams.get(number)
            if stream and not stream.told:
                self._plan_comment(due, number)
                self.wire.send(stream.connection, render.chunk(render.KEEP_ALIVE))

    def prepare(self) -> None:
        """Make the next event of every stream that was written: for the time when nothing is due.

        Not a first event: how much of its prompt was cached is not known before.
        """
        for stream in self._unready.values():
            if not stream.ready:
                left = stream.answer.generation.output_tokens - stream.told
                stream.ready = _event(stream, min(left, self.profile.tokens_per_event))
        self._unready.clear()

    def unfinished(self) -> list[Truth]:
        return [stream.truth for stream in self._streams.values()]

    def abort(self, number: int) -> None:
        """The client of this request has left."""
        self.model.abort(number)
        self._forget(number, self._streams[number], "abort")

    def admit(self, connection: Connection, request: HttpRequest) -> None:
        """Refuse a request, or answer with the stream's header and give it to the engine."""
        keep_alive = request.keep_alive and not self.profile.close_after_response
        number, self._asked = self._asked, self._asked + 1
        try:
            self._refuse(number)
            generation = parse_generation(
                request.body, self.profile, self.vocabulary, self.models, chat=request.path == CHAT_PATH
            )
        except ApiError as error:
            if error.in_stream:
                data = render.stream_head(keep_alive=keep_alive) + _error_ending(error.body())
            else:
                data = render.whole(error.status, error.body(), keep_alive=keep_alive, headers=error.headers)
            self.wire.send(connection, data)
            self.wire.answered(connection, keep_alive=keep_alive)
            return
        self._start(number, connection, request, self._shortened(number, generation), keep_alive=keep_alive)

    def _refuse(self, number: int) -> None:
        refusal = self.profile.faults.status
        if refusal and self._drawn("status", number, refusal.share):
            headers = {} if refusal.retry_after is None else {"retry-after": str(refusal.retry_after)}
            raise ApiError(refusal.code, "The server refuses.", "ServiceUnavailableError", headers=headers)

    def _shortened(self, number: int, generation: Generation) -> Generation:
        fault = self.profile.faults.short_output
        if not fault or not self._drawn("short_output", number, fault.share):
            return generation
        room = self.profile.max_model_len - len(generation.prompt)
        output = min(max(1, generation.output_tokens - fault.tokens), room)
        return dataclasses.replace(generation, output_tokens=output, finish_reason="stop")

    def _drawn(self, name: str, number: int, share: float) -> bool:
        """Whether a fault with this share hits request `number`: the same in every run with this seed."""
        return share > 0 and random.Random(f"{self.profile.seed}/{name}/{number}").random() < share

    def _breaks(self, number: int, faults: Faults) -> str | None:
        shares = {
            "reset": faults.reset_share,
            "cut": faults.cut_share,
            "error": faults.error_in_stream_share,
            "silence": faults.silence_share,
        }
        return next((name for name, share in shares.items() if self._drawn(name, number, share)), None)

    def _start(
        self, number: int, connection: Connection, request: HttpRequest, generation: Generation, *, keep_alive: bool
    ) -> None:
        faults, now_ns = self.profile.faults, time.time_ns()
        own_id = request.headers.get(b"x-request-id", b"").decode("latin-1") or os.urandom(8).hex()
        request_id = f"{'chatcmpl' if generation.chat else 'cmpl'}-{own_id}"
        stream = _Stream(
            connection,
            render.Answer(request_id, generation, self.profile, now_ns // 10**9),
            Truth(request_id, len(generation.prompt), request.received_ns),
            keep_alive,
            self._breaks(number, faults),
            role_due=generation.chat and generation.stream and self.profile.role_first,
        )
        self._streams[number] = stream
        connection.request_number = number
        if stream.breaks != "silence":
            prefix = generation.prefix() if self.profile.prefix_cache else ()
            prompt, output = len(generation.prompt), generation.output_tokens
            self.model.submit(number, request.received_ns, prompt, output, prefix)
        if generation.stream:
            first = render.stream_head(keep_alive=keep_alive)
            if stream.role_due and faults.role_early:
                stream.role_due = False
                first += stream.answer.role_event()
            self._plan_comment(now_ns, number)
            self.wire.send(connection, first)

    def _plan_comment(self, now_ns: int, number: int) -> None:
        if self.profile.keep_alive_s:
            heapq.heappush(self._comments, (now_ns + round(self.profile.keep_alive_s * 1e9), number))

    def _emit(self, number: int, stream: _Stream, emission: Emission) -> None:
        planned_ns, _, n_tokens, finished, cached, scheduled_ns = emission
        answer, truth = stream.answer, stream.truth
        if stream.breaks and stream.told + n_tokens > answer.generation.output_tokens // 2:
            self._break(number, stream)
            return
        if not stream.told:
            answer.cached_tokens = truth.cached_tokens = cached
            self.ledger.first_token(truth, planned_ns, scheduled_ns)
        stream.told += n_tokens
        self.ledger.generation_tokens += n_tokens
        if answer.generation.stream:
            data, stream.ready = stream.ready or _event(stream, n_tokens), b""
            if not finished:
                self._unready[number] = stream
        elif finished:
            n_tokens = stream.told
            data = render.whole(200, answer.body(), keep_alive=stream.keep_alive)
        else:
            return
        truth.planned_ns.append(planned_ns)
        truth.tokens.append(n_tokens)
        truth.writes_ns.append(time.time_ns())
        if finished:  # before the send, which may find that the client has left
            self._forget(number, stream, answer.generation.finish_reason)
        self.wire.send(stream.connection, data)
        if finished:
            self.wire.answered(stream.connection, keep_alive=stream.keep_alive)

    def _forget(self, number: int, stream: _Stream, reason: str) -> None:
        del self._streams[number]
        self._unready.pop(number, None)
        stream.connection.request_number = None
        self.ledger.end(stream.truth, reason)

    def _break(self, number: int, stream: _Stream) -> None:
        connection = stream.connection
        self.model.abort(number)
        self._forget(number, stream, "error")
        if stream.breaks == "error":
            if stream.answer.generation.stream:
                self.wire.send(connection, _error_ending(render.SERVER_ERROR))
            else:
                self.wire.send(connection, render.whole(500, render.SERVER_ERROR, keep_alive=stream.keep_alive))
            self.wire.answered(connection, keep_alive=stream.keep_alive)
        else:
            self.wire.leave(connection, reset=stream.breaks == "reset")


def _event(stream: _Stream, n_tokens: int) -> bytes:
    """The next event, with what goes before the first and after the last."""
    answer = stream.answer
    finished = answer.made + n_tokens == answer.generation.output_tokens
    data = answer.token_event(n_tokens, finished=finished)
    if stream.role_due:
        stream.role_due = False
        data = answer.role_event() + data
    return data + answer.ending() if finished else data


def _error_ending(error: bytes) -> bytes:
    """An error inside a stream whose headers are sent, as vLLM ends it."""
    return render.event(error) + render.chunk(render.DONE) + render.LAST_CHUNK
