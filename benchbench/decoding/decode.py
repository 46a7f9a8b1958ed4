"""Raw reads -> token events. Runs between rounds (or in slices, once undecoded bytes exceed their bound).

HTTP framing is httptools', JSON is orjson's; ours is the middle: server-sent events and what counts as output.
An event belongs to the read that held the end of its `data:` line.
"""

from __future__ import annotations

import json
from array import array
from collections.abc import Callable, Sequence
from typing import Any

import httptools
import orjson

from benchbench.complaints import server_words
from benchbench.decoding.response import Response
from benchbench.decoding.token_counts import EMPTY, OUTPUT, ROLE, Events, count_hidden, has_output, parts_of
from benchbench.reported.decode_time import DECODE_MS, decode_ms
from benchbench.reported.heads import told_by
from benchbench.reported.reported_usage import ReportedUsage
from benchbench.store.requests import ErrorKind

MAX_LINE = 8 << 20
OTHER_BYTES = 65_536  # of a body that is no event stream
BOM = b"\xef\xbb\xbf"
GZIP = b"\x1f\x8b"
# What unknown forms raise.
_ODD = (AttributeError, KeyError, TypeError, ValueError, OverflowError, RecursionError)


class Decoder:
    """Incremental: `feed` reads in order, then `response`. What a server sends never raises: see `Response.problem`."""

    def __init__(self) -> None:
        self._parser = httptools.HttpResponseParser(self)
        self._last = 0
        self._pieces: list[bytes] = []
        # HTTP
        self._status = 0
        self._headers: dict[bytes, bytes] = {}
        self._is_stream = False
        self._complete = False
        self._broken = ""
        # Server-sent events
        self._open = False  # something of an event is held: what comes goes through lines
        self._line: list[bytes] = []
        self._held = 0  # bytes of it
        self._after_cr = False
        self._name = ""
        self._data: list[bytes] = []  # lines of one event that are JSON only together
        self._other = bytearray()  # what is no event: another kind of body, lines of no known field
        # What they say
        self._response = Response()
        self._usage = ReportedUsage()
        # Rows of `Events`, apart from the reads: those of usual events are one and the same tuple.
        self._events: list[tuple[int, int, Any, bool, object]] = []
        self._reads = array("i")
        self._total: int | None = None  # usage.completion_tokens beside no choice,
        self._running_total = -1  # and beside one, the largest; -1 is unknown
        self._ended = (-1, 0)  # read of the usage or [DONE] that followed so many events
        self._thinks = False  # reasoning was sent
        self._words = ""  # a message in an event that is neither output nor an error
        self._provider = ""  # whom the last event names as the one that served it (OpenRouter)

    # httptools' callbacks
    def on_header(self, name: bytes, value: bytes) -> None:
        if not self._status:
            self._headers[name.lower()] = value

    def on_headers_complete(self) -> None:
        status = self._parser.get_status_code()
        if self._status:  # what stands behind the response
            return
        if status < 200 and status != 101:
            self._headers.clear()
            return
        self._status = status
        self._is_stream = server_words.no_stream(status, self._headers, b"") is None

    def on_body(self, body: bytes) -> None:
        self._pieces.append(body)

    def on_message_complete(self) -> None:
        self._complete = self._status >= 200

    def feed(self, data: bytes, at: int) -> None:
        """Decode the next read, number `at` of the log."""
        if self._broken:
            return
        self._last = at
        self._pieces.clear()
        try:
            self._parser.feed_data(data)
        except (httptools.HttpParserError, httptools.HttpParserUpgrade) as error:
            if not self._complete:
                self._broken = f"broken HTTP framing: {error}"
        for piece in self._pieces:
            # The common case, one whole event in one chunk, without going through lines.
            whole = piece[:6] == b"data: " and piece[-1:] == b"\n" and piece.find(b"\n") == len(piece) - 2
            if not whole or self._open or not self._is_stream:
                self._lines(piece, at)
                continue
            try:
                self._event(orjson.loads(piece[6:-2]), at)
            except _ODD as error:
                self._odd(piece[6:-2], error, at)

    # -- lines

    def _lines(self, piece: bytes, at: int) -> None:
        """Split into lines, which end with LF, CRLF or CR; what is no whole line is kept."""
        if not self._is_stream:
            self._keep(piece)
            return
        if self._after_cr or b"\r" in piece:
            if self._after_cr and piece[:1] == b"\n":
                piece = piece[1:]
            self._after_cr = piece[-1:] == b"\r"
            piece = piece.replace(b"\r\n", b"\n").replace(b"\r", b"\n")
        end = piece.rfind(b"\n")
        if end >= 0:
            lines = b"".join((*self._line, piece[:end])).split(b"\n")
            self._line, self._held = [], 0
            for line in lines:
                self._field(line, at)
            piece = piece[end + 1 :]
        if piece:
            self._line.append(piece)
            self._held += len(piece)
            if self._held > MAX_LINE:
                self._broken = f"one line of more than {MAX_LINE >> 20} MiB"
        self._open = bool(self._line or self._after_cr or self._name or self._data)

    def _field(self, line: bytes, at: int) -> None:
        if line[:5] == b"data:":
            if self._data:
                self._data.append(line[5:])
            else:
                self._payload(line[5:], at)
        elif not line:
            self._dispatch(at)
        elif line[:6] == b"event:":
            self._name = line[6:].decode("utf-8", "replace").strip()
        elif line[:3] == BOM:
            self._field(line[3:], at)
        elif line[:1] != b":" and line[:3] != b"id:" and line[:6] != b"retry:":
            self._keep(line + b"\n")

    def _keep(self, data: bytes) -> None:
        self._other += data[: max(0, OTHER_BYTES - len(self._other))]

    def _dispatch(self, at: int) -> None:
        """The end of an event: what was no JSON so far has to be all together."""
        if self._data:
            data, self._data = b"\n".join(self._data), []
            self._payload(data, at)
            if self._data:
                self._fail(ErrorKind.PROTOCOL, f"an event is not JSON: {server_words.quoted(data.strip())}")
                self._data = []
        self._name = ""

    # -- events

    def _payload(self, payload: bytes, at: int) -> None:
        try:
            self._event(orjson.loads(payload), at)
        except _ODD as error:
            self._odd(payload, error, at, in_lines=True)

    def _odd(self, payload: bytes, error: Exception, at: int, *, in_lines: bool = False) -> None:
        """An event that is none or that orjson refuses: NaN, lone surrogates, half characters cost the text alone.

        `in_lines`: other lines may follow that make it whole.
        """
        text = payload.strip().removeprefix(BOM)
        event: object = text
        if isinstance(error, orjson.JSONDecodeError):
            if text == b"[DONE]":
                self._response.done = True
                self._end(at)
                return
            try:
                event = json.loads(text.decode("utf-8", "replace"), strict=False)
                if isinstance(event, dict):
                    self._event(event, at)
                    return
            except _ODD as other:
                error = error if isinstance(other, json.JSONDecodeError) else other
        elif not text.startswith(b"{"):
            event = None
        if self._name and server_words.error_in({}, self._name):
            self._fail(ErrorKind.STREAM, server_words.reported(text.decode("utf-8", "replace")))
        elif event is not text:
            self._fail(ErrorKind.PROTOCOL, f"an event is not a JSON object: {server_words.quoted(text)}")
        elif not isinstance(error, orjson.JSONDecodeError):
            form = f"{type(error).__name__}: {error}"
            self._fail(ErrorKind.PROTOCOL, f"an event has an unknown form ({form}): {server_words.quoted(text)}")
        elif in_lines and text:
            self._data.append(payload)
        elif text:
            self._fail(ErrorKind.PROTOCOL, f"an event is not JSON ({error}): {server_words.quoted(text)}")

    def _fail(self, kind: ErrorKind, detail: str) -> None:
        """The first failure stands, but for a server's own words."""
        problem = self._response.problem
        if problem is None or (kind is ErrorKind.STREAM and problem[0] is not kind):
            self._response.problem = (kind, detail[: server_words.DETAIL].encode("utf-8", "replace").decode())

    def _end(self, at: int) -> None:
        if self._ended[1] < len(self._events):
            self._ended = (at, len(self._events))

    def _add(self, at: int, row: tuple[int, int, Any, bool, object]) -> None:
        self._reads.append(at)
        self._events.append(row)

    def _event(self, event: dict[str, Any], at: int) -> None:
        choices = event.get("choices")
        if not choices or self._name or event.get("error") or event.get("base_resp"):
            choices = self._beside(event, at)
        usage = event.get("usage")
        for choice in choices:
            delta = choice.get("delta")
            output = choice.get("text") if delta is None else delta.get("content") if type(delta) is dict else delta
            holds = OUTPUT if output and type(output) is str else self._holds(choice)
            if reason := choice.get("finish_reason"):
                reason = self._finished(event, choice, reason)
            if "error" in choice:
                self._error_of(choice)
            ids = choice.get("token_ids")
            number = len(ids) if type(ids) is list else -1
            self._add(at, (holds, number, usage, bool(reason), choice.get("index") if usage else 0))
        if not self._response.response_id:
            self._response.response_id = str(event.get("id") or "")

    def _beside(self, event: dict[str, Any], at: int) -> list[Any]:
        """Take an event that has no choices, or may be an error; returns the choices that there are all the same."""
        message = server_words.error_in(event, self._name)
        choices = event.get("choices") or []
        if message is not None:
            self._fail(ErrorKind.STREAM, server_words.reported(message))
            return []
        if not choices:
            count = self._facts(event, {})
            if count:
                self._end(at)
            elif count is None:
                self._words = self._words or server_words.message_of(event)
            if count or self._total is None:
                self._total = count
        return choices

    def _holds(self, choice: dict[str, Any]) -> int:
        """What a choice without plain text holds."""
        parts = parts_of(choice)
        self._error_of(parts)
        if has_output(parts):
            self._thinks |= any(part and ("reason" in name or "think" in name) for name, part in parts.items())
            return OUTPUT
        return ROLE if "role" in parts else EMPTY

    def _error_of(self, part: dict[str, Any]) -> None:
        if error := part.get("error"):
            self._fail(ErrorKind.STREAM, server_words.reported(server_words.message_of(error) or str(error)))

    def _finished(self, event: dict[str, Any], choice: dict[str, Any], reason: object) -> str:
        """Note why a choice ended, and what else its last event says."""
        if not (text := server_words.finish_of(reason)):
            return ""
        self._response.finish_reason = text
        if server_words.is_broken(reason):
            words = server_words.message_of(choice.get("error") or choice.get("message"))
            self._fail(ErrorKind.STREAM, f"the server ended the request: {text}{words and f' ({words})'}")
        self._running_total = max(self._running_total, self._facts(event, choice) or -1)
        return text

    # -- facts beside the choices

    def _facts(self, event: dict[str, Any], choice: dict[str, Any]) -> int | None:
        """Usage and times of an event that ends something; returns usage.completion_tokens."""
        if type(metrics := event.get("metrics")) is dict:
            self._response.server_metrics |= {
                str(k).encode("utf-8", "replace").decode(): v
                for k, v in metrics.items()
                if type(v) in {int, float} and abs(v) < 1 << 53
            }
        named = ", ".join(str(event.get(name) or "") for name in ("model", "system_fingerprint"))
        if named := named.removesuffix(", "):
            self._response.answered_by = named[: server_words.DETAIL].encode("utf-8", "replace").decode()
        if type(timings := event.get("timings")) is dict:
            self._usage.take_timings(timings)
        if made_ms := decode_ms(event):
            self._response.server_metrics[DECODE_MS] = made_ms
        self._provider = str(event.get("provider") or self._provider)
        count = None
        for place in (event, choice, event.get("x_groq"), event.get("message"), event.get("response")):
            if type(place) is dict and (usage := place.get("usage")):
                count = self._usage.take(usage) if count is None else count
        return count

    # -- the whole

    def response(self, when: Callable[[int], int], *, closed: bool = False, cut: bool = False) -> Response:
        """The response in all that was fed. `when(read)`: its time in ns.

        `closed`: the connection ended, which ends a body of unknown length. `cut`: the request failed on the way, so
        that it is no news that its stream is not whole.
        """
        response = self._response
        if self._status and (closed or cut):
            self._complete = True
        if self._line:  # a last line without its end
            self._lines(b"\n", self._last)
        self._dispatch(self._last)
        has_ended = 0 < len(self._events) == self._ended[1]  # usage or [DONE] came after the last event
        if has_ended and not response.finish_reason:
            self._add(self._ended[0], (ROLE, -1, None, True, 0))  # no event closes the stream, but they do
        head = (self._status, self._headers, bytes(self._other))
        response.served_by, response.retried, cached = told_by(self._headers, self._provider)
        problem = server_words.no_stream(*head) if self._status and not self._is_stream else None
        if not self._status or self._broken:
            problem = problem or (ErrorKind.PROTOCOL, self._broken or "the answer ended before its HTTP head did")
        if problem:
            response.problem = problem
        else:
            self._settle(when, cached)
            if self._other:
                self._bare_json()
            if response.problem is None:
                response.problem = self._no_end(cut=cut, has_ended=has_ended)
        return response

    def _bare_json(self) -> None:
        """An error may stand in the stream without `data:`."""
        if (message := server_words.error_beside(bytes(self._other), self._name)) is not None:
            self._fail(ErrorKind.STREAM, server_words.reported(message))

    def _no_end(self, *, cut: bool, has_ended: bool) -> tuple[ErrorKind, str] | None:
        """Why a stream that reported no failure is no whole one."""
        response, words = self._response, ""
        if self._other:
            form = "it is compressed (gzip)" if self._other[:2] == GZIP else "among its lines is"
            words = f"; {form} {server_words.quoted(bytes(self._other))}"
        if not self._complete:
            return ErrorKind.PROTOCOL, "the response ended in the middle of its framing"
        if self._words and not (cut or response.finish_reason):
            return ErrorKind.STREAM, server_words.reported(self._words)[: server_words.DETAIL]
        if not response.event_read:
            return ErrorKind.PROTOCOL, f"the stream ended without a token{words}"[: server_words.DETAIL]
        if not (cut or response.finish_reason or response.done or has_ended):
            return ErrorKind.STREAM, f"the stream ended without finish_reason and [DONE]{words}"[: server_words.DETAIL]
        return None

    def _settle(self, when: Callable[[int], int], cached: Sequence[str]) -> None:
        """Decide which events are token events and how many tokens each held. `cached`: counts in the head."""
        response, usage = self._response, self._usage
        if not self._events:
            response.output_tokens = self._total
            return
        reads: Sequence[int] = self._reads
        holds, ids, usages, closes, choices = zip(*self._events, strict=True)
        running = usage.running(usages)
        beside = max(self._running_total, max(running, default=-1) if running else -1)
        response.output_tokens = total = self._total if self._total or beside < 0 else beside
        events = Events(reads, holds, ids, running, closes, choices)
        usage.settle(cached)
        response.input_tokens, response.cached_tokens = usage.input_tokens, usage.cached_tokens
        hidden = 0 if self._thinks else usage.reasoning_tokens
        response.tokens_from, counts = count_hidden(events, total, hidden, when)
        if min(counts) <= 0:
            reads = [read for read, count in zip(reads, counts, strict=True) if count > 0]
            counts = [count for count in counts if count > 0]
        response.event_read, response.event_tokens = list(reads), counts
        if total is None and response.tokens_from == "ids":
            response.output_tokens = sum(counts)
