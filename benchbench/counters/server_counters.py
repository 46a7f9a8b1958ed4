"""The server's own view of a round: its counters before and after it, never during, set against ours."""

from __future__ import annotations

import asyncio
import contextlib
import math
import time
from collections.abc import Awaitable, Callable, Coroutine
from functools import partial
from http import HTTPStatus
from typing import Any

import numpy as np

from benchbench.counters.server_metrics import LOOK_S, Counts, grown, look
from benchbench.openai.client import post
from benchbench.openai.target import Access
from benchbench.stopping import T, unless_stopped
from benchbench.store.requests import RequestStatus, RoundColumns

LOOKS, PAUSE_S = 5, 0.05  # after a round, until its last tokens are counted
GRACE_S = 0.5  # once the sweep is to stop: a server that answers loses no finished round its counts


class ServerView:
    """Looks at `/metrics` of the server at `url` where it has any: once a round, since a look after one
    round is also the look before the next. When the descriptor `stop` becomes readable, what waits for a server that
    does not answer raises InterruptedSweep.
    """

    def __init__(self, url: str, access: Access, has_metrics: bool, stop: int | None = None) -> None:
        self._url, self._access, self._has_metrics, self._stop = url, access, has_metrics, stop
        self._last: Counts | None = None
        self._can_reset = True

    def before(self) -> Counts | None:
        """The counts before a round."""
        if self._has_metrics and self._last is None:
            self._last = self._asked(look(self._url, self._access))
        return self._last

    def ask(self, question: Callable[[str, Access], Coroutine[Any, Any, object]]) -> None:
        """Await `question(url, access)`, whose requests are of no round, and look anew once they are counted.

        vLLM counts a step just after it has streamed it: two looks that agree are after all of them.
        """
        self._asked(question(self._url, self._access))
        self._last = None
        if not self._has_metrics:
            return
        for _ in range(LOOKS):
            counts = self._asked(look(self._url, self._access))
            agree, self._last = counts is None or counts == self._last, counts
            if agree:
                break
            time.sleep(PAUSE_S)

    def reset_prefix_cache(self) -> None:
        """Empty the server's prefix cache, where it can (vLLM's development mode has the route)."""
        import aiohttp

        if not self._can_reset:
            return
        self._can_reset = False
        with contextlib.suppress(aiohttp.ClientError, OSError):
            status, _ = self._asked(post(self._url, self._access, "/reset_prefix_cache", {}))
            self._can_reset = status == HTTPStatus.OK

    def after(self, before: Counts | None, columns: RoundColumns) -> dict[str, Any] | None:
        """What the server counted in the round, as `counted` tells; None when it has no metrics."""
        looking = partial(look, self._url, self._access)
        self._last = None if before is None else self._asked(settled(looking, before, columns))
        return None if before is None or self._last is None else counted(before, self._last, columns)

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


def _ours(columns: RoundColumns) -> dict[str, tuple[int, int]]:
    """Tokens of a round's requests, by the server's counter: as `usage` says, and the most that may be called ours.

    Where `usage` says nothing it is what was asked for or received; the most is the larger of the two.
    """
    ends = columns["event_offsets"]
    totals = np.concatenate([[0], np.cumsum(columns["event_tokens"])])
    pairs = {
        "prompt_tokens": (columns["input_tokens"], columns["asked_input_tokens"]),
        "generation_tokens": (columns["output_tokens"], totals[ends[1:]] - totals[ends[:-1]]),
    }
    return {
        name: (int(np.where(usage >= 0, usage, seen).sum()), int(np.maximum(usage, seen).sum()))
        for name, (usage, seen) in pairs.items()
    }
