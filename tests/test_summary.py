"""From a cell's rounds to its row of summary.csv."""

from __future__ import annotations

import csv
import io
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from pydantic import ValidationError
from rounds_made import MS, Made, table_of

from benchbench.analysis.reasons import Reason
from benchbench.analysis.summary import BOUNDED, COLUMNS, UNITS, CellSummary, summarise, summary_row
from benchbench.explain.explanation import explain
from benchbench.spec import Slo, Validity, make_plan, spec_from_mapping
from benchbench.spec.cell import CellInfo
from benchbench.store.run_directory import RunDirectory

GOLDEN = Path(__file__).parent / "golden" / "summary.csv"
# As the issue that asked for it wrote it.
CONTRACT = (
    "variant,input,output,batch,load,status,reasons,rounds,requests,failed,ttft_ms,ttft_ms_low,ttft_ms_high,"
    "ttft_ms_p50,ttft_ms_p90,ttft_ms_p99,tpot_ms,itl_ms_p50,itl_ms_p99,e2el_ms,sys_tok_s,sys_tok_s_low,"
    "sys_tok_s_high,total_tok_s,req_s,lag_ms_p99"
)


def cell(**changes: Any) -> CellInfo:
    base: dict[str, Any] = {
        "key": "0123456789abcdef", "index": 0, "variant": "", "input": 4, "output": 3, "batch": 2, "rate": None,
        "load": "static", "requests": 2, "rounds_min": 3, "rounds_max": changes.get("rounds_min", 3), "rel_ci": 0.9,
        "warmup": 0,
        "capped": False, "prompts": "token_ids", "output_mode": "exact", "slo": Slo(), "validity": Validity(),
    }  # fmt: skip
    return CellInfo(**base | changes)


def stream(ttft_ms: int, itl_ms: int, sent_ms: int = 0, tokens: int = 3, **more: Any) -> Made:
    first = sent_ms + ttft_ms
    events = [((first + itl_ms * k) * MS, 1) for k in range(tokens)]
    end = events[-1][0]
    return Made(events, scheduled=sent_ms * MS, sent=sent_ms * MS, end=end, told=tokens, **more)


FACTS = {"turn_max_ns": 250_000, "cpu_ns": 30 * MS, "wall_ns": 100 * MS, "clock_step_ns": 0, "kernel_stamps": True}

# What `engines.view` notes of a round: a round that the server did not tell of has None.
SERVER = {
    "replicas": False, "prompt_tokens": 8, "generation_tokens": 6, "prefix_hits": 0, "preemptions": 0,
    "queue_s_sum": 0.004, "queue_count": 2, "foreign_tokens": 0, "missing_tokens": 0,
}  # fmt: skip
TOLD = FACTS | {"server": SERVER}


def static_rounds() -> list[pa.Table]:
    """Three rounds of a batch of two, one ms apart: TTFT 20 and 21, 30 and 31, 40 and 41; ITL 10; 6 tokens."""
    return [
        table_of([stream(ttft, 10, lag=[MS, 0, 0]), stream(ttft + 1, 10, sent_ms=1, lag=[0, 0, 2 * MS])], TOLD)
        for ttft in (20, 30, 40)
    ]


