"""The server's own view of a round: its counters before and after it, never during, set against ours."""

from __future__ import annotations

import asyncio
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import numpy as np

from benchbench.engines.endpoint import Access, asking
from benchbench.engines.metrics import ServerCounts, delta, reconcile, scrape, settled

if TYPE_CHECKING:
    from benchbench.record.requests import RoundColumns


class ServerView:
    """Looks at `/metrics` of the server at `url` (a root) where it has any: once a round, since a look after one
    round is also the look before the next.
    """

    def __init__(self, url: str, access: Access, has_metrics: bool) -> None:
        self._url, self._access, self._has_metrics = url, access, has_metrics
        self._last: ServerCounts | None = None
        self._can_reset = True

    def before(self) -> ServerCounts | None:
        """The counts before a round."""
        if self._has_metrics and self._last is None:
            self._last = self._scrape()
        return self._last

    def reset_prefix_cache(self) -> None:
        """Empty the server's prefix cache, where it can (vLLM's development mode has the route)."""
        if self._can_reset:
            self._can_reset = asyncio.run(self._reset())

    def after(self, before: ServerCounts | None, columns: RoundColumns) -> dict[str, Any] | None:
        """What the server counted in the round, as `counted` tells; None when it has no metrics."""
        self._last = None
        if before is None:
            return None
        after = settled(self._scrape, expected_generation(before, columns))
        if after is None:
            return None
        self._last = after
        return counted(before, after, columns)

    def _scrape(self) -> ServerCounts | None:
        return scrape(self._url, self._access)

    async def _reset(self) -> bool:
        import aiohttp

        try:
            async with asking(self._url, self._access) as ask:
                status, _ = await ask("/reset_prefix_cache", {})
        except (aiohttp.ClientError, OSError):
            return False
        return status == 200


def expected_generation(before: ServerCounts, columns: RoundColumns) -> int:
    """What `generation_tokens` will be once the round is counted; 0 in a round with failures, where nobody knows."""
    return 0 if "failed" in columns["status"] else (before.generation_tokens or 0) + _ours(columns)[0][1]


def counted(before: ServerCounts, after: ServerCounts, columns: RoundColumns) -> dict[str, Any]:
    """What an engine counted in a round, as facts for its record.

    `foreign_tokens` (prompt and generation tokens that are not ours) and `missing_tokens` (reported in `usage`, not
    counted in the metrics) are not known in a round with failures, since nobody knows how much was computed of
    them. Tokens that we asked for or received are ours even if `usage` leaves them out; those found in the prefix
    cache are not missing, since some versions do not count them as prompt tokens.
    """
    grown = delta(before, after)
    found = {name: value for name, value in asdict(grown).items() if value is not None}
    if grown.replicas or "failed" in columns["status"]:
        return found
    told, most = _ours(columns)
    beyond, missing = reconcile(grown, *most), reconcile(grown, *told).missing
    foreign = [tokens for tokens in (beyond.foreign_prompt, beyond.foreign_generation) if tokens is not None]
    if foreign:
        found["foreign_tokens"] = sum(foreign)
    if missing is not None:
        found["missing_tokens"] = max(0, missing - (grown.prefix_hits or 0))
    return found


def _ours(columns: RoundColumns) -> tuple[tuple[int, int], tuple[int, int]]:
    """(prompt, output) tokens of a round's requests: as `usage` says, and the most that may be called ours.

    Where `usage` says nothing it is what was asked for or received; the most is the larger of the two.
    """
    ends = columns["event_offsets"]
    totals = np.concatenate([[0], np.cumsum(columns["event_tokens"])])
    pairs = (
        (columns["input_tokens"], columns["asked_input_tokens"]),
        (columns["output_tokens"], totals[ends[1:]] - totals[ends[:-1]]),
    )
    prompt, output = (
        (int(np.where(told >= 0, told, seen).sum()), int(np.maximum(told, seen).sum())) for told, seen in pairs
    )
    return (prompt[0], output[0]), (prompt[1], output[1])
