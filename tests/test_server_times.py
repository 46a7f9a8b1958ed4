"""The server's own times beside ours: which requests they are of, what is added up, and what is left unsaid."""

from __future__ import annotations

import json
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st
from rounds_made import Made, table_of
from test_summary import FACTS, SERVER, cell, static_rounds, stream

from benchbench.analysis.summary import summarise, summary_row
from benchbench.explain.explanation import explain

NAMES = ("server_ttft_ms", "server_queue_ms", "server_itl_ms", "outside_ttft_ms", "server_times")


def told(queue: float | None, first: float | None, itl: float | None = None) -> str:
    """As vLLM 0.32 writes it, in a request's last event."""
    said = {"time_to_first_token_ms": first, "queue_time_ms": queue, "mean_itl_ms": itl, "tokens_per_second": 157.1}
    return json.dumps({name: value for name, value in said.items() if value is not None})


def row_of(*tables: pa.Table) -> dict[str, Any]:
    return summary_row(summarise(cell(rounds_min=1), tables))


times = st.floats(0, 1000, allow_subnormal=False)


@given(st.lists(st.tuples(st.integers(1, 2000), times, times, times), min_size=1, max_size=8), st.integers(1, 3))
def test_means_are_over_the_requests_that_tell(entries: list[tuple[int, float, float, float]], rounds: int) -> None:
    requests = [stream(ttft, 10, metrics=told(queue, first, itl)) for ttft, queue, first, itl in entries]
    broken = Made([(1, 1)], "failed", end=1, metrics=told(1, 1, 1))
    silent = [stream(5000, 10), broken, stream(1, 1, metrics=told(5, None))]
    found = row_of(*[table_of([*requests, *silent], FACTS)] * rounds)
    ours, queue, first, itl = (sum(column) / len(entries) for column in zip(*entries, strict=True))
    near = pytest.approx
    assert [found[name] for name in NAMES] == [
        near(queue + first, abs=1e-6),
        near(queue, abs=1e-6),
        near(itl, abs=1e-6),
        near(ours - queue - first, abs=1e-6),
        "requests",
    ]


def histograms(**changes: Any) -> dict[str, Any]:
    return {"server": SERVER | {"ttft_s_sum": 0.030, "ttft_count": 2} | changes}


def with_histograms(*views: dict[str, Any]) -> list[pa.Table]:
    requests = [stream(20, 10), stream(24, 10)]
    return [table_of(requests, FACTS | view) for view in views]


def test_the_histograms_of_metrics_stand_in_where_they_are_of_ours_alone() -> None:
    found = row_of(*with_histograms(histograms(), histograms(ttft_s_sum=0.034)))
    assert [found[name] for name in NAMES] == [pytest.approx(16), pytest.approx(2), None, pytest.approx(6), "metrics"]


@pytest.mark.parametrize(
    "view",
    [
        histograms(ttft_count=3),  # somebody else's request
        histograms(ttft_count=1),
        {"server": SERVER},
        {"server": {"replicas": True}},
        {"server": None},
    ],
)
def test_else_nothing_is_said(view: dict[str, Any]) -> None:
    found = row_of(*with_histograms(histograms(), view))
    assert [found[name] for name in NAMES] == [None] * 5
    assert "server's times:  not told" in explain(summarise(cell(rounds_min=1), with_histograms(view)))


def test_a_round_with_failures_is_in_no_histogram() -> None:
    table = table_of([stream(20, 10), Made([(1, 1)], "failed", end=1)], FACTS | histograms())
    assert row_of(table)["server_times"] is None


def test_records_without_the_column_say_nothing() -> None:
    tables = [table.drop_columns(["server_metrics"]) for table in static_rounds()]
    assert row_of(*tables)["server_times"] is None


def test_explain_says_it_in_a_sentence() -> None:
    requests = [stream(20, 10, metrics=told(1.5, 12.5, 9.75)), stream(22, 10)]
    said = explain(summarise(cell(rounds_min=1), [table_of(requests, FACTS)]))
    expected = (
        "server's times:  mean TTFT 14.00 ms by 1 of its answers, 1.50 of them in its queue; ours is 20.00: +6.00 ms "
        "by API server, HTTP, network and client; mean ITL 9.75 ms, our TPOT 10.00\n"
    )
    assert expected in said
    by_metrics = explain(summarise(cell(rounds_min=1), with_histograms(histograms(queue_count=None))))
    assert "mean TTFT 15.00 ms by /metrics; ours is 22.00: +7.00 ms by HTTP, network and client\n" in by_metrics
    in_process = explain(summarise(cell(rounds_min=1), [table_of(requests, FACTS | {"stamps": "in process"})]))
    assert "+6.00 ms by vLLM's front end and the client, in one process; mean ITL" in in_process
    assert "stamps of the engine's own process\n" in in_process


def test_a_microsecond_is_not_lost_beside_a_wall_clock() -> None:
    request = stream(20, 10, metrics=told(0.0, 19.999))
    assert row_of(table_of([request], FACTS))["outside_ttft_ms"] == pytest.approx(0.001, abs=1e-9)
