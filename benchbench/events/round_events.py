"""The token events of a round, taken in piece by piece: what they sum up to, and the gaps between them. Pure.

Stored, an event has 20 bytes; here it has as many as the round's own numbers need, mostly 9.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeAlias

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from benchbench.store.arrow import Ints, lists_of

LISTS = ("event_ns", "event_tokens", "lag_ns")  # columns with one entry an event
BLOCK = 1 << 18  # events of a piece: they stay within a processor's cache
WHOLE = 4  # tokens of an answer of which one or two reads, or one event, tell no time of their own
_KINDS = ("i1", "i4", "i8")

Mask = npt.NDArray[np.bool_]
Narrow = npt.NDArray[np.signedinteger[Any]]


class _Held:
    """Whole numbers that come in parts, in the fewest bytes that hold each of them."""

    def __init__(self) -> None:
        self._kind, self._bytes = 0, bytearray()

    def add(self, values: npt.NDArray[Any]) -> None:
        if not len(values):
            return
        low, high = int(values.min()), int(values.max())
        while not np.iinfo(_KINDS[self._kind]).min <= low <= high <= np.iinfo(_KINDS[self._kind]).max:
            self._kind += 1
            self._bytes = bytearray(np.frombuffer(self._bytes, _KINDS[self._kind - 1]).astype(_KINDS[self._kind]))
        self._bytes += values.astype(_KINDS[self._kind]).data

    def values(self) -> Narrow:
        return np.frombuffer(self._bytes, _KINDS[self._kind])


@dataclass(frozen=True, slots=True)
class Events:
    """The token events of a round's requests, in the order of its table.

    One entry a request: `counts` of its events, times of the first and the last, tokens of the first and of all (0
    where it has none), and whether they are `disordered`, one earlier than the one before. One entry an event: its
    `lags_ns`, its tokens. `gaps_ns` are those between events of one request.
    """

    counts: Ints
    first_ns: Ints
    last_ns: Ints
    first_tokens: Ints
    tokens: Ints
    disordered: Mask
    gaps_ns: Narrow
    lags_ns: Narrow
    event_tokens: Narrow
    latest_ns: int  # of all; 0 without any
    grouped: int  # events that hold several tokens
    shared: int  # events whose read held another of the same request: they have one stamp
    first_shared: int  # requests whose first event is such a one,
    first_later: int  # and the later events in these first reads
    buffered: int  # requests of 4 or more events that came in one or two reads, or of as many tokens in one event

    def gaps_of(self, rows: Ints) -> Narrow:
        """The gaps of the requests at these places, ascending."""
        if not len(rows):
            return self.gaps_ns[:0]
        ends = np.concatenate([[0], np.cumsum(np.maximum(self.counts - 1, 0))])
        runs = np.split(rows, np.flatnonzero(np.diff(rows) != 1) + 1)  # side by side: few, where all went well
        parts = [self.gaps_ns[ends[run[0]] : ends[run[-1] + 1]] for run in runs]
        return parts[0] if len(parts) == 1 else np.concatenate(parts)

    def tokens_in(self, begin_ns: int, end_ns: int) -> Ints:
        """Tokens of each request that came in (begin, end]."""
        inside = (self.first_ns > begin_ns) & (self.last_ns <= end_ns)
        beside = (self.first_ns > end_ns) | (self.last_ns <= begin_ns)
        tokens = np.where(inside, self.tokens, 0)
        ends, gap_ends = np.cumsum(self.counts), np.cumsum(np.maximum(self.counts - 1, 0))
        for k in np.flatnonzero((self.counts > 0) & (self.disordered | ~(inside | beside))).tolist():
            count, end, gap_end = int(self.counts[k]), int(ends[k]), int(gap_ends[k])
            gaps = np.concatenate([self.first_ns[k : k + 1], self.gaps_ns[gap_end + 1 - count : gap_end]])
            times = np.cumsum(gaps, dtype=np.int64)
            at = (times > begin_ns) & (times <= end_ns)
            tokens[k] = self.event_tokens[end - count : end][at].sum(dtype=np.int64)
        return tokens


class Round(NamedTuple):
    """A round's table without its events, its facts in the metadata; and what was taken of these."""

    requests: pa.Table
    events: Events


# That, its table (`store.requests.round_table`), or this in pieces.
Recorded: TypeAlias = Round | pa.Table | Iterator[pa.Table]


