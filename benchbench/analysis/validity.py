"""Whether a cell's numbers can be trusted. One pure function: evidence -> status and reasons."""

from __future__ import annotations

from dataclasses import dataclass

from benchbench.analysis.reasons import BETWEEN_REMEDY, CLIENT_REMEDY, SHARED_REMEDY, Reason, Status, worst
from benchbench.analysis.server_times import ServerTimes
from benchbench.prefixes.hits import Hits
from benchbench.queueing.places import WAIT_FLOOR_S, Places, waited
from benchbench.replicas.server_figures import ONE_SERVER, ByServer
from benchbench.reported.decode_time import Pace
from benchbench.spec.schema import Validity
from benchbench.speculation.acceptance import Acceptance, agrees, differs

FLOOR_S = 0.001
CLOCK_SHARE = 0.001  # of the window of Sys tok/s, that clocks of several hosts may be apart unknown
CLOCK_STEP_NS = 1_000_000  # of the wall clock against the monotonic one in a round
FIRST_SHARE = 0.01  # of the requests, and of their TTFT, that first tokens which shared a read may concern
STOLEN_FLOOR_NS = 30_000_000  # three ticks of the kernel's own count
STOLEN_SHARE = 0.02  # of the rounds
WAIT_SHARE = 0.25  # of TTFT, spent outside the server or in its queue


@dataclass(frozen=True, slots=True, kw_only=True)
class Evidence:
    """What a cell's measured rounds showed, summed or at their worst. None: not known, so not judged."""

    rounds: int
    rounds_needed: int
    requests: int
    failed: int = 0  # other than for their length
    wrong_length: int = 0
    tokens: int = 0
    events: int
    shared_events: int
    first_shared: int
    first_later: int = 0  # token events in these first reads, beside the first
    buffered: int
    grouped: int = 0  # events that held several tokens
    hidden: int = 0  # requests with tokens that were not sent
    below_limit: int = 0  # requests that ended for their length below what was asked
    cached_tokens: int = 0  # as usage says
    hits: Hits | None = None  # where prompts share prefixes: then cached tokens are wanted
    input_wrong: int = 0  # requests whose reported input differs from the asked
    input_about: int = 0  # and those whose words have no exact length
    input_unknown: int = 0
    output_unknown: int = 0
    usage_wrong: int = 0  # requests whose reported output differs from the events they got
    clock_step_ns: int
    stolen_ns: int = 0  # from a CPU of this host, of rounds that took `wall_ns`
    wall_ns: int = 0
    clock_share: float = 0.0  # uncertainty of several hosts' clocks / window of Sys tok/s
    kernel_stamps: bool
    in_process: bool = False  # stamps are those of the engine's own process, without HTTP
    windowed: bool
    ttft_s: float | None  # mean
    itl_s: float | None  # median
    send_skew_s: float
    late_p99_s: float
    lag_p99_s: float
    drift: bool
    drift_confirmed: bool  # by further rounds
    warmup_agreed: bool | None
    resent: int = 0  # requests sent twice
    # The server's own view, from /metrics
    replicas: bool = False
    unchecked: int = 0  # rounds of which /metrics, which was there before, tells nothing
    other_models: tuple[str, ...] = ()  # that answers name, none of which is the asked one
    engines: int = 1  # different ones that its rounds name
    foreign_tokens: int | None = None
    missing_tokens: int | None = None
    preemptions: int | None = None
    prefix_hits: int | None = None
    common_tokens: int = 0  # that the prompts share by their form (template, BOS), so that a cache may have them
    # From telemetry and the roofline, where there are any
    in_use: tuple[str, ...] = ()  # devices
    throttled: tuple[str, ...] = ()  # devices, with the throttle reasons of each
    straggler: tuple[str, ...] = ()
    too_fast: tuple[str, ...] = ()  # each number that is beyond its bound, in words
    unlikely: tuple[str, ...] = ()  # each that is beyond its likely bound only
    by_server: ByServer = ONE_SERVER  # where there are several
    in_flight: int | None = None  # the batch of a static or closed load
    server: ServerTimes | None = None
    acceptance: Acceptance | None = None  # of drafted tokens
    outside_s: float | None = None  # of TTFT, not spent in the server: by /metrics where they tell
    pace: Pace | None = None  # of tokens, where answers tell how long they took the server
    places: Places | None = None
    ttft_grew_s: float = 0.0  # of an open load, to its last third
    gap_s: float | None = None  # mean ITL, which does not depend on who shares a read