def closed_round() -> pa.Table:
    """Two in flight, ten in all, one of which broke after its first token; the rest 10 ms to the first of 3."""
    waves = [stream(10, 5, sent_ms=20 * (k // 2) + k % 2) for k in range(10)]
    broken = stream(10, 5, sent_ms=41, tokens=1)
    waves[5] = Made(broken.events, "failed", broken.scheduled, broken.sent, 61 * MS, told_input=None)
    return table_of(waves, FACTS)


def open_round() -> pa.Table:
    late = stream(20, 0, sent_ms=110, tokens=4)  # four tokens in one read, sent 10 ms after it was due
    late.scheduled = 100 * MS
    return table_of([stream(20, 10), late], {"turn_max_ns": MS, "kernel_stamps": False})


def golden_cells() -> list[CellSummary]:
    slo = Slo(ttft_ms=30.5)
    return [
        summarise(cell(slo=slo), static_rounds()),
        summarise(cell(load="closed", requests=10, rounds_min=1, key="c1"), [closed_round()]),
        summarise(cell(load="open", batch=None, rate=10.0, rounds_min=1, key="o1"), [open_round()]),
        summarise(cell(key="none", variant="kernel"), []),
    ]


def as_csv(summaries: list[CellSummary]) -> str:
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, COLUMNS, lineterminator="\n")
    writer.writeheader()
    writer.writerows(summary_row(summary) for summary in summaries)
    return text.getvalue()


def read(text: str) -> list[dict[str, Any]]:
    def value(field: str) -> Any:
        try:
            return pytest.approx(float(field), rel=1e-9)
        except ValueError:
            return field

    return [{name: value(field) for name, field in row.items()} for row in csv.DictReader(io.StringIO(text))]


def test_golden_rows(tmp_path: Path) -> None:
    summaries = golden_cells()
    found = csv.DictReader(io.StringIO(as_csv(summaries)))
    expected = read(GOLDEN.read_text(encoding="utf-8"))
    for row, golden in zip(found, expected, strict=True):
        assert list(row) == list(golden) == list(COLUMNS)
        for name, field in row.items():
            assert (field if isinstance(golden[name], str) else float(field)) == golden[name], (row["key"], name)
    run = RunDirectory(tmp_path)
    run.write_summary([summary_row(summary) for summary in summaries], UNITS)
    assert (tmp_path / "summary.csv").read_text(encoding="utf-8") == as_csv(summaries)
    stored = pq.read_table(tmp_path / "summary.parquet")
    assert stored.to_pylist() == [summary_row(summary) for summary in summaries]
    assert stored.schema.field("ttft_ms").type == pa.float64()
    assert stored.schema.field("ttft_ms").metadata == {b"unit": b"ms"}
    assert stored.schema.field("batch").type == pa.int64()


def test_the_first_columns_are_the_contract() -> None:
    assert ",".join(COLUMNS).startswith(f"{CONTRACT},")
    assert len(set(COLUMNS)) == len(COLUMNS)


def test_means_have_intervals_over_rounds_and_percentiles_are_pooled() -> None:
    row = summary_row(summarise(cell(slo=Slo(ttft_ms=30.5)), static_rounds()))
    near = pytest.approx
    half = 4.302652729749464 * 10 / 3**0.5  # t(0.975, 2) s / sqrt(n): round means 20.5, 30.5, 40.5
    assert (row["ttft_ms"], row["ttft_ms_low"], row["ttft_ms_high"]) == (
        near(30.5),
        near(30.5 - half),
        near(30.5 + half),
    )
    pool = [20, 21, 30, 31, 40, 41]
    for q in (50, 90, 99):
        assert row[f"ttft_ms_p{q}"] == near(float(np.percentile(pool, q)))
    assert (row["ttft_ms_first"], row["ttft_ms_last"]) == (near(30), near(31))
    assert (row["tpot_ms"], row["itl_ms_p50"], row["itl_ms_p99"]) == (near(10), near(10), near(10))
    assert row["e2el_ms"] == near(50.5)
    rates = [6e3 / 42, 6e3 / 52, 6e3 / 62]  # from the first send to the last token: 1 + 21 + 20 ms, and so on
    assert row["sys_tok_s"] == near(sum(rates) / 3)
    assert row["total_tok_s"] == near(sum(rates) / 3 * 14 / 6)
    assert row["goodput_req_s"] == near((2e3 / 42 + 1e3 / 52) / 3)
    assert (row["lag_ms_max"], row["send_skew_ms"], row["turn_ms_max"]) == (near(2), near(1), near(0.25))
    assert row["client_cpu_share"] == near(0.3)
    assert (row["status"], row["reasons"], row["rounds"], row["requests"], row["failed"]) == ("valid", "", 3, 6, 0)


def test_one_round_has_numbers_and_no_interval() -> None:
    row = summary_row(summarise(cell(rounds_min=1), static_rounds()[:1]))
    assert row["ttft_ms"] == pytest.approx(20.5)
    assert row["status"] == "valid"
    assert {name for name in row if name.endswith(("_low", "_high")) and row[name] is not None} == set()


def test_failed_requests_are_counted_and_leave_latencies_alone() -> None:
    tables = static_rounds()
    broken = Made([(500 * MS, 1)], "failed", sent=0, end=500 * MS, told_input=None)
    tables[1] = table_of([stream(30, 10), broken], TOLD)
    row = summary_row(summarise(cell(), tables))
    # The round that lacks a request is also slower than the others, by more than three rounds can average out.
    assert (row["status"], row["reasons"]) == ("invalid", "request_failed;too_few_rounds")
    assert (row["requests"], row["failed"]) == (6, 1)
    assert row["ttft_ms"] == pytest.approx((20.5 + 30 + 40.5) / 3)


def test_a_round_of_failures_only_blames_nothing_else() -> None:
    gone = Made(status="failed", sent=None, end=0, told_input=None)
    summary = summarise(cell(rounds_min=1), [table_of([gone, gone], FACTS)])
    assert summary.reasons == (Reason.REQUEST_FAILED,)
    row = summary_row(summary)
    assert (row["failed"], row["ttft_ms"], row["sys_tok_s"], row["shared_share"]) == (2, None, None, None)


def test_the_interval_has_the_pilots_spread_and_stein_says_how_many_rounds() -> None:
    ttfts = [20, 30, 40, 30, 29]
    tables = [table_of([stream(ttft, 10)], FACTS) for ttft in ttfts]
    row = summary_row(summarise(cell(rounds_min=3, rounds_max=9, rel_ci=0.5), tables))
    t = 4.302652729749464  # (0.975, 2)
    half = t * 10 / 5**0.5  # s of the first three TTFTs is 10
    assert (row["ttft_ms"], row["ttft_ms_high"] - row["ttft_ms"]) == (pytest.approx(29.8), pytest.approx(half))
    rates = [3e3 / (ttft + 20) for ttft in ttfts]
    pilot = np.array(rates[:3])
    assert row["rounds_needed"] == int(np.ceil((t * pilot.std(ddof=1) / pilot.mean() / 0.5) ** 2)) == 4
    assert (row["rounds"], row["status"]) == (5, "valid")
    assert summarise(cell(rounds_min=3, rounds_max=9, rel_ci=0.5), tables[:3]).reasons == (Reason.TOO_FEW_ROUNDS,)
    # One round at most was asked for: no interval, none missed.
    assert summarise(cell(rounds_min=1, rel_ci=0.5), tables[:1]).evidence.rounds_needed == 1


def test_a_drift_is_seen_in_sys_tok_s() -> None:
    def slower(step: float) -> CellSummary:
        tables = [table_of([stream(round(100 + step * k), 10)], FACTS) for k in range(6)]
        return summarise(cell(rounds_min=6, rel_ci=0.15), tables)

    assert slower(5).reasons == (Reason.DRIFT,) != slower(1).reasons == ()
    assert "drift: Sys tok/s changed over the rounds by more than rounds.rel_ci (not confirmed" in explain(slower(5))
    noisy = [round(100 + 5 * k + (-1) ** k) for k in range(11)]
    tables = [table_of([stream(ms, 10)], FACTS) for ms in noisy]
    summaries = [summarise(cell(rounds_min=6, rounds_max=20, rel_ci=0.15), tables[:n]) for n in (6, 11)]
    assert [s.reasons for s in summaries] == [(Reason.DRIFT,)] * 2
    assert [s.evidence.rounds_needed for s in summaries] == [6, 6]  # those that confirm are not of the interval
    assert ["(confirmed by further rounds)" in explain(s) for s in summaries] == [False, True]


@pytest.mark.parametrize(
    ("warmup", "e2els", "agreed"),
    [
        ("auto", [200, 100, 105], True),
        ("auto", [100, 100, 106], False),  # the last two decide
        ("auto", [100], False),
        ("auto", [], False),
        (2, [100, 200], None),
        (0, [], None),
    ],
)
def test_warm_up_ends_with_two_rounds_that_agree(warmup: int | str, e2els: list[int], *, agreed: bool | None) -> None:
    warmups = [table_of([stream(e2el - 20, 10), stream(e2el - 20, 10)], FACTS) for e2el in e2els]
    summary = summarise(cell(warmup=warmup), static_rounds(), warmups)
    assert summary.evidence.warmup_agreed is agreed
    assert summary.reasons == ((Reason.UNSTABLE_WARMUP,) if agreed is False else ())
    assert summary_row(summary)["warmup_rounds"] == len(e2els)
    assert summary_row(summary)["ttft_ms"] == pytest.approx(30.5)


def test_a_warm_up_that_failed_has_not_agreed() -> None:
    gone = table_of([Made(status="failed", sent=None, end=0, told_input=None)], FACTS)
    assert summarise(cell(warmup="auto"), static_rounds(), [gone, gone]).evidence.warmup_agreed is False


def test_what_the_server_counted_is_added_up_over_the_rounds_that_tell() -> None:
    views = [SERVER | {"preemptions": 1, "prefix_hits": 16}, None, SERVER | {"queue_s_sum": 0.02, "foreign_tokens": 5}]
    tables = [
        table_of([stream(ttft, 10)], FACTS | {"server": view}) for ttft, view in zip((20, 30, 40), views, strict=True)
    ]
    summary = summarise(cell(), tables)
    assert set(summary.reasons) == {Reason.PREEMPTED, Reason.CACHED_PREFIX, Reason.FOREIGN_LOAD, Reason.UNCHECKED}
    row = summary_row(summary)
    assert (row["preemptions"], row["prefix_hits"], row["foreign_tokens"]) == (1, 16, 5)
    assert row["queue_ms"] == pytest.approx(24 / 4)
    silent = summary_row(summarise(cell(), [table_of([stream(20, 10)], FACTS) for _ in range(3)]))
    assert [silent[name] for name in ("preemptions", "prefix_hits", "foreign_tokens", "queue_ms")] == [None] * 4
    moved = {"server": {"replicas": True}}
    assert summarise(cell(rounds_min=1), [table_of([stream(20, 10)], moved)]).reasons == (Reason.REPLICAS,)
    lost = {"server": SERVER | {"missing_tokens": 1}}
    assert summarise(cell(rounds_min=1), [table_of([stream(20, 10)], lost)]).reasons == (Reason.SERVER_COUNT_MISMATCH,)


def test_what_prompts_share_by_their_form_may_come_from_a_cache() -> None:
    facts = {"common_tokens": 32, "server": SERVER | {"prefix_hits": 32}}
    assert summarise(cell(rounds_min=1), [table_of([stream(20, 10)], facts)]).status == "valid"
    facts["server"] = SERVER | {"prefix_hits": 33}
    assert summarise(cell(rounds_min=1), [table_of([stream(20, 10)], facts)]).reasons == (Reason.CACHED_PREFIX,)


def with_column(table: pa.Table, name: str, values: list[str]) -> pa.Table:
    """The table with another column of texts."""
    at = table.schema.names.index(name)
    return table.set_column(at, table.schema.field(at), pa.array(values, table.schema.field(at).type))


def test_a_wrong_length_is_told_from_other_failures() -> None:
    short = stream(20, 10, tokens=2, status="failed")
    kinds = [("short_output", Reason.OUTPUT_LENGTH), ("long_output", Reason.OUTPUT_LENGTH)]
    for kind, reason in [*kinds, ("stall", Reason.REQUEST_FAILED)]:
        table = with_column(table_of([stream(20, 10), short], FACTS), "error_kind", ["", kind])
        summary = summarise(cell(rounds_min=1), [table])
        assert summary.reasons == (reason,)
        assert summary_row(summary)["failed"] == 1


@pytest.mark.parametrize(("counted_by", "told", "wrong"), [
    ("ids", 3, False), ("ids", 4, True), ("ids", 2, True), ("events", 2, True), ("spread", 3, False),
])  # fmt: skip
def test_usage_is_held_against_what_came(counted_by: str, told: int, *, wrong: bool) -> None:
    lying = stream(20, 10)
    lying.told = told
    table = with_column(table_of([lying], FACTS), "tokens_from", [counted_by])
    assert summarise(cell(rounds_min=1), [table]).reasons == ((Reason.SERVER_COUNT_MISMATCH,) if wrong else ())


def test_events_of_several_tokens_are_told() -> None:
    grouped = stream(20, 10, tokens=2)
    grouped.events, grouped.told = [(grouped.events[0][0], 1), (grouped.events[1][0], 2)], 3
    summary = summarise(cell(rounds_min=1), [table_of([grouped], FACTS)])
    assert summary.reasons == (Reason.GROUPED_TOKENS,)
    assert summary_row(summary)["tpot_ms"] == pytest.approx(5)


@pytest.mark.parametrize(("load", "capped", "reasons"), [
    ("closed", False, (Reason.LATE_SENDS,)), ("open", False, (Reason.LATE_SENDS,)), ("open", True, ()),
    ("static", False, ()),
])  # fmt: skip
def test_sends_that_were_late_for_their_time(load: str, reasons: tuple[Reason, ...], *, capped: bool) -> None:
    requests = [stream(10, 5, sent_ms=20 * (k // 2) + k % 2) for k in range(10)]
    for request in requests:
        request.scheduled = (request.sent or 0) - 3 * MS  # of a TTFT of 10 ms
    table = table_of(requests, FACTS)
    info = cell(load=load, capped=capped, requests=10, rounds_min=1, validity=Validity.model_construct(send_skew=10))
    assert summarise(info, [table]).reasons == reasons


def test_lag_and_skew_are_held_against_itl_and_ttft() -> None:
    slow = [stream(20, 10, lag=[6 * MS] * 3), stream(20, 10, sent_ms=6, lag=[6 * MS] * 3)]
    found = summarise(cell(rounds_min=1), [table_of(slow, FACTS)])
    assert found.reasons == (Reason.SEND_SKEW, Reason.CLIENT_LAG)
    loose = cell(rounds_min=1, validity=Validity(send_skew=0.31, client_lag=0.61))
    assert summarise(loose, [table_of(slow, FACTS)]).reasons == ()


@pytest.mark.parametrize(
    ("change", "info", "reason"),
    [
        ({"told_input": 5}, {}, Reason.INPUT_LENGTH),
        ({"told_input": 5}, {"prompts": "text"}, Reason.INPUT_LENGTH),
        ({"told_input": None}, {}, Reason.INPUT_UNVERIFIED),
        ({"cached": 1}, {}, Reason.CACHED_PREFIX),
        ({"cached": 1}, {"validity": Validity(cached_tokens=3)}, None),
    ],
)
def test_what_the_server_told_is_judged(change: dict[str, Any], info: dict[str, Any], reason: Reason | None) -> None:
    tables = [*static_rounds()[:2], table_of([stream(40, 10), stream(41, 10, **change)], TOLD)]
    assert summarise(cell(**info), tables).reasons == (() if reason is None else (reason,))


def test_an_output_that_nobody_counted_is_not_verified() -> None:
    uncounted = stream(20, 10)
    uncounted.told = None
    assert summarise(cell(rounds_min=1), [table_of([uncounted], FACTS)]).reasons == (Reason.OUTPUT_UNVERIFIED,)


@pytest.mark.parametrize("fact", [{"clock_step_ns": 2 * MS}, {"kernel_stamps": False}])
def test_the_worst_round_speaks_for_the_cell(fact: dict[str, Any]) -> None:
    rounds = [table_of([stream(20, 10)], facts) for facts in (FACTS, FACTS | fact, FACTS)]
    reason = Reason.CLOCK_STEP if "clock_step_ns" in fact else Reason.USER_STAMPS
    assert summarise(cell(), rounds).reasons == (reason,)


@pytest.mark.parametrize(("requests", "short"), [(7, True), (9, True), (10, False)])
def test_a_closed_load_needs_five_batches(requests: int, *, short: bool) -> None:
    table = table_of([stream(10, 5, sent_ms=20 * (k // 2) + k % 2) for k in range(requests)], FACTS)
    summary = summarise(cell(load="closed", requests=requests, rounds_min=1), [table])
    assert summary.reasons == ((Reason.SHORT_WINDOW,) if short else ())


def test_the_manifest_tells_analysis_all_that_it_needs() -> None:
    spec = {
        "name": "s",
        "model": "m",
        "engine": {"kind": "simulator"},
        "grid": {"input": 128, "output": 32, "rate": [2.5]},
        "load": {"kind": "open", "requests": 7, "max_concurrency": 3},
        "rounds": {"min": 2, "max": 9, "rel_ci": 0.05, "warmup": 2},
        "prompts": {"kind": "text"},
        "output": "as_served",
        "slo": {"ttft_ms": 250.0},
        "validity": {"shared_suspect": 0.2, "shared_invalid": 0.3, "cached_tokens": 9, "late_send": 0.7},
    }
    (planned,) = make_plan(spec_from_mapping(spec)).cells
    assert CellInfo.model_validate(planned.info.to_entry()) == CellInfo(
        key=planned.key, index=0, variant="", input=128, output=32, batch=None, rate=2.5, load="open", requests=7,
        rounds_min=2, rounds_max=9, rel_ci=0.05, warmup=2, capped=True, prompts="text", output_mode="as_served",
        slo=Slo(ttft_ms=250), validity=Validity(shared_suspect=0.2, shared_invalid=0.3, cached_tokens=9, late_send=0.7),
    )  # fmt: skip
    (plain,) = make_plan(spec_from_mapping(spec | {"slo": {}})).cells
    entry = plain.info.to_entry()
    assert CellInfo.model_validate(entry).slo == Slo()
    # A later version may note more about a cell; what this one needs must be there.
    more = entry | {"new": 1, "validity": entry["validity"] | {"new": 1}}
    assert CellInfo.model_validate(more) == CellInfo.model_validate(entry)
    with pytest.raises(ValidationError, match="requests"):
        CellInfo.model_validate({key: value for key, value in entry.items() if key != "requests"})


def test_a_cell_tells_upper_bounds_and_what_is_within_each_limit() -> None:
    assert [f"{name}_ms_p{rank}_upper" for name, rank, _ in BOUNDED] == [name for name in COLUMNS if "_upper" in name]
    rounds = [table_of([stream(40 + k % 7, 10), stream(60, 10)]) for k in range(30)]
    summary = summarise(cell(slo=Slo(ttft_ms=50.0)), rounds)
    values = summary_row(summary)
    assert values["ttft_ms_p90_upper"] == pytest.approx(60)
    assert values["ttft_ms_p99_upper"] is None
    assert (values["slo_ttft_share"], values["slo_tpot_share"], values["slo_e2el_share"]) == (0.5, None, None)
    text = explain(summary)
    assert "TTFT p90 at most 60 ms" in text
    assert "TTFT p99 (299 needed)" in text
    assert "60 requests in 30 rounds count as 30 independent ones" in text or "no upper bound" in text
    assert "TTFT of 50.00 % within 50 ms; goodput 50.00 % of req/s" in text
