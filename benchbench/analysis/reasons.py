"""What may be wrong with a cell's numbers: each reason with the status that it forces, its meaning and its remedy."""

from __future__ import annotations

from collections.abc import Iterable
from enum import Enum
from typing import Literal

Status = Literal["valid", "suspect", "invalid"]


CLIENT_REMEDY = "give the client a quieter core, or lower the batch"
BETWEEN_REMEDY = (
    "attach to the server itself, or let proxies pass small chunks on at once (HAProxy: option http-no-delay; nginx: "
    "proxy_buffering off)"
)
SHARED_REMEDY = f"if the client's lag is large, {CLIENT_REMEDY}; if it is small, {BETWEEN_REMEDY}"


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
        "the server counted another number of input tokens than asked",
        "send token ids, or name the tokenizer (prompts.tokenizer)",
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
        "restarted, with unknown flags",
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
        "answers name another model than was asked for, and the server's list does not say that both are the same",
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
        "the server does not report cached tokens, so that the asked hits cannot be checked",
        "let it report them (vLLM: --enable-prompt-tokens-details), or measure without prompts.shared",
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
    SHARED_READS_SOME = _suspect("several token events came in one read, so their ITL is not known", SHARED_REMEDY)
    SHARED_READS = _invalid("too many token events shared a read", SHARED_REMEDY)
    FIRST_TOKEN_SHARED_SOME = _suspect(
        "up to 1 % of the first tokens came in one read with later ones: mean TTFT is up to 1 % too long for that",
        SHARED_REMEDY,
    )
    FIRST_TOKEN_SHARED = _invalid("first tokens' reads also held later tokens, so TTFT is not known", SHARED_REMEDY)
    GROUPED_TOKENS = _suspect(
        "events held several tokens, beyond validity.grouped of them, so ITL is between events",
        "start the server with --stream-interval 1; TPOT holds where token ids or running usage tell their number",
    )
    ACCEPTANCE_UNCLEAR = _suspect(
        "tokens per step by its events and by the server's counters of accepted drafts differ by more than 1 %",
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
    BUFFERED_STREAM = _invalid("whole answers came in one or two reads, or in one event", SHARED_REMEDY)
    DELAYED_STREAM = _suspect(
        "TTFT exceeds the server's own by more than 25 % and 5 ms, or tokens came in that much less time than it took "
        "to make them: a proxy or a busy front end delays the stream",
        BETWEEN_REMEDY,
    )
    QUEUED = _suspect(
        "requests waited in the server's queue until others had ended: it runs fewer at once than the batch",
        "raise the server's limit (vLLM: --max-num-seqs), or lower the batch",
    )
    OVERLOADED = _suspect(
        "TTFT grew as long as the open load lasted: it depends on the load's length, not on the server alone",
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
        "requests were sent again, by us since the server closed their idle connection, or by a gateway: their TTFT "
        "holds all sends",
        "raise its keep-alive timeout (vLLM: VLLM_HTTP_TIMEOUT_KEEP_ALIVE), or look for what drops connections and why "
        "a gateway asks again",
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
        "a GPU was slowed by heat, a hardware slowdown or a power brake during a round (its power cap does not count)",
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


def worst(statuses: Iterable[Status]) -> Status:
    """The worst of them: invalid, then suspect, then valid (also of none)."""
    have = set(statuses)
    return "invalid" if "invalid" in have else "suspect" if "suspect" in have else "valid"
