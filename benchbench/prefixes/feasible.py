"""Whether what `prompts.shared` asks of a cell can be reached at all. Pure."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from benchbench.yamlfile.mistakes import Fault

TOLERANCE = 0.01  # one percentage point, that a hit rate may be off


def hits_per_round(requests: int, hit_rate: float) -> int:
    """Of the `requests` of a round, how many begin with a shared prefix."""
    return round(requests * hit_rate)


def unreachable(cell: Any) -> Iterator[Fault]:  # noqa: ANN401 # the plan's Cell, which is above this room
    """What is wrong with what a cell asks of shared prefixes."""
    shared = cell.prompts.shared
    if shared is None:
        return
    where = ("prompts", "shared")
    if cell.prompts.kind != "token_ids":
        message = "prompts.shared needs token ids, so that a prefix has exactly the asked tokens"
        yield Fault(("prompts", "kind"), message, "token_ids")
    elif shared.turns:
        for key, message, allowed in _of_turns(cell):
            yield Fault((*where, key), message, allowed)
    elif shared.prefix_tokens is None:
        yield Fault((*where, "prefix_tokens"), "is missing", "tokens of the prefix; or turns, of conversations")
    else:
        for key, message, allowed in _of_prefix(cell):
            yield Fault((*where, key), message, allowed)


def _of_turns(cell: Any) -> Iterator[tuple[str, str, str]]:  # noqa: ANN401
    shared = cell.prompts.shared
    if shared.prefix_tokens or shared.groups != 1 or shared.hit_rate != 1:
        yield "turns", "stands beside a prefix: a conversation's prompts share what was said before", "turns alone"
    batch = cell.batch or 1
    steady = cell.requests - 3 * batch
    if cell.load.kind != "closed":
        yield "turns", "needs a closed load: a turn is sent when the one before it has ended", "load: {kind: closed}"
    elif steady < shared.turns * batch or steady % (shared.turns * batch):
        message = f"of {shared.turns} are not equally many among the steady ones of {cell.requests} requests"
        yield "turns", message, f"load.requests: {(3 + shared.turns) * batch} here, as without it"
    if len(getattr(cell.engine, "urls", ())) > 1 and cell.engine.routing != "pinned":
        message = "of several servers each turn would go to another one, which does not know those before"
        yield "turns", message, "engine.routing: pinned"
    if cell.lengths.output or getattr(cell.lengths.input, "kind", None) != "turns":
        yield "turns", "needs one number for input (the new tokens of a turn) and one for output", "numbers in grid"


def _of_prefix(cell: Any) -> Iterator[tuple[str, str, str]]:  # noqa: ANN401
    shared, requests = cell.prompts.shared, cell.requests
    least = getattr(cell.lengths.input, "least", cell.input)
    if least is not None and shared.prefix_tokens >= least:
        message = (
            f"is {shared.prefix_tokens}, but a prompt of {least} tokens can begin with fewer only: the last token is "
            "never taken from a cache"
        )
        yield "prefix_tokens", message, f"1 to {least - 1}, a multiple of the cache's block size"
    hits = hits_per_round(requests, shared.hit_rate)
    if not hits or abs(hits / requests - shared.hit_rate) > TOLERANCE:
        enough = [n for n in range(1, 1001) if abs(round(n * shared.hit_rate) - n * shared.hit_rate) < 1e-9 * n][:2]
        rounds = f", or rounds of {', '.join(map(str, enough))}, ... requests" if enough else ""
        message = f"is {shared.hit_rate:g}, which a round of {requests} request{'s'[: requests > 1]} cannot have"
        yield "hit_rate", message, f"multiples of 1/{requests}{rounds}"
