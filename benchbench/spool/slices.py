"""The form of a spool: slices of a round's log, and the requests that have ended, one after the other in one file.

A slice is a head of three int64 (kind, count, bytes of the payload), then of reads their owners (int32), lengths
(int32), stamps (two int64), our own times (int64), and the payload: the reads' bytes, or a pickled list of `Ended`.
"""

from __future__ import annotations

import os
import pickle
from array import array
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import accumulate, pairwise
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from benchbench.loadgen.exchange import STAMP, Ended, Log

READS, ENDED = 1, 2
HEAD = 24
EACH = 4 + 4 + STAMP + 8  # bytes of a read beside its own


@dataclass(frozen=True, slots=True)
class Reads:
    """Reads in the order in which they came; `stamps_ns` the kernel's, `lags_ns` how much later we took them."""

    owners: npt.NDArray[np.int32]
    reads: list[bytes]
    stamps_ns: npt.NDArray[np.int64]
    lags_ns: npt.NDArray[np.int64]


class Slice(NamedTuple):
    """A slice's head, and where its body begins and ends in the file."""

    kind: int
    rows: int
    begin: int
    end: int


def slice_of(log: Log, count: int, secrets: tuple[bytes, ...]) -> list[bytes]:
    """The first reads of a log's columns as a slice, in pieces. A secret that a server quotes is overwritten."""
    reads = log.reads[:count]
    payload = b"".join(reads)
    for secret in secrets:
        payload = payload.replace(secret, b"*" * len(secret))
    head = np.array([READS, count, len(payload)], np.int64).tobytes()
    lengths = array("i", map(len, reads)).tobytes()
    return [
        head,
        log.owners[:count].tobytes(),
        lengths,
        bytes(log.stamps[: STAMP * count]),
        log.users[:count].tobytes(),
        payload,
    ]


def slice_of_ended(ended: list[Ended]) -> list[bytes]:
    """Requests that have ended as a slice, in pieces."""
    payload = pickle.dumps(ended, pickle.HIGHEST_PROTOCOL)
    return [np.array([ENDED, len(ended), len(payload)], np.int64).tobytes(), payload]


def slices(fd: int, place: int, size: int) -> Iterator[Slice]:
    """The slices of a file from `place` on that are whole within its first `size` bytes."""
    while place + HEAD <= size:
        kind, count, payload = np.frombuffer(os.pread(fd, HEAD, place), np.int64).tolist()
        end = place + HEAD + payload + (EACH * count if kind == READS else 0)
        if end > size:
            return
        yield Slice(kind, count, place + HEAD, end)
        place = end


def reads_in(fd: int, part: Slice) -> Reads:
    """The reads of a slice."""
    body, count = os.pread(fd, part.end - part.begin, part.begin), part.rows
    owners = np.frombuffer(body, np.int32, count)
    edges = [EACH * count, *np.frombuffer(body, np.int32, count, 4 * count).tolist()]
    stamps = np.frombuffer(body, np.int64, 2 * count, 8 * count)
    stamps_ns = stamps[::2] * 1_000_000_000 + stamps[1::2]
    users = np.frombuffer(body, np.int64, count, (8 + STAMP) * count)
    return Reads(owners, [body[a:b] for a, b in pairwise(accumulate(edges))], stamps_ns, users - stamps_ns)


def ended_in(fd: int, part: Slice) -> list[Ended]:
    """The requests of a slice."""
    ended: list[Ended] = pickle.loads(os.pread(fd, part.end - part.begin, part.begin))  # noqa: S301 - our own
    return ended
