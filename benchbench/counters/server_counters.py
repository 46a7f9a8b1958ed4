"""The server's own view of a round: its counters before and after it, never during, set against ours."""

from __future__ import annotations

import asyncio
import contextlib
import math
import time
from collections.abc import Awaitable, Callable, Coroutine, Iterable, Sequence
from functools import partial
from http import HTTPStatus
from typing import Any, cast

import numpy as np

from benchbench.counters.server_metrics import LOOK_S, Counts, grown, look
from benchbench.events.round_events import sums_of
from benchbench.openai.client import post
from benchbench.openai.target import Access
from benchbench.stopping import T, unless_stopped
from benchbench.store.requests import RequestStatus, RoundColumns

LOOKS, PAUSE_S = 5, 0.05  # after a round, until its last tokens are counted
SILENT = {"silent": True}  # of a round: the page that was there did not answer
GRACE_S = 0.5  # once the sweep is to stop: a server that answers loses no finished round its counts


class ServerView:
    """Looks at `/metrics` of the servers at `urls` where they have any: once a round, since a look after one
    round is also the look before the next. When the descriptor `stop` becomes readable, what waits for a server that
    does not answer raises InterruptedSweep.

    `seen`: the latest counts of each server; given are those of an earlier session. `moved`: whether some look was at
    another process than the one before it, whatever lay between.
    """

    def __init__(
        self,
        urls: Sequence[str],
        access: Access,
        has_metrics: bool,
        stop: int | None = None,
        seen: Sequence[Counts] = (),
    ) -> None:
        self._urls, self._access, self._has_metrics, self._stop = urls, access, has_metrics, stop
        self.seen, self.moved = seen, False
        self._last: list[Counts] | None = None
        self._looked_for = False
        self._can_reset = True

    def before(self) -> list[Counts] | None:
        """The counts before a round, of each server; None if one does not tell."""
        self._looked_for = self._has_metrics
        if self._has_metrics and self._last is None:
            self._last = self._of_all(look(url, self._access) for url in self._urls)
        return self._last

    def ask(self, question: Callable[[str, Access], Coroutine[Any, Any, object]]) -> None:
        """Await `question(url, access)` of each server, of no round, and look anew once its requests are counted.

        vLLM counts a step just after it has streamed it: two looks that agree are after all of them.
        """
        for url in self._urls:
            self._asked(question(url, self._access))
        self._last = None
        if not self._has_metrics:
            return
        for _ in range(LOOKS):
            counts = self._of_all(look(url, self._access) for url in self._urls)
            agree, self._last = counts is None or counts == self._last, counts
            if agree:
                break
            time.sleep(PAUSE_S)

    def reset_prefix_cache(self) -> None:
        """Empty each server's prefix cache, where it can (vLLM's development mode has the route)."""
        if not self._can_reset:
            return
        self._can_reset = False
        with contextlib.suppress(OSError):
            answers = [self._asked(post(url, self._access, "/reset_prefix_cache", {})) for url in self._urls]
            self._can_reset = all(status == HTTPStatus.OK for status, _ in answers)

    def after(self, before: list[Counts] | None, columns: RoundColumns) -> dict[str, Any] | None:
        """What the servers counted in the round, as `counted` tells, each beside its own requests; SILENT when one did
        not answer, before it or after it; None where nobody was asked.
        """
        (self._last, earlier), was_looked_for, self._looked_for = (None, before), self._looked_for, False
        if earlier is None:
            return SILENT if was_looked_for else None
        parts = [columns] if len(earlier) == 1 else [of_server(columns, number) for number in range(len(earlier))]
        looking = [partial(look, url, self._access) for url in self._urls]
        self._last = self._of_all(map(settled, looking, earlier, parts))
        return SILENT if self._last is None else as_one([*map(counted, earlier, self._last, parts)])

    def _of_all(self, looks: Iterable[Coroutine[Any, Any, Counts | None]]) -> list[Counts] | None:
        async def every() -> list[Counts | None]:
            return await asyncio.gather(*looks)

        counts = [page for page in self._asked(every()) if page is not None]
        if len(counts) < len(self._urls):
            return None
        self.moved |= None in map(grown, self.seen, counts)
        self.seen = counts
        return counts

    def _asked(self, question: Coroutine[Any, Any, T]) -> T:
        return asyncio.run(unless_stopped(self._stop, question, GRACE_S))


