"""What a run keeps beside its records, as JSON: the manifest, and the facts of a round in its file's metadata.

A run of an earlier version lacks some keys, so all are optional; what every reader needs is always there.
"""

from __future__ import annotations

from typing import Any, TypedDict


class Manifest(TypedDict, total=False):
    """manifest.json. All `*_ns` are ns of the wall clock."""

    format: int
    run: str  # by which the run's files know each other
    sha256: str  # of all else in here
    created_ns: int
    spec: dict[str, Any]  # as resolved, secrets masked
    spec_sha256: str
    only: str | None
    sets: list[str]  # what was --set, secrets masked
    plan: list[dict[str, Any]]  # `spec.cell.CellInfo` reads an entry
    notes: list[str]
    engine: dict[str, Any] | None  # what the server is and can do; with variants that of the latest start
    engine_environment: dict[str, Any] | None  # its process, packages, commits and steering variables
    starts: list[dict[str, Any]]  # one a start of the engine: time_ns, block, variant, pid, log ...
    loaded: dict[str, dict[str, Any]]  # by digest, what code starts loaded (`identity.loaded_code`)
    variants: dict[str, dict[str, Any]]  # those from git: commit and folder
    devices: list[dict[str, Any]]
    model_facts: dict[str, Any] | None
    variant_model_facts: dict[str, dict[str, Any] | None]  # where they differ from the sweep's
    accelerator: dict[str, Any] | None
    speculative: Any
    caption: list[str]
    instrument: Any  # the instrument's errors, as `bench check` has measured them; of earlier versions the latest alone
    imported: dict[str, Any] | None  # of a run made from other tools' results
    tool: dict[str, Any]
    python: str
    packages: dict[str, str]
    host: dict[str, Any]


class StoredRoundFacts(TypedDict, total=False):
    """A round as a whole: the load generator's facts (`loadgen.job.RoundFacts`) and what main adds."""

    started_ns: int
    turn_max_ns: int  # the longest time between two looks at the sockets
    clock_step_ns: int  # largest change of wall clock against monotonic clock
    stolen_ns: int  # that a hypervisor let a CPU of main's host wait, the one that waited longest
    cpu_ns: int
    worker_cpu_ns: int
    wall_ns: int
    targets: int  # servers that shared it; none: one
    connects: int
    peers: dict[str, int]  # answers by the address that gave them, a proxy's where there is one
    resent: int
    workers: int  # processes that sent it; none: one
    senders: list[dict[str, Any]]  # where there are several: what each of them saw, or why it `died`
    clocks: list[dict[str, Any]]  # several hosts: of each sender, its host's clock less ours, +-; times are on ours
    clock_uncertainty_ns: int  # of a time from an event of one host to one of another
    full_until_ns: int  # several, closed load: when the first of them left a place empty
    spare_sent: int  # requests beyond the asked number, which kept a closed load full
    kernel_stamps: bool
    held_max_bytes: int
    spooled_bytes: int  # that left the sending process for a file while it ran
    cancelled: bool
    engine_died: str | None
    server: dict[str, Any] | None  # what the server counted, by /metrics
    common_tokens: int  # that all prompts share by their form
    pilot: Any
    approximate: bool  # its prompts have about the length asked for
    in_use: list[str]  # GPUs that others used when the engine was started, and how much
    identity: str  # of the start it is from: `identity_digest` of the manifest's starts
    other_model: str  # that its answers name and that is not known to be the asked one
    answered_by: list[str]  # what its server has named itself since it started, see `store.requests.RoundColumns`
