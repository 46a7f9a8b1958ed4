"""Long columns: in memory where they are short, else in files without a name; and how they go through a pipe."""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from multiprocessing.connection import Connection as Pipe
from pathlib import Path
from typing import IO, Any, NamedTuple, cast

import numpy as np
import numpy.typing as npt

FLAT = {"event_ns": np.int64, "event_tokens": np.int32, "lag_ns": np.int64}  # one entry an event
LONG = 1 << 21  # entries: a column of more is kept in a file
PIECE = 1 << 20  # bytes of a column that go through a pipe at once,
BLOCK = 1 << 20  # and entries that are moved at once
Column = npt.NDArray[Any]


def nameless_file() -> IO[bytes]:
    """A file on disk that is gone with whoever has it open: where TMPDIR says, else in /var/tmp, which is not memory.

    Raises OSError.
    """
    places = [os.environ.get("TMPDIR"), "/var/tmp", None]  # noqa: S108 - it has no name there
    for place in places[:-1]:
        if place and Path(place).is_dir():
            with contextlib.suppress(OSError):
                return tempfile.TemporaryFile(dir=place)
    return tempfile.TemporaryFile()


def empty(kind: npt.DTypeLike, count: int) -> Column:
    """A column to be filled."""
    if count <= LONG:
        return np.empty(count, kind)
    with nameless_file() as file:
        file.truncate(count * np.dtype(kind).itemsize)
        return mapped(file, kind, count)


def mapped(file: IO[bytes], kind: npt.DTypeLike, count: int) -> Column:
    """A file's entries, which live as long as this array does."""
    return np.asarray(np.memmap(file, kind, "r+", shape=(count,))) if count else np.empty(0, kind)


def move(source: Column, offsets: npt.NDArray[Any], places: npt.NDArray[Any], target: Column) -> None:
    """Copy row k of a column of lists, `source[offsets[k]:offsets[k + 1]]`, to `target[places[k]:]`, for all k."""
    first, rows = 0, len(places)
    while first < rows:
        # As many rows as make a block, one at least.
        last = max(first + 1, int(np.searchsorted(offsets, offsets[first] + BLOCK, "right")) - 1)
        begin, end = int(offsets[first]), int(offsets[last])
        shifts = places[first:last].astype(np.int64) - offsets[first:last]
        at = np.arange(begin, end) + np.repeat(shifts, np.diff(offsets[first : last + 1]))
        target[at] = source[begin:end]
        first = last


def joined(
    parts: Sequence[Mapping[str, Any]],
    index: Column,
    sources: Callable[[str], Iterable[tuple[Column, npt.NDArray[Any]]]],
) -> dict[str, Any]:
    """The columns of all parts' requests, in the order of `index`, one of each request, one part after the other.

    `sources(name)`: a flat column's entries with their offsets, once or in pieces, along the same requests.
    """
    order = np.argsort(index, kind="stable")
    counts = np.concatenate([np.diff(part["event_offsets"]) for part in parts])
    offsets = np.concatenate([[0], np.cumsum(counts[order], dtype=np.int64)])
    places = np.empty(len(order), np.int64)
    places[order] = offsets[:-1]
    columns: dict[str, Any] = {"index": index[order], "event_offsets": offsets.astype(np.int32)}
    for name, first in parts[0].items():
        if name in columns or name in FLAT:
            continue
        if isinstance(first, list):
            values = [value for part in parts for value in part[name]]
            columns[name] = [values[k] for k in order.tolist()]
        else:
            columns[name] = np.concatenate([part[name] for part in parts])[order]
    for name, kind in FLAT.items():
        columns[name], row = empty(kind, int(offsets[-1])), 0
        for source, along in sources(name):
            rows = len(along) - 1
            move(source, along, places[row : row + rows], columns[name])
            row += rows
    return columns


class Following(NamedTuple):
    """In the place of a column that follows in pieces."""

    kind: str
    length: int


def say(pipe: Pipe, columns: dict[str, Any] | None, facts: dict[str, Any]) -> None:
    """Send a round: what is long in pieces, so that it is never in memory as a whole."""
    long = {name: column for name, column in (columns or {}).items() if name in FLAT and len(column) > LONG}
    standing = {name: Following(column.dtype.str, len(column)) for name, column in long.items()}
    pipe.send((columns and columns | standing, facts))
    for column in long.values():
        data = memoryview(cast("Any", column)).cast("B")
        for begin in range(0, len(data), PIECE):
            pipe.send_bytes(data[begin : begin + PIECE])


def hear(pipe: Pipe) -> Any:  # noqa: ANN401 - whatever comes
    """The next message; of a round (`say`) with its columns. Raises EOFError and OSError as the pipe does."""
    message = pipe.recv()
    columns = message[0] if isinstance(message, tuple) and isinstance(message[0], dict) else {}
    for name, standing in columns.items():
        if isinstance(standing, Following):
            column = empty(standing.kind, standing.length)
            data, place = memoryview(cast("Any", column)).cast("B"), 0
            while place < len(data):
                place += pipe.recv_bytes_into(cast("Any", data[place:]))
            columns[name] = column
    return message
