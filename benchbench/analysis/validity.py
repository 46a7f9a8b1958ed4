"""Whether a cell's numbers can be trusted. One pure function: what was seen -> status and reasons."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from enum import Enum
from typing import Literal

Status = Literal["valid", "suspect", "invalid"]


class Reason(Enum):
    """code, status it forces, what it means, what to do about it."""

    NO_DATA = "no_data", "invalid", "no round was finished", "run the sweep again with --resume"
    REQUEST_FAILED = (
        "request_failed",
        "invalid",
        "requests failed",
        "read error_kind and error_detail in records/; fix the server or lower the load",
    )
    INPUT_LENGTH = (
        "input_length",
        "invalid",
        "the server counted other input tokens than asked",
        "send token ids, or name the tokenizer",
    )
    INPUT_INEXACT = (
        "input_inexact",
        "suspect",
        "text prompts: the server's count of input tokens differs from the asked",
        "send token ids (prompts.kind: token_ids)",
    )
    INPUT_UNVERIFIED = (
        "input_unverified",
        "suspect",
        "the server does not report input tokens",
        "use a server that answers stream_options.include_usage",
    )
    OUTPUT_UNVERIFIED = (
        "output_unverified",
        "suspect",
        "the server reports neither usage nor token ids: events were counted as tokens",
        "use a server that answers stream_options.include_usage",
    )
    CACHED_PREFIX = (
        "cached_prefix",
        "invalid",
        "prompt tokens came from the prefix cache",
        "change seed, or turn the server's prefix cache off",
    )
    SHARED_READS_SOME = (
        "shared_reads",
        "suspect",
        "several token events came in one read, so their ITL is not known",
        "give the client a quieter core, or lower the batch",
    )
    SHARED_READS = (
        "shared_reads",
        "invalid",
        "too many token events shared a read",
        "give the client a quieter core, or lower the batch",
    )
    FIRST_TOKEN_SHARED = (
        "first_token_shared",
        "invalid",
        "a first token's read also held a later token, so its TTFT is not known",
        "give the client a quieter core, or lower the batch",
    )
    BUFFERED_STREAM = (
        "buffered_stream",
        "invalid",
        "whole answers came in one or two reads: something between buffers the stream",
        "turn the proxy's response buffering off, or attach to the server itself",
    )
    CLOCK_STEP = (
        "clock_step",
        "invalid",
        "the wall clock stepped against the monotonic clock during a round",
        "let the clock settle (chrony, ntpd), then measure again",
    )
    USER_STAMPS = (
        "user_stamps",
        "suspect",
        "no kernel receive stamps on this platform: times are taken after the read",
        "run the client on Linux",
    )
    SHORT_WINDOW = (
        "short_window",
        "suspect",
        "a closed load of fewer than 4 x batch requests: Sys tok/s holds the cold wave or is of the whole round",
        "raise load.requests to 4 x batch or more",
    )
    TOO_FEW_ROUNDS = (
        "too_few_rounds",
        "suspect",
        "fewer rounds were finished than rounds.min",
        "continue with --resume",
    )

    def __init__(self, code: str, status: Status, meaning: str, remedy: str) -> None:
        self.code, self.status, self.meaning, self.remedy = code, status, meaning, remedy


@dataclass(frozen=True, slots=True)
class Seen:
    """What a cell's measured rounds showed, summed or at their worst."""

    rounds: int
    rounds_asked: int
    requests: int
    failed: int
    events: int
    shared_events: int
    first_shared: int
    buffered: int
    cached_tokens: int
    input_wrong: int  # requests whose reported input differs from the asked
    input_unknown: int
    output_unknown: int
    token_ids: bool  # prompts were token ids, exact by construction
    clock_step_ns: int
    kernel_stamps: bool
    windowed: bool


@dataclass(frozen=True, slots=True)
class Budgets:
    """How much is tolerated: shares of token events, tokens, ns."""

    shared_suspect: float = 0.01
    shared_invalid: float = 0.10
    cached_tokens: int = 0
    clock_step_ns: int = 1_000_000


def judge(seen: Seen, budgets: Budgets) -> tuple[Status, tuple[Reason, ...]]:
    """The cell's status, the worst of its reasons', and the reasons in the enum's order."""
    share = seen.shared_events / seen.events if seen.events else 0.0
    found = {
        Reason.NO_DATA: seen.rounds == 0,
        Reason.REQUEST_FAILED: seen.failed > 0,
        Reason.INPUT_LENGTH: seen.input_wrong > 0 and seen.token_ids,
        Reason.INPUT_INEXACT: seen.input_wrong > 0 and not seen.token_ids,
        Reason.INPUT_UNVERIFIED: seen.input_unknown > 0,
        Reason.OUTPUT_UNVERIFIED: seen.output_unknown > 0,
        Reason.CACHED_PREFIX: seen.cached_tokens > budgets.cached_tokens,
        Reason.SHARED_READS_SOME: budgets.shared_suspect < share <= budgets.shared_invalid,
        Reason.SHARED_READS: share > budgets.shared_invalid,
        Reason.FIRST_TOKEN_SHARED: seen.first_shared > 0,
        Reason.BUFFERED_STREAM: seen.buffered * 2 > seen.requests - seen.failed > 0,
        Reason.CLOCK_STEP: seen.clock_step_ns > budgets.clock_step_ns,
        Reason.USER_STAMPS: not seen.kernel_stamps,
        Reason.SHORT_WINDOW: not seen.windowed,
        Reason.TOO_FEW_ROUNDS: 0 < seen.rounds < seen.rounds_asked,
    }
    reasons = tuple(reason for reason in Reason if found[reason])
    return worst(reason.status for reason in reasons), reasons


def worst(statuses: Iterable[Status]) -> Status:
    """The worst of them: invalid, then suspect, then valid (also of none)."""
    have = set(statuses)
    return "invalid" if "invalid" in have else "suspect" if "suspect" in have else "valid"
