"""A round's requests dealt out to several servers. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from benchbench.loadgen.job import RoundJob
from benchbench.openai.target import Target
from benchbench.replicas.dealing import in_turn, moved


def dealt_out(job: RoundJob, targets: Sequence[Target], number: int, *, pinned: bool) -> RoundJob:
    """The round of one server as one of several: in round k, request i goes to the ((i + k) mod n)-th, whoever
    sends it.

    So none has more requests than others in all rounds, and a batch of one is not the first server's alone.

    With `pinned` a request that takes another's place goes to that one's server instead (`RoundJob.payload`).
    """
    servers = in_turn(len(job.payloads), len(targets), number)
    if not servers:
        return job
    payloads = [
        moved(payload, targets[server]) if server else payload
        for server, payload in zip(servers, job.payloads, strict=True)
    ]
    return replace(job, payloads=payloads, targets=tuple(targets), target_of=servers, pinned=pinned)
