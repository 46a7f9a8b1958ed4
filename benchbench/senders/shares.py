"""A round dealt out to several workers, and what they hand back made one round again. Pure.

Request i has its prompt, its length and its time whoever sends it: only the sender depends on the number of workers.
Its place in a batch, i mod B, says which: so every worker has its share of the places, of the first wave's lengths, and
of the requests that refill them. Of an open load each worker has every n-th arrival. Places are dealt out by as many as
there are servers, so that each worker sends to each of them, and none ends early for having had the fast one.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, cast

import numpy as np

from benchbench.decoding.response import Response
from benchbench.loadgen.columns import all_ended, columns_of
from benchbench.loadgen.exchange import Exchange, Failure, Log
from benchbench.loadgen.job import Job
from benchbench.spool.flat import joined
from benchbench.store.requests import ErrorKind, ErrorPhase, RoundColumns

if TYPE_CHECKING:
    import numpy.typing as npt

_BY_REQUEST = ("payloads", "due_ns", "asked_input", "asked_output", "target_of")
_SUMS = ("cpu_ns", "worker_cpu_ns", "connects", "resent", "spare_sent", "held_max_bytes", "spooled_bytes")
_MOST = ("turn_max_ns", "clock_step_ns", "wall_ns")
Reply = tuple[RoundColumns | None, dict[str, Any]]


@dataclass(frozen=True, slots=True)
class Share:
    """What one worker does of a round: `indices` are its requests' places in the whole round, ascending."""

    job: Job
    indices: npt.NDArray[np.int32]

    @property
    def planned(self) -> int:
        return len(self.indices) - self.job.spare


def is_capped(job: Job) -> bool:
    """Whether which request goes next depends on all that run: an open load with a limit, or conversations."""
    return (job.paced and job.in_flight < len(job.payloads)) or job.turns > 1


def split(job: Job, workers: int) -> list[Share]:
    """The shares of a round for so many workers at most: a request in flight is the least for each.

    Where which request goes next depends on all that run (`is_capped`), one worker has it all.
    """
    count, planned = len(job.payloads), len(job.payloads) - job.spare
    servers = max(job.target_of, default=0) + 1
    workers = min(workers, -(-min(job.in_flight, planned) // servers))
    if workers <= 1 or is_capped(job):
        return [Share(job, np.arange(count, dtype=np.int32))]
    sender = np.arange(count) % job.in_flight // servers % workers
    places = np.bincount(sender[: job.in_flight], minlength=workers).tolist()
    shares = []
    for number in range(workers):
        indices = np.flatnonzero(sender == number).astype(np.int32)
        own: dict[str, Any] = {
            name: [values[k] for k in indices.tolist() if k < len(values)]  # spare requests have no time
            for name, values in ((name, getattr(job, name)) for name in _BY_REQUEST)
        }
        spare = int((indices >= planned).sum())
        shares.append(Share(replace(job, **own, in_flight=places[number], spare=spare, together=True), indices))
    return shares


def lost(share: Share, reason: str) -> Reply:
    """A share whose worker died: all its requests have failed, and of none a time is known."""
    servers = share.job.target_of[: share.planned] or [0] * share.planned
    failure = Failure(ErrorKind.CLIENT, ErrorPhase.SEND, reason)
    exchanges = [Exchange(k, b"", Log(), target=own, failure=failure) for k, own in enumerate(servers)]
    nothing, job = np.array([], np.int64), share.job
    ended, nobody = all_ended(exchanges, job), [Response()] * share.planned
    return columns_of(ended, nobody, nothing, nothing, exact=job.exact, secrets=job.secrets), {"died": reason}


def merged(shares: Sequence[Share], replies: Sequence[Reply]) -> Reply:
    """The round that the shares are of, in the order of its requests; None for columns where it was cancelled."""
    facts = _facts(replies)
    if facts["cancelled"]:
        return None, facts
    parts = [cast("dict[str, Any]", columns) for columns, _ in replies]
    index = np.concatenate([share.indices[part["index"]] for share, part in zip(shares, parts, strict=True)])
    columns = joined(parts, index, lambda name: ((part[name], part["event_offsets"]) for part in parts))
    columns = {name: columns[name] for name in parts[0]}
    if until := _full_until(shares, replies):
        facts["full_until_ns"] = until
    return cast("RoundColumns", columns), facts


def _facts(replies: Sequence[Reply]) -> dict[str, Any]:
    """The facts of the round as one, and under `senders` what each worker saw."""
    alive = [facts for _, facts in replies if "died" not in facts]

    def values(name: str) -> Iterable[Any]:
        return (facts[name] for facts in alive)

    return {
        **alive[0],
        **{name: sum(values(name)) for name in _SUMS},
        **{name: max(values(name)) for name in _MOST},
        "started_ns": min(values("started_ns")),
        "kernel_stamps": all(values("kernel_stamps")),
        "peers": dict(sum((Counter(peers) for peers in values("peers")), Counter[str]())),
        "cancelled": any(values("cancelled")),
        "workers": len(replies),
        "senders": [_of_sender(*reply) for reply in replies],
    }


def _of_sender(columns: RoundColumns | None, facts: dict[str, Any]) -> dict[str, Any]:
    if "died" in facts:
        return {"died": facts["died"]}
    own = {name: facts[name] for name in ("started_ns", "turn_max_ns", "cpu_ns", "wall_ns", "priority")}
    if columns is None:
        return own
    lags = columns["lag_ns"]
    p99 = int(np.percentile(lags, 99)) if len(lags) else None
    return {**own, "requests": len(columns["index"]), "lag_p99_ns": p99}


def _full_until(shares: Sequence[Share], replies: Sequence[Reply]) -> int:
    """Until when all places of a closed load were filled: the first end that a worker had no request for. 0: not known,
    or another load.
    """
    until = []
    for share, (columns, _) in zip(shares, replies, strict=True):
        if columns is None or share.job.paced or share.planned <= share.job.in_flight:
            return 0
        ends, offsets = columns["end_ns"].copy(), columns["event_offsets"]
        has_tokens = np.diff(offsets) > 0
        ends[has_tokens] = columns["event_ns"][offsets[1:][has_tokens] - 1]
        until.append(int(np.sort(ends)[len(ends) - share.job.in_flight]))
    return max(0, min(until))