def status_of(evidence: Evidence, budgets: Validity) -> tuple[Status, tuple[Reason, ...]]:
    """The cell's status, the worst of its reasons', and the reasons in the enum's order."""
    applies = {
        Reason.NO_DATA: evidence.rounds == 0,
        **_lengths(evidence, budgets),
        **_server(evidence, budgets),
        **_client(evidence, budgets),
    }
    some_good = evidence.rounds > 0 and evidence.failed + evidence.wrong_length < evidence.requests
    applies |= {
        Reason.UNSTABLE_WARMUP: evidence.warmup_agreed is False and some_good,
        Reason.TOO_FEW_ROUNDS: 0 < evidence.rounds < evidence.rounds_needed,
        Reason.DRIFT: evidence.drift,
        Reason.SHORT_WINDOW: not evidence.windowed,
        Reason.GPU_IN_USE: bool(evidence.in_use),
        Reason.THROTTLED: bool(evidence.throttled),
        Reason.STRAGGLER: bool(evidence.straggler),
        Reason.UNEVEN_REPLICAS: bool(evidence.by_server.apart),
        Reason.FASTER_THAN_HARDWARE: bool(evidence.too_fast),
        Reason.FASTER_THAN_LIKELY: bool(evidence.unlikely),
    }
    reasons = tuple(reason for reason in Reason if applies.get(reason))  # never IMPORTED: what is judged is ours
    return worst(reason.status for reason in reasons), reasons


def _lengths(evidence: Evidence, budgets: Validity) -> dict[Reason, bool]:
    return {
        Reason.REQUEST_FAILED: evidence.failed > 0,
        Reason.OUTPUT_LENGTH: evidence.wrong_length > 0,
        Reason.INPUT_LENGTH: evidence.input_wrong > 0,
        Reason.INPUT_APPROXIMATE: evidence.input_about > 0,
        Reason.INPUT_UNVERIFIED: evidence.input_unknown > 0,
        Reason.OUTPUT_UNVERIFIED: evidence.output_unknown > 0,
        Reason.GROUPED_TOKENS: evidence.grouped > budgets.grouped * evidence.events and not agrees(evidence.acceptance),
        Reason.ACCEPTANCE_UNCLEAR: differs(evidence.acceptance),
        Reason.HIDDEN_TOKENS: evidence.hidden > 0,
        Reason.LOWER_LIMIT: evidence.below_limit > 0,
    }


def _server(evidence: Evidence, budgets: Validity) -> dict[Reason, bool]:
    cached = max(evidence.cached_tokens, evidence.prefix_hits or 0)
    return {
        Reason.SERVER_COUNT_MISMATCH: evidence.usage_wrong > 0 or (evidence.missing_tokens or 0) > 0,
        Reason.FOREIGN_LOAD: (evidence.foreign_tokens or 0) > budgets.foreign_tokens,
        Reason.REPLICAS: evidence.replicas,
        Reason.UNCHECKED: evidence.unchecked > 0,
        Reason.MIXED_ENGINES: evidence.engines > 1,
        Reason.OTHER_MODEL: bool(evidence.other_models),
        Reason.CACHED_PREFIX: cached > budgets.cached_tokens + evidence.common_tokens and not evidence.hits,
        Reason.HIT_RATE: evidence.hits is not None and evidence.hits.off,
        Reason.HIT_RATE_UNKNOWN: evidence.hits is not None and evidence.hits.unknown > 0,
        Reason.PREEMPTED: (evidence.preemptions or 0) > budgets.preemptions,
        Reason.DELAYED_STREAM: _long_wait(evidence.outside_s, evidence.ttft_s) or _held(evidence.pace),
        Reason.QUEUED: _queued(evidence),
        Reason.OVERLOADED: evidence.ttft_grew_s > 0,
    }