async def settled(
    looking: Callable[[], Awaitable[Counts | None]], before: Counts, columns: RoundColumns
) -> Counts | None:
    """The counts once the round's generated tokens are in them, or after LOOKS looks; None if none came.

    A look at another process than the one before is the last: it shows that there are several. vLLM counts a step just
    after it has streamed it, so the first look after a round may lack the last tokens. In a round with failures nobody
    knows how many there will be.
    """
    failed = RequestStatus.FAILED in columns["status"]
    expected = 0 if failed else before.get("generation_tokens", 0) + _ours(columns)["generation_tokens"][0]
    last = None
    for attempt in range(LOOKS):
        if attempt:
            await asyncio.sleep(PAUSE_S)
        begun, page = time.monotonic(), await looking()
        moved = page is not None and grown(last or before, page) is None
        last = page or last
        if time.monotonic() - begun > LOOK_S / 2:  # one that hangs is not repeated
            break
        if moved or (last and last.get("generation_tokens", math.inf) >= expected):
            break
    return last


def counted(before: Counts, after: Counts, columns: RoundColumns) -> dict[str, Any]:
    """What an engine counted in a round, as facts for its record.

    `foreign_tokens` (prompt and generation tokens that are not ours) and `missing_tokens` (reported in `usage`, not
    counted in the metrics) are not known in a round with failures, since nobody knows how much was computed of
    them. Tokens that we asked for or received are ours even if `usage` leaves them out; those found in the prefix
    cache are not missing, since some versions do not count them as prompt tokens.
    """
    change = grown(before, after)
    if change is None:
        return {"replicas": True}
    facts: dict[str, Any] = {**change, "replicas": False}
    known = [(change[name], *ours) for name, ours in _ours(columns).items() if name in change]
    if known and RequestStatus.FAILED not in columns["status"]:
        missing = sum(max(0, reported - served) for served, reported, _ in known)
        facts["foreign_tokens"] = sum(max(0, served - most) for served, _, most in known)
        facts["missing_tokens"] = max(0, missing - change.get("prefix_hits", 0))
    return facts


def of_server(columns: RoundColumns, number: int) -> RoundColumns:
    """The requests that one of several servers got, without the times of their events: all tokens of each as one."""
    rows = np.flatnonzero(columns["target"] == number)
    count = len(columns["target"])
    if len(rows) == count:
        return columns
    tokens = sums_of(columns["event_offsets"], columns["event_tokens"])[rows]
    part: dict[str, Any] = {
        name: values[rows] if isinstance(values, np.ndarray) else [values[k] for k in rows.tolist()]  # type: ignore[index]
        for name, values in columns.items()
        if not name.startswith("event_") and name != "lag_ns"
    }
    part |= {"event_offsets": np.arange(len(rows) + 1), "event_tokens": tokens}
    return cast("RoundColumns", part)


def as_one(parts: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """What several servers counted, summed where each tells; `servers`: each one's part."""
    if len(parts) == 1:
        return parts[0]
    sums = {name: sum(part[name] for part in parts) for name in parts[0] if all(name in part for part in parts)}
    return {**sums, "replicas": any(part["replicas"] for part in parts), "servers": [*parts]}


def _ours(columns: RoundColumns) -> dict[str, tuple[int, int]]:
    """Tokens of a round's requests, by the server's counter: as `usage` says, and the most that may be called ours.

    Where `usage` says nothing it is what was asked for or received; the most is the larger of the two.
    """
    pairs: dict[str, tuple[Any, Any]] = {
        "prompt_tokens": (columns["input_tokens"], columns["asked_input_tokens"]),
        "generation_tokens": (columns["output_tokens"], sums_of(columns["event_offsets"], columns["event_tokens"])),
    }
    return {
        name: (int(np.where(usage >= 0, usage, seen).sum()), int(np.maximum(usage, seen).sum()))
        for name, (usage, seen) in pairs.items()
    }
