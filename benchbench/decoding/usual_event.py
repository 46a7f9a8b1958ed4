"""The event that a stream mostly repeats: proven once by the JSON parser, then known by its bytes.

Servers send an event a token, in which nothing changes but the text and the token's id. Where all around the two is,
byte for byte, what the parser has seen, parsing it again could tell nothing new. Everything else goes to the parser.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from functools import cache, lru_cache
from typing import Any, NamedTuple

import orjson

from benchbench.decoding.decode import Decoder
from benchbench.decoding.token_counts import OUTPUT

END = b"\n\n\r\n"  # of a chunk that is one event
MAX_CHUNK = 8192
# A stream may spend on looking for its form what that has saved, counted in events: so much at first and at most,
CREDIT = 24
LOOK = 8  # and so much for a look
# The inside of a JSON string, never empty; the inside of a list of whole numbers, its first and the others.
_STRING = rb'(?:[^"\\\x00-\x1f]++|\\(?:["\\/bfnrt]|u[0-9a-fA-F]{4}))++'
_NUMBER = rb"(?:0|[1-9][0-9]{0,9})"
_NUMBERS = _NUMBER + rb"((?:," + _NUMBER + rb")++)?+"
_WHOLE = re.compile(rb"[0-9a-f]{1,4}\r\ndata: (\{[^\r\n]*\})\n\n\r\n").fullmatch


Row = tuple[int, int, Any, bool, object]


@cache
def _row(count: int) -> Row:
    """What a usual event with so many token ids (-1: none told) is in `Decoder`: one tuple for all."""
    return OUTPUT, count, None, False, 0


class _Heads(dict[int, bytes]):
    """Size of a whole chunk -> how it begins: with its own size, then the event as far as its text."""

    def __init__(self, start: bytes) -> None:
        super().__init__()
        self._start = start

    def __missing__(self, size: int) -> bytes:
        for digits in range(1, 5):
            head = b"%x\r\n" % max(0, size - digits - 4)
            if len(head) == digits + 2 and size <= MAX_CHUNK:
                self[size] = head + self._start
                return self[size]
        return END  # no chunk begins so


class Form(NamedTuple):
    """Chunks of one usual event each: `heads`, what `inside` matches (text, or text to token ids), and `tail`."""

    heads: _Heads
    inside: re.Pattern[bytes]
    tail: bytes
    has_ids: bool
    response_id: str

    def counts(self, data: bytes) -> list[int]:
        """Token ids in each chunk of a read, -1 where the form has none; empty where it is not whole such chunks."""
        heads, inside, tail, has_ids, _ = self
        fullmatch, counts, begin = inside.fullmatch, list[int](), 0
        while begin < len(data):
            end = data.find(b"\n", begin + 6) + len(END)  # after the line of the chunk's size
            head = heads[end - begin]
            if not data.startswith(head, begin) or not data.endswith(tail, begin, end):
                return []
            match = fullmatch(data, begin + len(head), end - len(tail))
            if match is None:
                return []
            counts.append(-1 if not has_ids else 1 if match.lastindex is None else 1 + match[1].count(b","))
            begin = end
        return counts


@lru_cache(64)
def _inside(between: bytes) -> re.Pattern[bytes]:
    return re.compile(_STRING + re.escape(between) + _NUMBERS if between else _STRING)


def form_of(data: bytes) -> Form | None:
    """The form of a read that is one chunk with one event, which has output and says nothing else; None without.

    Proven by parsing it with another text and other ids in their places: if these alone come out changed, what stands
    around them means the same around every text and all ids.
    """
    whole = _WHOLE(data) if len(data) <= MAX_CHUNK else None
    if whole is None:
        return None
    payload = whole[1]
    try:
        event = orjson.loads(payload)
        (choice,) = event["choices"]
        delta, ids = choice.get("delta"), choice.get("token_ids")
        place, keys = (choice, ("text",)) if delta is None else (delta, ("content", "reasoning_content", "reasoning"))
        key = next(key for key in keys if place.get(key) and type(place[key]) is str)
        reports = event.get("error"), choice.get("finish_reason"), "error" in choice, "error" in place
        changing = event.get("usage") is not None or choice.get("logprobs")
        if any(reports) or changing or not (ids is None or (ids and {*map(type, ids)} == {int})):
            return None
        before, text, after = payload.partition(b'"%s":"%s"' % (key.encode(), orjson.dumps(place[key])[1:-1]))
        start, other = before + text[: len(key) + 4], orjson.dumps(place[key] + "|")[1:-1]
        place[key] += "|"
        between, rest = b"", b'"' + after
        if ids:
            between, numbers, rest = rest.partition(b'"token_ids":[%s]' % b",".join(b"%d" % k for k in ids))
            between, rest, choice["token_ids"] = between + numbers[:13], b"]" + rest, [*ids, 7]
            other += between + numbers[13:-1] + b",7"
        if orjson.loads(start + other + rest) != event:
            return None
    except (AttributeError, KeyError, RecursionError, StopIteration, TypeError, ValueError):
        return None
    return Form(_Heads(b"data: " + start), _inside(between), rest + END, bool(ids), str(event.get("id") or ""))


class QuickDecoder(Decoder):
    """A decoder that takes a stream's usual events without the parsers. It tells just what `Decoder` does."""

    def __init__(self) -> None:
        super().__init__()
        self._known: Form | None = None
        self._form: Form | None = None  # the known one, while neither parser nor lines are in the middle of something
        self._credit = CREDIT

    def feed_all(self, reads: Iterable[bytes], first: int) -> None:
        """Decode a stream's next reads in order, of which the first is its number `first`."""
        waiting, feed, begin = enumerate(reads, first), self.feed, first
        while self._credit > 0:
            odd = next(waiting, None) if self._form is None else self._feed_usual(waiting, self._form, begin)
            if odd is None:
                return
            at, data = odd
            feed(data, at)
            begin, self._form = at + 1, self._form_after(data)
        for at, data in waiting:
            feed(data, at)

    def _feed_usual(self, reads: Iterator[tuple[int, bytes]], form: Form, begin: int) -> tuple[int, bytes] | None:
        """Take numbered reads, from `begin` on, as long as they are of the form; returns the one that is not, None at
        their end. `begin`: of the reads in a row that hold one event each, for which this loop does nothing else.
        """
        heads, inside, tail, has_ids, response_id = form
        fullmatch, cut, usual = inside.fullmatch, len(tail), _row(1 if has_ids else -1)
        before, odd, at = len(self._events), None, begin - 1
        for at, data in reads:
            head = heads[len(data)]
            if (
                data.startswith(head)
                and data.endswith(tail)
                and (match := fullmatch(data, len(head), len(data) - cut))
                and match.lastindex is None
            ):
                continue
            self._usual(range(begin, at), [usual] * (at - begin))
            begin = at + 1
            if not (counts := form.counts(data)):
                odd = (at, data)
                break
            self._usual([at] * len(counts), map(_row, counts))
        self._usual(range(begin, at + 1), [usual] * (at + 1 - begin))
        self._last = at
        taken = len(self._events) - before
        if taken and not self._response.response_id:
            self._response.response_id = response_id
        self._credit = min(CREDIT, self._credit + taken) if taken else self._credit - 1
        return odd

    def _usual(self, reads: Iterable[int], rows: Iterable[Row]) -> None:
        self._reads.extend(reads)
        self._events.extend(rows)

    def _form_after(self, data: bytes) -> Form | None:
        """The form by which the next read may be taken, after `data` went through the parsers.

        They have to be done with it: the last they found is a whole event, and its chunk is the end of the read.
        """
        piece = self._pieces[-1] if self._pieces else b""
        if self._open or self._broken or self._complete or not self._is_stream:
            return None
        if piece[:6] != b"data: " or data[-4:] != END:
            return None
        chunk = b"%x\r\n%s\r\n" % (len(piece), piece)
        if not data.endswith(chunk):
            return None
        if self._credit >= LOOK:
            self._credit -= LOOK
            self._known = form_of(chunk) or self._known
        return self._known
