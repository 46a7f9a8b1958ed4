"""Up to which batch a shape meets the SLO; and whose error of the instrument stands below a table."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from driving import bench, write_sweep
from hypothesis import given
from hypothesis import strategies as st

from benchbench import open_run
from benchbench.host.local_results import error_text, measured_errors, own_error, sentence, store
from benchbench.report.summary_table import table_parts
from benchbench.slo.attainment import meets, slo_lines, slo_sentence
from benchbench.spec.schema import Slo

Row = dict[str, Any]


def cell(batch: int, share: float | None, status: str = "valid", **more: Any) -> Row:
    """A row of 10 req/s a request in flight, of which `share` are within the limits."""
    goodput = None if share is None else 10.0 * batch * share
    axes = {"variant": "", "load": "static", "input": 128, "output": 64, "batch": batch, "rate": None}
    return {**axes, "status": status, "rounds": 3, "req_s": 10.0 * batch, "goodput_req_s": goodput, **more}


@pytest.mark.parametrize(
    ("cells", "text"),
    [
        ([cell(1, 1), cell(8, 0.995), cell(16, 0.5)], "up to batch 8 (goodput 79.6 req/s), not at batch 16"),
        ([cell(1, 1), cell(8, 1)], "up to batch 8 (goodput 80.0 req/s), the largest measured"),
        ([cell(1, 0.98), cell(8, 0.5)], "at no measured batch"),
        ([cell(8, 1), cell(1, 1), cell(4, 0.5)], "1 (goodput 10.0 req/s), not at batch 4, yet meets it at batch 8"),
        ([cell(1, 1), cell(4, 1, "suspect"), cell(8, 0)], "not at batch 8 (suspect: batch 4)"),
        ([cell(1, 1), cell(4, 1), cell(8, 0, "suspect")], "not at batch 8 (suspect: batch 8)"),
        ([cell(1, 1), cell(4, 1, "invalid"), cell(8, 1)], "the largest measured; no usable number at batch 4"),
        ([cell(1, 1), cell(4, None), cell(8, 0)], "not at batch 8; no usable number at batch 4"),
    ],
)  # fmt: skip
def test_the_largest_batch_up_to_which_every_one_meets_it(cells: list[Row], text: str) -> None:
    (line,) = slo_lines(cells)
    assert line.startswith("in=128, out=64: meets the SLO ")
    assert line.endswith(text)


def test_where_the_smallest_misses_it_what_lies_above_is_no_limit() -> None:
    (line,) = slo_lines([cell(1, 0.5), cell(8, 1), cell(16, 1)])
    assert line == "in=128, out=64: misses the SLO at batch 1, yet meets it at batch 8 and 16"


def test_an_invalid_cell_never_meets_it() -> None:
    assert slo_lines([cell(1, 1, "invalid"), cell(8, 1, "invalid")]) == []
    (line,) = slo_lines([cell(1, 1), cell(8, 1, "invalid")])
    assert line.endswith("up to batch 1 (goodput 10.0 req/s), the largest measured; no usable number at batch 8")


def test_shapes_variants_and_rates_have_lines_of_their_own() -> None:
    rows = [
        cell(1, 1),
        cell(1, 0, input=1024),
        cell(1, 1, variant="new"),
        {**cell(1, 1), "batch": None, "rate": 2.5, "load": "open"},
    ]
    assert slo_lines(rows) == [
        "static, in=128, out=64: meets the SLO up to batch 1 (goodput 10.0 req/s), the largest measured",
        "static, in=1024, out=64: meets the SLO at no measured batch",
        "new, static, in=128, out=64: meets the SLO up to batch 1 (goodput 10.0 req/s), the largest measured",
        "open, in=128, out=64: meets the SLO up to rate 2.5 (goodput 10.0 req/s), the largest measured",
    ]


@given(st.lists(st.tuples(st.integers(1, 64), st.floats(0, 1)), min_size=1, max_size=8, unique_by=lambda c: c[0]))
def test_no_batch_at_or_below_the_named_one_misses_it(cells: list[tuple[int, float]]) -> None:
    (line,) = slo_lines([cell(batch, share) for batch, share in cells])
    missed = [batch for batch, share in cells if share < 0.99]
    met = [batch for batch, share in cells if share >= 0.99 and all(batch < other for other in missed)]
    assert (f"up to batch {max(met)} (" in line) if met else ("up to" not in line)


def test_the_limits_are_said_once() -> None:
    limits = {"ttft_ms": 200.0, "tpot_ms": 50.0, "e2el_ms": None}
    assert slo_sentence([{"slo": limits}, {"slo": limits}, {}]) == [
        "SLO: TTFT 200 ms, TPOT 50 ms at most; a cell meets it where 99 % of its requests are within every limit."
    ]
    assert slo_sentence([{"slo": limits}, {"slo": {"ttft_ms": 1.0}}])[0].startswith("SLO: of each cell its own limits;")
    assert slo_sentence([{"slo": {}}, {}]) == []


@pytest.mark.parametrize(
    ("slo", "row", "met"),
    [
        ({}, cell(1, 1), None),
        ({"ttft_ms": 1}, cell(1, None), None),
        ({"ttft_ms": 1}, cell(1, 0.98), False),
        ({"ttft_ms": 1, "statistic": "p90"}, cell(1, 0.91), True),
        ({"ttft_ms": 1, "statistic": "p99.9"}, cell(1, 0.995), False),
        ({"ttft_ms": 1, "statistic": "mean"}, cell(1, 0.1, ttft_ms=0.9, tpot_ms=5), True),
        ({"ttft_ms": 1, "tpot_ms": 4, "statistic": "mean"}, cell(1, 1, ttft_ms=0.9, tpot_ms=5), False),
        ({"ttft_ms": 1, "statistic": "mean"}, cell(1, 1), None),
    ],
)  # fmt: skip
def test_a_share_of_requests_or_the_means_meet_it(slo: dict[str, Any], row: Row, met: bool | None) -> None:
    assert meets(Slo.model_validate(slo), row.get) is met
    if met is not None:
        (line,) = slo_lines([{**row, "slo_met": met}])
        assert ("up to batch 1" in line) is met


def test_the_sentence_names_the_statistic() -> None:
    (line,) = slo_sentence([{"slo": {"ttft_ms": 5.0, "statistic": "mean"}}])
    assert line == "SLO: TTFT 5 ms at most; a cell meets it where its means are within every limit."
    assert "95 % of its requests are" in slo_sentence([{"slo": {"ttft_ms": 5.0, "statistic": "p95"}}])[0]


def test_the_table_has_goodput_and_the_line() -> None:
    numbers = {"ttft_ms": 5.0, "sys_tok_s": 100.0}
    parts = table_parts([cell(1, 1, **numbers), cell(8, 0.5, **numbers), cell(4, 1, "invalid")])
    assert parts.table[0].endswith("| Sys tok/s | Goodput (req/s) |")
    assert parts.headlines[-1].endswith("not at batch 8; no usable number at batch 4")
    assert any("Goodput: req/s times the share" in line for line in parts.caption)
    bare = table_parts([cell(1, None, **numbers)])
    assert "Goodput" not in bare.markdown()
    assert "SLO" not in bare.markdown()


def test_a_sweep_with_slo_prints_both(tmp_path: Path) -> None:
    path = write_sweep(tmp_path / "s.yaml", "", engine={"kind": "simulator", "profile": "tiny"}, slo={"ttft_ms": 1e6})
    result = bench("sweep", str(path), "--no-plots", "--out", str(tmp_path / "run"))
    assert "Goodput (req/s) |" in result.stdout
    assert "SLO: TTFT 1e+06 ms at most; a cell meets it" in result.stdout
    assert (tmp_path / "run" / "table.md").read_text() in result.stdout + "\n"


# ---- The instrument's error -----------------------------------------------------------------------------


def error(streams: int, tok_s: float, ttft_ms: float = 0.01) -> dict[str, float]:
    return {"streams": streams, "tok_s": tok_s, "ttft_error_ms_mean": ttft_ms, "itl_error_ms_p99": 0.02}


def measured(batch: int, tpot_ms: float, **more: Any) -> Row:
    return {"status": "valid", "rounds": 3, "batch": batch, "tpot_ms": tpot_ms, "sys_tok_s": 1.0, **more}


ROWS = [measured(1, 5.0), measured(32, 10.0)]  # 32 streams, 3200 tok/s while all run


@pytest.mark.parametrize(
    ("results", "own"),
    [
        ([], None),
        (None, None),
        ([error(2, 1e6)], None),  # of fewer streams
        ([error(64, 2000)], None),  # at a lower rate
        ([error(32, 2880)], 0),  # nine tenths of it
        ([error(64, 6400), error(40, 4000), error(2, 200)], 1),  # the nearest
        ([error(97, 3200)], None),  # more than three times the streams
        ([error(32, 9700)], None),  # or the rate,
        ([{**error(256, 25_600), "sweep": "s"}], 0),  # unless it was measured for this sweep
        ([{**error(256, 25_600), "sweep": "t"}], None),
        ([{**error(16, 25_600), "sweep": "s"}], None),
        (error(32, 3200), 0),  # as earlier versions kept it
        (error(2, 928), None),
    ],
)
def test_the_instruments_error_is_that_of_the_sweeps_own_load(results: Any, own: int | None) -> None:
    found, streams, tok_s = own_error(results, ROWS, "s")
    assert (streams, tok_s) == (32, 3200.0)
    each = results if isinstance(results, list) else [results]
    assert found == (None if own is None else each[own])
    text = sentence(results, ROWS, "s")
    if own is not None:
        assert text.startswith(
            "Instrument error: TTFT +0.010 ms (mean), ITL +0.020 ms (p99), measured on this host at "
        )
        assert text.endswith(", no less than the 32 streams and 3.2k tok/s here.")
    else:
        at = " at the 32 streams and 3.2k tok/s here" if results else ""
        assert text == f"Instrument error: not measured{at} (bench check FILE measures it)."


def test_a_slow_load_is_named_in_whole_tokens() -> None:
    assert error_text(error(1, 47)).endswith("at 1 stream and 47 tok/s")


def test_invalid_cells_have_no_load_and_open_loads_that_of_littles_law() -> None:
    assert own_error([error(1, 1)], [measured(64, 1.0, status="invalid")]) == (None, 0, 0.0)
    open_load = measured(0, 20.0, req_s=4.0, e2el_ms=900.0)
    assert own_error([error(4, 200)], [open_load])[1:] == (4, 200.0)


def test_a_check_of_another_load_says_nothing_of_a_sweep(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert bench("check", "--self", "--streams", "1", "--rate", "20", "--seconds", "0.2").exit_code == 0
    path = write_sweep(
        tmp_path / "s.yaml",
        "",
        engine={"kind": "simulator", "profile": "tiny"},
        grid={"input": 8, "output": 6, "batch": 2},
    )
    result = bench("sweep", str(path), "--no-plots", "--out", str(tmp_path / "run"))
    rows = open_run(tmp_path / "run").rows
    if any(row["status"] != "invalid" for row in rows):
        assert "Instrument error: not measured at the 2 streams and " in result.stdout
    assert len(open_run(tmp_path / "run").manifest["instrument"]) == 1


def test_a_manifest_names_neither_the_host_nor_other_sweeps(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    for sweep in ({}, {"sweep": "mine"}, {"sweep": "theirs"}, {"sweep": "mine", "lag_ms_p99": 1.0}):
        store({**error(1, 1), **sweep})
    kept = measured_errors("mine")
    assert [entry.get("sweep") for entry in kept] == ["mine", None, None]
    assert kept[0]["lag_ms_p99"] == 1.0
    assert not any("host" in entry for entry in kept)