def _long_wait(wait_s: float | None, ttft_s: float | None) -> bool:
    return wait_s is not None and ttft_s is not None and wait_s > max(WAIT_SHARE * ttft_s, WAIT_FLOOR_S)


def _held(pace: Pace | None) -> bool:
    """Whether tokens came in less time than it took to make them: something held them back, and TTFT has that in it."""
    return pace is not None and _long_wait(pace.made_s - pace.came_s, pace.made_s)


def _queued(evidence: Evidence) -> bool:
    """Whether requests waited for places in the server's batch; in an open load the queue is what is measured."""
    server, batch = evidence.server, evidence.in_flight
    if batch is None or server is None or server.queue_s is None:
        return batch is not None and waited(evidence.places, batch)
    own_s = server.ttft_s - server.queue_s
    return _long_wait(server.queue_s, server.ttft_s) and waited(evidence.places, batch, own_s)


def remedy(reason: Reason, evidence: Evidence, budgets: Validity) -> str:
    """What to do about a reason of this cell; where events shared reads, its lag says whose fault that is."""
    if reason.remedy != SHARED_REMEDY:
        return reason.remedy
    if _beyond(evidence.lag_p99_s, budgets.client_lag, evidence.gap_s):
        return f"the client read late: {CLIENT_REMEDY}"
    if _long_wait(evidence.outside_s, evidence.ttft_s):
        return f"the client read in time and TTFT grew on the way: {BETWEEN_REMEDY}"
    return f"the client read in time, so the server or something between sent tokens together: {BETWEEN_REMEDY}"


def _client(evidence: Evidence, budgets: Validity) -> dict[Reason, bool]:
    share = evidence.shared_events / evidence.events if evidence.events else 0.0
    first_unknown = evidence.first_shared > 0 and _first_unknown(evidence)
    return {
        Reason.SHARED_READS_SOME: budgets.shared_suspect < share <= budgets.shared_invalid,
        Reason.SHARED_READS: share > budgets.shared_invalid,
        Reason.FIRST_TOKEN_SHARED_SOME: evidence.first_shared > 0 and not first_unknown,
        Reason.FIRST_TOKEN_SHARED: first_unknown,
        Reason.BUFFERED_STREAM: evidence.buffered * 2 > evidence.requests - evidence.failed - evidence.wrong_length > 0,
        Reason.SEND_SKEW: _beyond(evidence.send_skew_s, budgets.send_skew, evidence.ttft_s),
        Reason.LATE_SENDS: _beyond(evidence.late_p99_s, budgets.late_send, evidence.ttft_s),
        Reason.RESENT: evidence.resent > 0,
        Reason.CLIENT_LAG: _beyond(evidence.lag_p99_s, budgets.client_lag, evidence.itl_s),
        Reason.CLOCK_STEP: evidence.clock_step_ns > CLOCK_STEP_NS,
        Reason.STOLEN_CPU: evidence.stolen_ns > max(STOLEN_SHARE * evidence.wall_ns, STOLEN_FLOOR_NS),
        Reason.CLOCKS_APART: evidence.clock_share > CLOCK_SHARE,
        Reason.USER_STAMPS: not evidence.kernel_stamps,
    }


def _first_unknown(evidence: Evidence) -> bool:
    """Whether shared first reads may have moved TTFT: a first token came earlier by a gap for each that joined it."""
    requests, late_s = evidence.requests, evidence.first_later * (evidence.gap_s or 0.0)
    return evidence.first_shared > FIRST_SHARE * requests or late_s > FIRST_SHARE * requests * (evidence.ttft_s or 0.0)


def _beyond(seconds: float, share: float, of_s: float | None) -> bool:
    """Whether a delay of ours is more than a share of what it disturbs; below a millisecond it never is."""
    return of_s is not None and seconds > max(share * of_s, FLOOR_S)
