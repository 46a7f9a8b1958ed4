"""Which facts make a cell suspect or invalid. `python tests/test_validity.py` writes the page that lists them."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchbench.analysis.reasons import Reason, Status, worst
from benchbench.analysis.server_times import ServerTimes
from benchbench.analysis.validity import Evidence, remedy, status_of
from benchbench.model.served import caption_of
from benchbench.prefixes.hits import Hits
from benchbench.queueing.backlog import grew_s
from benchbench.queueing.places import Places, places_of, typical
from benchbench.replicas.server_figures import ByServer
from benchbench.spec import Validity, spec_from_mapping
from benchbench.speculation.acceptance import Acceptance

PAGE = Path(__file__).parents[1] / "docs" / "validity.md"
DRAFTS = Acceptance(
    rate=0.5, length=2.5, tokens_per_step=2.2, server_tokens_per_step=2.2, agrees=True, rates=(), positions=()
)
GOOD = Evidence(
    rounds=5, rounds_needed=5, requests=160, failed=0, wrong_length=0, tokens=1000, events=1000, shared_events=10,
    first_shared=0, buffered=80, grouped=10, cached_tokens=3,
    input_wrong=0, input_unknown=0, output_unknown=0, usage_wrong=0,
    clock_step_ns=1_000_000, stolen_ns=40_000_000, wall_ns=2_000_000_000,
    kernel_stamps=True, windowed=True, ttft_s=0.1, itl_s=0.01, send_skew_s=0.025,
    late_p99_s=0.025, lag_p99_s=0.005, drift=False, drift_confirmed=False, warmup_agreed=True,
    foreign_tokens=7, missing_tokens=0, preemptions=2, prefix_hits=3, common_tokens=1,
    in_flight=32, outside_s=0.025, places=Places(0.075, 3.6049, 32, alike=True), gap_s=0.01,
    server=ServerTimes("metrics", 160, 0.1, 0.025_001, None, 0.025),
)  # fmt: skip
BUDGETS = Validity(cached_tokens=2, preemptions=2, foreign_tokens=7)
CHANGES: dict[Reason, dict[str, Any]] = {
    Reason.NO_DATA: {"rounds": 0},
    Reason.REQUEST_FAILED: {"failed": 1, "requests": 161},
    Reason.OUTPUT_LENGTH: {"wrong_length": 1, "requests": 161},
    Reason.INPUT_LENGTH: {"input_wrong": 1},
    Reason.INPUT_APPROXIMATE: {"input_about": 1},
    Reason.INPUT_UNVERIFIED: {"input_unknown": 1},
    Reason.OUTPUT_UNVERIFIED: {"output_unknown": 1},
    Reason.SERVER_COUNT_MISMATCH: {"usage_wrong": 1},
    Reason.FOREIGN_LOAD: {"foreign_tokens": 8},
    Reason.REPLICAS: {"replicas": True},
    Reason.UNCHECKED: {"unchecked": 1},
    Reason.MIXED_ENGINES: {"engines": 2},
    Reason.OTHER_MODEL: {"other_models": ("m-small",)},
    Reason.CACHED_PREFIX: {"cached_tokens": 4},
    Reason.HIT_RATE: {"hits": Hits(100, 64, 6400, wrong_tokens=65)},
    Reason.HIT_RATE_UNKNOWN: {"hits": Hits(100, 64, 6400, wrong_tokens=65, unknown=1)},
    Reason.PREEMPTED: {"preemptions": 3},
    Reason.UNSTABLE_WARMUP: {"warmup_agreed": False},
    Reason.TOO_FEW_ROUNDS: {"rounds": 4},
    Reason.DRIFT: {"drift": True},
    Reason.SHARED_READS_SOME: {"shared_events": 11},
    Reason.SHARED_READS: {"shared_events": 101},
    Reason.FIRST_TOKEN_SHARED_SOME: {"first_shared": 1, "first_later": 16},
    Reason.FIRST_TOKEN_SHARED: {"first_shared": 2, "first_later": 2},
    Reason.GROUPED_TOKENS: {"grouped": 11},
    Reason.ACCEPTANCE_UNCLEAR: {"acceptance": replace(DRAFTS, agrees=False)},
    Reason.HIDDEN_TOKENS: {"hidden": 1},
    Reason.LOWER_LIMIT: {"below_limit": 1},
    Reason.BUFFERED_STREAM: {"buffered": 81},
    Reason.DELAYED_STREAM: {"outside_s": 0.025_001},
    Reason.QUEUED: {"places": Places(0.075, 3.605, 32, alike=True)},
    Reason.OVERLOADED: {"ttft_grew_s": 0.025_001},
    Reason.SEND_SKEW: {"send_skew_s": 0.025_001},
    Reason.LATE_SENDS: {"late_p99_s": 0.025_001},
    Reason.RESENT: {"resent": 1},
    Reason.CLIENT_LAG: {"lag_p99_s": 0.005_001},
    Reason.CLOCK_STEP: {"clock_step_ns": 1_000_001},
    Reason.STOLEN_CPU: {"stolen_ns": 40_000_001},
    Reason.CLOCKS_APART: {"clock_share": 0.0011},
    Reason.USER_STAMPS: {"kernel_stamps": False},
    Reason.SHORT_WINDOW: {"windowed": False},
    Reason.THROTTLED: {"throttled": ("gpu1: thermal",)},
    Reason.GPU_IN_USE: {"in_use": ("gpu1: 97%",)},
    Reason.STRAGGLER: {"straggler": ("gpu1: 1500 MHz",)},
    Reason.UNEVEN_REPLICAS: {"by_server": ByServer(apart=((1, "its TTFT is 2.00 x the others'"),))},
    Reason.FASTER_THAN_HARDWARE: {"too_fast": ("mean TTFT",)},
    Reason.FASTER_THAN_LIKELY: {"unlikely": ("Sys tok/s",)},
}
# Second causes of a reason: the same fact, told by another.
OTHER_CAUSES: list[tuple[Reason, dict[str, Any]]] = [
    (Reason.FIRST_TOKEN_SHARED, {"first_shared": 1, "first_later": 17}),
    (Reason.SERVER_COUNT_MISMATCH, {"missing_tokens": 1}),
    (Reason.CACHED_PREFIX, {"prefix_hits": 4}),
    (Reason.TOO_FEW_ROUNDS, {"rounds_needed": 6}),
]
# Two reasons about one number: the later change takes the earlier's place.
RIVALS = [
    {Reason.NO_DATA, Reason.TOO_FEW_ROUNDS},
    {Reason.NO_DATA, Reason.UNSTABLE_WARMUP},
    {Reason.SHARED_READS, Reason.SHARED_READS_SOME},
    {Reason.FIRST_TOKEN_SHARED, Reason.FIRST_TOKEN_SHARED_SOME},
    {Reason.REQUEST_FAILED, Reason.OUTPUT_LENGTH, Reason.BUFFERED_STREAM},
    {Reason.CACHED_PREFIX, Reason.HIT_RATE, Reason.HIT_RATE_UNKNOWN},
]


def test_at_its_budgets_a_cell_is_valid() -> None:
    assert status_of(GOOD, BUDGETS) == ("valid", ())
    assert status_of(replace(GOOD, shared_events=100), BUDGETS)[0] == "suspect"
    assert status_of(replace(GOOD, shared_events=0, grouped=0, events=0), BUDGETS) == ("valid", ())
    steps = replace(GOOD, grouped=900, acceptance=DRAFTS)  # each event is one step, so ITL is what it says
    assert status_of(steps, BUDGETS) == ("valid", ())
    untold = replace(GOOD, grouped=900, acceptance=replace(DRAFTS, agrees=None))
    assert status_of(untold, BUDGETS)[1] == (Reason.GROUPED_TOKENS,)


@pytest.mark.parametrize(("reason", "change"), [*CHANGES.items(), *OTHER_CAUSES], ids=str)
def test_each_reason_by_its_smallest_cause_alone(reason: Reason, change: dict[str, Any]) -> None:
    assert status_of(replace(GOOD, **change), BUDGETS) == (reason.status, (reason,))


def test_every_reason_has_its_cause_here() -> None:
    assert [*CHANGES, Reason.IMPORTED] == list(Reason)  # of rows that are not judged


def test_what_is_not_known_is_not_judged() -> None:
    unknown = dict.fromkeys(("foreign_tokens", "missing_tokens", "preemptions", "prefix_hits", "warmup_agreed"))
    assert status_of(replace(GOOD, **unknown), BUDGETS) == ("valid", ())
    nothing_received = {"ttft_s": None, "itl_s": None, "send_skew_s": 9.0, "late_p99_s": 9.0, "lag_p99_s": 9.0}
    assert status_of(replace(GOOD, **nothing_received), BUDGETS) == ("valid", ())


def test_delays_below_a_millisecond_disturb_nothing() -> None:
    quick = replace(
        GOOD, outside_s=None, ttft_s=0.001, itl_s=1e-4, send_skew_s=0.001, late_p99_s=0.001, lag_p99_s=0.001
    )
    assert status_of(quick, BUDGETS) == ("valid", ())
    late = replace(quick, send_skew_s=0.001_1, late_p99_s=0.001_1, lag_p99_s=0.001_1)
    assert status_of(late, BUDGETS) == ("suspect", (Reason.SEND_SKEW, Reason.LATE_SENDS, Reason.CLIENT_LAG))


@given(st.sets(st.sampled_from(list(CHANGES))))
def test_reasons_add_up_and_the_worst_decides(reasons: set[Reason]) -> None:
    for rivals in RIVALS:
        for extra in sorted(rivals & reasons, key=lambda reason: reason.name)[1:]:
            reasons.remove(extra)
    changes: dict[str, Any] = {}
    for reason in reasons:
        changes |= CHANGES[reason]
    status, found = status_of(replace(GOOD, **changes), BUDGETS)
    assert found == tuple(reason for reason in Reason if reason in reasons)
    assert status == worst(reason.status for reason in reasons)


def test_waits_of_less_than_five_milliseconds_or_a_quarter_of_ttft_are_no_reason() -> None:
    short = replace(GOOD, ttft_s=0.01, send_skew_s=0.0, late_p99_s=0.0, outside_s=0.005)
    assert status_of(short, BUDGETS) == ("valid", ())
    assert status_of(replace(short, outside_s=0.005_1), BUDGETS)[1] == (Reason.DELAYED_STREAM,)
    waited = ServerTimes("metrics", 160, 0.1, 0.025, None, 0.0)
    late = Places(0.075, 9.0, 32, alike=True)
    assert status_of(replace(GOOD, places=late, server=waited), BUDGETS) == ("valid", ())
    for change in ({"in_flight": None}, {"server": None}, {"server": replace(waited, queue_s=None)}):
        assert status_of(replace(GOOD, places=late, **change), BUDGETS) == ("valid", ())  # an open load, or unknown


def test_where_a_server_tells_no_times_a_batch_that_never_flowed_together_is_queued() -> None:
    """Two places for four requests of 8 tokens of 30 ms; then prompts of 100 ms one by one, which is no queue."""
    first = np.array([30, 32, 272, 274]) * 1_000_000
    prompts = np.full(4, 16)
    short = places_of(first, first + 210_000_000, first / 1e9, prompts, shared=False)
    assert short == Places(0.03, 0.274, 2, alike=True)
    first = np.array([100, 200, 300, 400]) * 1_000_000
    prefill = places_of(first, first + 20_000_000, first / 1e9, prompts, shared=False)
    other = places_of(first, first + 20_000_000, first / 1e9, np.array([16, 16, 16, 32]), shared=False)
    assert not (other and other.alike)
    untold = replace(GOOD, in_flight=4, server=None)
    queued = [status_of(replace(untold, places=places), BUDGETS)[1] == (Reason.QUEUED,) for places in (short, prefill)]
    assert queued == [True, False]
    for places in (short._replace(alike=False), short._replace(most=4), typical([short, short._replace(most=4)]), None):
        assert status_of(replace(untold, places=places), BUDGETS) == ("valid", ())


def test_a_loosened_check_is_told_below_the_table() -> None:
    """A number that is only valid since its sweep asks for less must not look like any other."""
    engine = {"kind": "endpoint", "url": "http://127.0.0.1:1"}
    sweep = {"name": "t", "model": "m", "engine": engine, "grid": {"input": 1, "output": 1, "batch": 1}}
    budgets = {"shared_invalid": 1, "preemptions": 5, "grouped": 0.001, "send_skew": 0.25}
    told = "Checks were loosened: shared_invalid 1 (default 0.1), preemptions 5 (default 0)."
    assert caption_of(spec_from_mapping({**sweep, "validity": budgets})) == [told]
    assert caption_of(spec_from_mapping(sweep)) == []


@pytest.mark.parametrize(("load", "grows"), [(0.3, False), (0.7, False), (1.5, True), (3.0, True)])
def test_an_open_load_beyond_what_the_server_serves_is_overloaded(load: float, grows: bool) -> None:
    """One server of 0.1 s a request, arrivals by chance at `load` times what it serves."""
    chance = np.random.default_rng(7)

    def ttft_s() -> npt.NDArray[np.float64]:
        arrivals, free, waits = np.cumsum(chance.exponential(0.1 / load, 100)), 0.0, []
        for arrival in arrivals:
            free = max(free, arrival) + 0.1
            waits.append(free - arrival)
        return np.array(waits)

    cells = [grew_s([ttft_s() for _ in range(5)]) for _ in range(20)]
    assert sum(grew > 0 for grew in cells) >= 19 if grows else sum(grew > 0 for grew in cells) <= 2
    rounds = [np.arange(12) / 10.0] * 2
    assert grew_s(rounds) == pytest.approx(0.4)
    assert grew_s(rounds[:1]) == grew_s([some[:11] for some in rounds]) == grew_s([some[::-1] for some in rounds]) == 0


def test_shared_reads_blame_the_client_only_where_its_lag_does() -> None:
    for reason in (Reason.SHARED_READS_SOME, Reason.SHARED_READS, Reason.FIRST_TOKEN_SHARED, Reason.BUFFERED_STREAM):
        late, between, neither = (
            remedy(reason, replace(GOOD, **change), BUDGETS)
            for change in ({"lag_p99_s": 0.006}, {"outside_s": 0.03}, {})
        )
        assert "quieter core" in late
        assert "proxy_buffering off" not in late
        for text in (between, neither):
            assert "http-no-delay" in text
            assert "quieter core" not in text
        assert "TTFT grew on the way" in between
    assert remedy(Reason.DRIFT, GOOD, BUDGETS) == Reason.DRIFT.remedy


def test_where_nothing_was_good_only_that_is_said() -> None:
    for all_bad in ({"failed": 160}, {"failed": 100, "wrong_length": 60}):
        reasons = status_of(replace(GOOD, buffered=0, warmup_agreed=False, **all_bad), BUDGETS)[1]
        assert Reason.UNSTABLE_WARMUP not in reasons
    assert Reason.UNSTABLE_WARMUP in status_of(replace(GOOD, failed=159, warmup_agreed=False), BUDGETS)[1]


def test_hits_that_are_wanted_are_no_cached_prefix_up_to_one_point() -> None:
    wanted = replace(GOOD, cached_tokens=6000, prefix_hits=6000, hits=Hits(100, 64, 6400, wrong_tokens=64))
    assert status_of(wanted, BUDGETS) == ("valid", ())


def test_buffered_streams_are_a_share_of_the_good_ones() -> None:
    some_bad = replace(GOOD, failed=60, wrong_length=20, buffered=40)
    assert Reason.BUFFERED_STREAM not in status_of(some_bad, BUDGETS)[1]
    assert Reason.BUFFERED_STREAM in status_of(replace(some_bad, buffered=41), BUDGETS)[1]


def test_budgets_are_the_callers() -> None:
    strict = Validity(
        shared_suspect=0.009, shared_invalid=0.009, send_skew=0.24, late_send=0.24, client_lag=0.4,
    )  # fmt: skip
    assert set(status_of(GOOD, strict)[1]) == {
        Reason.SHARED_READS, Reason.SEND_SKEW, Reason.LATE_SENDS, Reason.CLIENT_LAG,
        Reason.CACHED_PREFIX, Reason.PREEMPTED, Reason.FOREIGN_LOAD,
    }  # fmt: skip
    evidence = replace(
        GOOD, shared_events=300, cached_tokens=65, foreign_tokens=90, preemptions=3,
        send_skew_s=0.05, late_p99_s=0.06, lag_p99_s=0.008,
    )  # fmt: skip
    loose = Validity(
        shared_suspect=0.3, shared_invalid=0.5, cached_tokens=64, foreign_tokens=90,
        preemptions=3, send_skew=0.5, late_send=0.6, client_lag=0.8,
    )  # fmt: skip
    assert status_of(evidence, loose) == ("valid", ())


@given(st.lists(st.sampled_from(["valid", "suspect", "invalid"])))
def test_the_worst_status(statuses: list[Status]) -> None:
    order: list[Status] = ["valid", "suspect", "invalid"]
    assert worst(statuses) == max(statuses, key=order.index, default="valid")


def test_the_words_of_every_reason() -> None:
    for reason in Reason:
        assert re.fullmatch(r"[a-z]+(_[a-z]+)*", reason.code)
        assert reason.status in {"suspect", "invalid"}
        for text in (reason.meaning, reason.remedy):
            assert text == text.strip()
            assert len(text.split()) > 1
            assert not re.search(r"[|\n]", text), "would break the table"
    assert len({(reason.code, reason.status) for reason in Reason}) == len(Reason)


def page() -> str:
    intro = (
        "A cell is `valid`, `suspect` (shown in tables and plots with a mark) or `invalid` (left out of both); "
        "`summary.csv` keeps all three with their codes in `reasons`. This is the closed list of the reasons: "
        "a cell's status is the worst of those that apply, and `valid` when none does. `throttled` and `straggler` "
        "are judged where there is telemetry of GPUs, as [definitions.md](definitions.md) says; "
        "`faster_than_hardware` where model and accelerator are known, against bounds that "
        "[definitions.md](definitions.md#the-roofline) derives."
    )
    rows = [f"| `{r.code}` | {r.status} | {r.meaning} | {r.remedy} |" for r in Reason]
    note = "<!-- Made from benchbench/analysis/reasons.py by `python tests/test_validity.py`; don't edit. -->"
    table = ["| code | status | meaning | remedy |", "|---|---|---|---|", *rows]
    return "\n".join(["# When a number is not to be trusted", "", intro, "", *table, "", note, ""])


def test_the_page_lists_every_reason() -> None:
    assert PAGE.read_text(encoding="utf-8") == page()


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
