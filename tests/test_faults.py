"""Servers that misbehave in each way we know, swept over HTTP: the status, the reasons, and no wrong number printed.

Every entry is one fault; what it must lead to is exact. The cell of a fault that spoils numbers is invalid and in no
table; what only makes them doubtful marks them; what is only unusual leaves them valid, and then they equal what the
simulator says of itself at GET /truth. Budgets for the client's own lateness are loose, since the machine that runs
the tests may be busy (`faulty.SWEEP`).
"""

from __future__ import annotations

import re
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from faulty import (
    LOOSE,
    STEPS,
    Carried,
    Fault,
    as_one_of_two,
    assert_honest,
    behind_a_buffer,
    behind_a_relay,
    carry_out,
    restarted,
    shared_with_another,
)
from test_stream_forms import FORMS

from benchbench.spec.schema import Validity
from benchbench.store.run_directory import RunDirectory

README = Path(__file__).parents[1] / "README.md"
SERVED = {"output": "as_served"}
CHAT = {"engine": {"api": "chat"}, "prompts": {"kind": "text", "vocab": None}}
FOUR = {"grid": {"batch": 4}}
EIGHT = {"grid": {"batch": 8, "output": 12}}
WARM = {"warmup": "auto"}
LONG = {"mean_output_tokens": 1e6}  # as_served: answers end at max_tokens all the same


def faults(**these: Any) -> dict[str, Any]:
    return {"faults": these}


def fails_as(*kinds: str) -> Any:
    """Asserts that the failed requests are of these kinds, and that nothing was asked twice."""

    def check(carried: Carried) -> None:
        failed = [record for record in carried.records if record["status"] == "failed"]
        assert {record["error_kind"] for record in failed} == set(kinds)
        assert carried.row["failed"] == len(failed) > 0
        assert {record["resent"] for record in carried.records} == {0}

    return check


def refused_for_good(carried: Carried) -> None:
    """Retry-After or not: a refused request is a failed record, and it is not sent again."""
    fails_as("status")(carried)
    statuses = Counter(record["http_status"] for record in carried.records)
    assert statuses.keys() == {200, 429}
    assert carried.posts == len(carried.records) == 4


def warm_up_took_it(carried: Carried) -> None:
    assert carried.row["warmup_rounds"] == 3  # a slow one, and two that agree
    assert abs(carried.row["ttft_ms"] - 50) < 5, "the fault's time is in the number"
    assert abs(carried.row["tpot_ms"] - 20) < 5


def stalls_show(carried: Carried) -> None:
    assert carried.row["itl_ms_p50"] < 30
    assert carried.row["itl_ms_p99"] > 100


def clock_step(path: Path) -> None:
    """As if the wall clock had been set by 2 ms while the only round ran."""
    change_fact(path, "clock_step_ns", 2_000_000)


def stolen_cpu(path: Path) -> None:
    """As if a hypervisor had let a CPU of ours wait for 10 s while the only round ran."""
    change_fact(path, "stolen_ns", 10_000_000_000)


def change_fact(path: Path, name: str, value: int) -> None:
    run = RunDirectory.existing(path)
    (cell,) = (entry["key"] for entry in run.manifest()["plan"])
    table = run.read_round(cell, "measured", 0)
    facts = table.schema.metadata[b"benchbench"]
    changed = re.sub(rf'"{name}":\s*\d+'.encode(), f'"{name}":{value}'.encode(), facts)
    assert changed != facts
    run.write_round(table.replace_schema_metadata({b"benchbench": changed}), cell, "measured", 0)


PREEMPTING = {"law": STEPS, "max_model_len": 128, "kv_tokens": 128}
CACHING = {"law": STEPS, "prefix_cache": True}
INPUT_64 = {"grid": {"input": 64}}

