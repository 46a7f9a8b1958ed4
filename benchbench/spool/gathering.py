"""A spool's slices -> the columns of a round: decoded as they come, request by request as these end."""

from __future__ import annotations

from array import array
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, cast

import numpy as np

from benchbench.decoding.response import Response
from benchbench.decoding.usual_event import QuickDecoder
from benchbench.loadgen.columns import NO_ANSWER, columns_of
from benchbench.loadgen.exchange import Ended
from benchbench.spool.flat import FLAT, Column, joined, mapped, nameless_file
from benchbench.spool.slices import Reads


@dataclass(slots=True)
class _Stream:
    """A request that runs: what was decoded of it, and the times of its reads."""

    decoder: QuickDecoder = field(default_factory=QuickDecoder)
    stamps_ns: array[int] = field(default_factory=lambda: array("q"))
    lags_ns: array[int] = field(default_factory=lambda: array("q"))


class Gathering:
    """One round. `exact` and `secrets` are its job's. Raises OSError where there is no room for its columns."""

    def __init__(self, *, exact: bool, secrets: frozenset[str]) -> None:
        self._judge: dict[str, Any] = {"exact": exact, "secrets": secrets}
        self._streams: dict[int, _Stream] = {}
        self._parts: list[dict[str, Any]] = []  # columns of requests as they ended, the flat ones in files
        self._names: list[str] = []  # of the columns, in order
        self._flat = {name: nameless_file() for name in FLAT}

    def add(self, slices: list[Reads]) -> None:
        """Decode reads, in their order."""
        owners = np.concatenate([part.owners for part in slices])
        stamps, lags = (np.concatenate([getattr(part, name) for part in slices]) for name in ("stamps_ns", "lags_ns"))
        reads = [data for part in slices for data in part.reads]
        order = np.argsort(owners, kind="stable")
        edges = np.flatnonzero(np.diff(owners[order])) + 1
        for places in np.split(order, edges):
            stream = self._streams.setdefault(int(owners[places[0]]), _Stream())
            stream.decoder.feed_all([reads[at] for at in places.tolist()], len(stream.stamps_ns))
            stream.stamps_ns.frombytes(stamps[places].tobytes())
            stream.lags_ns.frombytes(lags[places].tobytes())

    def end(self, ended: list[Ended]) -> None:
        """Judge requests of which all reads were added."""
        stamps, lags, responses = array("q"), array("q"), []
        for request in ended:
            stream = self._streams.pop(request.request, None)
            if stream is None:
                responses.append(Response(problem=NO_ANSWER))
                continue
            cut = request.failure is not None
            response = stream.decoder.response(stream.stamps_ns.__getitem__, closed=request.closed, cut=cut)
            response.event_read = [len(stamps) + read for read in response.event_read]
            stamps += stream.stamps_ns
            lags += stream.lags_ns
            responses.append(response)
        times = (np.array(values, np.int64) for values in (stamps, lags))
        columns = cast("dict[str, Any]", columns_of(ended, responses, *times, **self._judge))
        self._names = list(columns)
        for name, file in self._flat.items():
            file.write(columns.pop(name).tobytes())
        self._parts.append(columns)

    def columns(self) -> dict[str, Any]:
        """`RoundColumns` of all requests, by index."""
        index = np.concatenate([part["index"] for part in self._parts])
        counts = np.concatenate([np.diff(part["event_offsets"]) for part in self._parts])
        offsets = np.concatenate([[0], np.cumsum(counts, dtype=np.int64)])

        def sources(name: str) -> Iterator[tuple[Column, Column]]:
            with self._flat[name] as file:
                file.flush()
                yield mapped(file, FLAT[name], int(offsets[-1])), offsets

        columns = joined(self._parts, index, sources)
        return {name: columns[name] for name in self._names}
