"""Raw reads -> token events. Runs between rounds (or in slices, once undecoded bytes exceed their bound).

HTTP framing is httptools', JSON is orjson's; ours is the middle: server-sent events and what counts as a token.
An event belongs to the read that held the end of its `data:` line.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import httptools
import orjson

from benchbench.store.requests import ErrorKind

DETAIL = 300  # characters of a server's message that a record keeps
MAX_LINE = 8 << 20


@dataclass(slots=True)
class Response:
    """What one response said.

    `event_read[k]`: place in the log of the read that completed token event k. `event_tokens[k]`: its tokens.
    `tokens_from`: how they are known: "ids" (token_ids), "usage" (running usage), "events" (one per event),
    "spread" (the server's total spread evenly over the events, since some held several).
    `problem`: (kind, sentence) when the stream itself reports or shows a failure.
    """

    event_read: list[int] = field(default_factory=list)
    event_tokens: list[int] = field(default_factory=list)
    tokens_from: str = ""
    input_tokens: int | None = None
    output_tokens: int | None = None
    cached_tokens: int | None = None
    finish_reason: str = ""
    response_id: str = ""
    server_metrics: dict[str, float] = field(default_factory=dict)
    done: bool = False
    problem: tuple[ErrorKind, str] | None = None


@dataclass(slots=True)
class _Events:
    """Events with a choice in them, as columns: one object an event would cost more than the rest of decoding."""

    read: list[int] = field(default_factory=list)
    ids: list[int] = field(default_factory=list)  # token ids in it, -1 when it has none
    text: list[bool] = field(default_factory=list)  # it has text (or reasoning, or a tool call)
    running: list[int] = field(default_factory=list)  # usage.completion_tokens at this event, -1 when not told
    last: list[bool] = field(default_factory=list)  # it has a finish_reason


class Decoder:
    """Incremental: `feed` reads in order, then `response`. What a server sends never raises: see `Response.problem`."""

    def __init__(self) -> None:
        self._parser = httptools.HttpResponseParser(self)
        self._last = 0
        self._line = b""
        self._pieces: list[bytes] = []
        self._events = _Events()
        self._response = Response()
        self._status = 0
        self._is_stream = False
        self._other = b""  # a body that is not an event stream
        self._complete = False
        self._broken = ""

    # httptools' callbacks
    def on_header(self, name: bytes, value: bytes) -> None:
        if name.lower() == b"content-type":
            self._is_stream = value.lower().startswith(b"text/event-stream")

    def on_headers_complete(self) -> None:
        self._status = self._parser.get_status_code()

    def on_body(self, body: bytes) -> None:
        self._pieces.append(body)

    def on_message_complete(self) -> None:
        self._complete = self._status >= 200

    def feed(self, data: bytes, at: int) -> None:
        """Decode the next read, number `at` of the log."""
        if self._broken:
            return
        self._last = at
        try:
            self._parser.feed_data(data)
        except (httptools.HttpParserError, httptools.HttpParserUpgrade) as error:
            if not self._complete:
                self._broken = f"broken HTTP framing: {error}"
        for piece in self._pieces:
            # The common case, one whole event in one chunk, without going through lines.
            whole = piece[:6] == b"data: " and piece[-1:] == b"\n" and piece.find(b"\n") == len(piece) - 2
            if whole and not self._line:
                self._payload(piece[6:-2], at)
            else:
                self._lines(piece, at)
        self._pieces.clear()

    def _lines(self, piece: bytes, at: int) -> None:
        if not self._is_stream or self._status != 200:
            if len(self._other) < 65_536:
                self._other += piece
            return
        *lines, self._line = (self._line + piece).split(b"\n")
        for whole in lines:
            line = whole.removesuffix(b"\r")
            if line[:5] == b"data:":
                self._payload(line[5:].strip(), at)
        if len(self._line) > MAX_LINE:
            self._broken = f"one line of more than {MAX_LINE >> 20} MiB"

    def _payload(self, payload: bytes, at: int) -> None:
        if not self._is_stream or self._status != 200:
            self._other += payload
            return
        if payload == b"[DONE]":
            self._response.done = True
            return
        try:
            event = orjson.loads(payload)
        except orjson.JSONDecodeError as error:
            self._fail(ErrorKind.PROTOCOL, f"an event is not JSON ({error}): {payload[:80]!r}")
            return
        if not isinstance(event, dict):
            self._fail(ErrorKind.PROTOCOL, f"an event is not a JSON object: {payload[:80]!r}")
            return
        try:
            self._event(event, at)
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            self._fail(
                ErrorKind.PROTOCOL,
                f"an event has an unknown form ({type(error).__name__}: {error}): {payload[:80]!r}",
            )

    def _fail(self, kind: ErrorKind, detail: str) -> None:
        if self._response.problem is None:
            self._response.problem = (kind, detail[:DETAIL])

    def _event(self, event: dict[str, Any], at: int) -> None:
        response = self._response
        if error := event.get("error"):
            message = error.get("message") if isinstance(error, dict) else error
            self._fail(ErrorKind.STREAM, f"the server reported an error in the stream: {message}")
            return
        running = -1
        if usage := event.get("usage"):
            response.input_tokens = _count(usage.get("prompt_tokens"))
            response.output_tokens = _count(usage.get("completion_tokens"))
            running = -1 if response.output_tokens is None else response.output_tokens
            if details := usage.get("prompt_tokens_details"):
                response.cached_tokens = _count(details.get("cached_tokens"))
        if metrics := event.get("metrics"):
            response.server_metrics = {k: v for k, v in metrics.items() if isinstance(v, int | float)}
        choices = event.get("choices")
        if not choices:
            return
        if not response.response_id:
            response.response_id = str(event.get("id") or "")
        for choice in choices:
            ids = choice.get("token_ids")
            delta = choice.get("delta")
            if delta is None:
                text, role_only = choice.get("text"), False
            else:
                text = (
                    delta.get("content")
                    or delta.get("reasoning_content")
                    or delta.get("reasoning")
                    or delta.get("tool_calls")
                )
                role_only = "role" in delta and not text
            if reason := choice.get("finish_reason"):
                response.finish_reason = str(reason)
            # A role-only first chunk is no token, unless ids say otherwise.
            if not role_only or ids:
                events = self._events
                events.read.append(at)
                events.ids.append(-1 if ids is None else len(ids))
                events.text.append(bool(text))
                events.running.append(running)
                events.last.append(bool(reason))

    def response(self, *, closed: bool = False) -> Response:
        """The response in all that was fed. `closed`: the connection ended, which ends a body of unknown length."""
        response = self._response
        if closed and self._status and not self._complete and not self._broken:
            self._complete = True
        if self._line:  # a last line without its end
            self._lines(b"\n", self._last)
        if not self._status:
            response.problem = (ErrorKind.PROTOCOL, self._broken or "the answer ended before its HTTP head did")
        elif self._status != 200:
            message = _message(self._other)
            response.problem = (ErrorKind.STATUS, f"status {self._status}: {message}"[:DETAIL])
        elif not self._is_stream:
            response.problem = (ErrorKind.PROTOCOL, f"the answer is not an event stream: {self._other[:80]!r}")
        elif self._broken:
            response.problem = (ErrorKind.PROTOCOL, self._broken)
        elif not self._complete:
            self._fail(ErrorKind.PROTOCOL, "the response ended in the middle of its framing")
        self._settle()
        if response.problem is None and not response.event_read:
            response.problem = (ErrorKind.PROTOCOL, "the stream ended without a token")
        return response

    def _settle(self) -> None:
        """Decide which events are token events and how many tokens each held, from the best evidence there is."""
        response, events = self._response, self._events
        total = response.output_tokens
        if any(count > 0 for count in events.ids):
            response.tokens_from, counts = "ids", events.ids
        elif events.running and min(events.running) >= 0:
            response.tokens_from, counts = "usage", [b - a for a, b in pairwise([0, *events.running])]
        else:
            response.tokens_from, counts = "events", self._one_each(total)
            held = sum(counts)
            if total is not None and total > held > 0:
                response.tokens_from = "spread"
                shares = iter([total * (k + 1) // held - total * k // held for k in range(held)])
                counts = [next(shares) if count else 0 for count in counts]
        response.event_read = [read for read, count in zip(events.read, counts, strict=True) if count > 0]
        response.event_tokens = [count for count in counts if count > 0]
        if total is None and response.tokens_from == "ids":
            response.output_tokens = sum(response.event_tokens)

    def _one_each(self, total: int | None) -> list[int]:
        """1 for an event that is a token, 0 for one that is not: empty texts are half characters or closing events.

        Which of the two, the server's total tells; without one, an empty text is a token unless it closes.
        """
        events = self._events
        usual = [int(text or not last) for text, last in zip(events.text, events.last, strict=True)]
        for counts in (usual, [1] * len(usual), [int(text) for text in events.text]):
            if sum(counts) == total:
                return counts
        return usual


def _count(value: object) -> int | None:
    """A count that a server told, or None for anything that is no count."""
    return value if type(value) is int and 0 <= value < 1 << 31 else None


def _message(body: bytes) -> str:
    """A server's error message, or the beginning of whatever it sent."""
    try:
        data = orjson.loads(body)
        error = data.get("error", data)
        text = error.get("message") or error.get("detail") if isinstance(error, dict) else error
        if not text and isinstance(data, dict):
            text = data.get("message") or data.get("detail")
        return str(text or "no message")
    except (orjson.JSONDecodeError, AttributeError):
        return body[:DETAIL].decode("utf-8", "replace").strip() or "no message"
