"""Whether a cell's numbers can be trusted. One pure function: evidence -> status and reasons."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from enum import Enum
from typing import Literal

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
STOLEN_FLOOR_NS = 30_000_000  # three ticks of the kernel's own count
STOLEN_SHARE = 0.02  # of the rounds
WAIT_SHARE = 0.25  # of TTFT, spent outside the server or in its queue

Status = Literal["valid", "suspect", "invalid"]


_CLIENT_REMEDY = "give the client a quieter core, or lower the batch"
_BETWEEN_REMEDY = (
    "attach to the server itself, or let proxies pass small chunks on at once (HAProxy: option http-no-delay; nginx: "
    "proxy_buffering off)"
)
_SHARED_REMEDY = f"if the client's lag is large, {_CLIENT_REMEDY}; if it is small, {_BETWEEN_REMEDY}"


def _suspect(meaning: str, remedy: str) -> tuple[Status, str, str]:
    return "suspect", meaning, remedy


def _invalid(meaning: str, remedy: str) -> tuple[Status, str, str]:
    return "invalid", meaning, remedy


class Reason(Enum):
    """The status it forces, what it means, what to do about it. Its code is its name in small letters."""

    NO_DATA = _invalid("no round was finished", "run the sweep again with --resume")
    REQUEST_FAILED = _invalid(
        "requests failed", "read error_kind and error_detail in records/; fix the server or lower the load"
    )
    OUTPUT_LENGTH = _invalid(
        "answers were shorter or longer than asked",
        "use a server that honours max_tokens, min_tokens and ignore_eos, or measure with output: as_served",
    )
    INPUT_LENGTH = _invalid(
        "the server counted other input tokens than asked", "send token ids, or name the tokenizer (prompts.tokenizer)"
    )
    INPUT_APPROXIMATE = _suspect(
        "prompts have about the asked length: the server counted within 10 % of it, on average",
        "send token ids, or name the tokenizer (prompts.tokenizer)",
    )
    INPUT_UNVERIFIED = _suspect(
        "the server does not report input tokens", "use a server that answers stream_options.include_usage"
    )
    OUTPUT_UNVERIFIED = _suspect(
        "the server reports neither usage nor token ids: events were counted as tokens",
        "use a server that answers stream_options.include_usage",
    )
    SERVER_COUNT_MISMATCH = _invalid(
        "the server's counts contradict what it sent: usage against its events, or /metrics below what came",
        "report it to the server's makers and trust neither count; if it is /metrics, and several servers "
        "may stand behind this address, name each one's own address in engine.url",
    )
    FOREIGN_LOAD = _invalid(
        "the server served tokens that are not ours: somebody else was loading it",
        "measure when nobody else uses the server",
    )
    REPLICAS = _suspect(
        "another process or machine than before answered: several servers behind one address or name, or one that was "
        "started again, nobody knows with which flags",
        "name each server's own address (engine.url takes a list), so that the counts of each can be checked; after a "
        "restart measure anew, into another folder",
    )
    UNCHECKED = _suspect(
        "/metrics did not answer around some of its rounds: foreign load, preemptions and prefix hits are not checked",
        "look at why it did not; bench sweep --resume --retry unchecked measures these rounds again",
    )
    MIXED_ENGINES = _invalid(
        "its rounds are of different engines: another model, build, flags or server",
        "measure each engine in a run, or a variant, of its own",
    )
    OTHER_MODEL = _suspect(
        "answers name another model than was asked for, and the server's list does not say that they are one",
        "find out what answered; if model is an alias, write in engine.answers_as what answers call it",
    )
    CACHED_PREFIX = _invalid(
        "prompt tokens came from the prefix cache",
        "change seed, set rounds.reset_prefix_cache, or turn the server's prefix cache off",
    )
    HIT_RATE = _invalid(
        "the cached tokens of requests are not those that prompts.shared asks for, beyond one percentage point",
        "bench explain says where they differ; give the cache room for all prefixes, and whole blocks to a prefix",
    )
    HIT_RATE_UNKNOWN = _invalid(
        "the server does not tell cached tokens of its answers, so that the asked hits cannot be shown",
        "let it tell them (vLLM: --enable-prompt-tokens-details), or measure without prompts.shared",
    )
    PREEMPTED = _invalid(
        "the server preempted requests for want of KV cache and computed their tokens again",
        "lower the batch or the lengths, or give the server more KV cache",
    )
    UNSTABLE_WARMUP = _suspect(
        "no two successive warm-up rounds agreed",
        "look for what else runs on the server; raise validity.warmup_agree if its noise is known",
    )
    TOO_FEW_ROUNDS = _suspect(
        "fewer rounds than the asked interval of Sys tok/s needs",
        "raise rounds.max or rounds.budget_s, or ask for less precision (rounds.rel_ci)",
    )
    DRIFT = _suspect(
        "Sys tok/s changed over the rounds by more than rounds.rel_ci",
        "look for heat, clocks or a filling cache; warm up longer",
    )
    SHARED_READS_SOME = _suspect("several token events came in one read, so their ITL is not known", _SHARED_REMEDY)
    SHARED_READS = _invalid("too many token events shared a read", _SHARED_REMEDY)
    FIRST_TOKEN_SHARED = _invalid(
        "a first token's read also held a later token, so its TTFT is not known", _SHARED_REMEDY
    )
    GROUPED_TOKENS = _suspect(
        "events held several tokens, beyond validity.grouped of them, so ITL is between events",
        "start the server with --stream-interval 1; TPOT holds where token ids or running usage tell their number",
    )
    ACCEPTANCE_UNCLEAR = _suspect(
        "tokens a step by its events and by the server's counters of accepted drafts differ by more than 1 %",
        "start the server with --stream-interval 1; if it is, the client or something between joins events",
    )
    HIDDEN_TOKENS = _suspect(
        "answers have tokens that were made and not sent (hidden reasoning): TTFT ends at the first that was sent",
        "let the server send its reasoning (reasoning_content), or turn it off",
    )
    LOWER_LIMIT = _suspect(
        "answers ended for their length with fewer tokens than they may have: the server has a lower limit, or counts "
        "tokens otherwise",
        "give the server more context, or ask for fewer tokens; if it has no such limit, its usage counts no tokens",
    )
    BUFFERED_STREAM = _invalid("whole answers came in one or two reads", _SHARED_REMEDY)
    DELAYED_STREAM = _suspect(
        "TTFT exceeds the server's own by more than 25 % and 5 ms, or tokens came in that much less time than it took "
        "to make them: a proxy or a busy front end delays the stream",
        _BETWEEN_REMEDY,
    )
    QUEUED = _suspect(
        "requests waited in the server's queue until others had ended: it runs fewer at once than the batch",
        "raise the server's limit (vLLM: --max-num-seqs), or lower the batch",
    )
    OVERLOADED = _suspect(
        "TTFT grew as long as an open load lasted: it is of the load's length, not of the server's own",
        "lower the rate; near the server's limit raise load.requests, until TTFT no longer depends on it",
    )
    SEND_SKEW = _suspect(
        "the requests of a batch were not sent together",
        "give the client a quieter core, let more processes send (loadgen.workers), or raise validity.send_skew",
    )
    LATE_SENDS = _suspect(
        "requests were sent later than scheduled (refills of a closed load, arrivals of an open one)",
        "give the client a quieter core, or lower the load",
    )
    RESENT = _suspect(
        "requests were sent again, since the server closed their idle connection: their TTFT holds both sends",
        "raise its keep-alive timeout (vLLM: VLLM_HTTP_TIMEOUT_KEEP_ALIVE), or look for what drops connections",
    )
    CLIENT_LAG = _suspect(
        "the client read tokens late, measured against the gaps between them",
        "give the client a quieter core, or lower the batch",
    )
    CLOCK_STEP = _invalid(
        "the wall clock stepped against the monotonic clock during a round",
        "let the clock settle (chrony, ntpd), then measure again",
    )
    STOLEN_CPU = _suspect(
        "the hypervisor gave a CPU of this host to others for more than 2 % of the rounds",
        "use a host whose CPUs are its own (no shared or burstable instance), or measure at a quieter time",
    )
    CLOCKS_APART = _suspect(
        "the clocks of the hosts that sent are not known to 0.1 % of the window of Sys tok/s",
        "measure longer rounds, let one service set the hosts' clocks (chrony, PTP), or send from one host",
    )
    USER_STAMPS = _suspect(
        "no kernel receive stamps on this platform: times are taken after the read", "run the client on Linux"
    )
    SHORT_WINDOW = _suspect(
        "fewer than 2 x batch requests are of the steady state; with less than 4 x batch figures are of the whole run",
        "raise load.requests to 5 x batch, the default, or where answers differ much in length to 10 x batch",
    )
    THROTTLED = _suspect(
        "a GPU was slowed by heat, a hardware slowdown or a power brake during a round (its power cap is no reason)",
        "cool it; look at its fans, its power supply and what the host's own limits are",
    )
    GPU_IN_USE = _suspect(
        "a GPU was computing for somebody else when the engine was started",
        "end what runs there (nvidia-smi, amd-smi process), or choose other GPUs (engine.env)",
    )
    STRAGGLER = _suspect(
        "one GPU clocked lower than its peers by more than validity.straggler",
        "look at its temperature, clocks and links",
    )
    UNEVEN_REPLICAS = _suspect(
        "one of several servers was slower than the others by more than 25 %, in TTFT or TPOT",
        "look at its hardware, its flags and what else it serves; bench table RUN --by-replica shows each server",
    )
    FASTER_THAN_HARDWARE = _invalid(
        "the numbers are beyond what the hardware's bandwidth and compute allow",
        "look for cached prefixes, wrong lengths, several tokens a pass (`speculative`), or wrong hardware facts",
    )
    FASTER_THAN_LIKELY = _suspect(
        "Sys tok/s is more than the hardware allows if requests choose their experts evenly",
        "look for equal prompts, cached prefixes, several tokens a pass (`speculative`), or wrong hardware facts",
    )
    IMPORTED = _suspect(
        "another tool measured it, so that none of these checks was made",
        "measure the cell with bench sweep; docs/imports.md says which numbers can be set side by side",
    )

    def __init__(self, status: Status, meaning: str, remedy: str) -> None:
        self.code = self.name.lower().removesuffix("_some")  # two degrees of one reason have one code
        self.status, self.meaning, self.remedy = status, meaning, remedy


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
    if reason.remedy != _SHARED_REMEDY:
        return reason.remedy
    if _beyond(evidence.lag_p99_s, budgets.client_lag, evidence.gap_s):
        return f"the client read late: {_CLIENT_REMEDY}"
    if _long_wait(evidence.outside_s, evidence.ttft_s):
        return f"the client read in time and TTFT grew on the way: {_BETWEEN_REMEDY}"
    return f"the client read in time, so the server or something between sent tokens together: {_BETWEEN_REMEDY}"


def _client(evidence: Evidence, budgets: Validity) -> dict[Reason, bool]:
    share = evidence.shared_events / evidence.events if evidence.events else 0.0
    return {
        Reason.SHARED_READS_SOME: budgets.shared_suspect < share <= budgets.shared_invalid,
        Reason.SHARED_READS: share > budgets.shared_invalid,
        Reason.FIRST_TOKEN_SHARED: evidence.first_shared > 0,
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


def _beyond(seconds: float, share: float, of_s: float | None) -> bool:
    """Whether a delay of ours is more than a share of what it disturbs; below a millisecond it never is."""
    return of_s is not None and seconds > max(share * of_s, FLOOR_S)


def worst(statuses: Iterable[Status]) -> Status:
    """The worst of them: invalid, then suspect, then valid (also of none)."""
    have = set(statuses)
    return "invalid" if "invalid" in have else "suspect" if "suspect" in have else "valid"