FAULTS: dict[str, Fault] = {
    # What the server says of itself.
    "cached prefixes, as usage says": Fault("invalid", "cached_prefix", faults(cached_tokens=16)),
    "cached prefixes, as only /metrics says": Fault("invalid", "cached_prefix", CACHING, INPUT_64, runs=2),
    "cached prefixes, as both say": Fault(
        "invalid", "cached_prefix", {**CACHING, "report_cached": True}, INPUT_64, runs=2
    ),
    "cached prefixes, reset before each round": Fault(
        "valid", "", CACHING, {**INPUT_64, "rounds": {"reset_prefix_cache": True}}, runs=2
    ),
    "usage says more output": Fault(
        "invalid", "output_length;server_count_mismatch", faults(wrong_usage={"completion_tokens": 1})
    ),
    "usage says more output, and no ids": Fault(
        "invalid",
        "output_length;grouped_tokens",  # longer than asked for: a failure, of which /metrics is not asked
        {**LONG, **faults(wrong_usage={"completion_tokens": 3})},
        SERVED,
    ),
    "usage says less output, and no ids": Fault(
        "invalid", "server_count_mismatch", {**LONG, **faults(wrong_usage={"completion_tokens": -1})}, SERVED
    ),
    "usage says more input": Fault(
        "invalid", "input_length;server_count_mismatch", faults(wrong_usage={"prompt_tokens": 2})
    ),
    "usage says less input": Fault("invalid", "input_length", faults(wrong_usage={"prompt_tokens": -2})),
    "no usage": Fault("suspect", "input_unverified", faults(missing_usage=True)),
    "no usage and no ids": Fault(
        "suspect", "input_unverified;output_unverified", {**LONG, **faults(missing_usage=True)}, SERVED
    ),
    # Only the server's own counters tell that events held more tokens than one.
    "no usage, no ids, several tokens per event": Fault(
        "invalid",
        "input_unverified;output_unverified;foreign_load;lower_limit",
        {**LONG, "tokens_per_event": 3, **faults(missing_usage=True)},
        SERVED,
    ),
    # Lengths.
    "short outputs": Fault(
        "invalid", "output_length", faults(short_output={"share": 0.5}), FOUR, also=fails_as("short_output")
    ),
    "long outputs": Fault(
        "invalid",
        "output_length",
        faults(short_output={"share": 0.5, "tokens": -2}),
        FOUR,
        also=fails_as("long_output"),
    ),
    # Who else is there.
    "a second client": Fault("invalid", "foreign_load", through=shared_with_another),
    "preemption": Fault("invalid", "preempted", PREEMPTING, {"grid": {"input": 16, "output": 20, "batch": 4}}),
    "two replicas behind one address": Fault("suspect", "replicas", through=as_one_of_two),
    "a restart between two rounds": Fault(
        "suspect", "replicas", changes={"rounds": {"min": 2, "max": 2, "rel_ci": 0.99}}, through=restarted
    ),
    "fewer at once than the batch": Fault("suspect", "queued", {"law": STEPS, "max_num_seqs": 2}, EIGHT),
    # The queue of prompts before one's own is what a batch is, and no reason.
    "one prompt in a step": Fault("valid", "", {"law": STEPS, "max_num_batched_tokens": 24}, EIGHT),
    # Pace.
    # Every answer stalls at the same tokens: true numbers, which another round would repeat.
    "stalls, the same in each round": Fault("valid", "", faults(stall={"every": 3, "for_s": 0.1}), also=stalls_show),
    # The engine stalls whoever is there: true numbers of just these rounds, others would give another mean.
    "stalls, in some rounds": Fault(
        "suspect",
        "too_few_rounds",
        {"law": STEPS, **faults(stall={"every": 12, "for_s": 0.1})},
        {"grid": {"output": 8}, "rounds": {"min": 3, "max": 3, "rel_ci": 0.05}},
    ),
    "drift of 1 % per round": Fault(
        "suspect", "drift", faults(drift=0.01), {"rounds": {"min": 12, "max": 12, "rel_ci": 0.05}}
    ),
    "a slow first round": Fault(
        "valid",
        "",
        faults(slow_first={"count": 1, "factor": 3.0}),
        {"rounds": WARM, "validity": {"warmup_agree": 0.25}},
        also=warm_up_took_it,
    ),
    # Two slow rounds agree, so that warm-up ends too soon; then the rounds do not.
    "slow first rounds that agree": Fault(
        "suspect",
        "too_few_rounds",
        faults(slow_first={"count": 3, "factor": 2.0}),
        {"rounds": {**WARM, "min": 3, "max": 3, "rel_ci": 0.05}, "validity": {"warmup_agree": 0.25}},
    ),
    "a warm-up that is never stable": Fault(
        "suspect",
        "unstable_warmup",
        {"law": {"kind": "fixed", "ttft_s": 0.03, "itl_s": 0.02}, **faults(drift=0.3)},
        {"grid": {"output": 3}, "rounds": WARM},
    ),
    "a step of the clock": Fault("invalid", "clock_step", tamper=clock_step),
    "a hypervisor that gives our CPU to others": Fault("suspect", "stolen_cpu", tamper=stolen_cpu),
    # Requests that break.
    "1 % resets": Fault(
        "invalid",
        "request_failed",
        {"seed": 3, **faults(reset_share=0.01)},
        {"grid": {"output": 4, "batch": 16}, "load": {"kind": "closed", "requests": 80}},
        also=fails_as("stream"),
    ),
    "streams that are cut": Fault(
        "invalid", "request_failed", {"seed": 4, **faults(cut_share=0.5)}, FOUR, also=fails_as("stream")
    ),
    "errors in the stream": Fault(
        "invalid", "request_failed", faults(error_in_stream_share=0.5), FOUR, also=fails_as("stream")
    ),
    "ids outside the vocabulary": Fault(
        "invalid", "request_failed", changes={"prompts": {"vocab": [250_000, 260_000]}}, also=fails_as("stream")
    ),
    "429 with Retry-After": Fault(
        "invalid",
        "request_failed",
        faults(status={"code": 429, "share": 0.5, "retry_after": 1}),
        FOUR,
        through=behind_a_relay,
        also=refused_for_good,
    ),
    "503": Fault(
        "invalid", "request_failed", faults(status={"code": 503, "share": 0.5}), FOUR, also=fails_as("status")
    ),
    "silence after the headers": Fault(
        "invalid",
        "request_failed",
        faults(silence_share=0.5),
        {**FOUR, "timeouts": {"first_token_s": 0.4}},
        also=fails_as("timeout"),
    ),
    "a stall beyond stall_s": Fault(
        "invalid",
        "request_failed",
        faults(stall={"every": 4, "for_s": 30.0}),
        {"timeouts": {"stall_s": 0.4}},
        also=fails_as("stall"),
    ),
    # Forms of a stream.
    "several tokens per event": Fault("suspect", "grouped_tokens", {"tokens_per_event": 3}),
    "an answer that starts with reasoning": Fault("valid", "", faults(reasoning_start=3), CHAT),
    "only reasoning": Fault("valid", "", faults(reasoning_start=6), CHAT),
    "a role-only chunk long before the first token": Fault("valid", "", faults(role_early=True), CHAT),
    "empty texts": Fault("valid", "", {**LONG, "empty_text": True}, SERVED),
    "usage in the last choice, no [DONE]": Fault("valid", "", {"usage_in_last_choice": True, "send_done": False}),
    "keep-alive comments": Fault("valid", "", {"keep_alive_s": 0.01}),
    "a connection closed after each answer": Fault(
        "valid", "", {"close_after_response": True}, {"rounds": {"min": 2, "max": 2, "rel_ci": 0.99}}
    ),
    "a buffering proxy": Fault(
        "invalid",
        "shared_reads;first_token_shared;buffered_stream;delayed_stream",
        changes={"validity": {"shared_invalid": 0.1, "shared_suspect": 0.01}},
        through=behind_a_buffer,
    ),
}


@pytest.mark.parametrize("validity", [LOOSE, Validity().model_dump()], ids=["loose", "default"])
def test_without_a_fault_the_cell_is_valid(validity: dict[str, Any], tmp_path: Path) -> None:
    carried = carry_out(Fault("valid", "", changes={"validity": validity}), tmp_path)
    assert (carried.row["status"], carried.row["reasons"]) == ("valid", "")
    assert_honest(carried)


@pytest.mark.parametrize("fault", FAULTS.values(), ids=FAULTS.keys())
def test_a_fault_is_found_and_spoils_no_table(fault: Fault, tmp_path: Path) -> None:
    carried = carry_out(fault, tmp_path)
    assert (carried.row["status"], carried.row["reasons"]) == (fault.status, fault.reasons)
    assert_honest(carried)
    if fault.also:
        fault.also(carried)


def test_the_readme_counts_the_faults() -> None:
    (number,) = re.findall(r"(\d+)\s+faults", README.read_text(encoding="utf-8"))
    assert int(number) == len(FAULTS) + len(FORMS)
