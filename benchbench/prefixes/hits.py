"""What `prompts.shared` asked of the server's prefix cache in a round, and what the server says it gave. Pure."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from benchbench.prefixes.feasible import TOLERANCE

WANTED = "asked_cached_tokens"  # the column that only rounds with shared prefixes have
Mask = npt.NDArray[np.bool_]


@dataclass(frozen=True, slots=True)
class Hits:
    """Counts over the successful requests of rounds. `asked_tokens` and `cached_tokens` are of all of them.

    `wrong_tokens`: sum over requests of |cached - asked|, so that a hit too many does not make up for one that lacks.
    `unknown`: requests of which the server does not tell. `hit`: which of a round's TTFTs are of requests that were to
    hit, empty of several rounds together.
    """

    requests: int
    prefix_tokens: int  # of each prefix, or of the longest
    possible_tokens: int  # that prefixes would have if all requests began with one; of conversations: that they have
    wanted: int = 0  # requests that were to hit
    asked_tokens: int = 0
    cached_tokens: int = 0
    wrong_tokens: int = 0
    short: int = 0  # requests that were to hit, of fewer cached tokens than the prefix has
    longest: int = 0  # the most cached tokens of these
    shortest: int = 0  # and the fewest
    over: int = 0  # requests of more cached tokens than asked: misses that hit, or longer hits
    unknown: int = 0
    hit: Mask = field(default_factory=lambda: np.zeros(0, np.bool_), compare=False)

    @property
    def asked_rate(self) -> float:
        """Asked cached tokens / possible ones: the share of requests that were to hit; 1 of conversations."""
        return self.asked_tokens / max(1, self.possible_tokens)

    @property
    def rate(self) -> float | None:
        """Cached prompt tokens / possible ones; None where the server does not tell of every request.

        It is the share of requests that hit where each hit is of the whole prefix.
        """
        return None if self.unknown or not self.possible_tokens else self.cached_tokens / self.possible_tokens

    @property
    def off(self) -> bool:
        """Whether the cached tokens are not those asked for, request by request, beyond one percentage point."""
        return not self.unknown and self.wrong_tokens > TOLERANCE * self.possible_tokens


def hits_of(column: Callable[[str], npt.NDArray[Any]], good: Mask, steady: Mask, facts: Mapping[str, Any]) -> Hits:
    """Those of one round, by its columns of asked and of told cached tokens (-1: not told), which of its requests
    succeeded, and which of these its latencies are of.

    Some versions of vLLM tell nothing of a request without a hit. So what is not told is 0 if the server tells of
    another request of the round, or counted no hit in it at all.
    """
    everyone, reported = column(WANTED).astype(np.int64), column("cached_tokens")[good].astype(np.int64)
    prefix, wanted = int(everyone.max(initial=0)), everyone[good]
    none_at_all = (facts.get("server") or {}).get("prefix_hits") == 0
    silent = reported < 0
    cached = np.where(silent, 0, reported)
    short = cached < wanted
    return Hits(
        requests=len(wanted),
        prefix_tokens=prefix,
        possible_tokens=int(wanted.sum()) if facts.get("turns") else len(wanted) * prefix,
        wanted=int((wanted > 0).sum()),
        asked_tokens=int(wanted.sum()),
        cached_tokens=int(cached.sum()),
        wrong_tokens=int(np.abs(cached - wanted).sum()),
        short=int(short.sum()),
        longest=int(cached[short].max(initial=0)),
        shortest=int(cached[short].min()) if short.any() else 0,
        over=int((cached > wanted).sum()),
        unknown=0 if none_at_all or not silent.all() else len(wanted),
        hit=wanted[steady] > 0,
    )


def together(rounds: Sequence[Hits | None]) -> Hits | None:
    """The sum over rounds; None where prefixes are not shared."""
    each = [hits for hits in rounds if hits]
    if not each:
        return None
    names = (
        "requests",
        "possible_tokens",
        "wanted",
        "asked_tokens",
        "cached_tokens",
        "wrong_tokens",
        "short",
        "over",
        "unknown",
    )
    most = {name: max(getattr(hits, name) for hits in each) for name in ("prefix_tokens", "longest")}
    most["shortest"] = min((hits.shortest for hits in each if hits.short), default=0)
    return Hits(**{name: sum(getattr(hits, name) for hits in each) for name in names}, **most)
