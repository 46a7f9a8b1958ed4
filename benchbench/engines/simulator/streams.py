"""Requests in the engine: admitted, told token by token as the model plans it, broken off where a fault says so.

This is the timed path. What can be made before a token is due is made before; a due event is then a few joins,
the clock, and one send.
"""

from __future__ import annotations

import dataclasses
import os
import random
import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

from benchbench.engines.simulator import render
from benchbench.engines.simulator.api import ApiError, Generation, parse_generation
from benchbench.engines.simulator.http import Connection, HttpRequest, Wire, head, whole
from benchbench.engines.simulator.ledger import Ledger, Truth
from benchbench.engines.simulator.model import Emission, make_model

if TYPE_CHECKING:
    from benchbench.engines.simulator.profiles import SimProfile

CHAT_PATH = "/v1/chat/completions"


@dataclass(slots=True)
class _Stream:
    connection: Connection
    answer: render.Answer
    truth: Truth
    breaks: str | None  # the share by whose fault it breaks off
    written: int = 0  # tokens written
    ready: bytes = b""  # the next event, if it was made in time


class Streams:
    def __init__(self, profile: SimProfile, models: Sequence[str], wire: Wire) -> None:
        self.profile, self.models, self.wire = profile, models, wire
        self.model = make_model(profile)
        self.ledger = Ledger(models[0], self.model)
        self._streams: dict[int, _Stream] = {}
        self._unready: dict[int, _Stream] = {}  # whose next event can be made beforehand
        self._comment_every_ns = round((profile.keep_alive_s or 0.0) * 1e9)
        self._comment_ns = 0  # when the next keep-alive comments are due
        self._asked = 0  # requests so far

    def next_due_ns(self) -> int | None:
        due = self.model.next_due_ns()
        if self._comment_every_ns and self._streams:
            return self._comment_ns if due is None else min(due, self._comment_ns)
        return due

    def work(self, now_ns: int) -> None:
        """Write all that is due by `now_ns`."""
        for emission in self.model.take_due(now_ns):
            stream = self._streams.get(emission.request_id)
            if stream:  # its client may have left during this very loop
                self._emit(emission.request_id, stream, emission)
        if self._comment_every_ns and self._comment_ns <= now_ns:
            self._comment_ns = now_ns + self._comment_every_ns
            for stream in list(self._streams.values()):
                if not stream.written and stream.answer.generation.stream:
                    self.wire.send(stream.connection, render.KEEP_ALIVE)

    def prepare(self) -> None:
        """Make the next event of every stream that was written: for the time when nothing is due.

        Not a first event: how much of its prompt was cached is not known before. Nor with drafts, for how many tokens
        it will have.
        """
        for stream in self._unready.values():
            if not stream.ready and self.profile.speculation is None:
                left = stream.answer.generation.output_tokens - stream.written
                stream.ready = stream.answer.token_event(min(left, self.profile.tokens_per_event))
        self._unready.clear()

    def unfinished(self) -> list[Truth]:
        return [stream.truth for stream in self._streams.values()]

    def admit(self, connection: Connection, request: HttpRequest) -> None:
        """Refuse a request, or answer with the stream's header and give it to the engine."""
        number, self._asked = self._asked, self._asked + 1
        try:
            self._start(number, connection, request, self._asked_for(number, request))
        except ApiError as error:
            if error.in_stream:
                data = _stream_head(connection) + render.error_ending(error.body())
            else:
                retry = {} if error.retry_after is None else {"retry_after": error.retry_after}
                data = whole(connection, error.status, error.body(), **retry)
            self.wire.send(connection, data, last=True)

    def _asked_for(self, number: int, request: HttpRequest) -> Generation:
        """What the engine is to generate, after the faults that refuse a request or change its length."""
        profile, refusal, short = self.profile, self.profile.faults.status, self.profile.faults.short_output
        if refusal and self._drawn("status", number, refusal.share):
            kind = "ServiceUnavailableError"
            raise ApiError("The server refuses.", None, refusal.code, kind, refusal.retry_after)
        chat = request.path == CHAT_PATH
        generation = parse_generation(request.body, profile, self.models, chat=chat)
        if short and self._drawn("short_output", number, short.share):
            room = profile.max_model_len - len(generation.prompt)
            output = min(max(1, generation.output_tokens - short.tokens), room)
            generation = dataclasses.replace(generation, output_tokens=output, finish_reason="stop")
        return generation

    def _drawn(self, name: str, number: int, share: float) -> bool:
        """Whether a fault with this share hits request `number`: the same in every run with this seed."""
        return share > 0 and random.Random(f"{self.profile.seed}/{name}/{number}").random() < share

    def _start(self, number: int, connection: Connection, request: HttpRequest, generation: Generation) -> None:
        now_ns = time.time_ns()
        request_id = f"{'chatcmpl' if generation.chat else 'cmpl'}-{os.urandom(8).hex()}"
        faults = self.profile.faults
        shares = {"reset": faults.reset_share, "cut": faults.cut_share, "error": faults.error_in_stream_share}
        shares["silence"] = faults.silence_share
        stream = _Stream(
            connection,
            render.Answer(request_id, generation, self.profile, now_ns // 10**9),
            Truth(request_id, len(generation.prompt), request.received_ns),
            next((name for name, share in shares.items() if self._drawn(name, number, share)), None),
        )
        if not self._streams:
            self._comment_ns = now_ns + self._comment_every_ns
        self._streams[number] = stream
        connection.on_leave = partial(self._end, number, stream, "abort")
        if stream.breaks != "silence":
            prompt, output = len(generation.prompt), generation.output_tokens
            self.model.submit(number, request.received_ns, prompt, output, generation.prefix)
        if generation.stream:
            early = stream.answer.role_event() if faults.role_early else b""
            self.wire.send(connection, _stream_head(connection) + early)

    def _emit(self, number: int, stream: _Stream, emission: Emission) -> None:
        planned_ns, _, n_tokens, finished, cached, scheduled_ns = emission
        answer, truth = stream.answer, stream.truth
        if stream.breaks and stream.written + n_tokens > answer.generation.output_tokens // 2:
            self._break(number, stream)
            return
        if not stream.written:
            answer.cached_tokens = truth.cached_tokens = cached
            self.ledger.first_token(truth, planned_ns, scheduled_ns)
        stream.written += n_tokens
        self.ledger.counters["generation_tokens_total"] += n_tokens
        if answer.generation.stream:
            data, stream.ready = stream.ready or answer.token_event(n_tokens), b""
            if not finished:
                self._unready[number] = stream
        elif finished:
            n_tokens = stream.written
            data = whole(stream.connection, 200, answer.body())
        else:
            return
        truth.planned_ns.append(planned_ns)
        truth.tokens.append(n_tokens)
        truth.writes_ns.append(time.time_ns())
        if finished:  # before the send, which may find that the client has left
            self._end(number, stream, answer.generation.finish_reason)
        self.wire.send(stream.connection, data, last=finished)

    def _end(self, number: int, stream: _Stream, reason: str) -> None:
        self.model.abort(number)  # which has forgotten it already if it is finished
        del self._streams[number]
        self._unready.pop(number, None)
        stream.connection.on_leave = None
        self.ledger.end(stream.truth, reason)

    def _break(self, number: int, stream: _Stream) -> None:
        self._end(number, stream, "error")
        if stream.breaks != "error":
            self.wire.leave(stream.connection, reset=stream.breaks == "reset")
        elif stream.answer.generation.stream:
            self.wire.send(stream.connection, render.error_ending(render.SERVER_ERROR), last=True)
        else:
            self.wire.send(stream.connection, whole(stream.connection, 500, render.SERVER_ERROR), last=True)


def _stream_head(connection: Connection) -> bytes:
    return head(connection, 200, content_type="text/event-stream; charset=utf-8", transfer_encoding="chunked")
