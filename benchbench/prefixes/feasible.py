"""Whether what `prompts.shared` asks of a cell can be reached at all. Pure."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Protocol

from benchbench.yamlfile.mistakes import Fault

TOLERANCE = 0.01  # one percentage point, that a hit rate may be off


class Shared(Protocol):
    """What a sweep says of shared prefixes."""

    @property
    def prefix_tokens(self) -> int: ...
    @property
    def hit_rate(self) -> float: ...


class Prompts(Protocol):
    """What a sweep says of prompts."""

    @property
    def kind(self) -> str: ...
    @property
    def shared(self) -> Shared | None: ...


def hits_per_round(requests: int, hit_rate: float) -> int:
    """Of the `requests` of a round, how many begin with a shared prefix."""
    return round(requests * hit_rate)


def unreachable(prompts: Prompts, least_input: int | None, requests: int) -> Iterator[Fault]:
    """What is wrong for a cell whose shortest prompt has so many tokens, `requests` a round."""
    shared = prompts.shared
    if shared is None:
        return
    if prompts.kind != "token_ids":
        message = "prompts.shared needs token ids, so that a prefix has exactly the asked tokens"
        yield Fault(("prompts", "kind"), message, "token_ids")
    elif least_input is not None and shared.prefix_tokens >= least_input:
        message = (
            f"is {shared.prefix_tokens}, but a prompt of {least_input} tokens can begin with fewer only: "
            "the last token is never taken from a cache"
        )
        allowed = f"1 to {least_input - 1}, a multiple of the cache's block size"
        yield Fault(("prompts", "shared", "prefix_tokens"), message, allowed)
    hits = hits_per_round(requests, shared.hit_rate)
    if not hits or abs(hits / requests - shared.hit_rate) > TOLERANCE:
        enough = [n for n in range(1, 1001) if abs(round(n * shared.hit_rate) - n * shared.hit_rate) < 1e-9 * n][:2]
        rounds = f", or rounds of {', '.join(map(str, enough))}, ... requests" if enough else ""
        message = f"is {shared.hit_rate:g}, which a round of {requests} request{'s'[: requests > 1]} cannot have"
        yield Fault(("prompts", "shared", "hit_rate"), message, f"multiples of 1/{requests}{rounds}")