def gathered(recorded: Recorded) -> Round:
    """A round of its table, or of its pieces in order, one at least."""
    if isinstance(recorded, Round):
        return recorded
    tables, parts, counts = list[pa.Table](), list[list[npt.NDArray[Any]]](), Counter[str]()
    gaps, lags, event_tokens, latest = _Held(), _Held(), _Held(), 0
    for piece in _pieces(recorded) if isinstance(recorded, pa.Table) else recorded:
        offsets, times = lists_of(piece["event_ns"])
        tokens = lists_of(piece["event_tokens"])[1]
        tables.append(piece.drop_columns(list(LISTS)))
        own, between = _of_requests(offsets, times, tokens)
        parts.append(own)
        gaps.add(between)
        lags.add(lists_of(piece["lag_ns"])[1])
        event_tokens.add(tokens)
        latest = max(latest, int(times.max(initial=0)))
        counts.update({"grouped": int((tokens > 1).sum())})
        counts.update(_shared(offsets, between))
        counts.update({"buffered": int(((own[0] == 1) & (own[4] >= WHOLE)).sum())})
    columns: Any = map(np.concatenate, zip(*parts, strict=True))
    rest: Any = {"gaps_ns": gaps.values(), "lags_ns": lags.values(), "event_tokens": event_tokens.values()}
    rest |= {"latest_ns": latest, **counts}
    requests = tables[0] if len(tables) == 1 else pa.concat_tables(tables)
    return Round(requests, Events(*columns, **rest))


def sums_of(offsets: npt.NDArray[np.integer[Any]], values: npt.NDArray[Any]) -> Ints:
    """The sum of each row of a column of lists, as `lists_of` gives it."""
    sums, filled = np.zeros(len(offsets) - 1, np.int64), np.flatnonzero(np.diff(offsets))
    if len(filled):
        sums[filled] = np.add.reduceat(values, offsets[filled], dtype=np.int64)
    return sums


def _pieces(table: pa.Table) -> Iterator[pa.Table]:
    events = sum(len(chunk.values) for chunk in table["event_ns"].chunks)
    rows = max(1, len(table) * BLOCK // max(1, events))
    return (table.slice(begin, rows) for begin in range(0, max(1, len(table)), rows))


def _of_requests(offsets: Ints, times: Ints, tokens: npt.NDArray[Any]) -> tuple[list[npt.NDArray[Any]], Ints]:
    """The entries of `Events` for each request, in its order, and the gaps."""
    counts = np.diff(offsets)
    some = counts > 0
    first_at, last_at = offsets[:-1][some], offsets[1:][some] - 1
    own = np.zeros((3, len(counts)), np.int64)
    own[:, some] = times[first_at], times[last_at], tokens[first_at]
    within = np.ones(max(0, len(times) - 1), np.bool_)
    within[last_at[:-1]] = False
    gaps = np.diff(times)[within]
    back = np.zeros(len(counts), np.bool_)
    back[_owners(counts, gaps < 0)] = True
    return [counts, *own, sums_of(offsets, tokens), back], gaps


def _owners(counts: Ints, at: Mask) -> Ints:
    """The requests that these gaps are of."""
    places = np.flatnonzero(at)
    return np.searchsorted(np.cumsum(np.maximum(counts - 1, 0)), places, "right") if len(places) else places


def _shared(offsets: Ints, gaps: Ints) -> dict[str, int]:
    counts, none = np.diff(offsets), gaps == 0
    owners = _owners(counts, none)
    if not len(owners):
        return dict.fromkeys(("shared", "first_shared", "first_later", "buffered"), 0)
    earlier = np.flatnonzero(none) + _events_before(counts)[owners]  # places of the earlier of two events
    shares = np.zeros(offsets[-1], np.bool_)
    shares[earlier] = shares[earlier + 1] = True
    reads = counts - np.bincount(owners, minlength=len(counts))
    buffered = (counts >= WHOLE) & (reads <= 2)
    between = np.maximum(counts - 1, 0)
    begins = np.cumsum(between) - between
    firsts = np.flatnonzero(between)[none[begins[between > 0]]]
    runs = [none[at : at + count] for at, count in zip(begins[firsts].tolist(), between[firsts].tolist(), strict=True)]
    later = sum(len(same) if same.all() else int(same.argmin()) for same in runs)
    return {
        "shared": int(shares.sum()),
        "first_shared": len(firsts),
        "first_later": later,
        "buffered": int(buffered.sum()),
    }


def _events_before(counts: Ints) -> Ints:
    """How many more events than gaps lie before each request's first gap."""
    return np.cumsum(counts > 0) - (counts > 0)
