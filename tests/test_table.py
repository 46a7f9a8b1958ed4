"""The tables: golden files of the published form, and what must hold for any rows."""

from __future__ import annotations

import csv
import io
import json
import math
import re
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchbench.publish.pivot import parse_pivot, pivot_parts, pivot_rows
from benchbench.report.summary_table import (
    Row,
    column_title,
    csv_table,
    decimals,
    json_table,
    markdown_table,
    rounded,
    table_parts,
)
from benchbench.spec.cell import cell_name

GOLDEN = Path(__file__).parent / "golden"
PUBLISHED = [
    (128, 128, 1, 68.5, 24.1),
    (128, 128, 32, 254.7, 504.6),
    (1024, 256, 32, 170.8, 508.6),
    (1024, 1024, 32, 169.5, 509.8),
    (2048, 1024, 32, 276.5, 537.5),
]


def row(shape: tuple[int, int, int | None], ttft: float | None, sys: float | None, **more: Any) -> Row:
    low_high = {
        f"{name}_{end}": value and value * factor
        for name, value, wide in (("ttft_ms", ttft, 0.04), ("sys_tok_s", sys, 0.01))
        for end, factor in (("low", 1 - wide), ("high", 1 + wide / 2))
    }
    base: Row = {
        "variant": "", "input": shape[0], "output": shape[1], "batch": shape[2], "load": "static",
        "status": "valid", "reasons": "", "rounds": 5, "ttft_ms": ttft, "sys_tok_s": sys,
        "lag_ms_p99": 0.0123456789, "rate": None,
    }  # fmt: skip
    return base | low_high | more


def published() -> list[Row]:
    return [row((i, o, b), ttft, sys) for i, o, b, ttft, sys in PUBLISHED]


def every_status() -> list[Row]:
    """Out of order, two variants, an invalid cell with the best numbers of all, one without a number."""
    return [
        row((2048, 128, 8), 100.0, 160.0, variant="main"),
        row((128, 128, 8), 60.0, 150.0, variant="main", status="suspect", reasons="client_lag;drift"),
        row((128, 128, 1), 50.0, 30.0, variant="main", rounds=7),
        row((2048, 128, 1), 55.0, 20.0, variant="main"),
        row((128, 128, 8), 1.0, 9999.0, variant="kern*l|x", status="invalid", reasons="cached_prefix"),
        row((128, 128, 1), 50.0, None, variant="kern*l|x", status="suspect", reasons="clock_step"),
        row((2048, 128, 8), None, None, variant="kern*l|x", status="invalid", reasons="request_failed"),
    ]


def open_load() -> list[Row]:
    return [
        row((128, 64, None), 40.0 + rate, 64 * rate, load="open", rate=rate, rounds=1,
            ttft_ms_low=None, ttft_ms_high=None, sys_tok_s_low=None, sys_tok_s_high=None)
        for rate in (10.0, 0.5, 2.0)
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("name", "table"),
    [
        ("table_published.md", markdown_table(published())),
        ("table_every_status.md", markdown_table(every_status())),
        ("table_with_invalid.md", markdown_table(every_status(), include_invalid=True)),
        ("table_open.md", markdown_table(open_load())),
        ("table_columns.md", markdown_table(published(), ["batch", "lag_ms_p99", "ttft_ms_high", "reasons"])),
        ("table_published.csv", csv_table(published())),
    ],
)
def test_golden(name: str, table: str) -> None:
    assert table == (GOLDEN / name).read_text(encoding="utf-8")


def test_the_card_is_reproduced_word_for_word() -> None:
    card = """\
| Input | Output | Batch | TTFT (ms) | Sys tok/s |
|---|---|---|---|---|
| 128 | 128 | 1 | 68.5 | 24.1 |
| 128 | 128 | 32 | 254.7 | 504.6 |
| 1024 | 256 | 32 | 170.8 | 508.6 |
| 1024 | 1024 | 32 | 169.5 | 509.8 |
| 2048 | 1024 | 32 | 276.5 | 537.5 |

- Peak throughput: 537.5 tok/s (in=2048, out=1024, batch=32)
- TTFT range: 68.5\N{EN DASH}276.5 ms
- Scaling: 20.9x throughput increase from batch=1 to batch=32"""
    assert markdown_table(published()[::-1]).startswith(card)


def test_invalid_numbers_stand_nowhere_unless_asked_for() -> None:
    rows = every_status()
    for table in (markdown_table(rows), csv_table(rows), json_table(rows), csv_table(rows, ["sys_tok_s"])):
        assert "9999" not in table
    struck = markdown_table(rows, include_invalid=True)
    assert struck.count("9999") == struck.count("~~9999~~") == 1
    assert "- Peak throughput: 160.0" in struck
    asked = list(csv.DictReader(io.StringIO(csv_table(rows, ["sys_tok_s"], include_invalid=True))))
    assert {"sys_tok_s": "9999.0", "status": "invalid"} in asked


@pytest.mark.parametrize(
    ("starts", "words"),
    [
        ((None, None), "5 rounds per cell; 95 % confidence intervals of the mean, over rounds, are"),
        (
            (3, 3),
            "5 rounds per cell, in 3 starts of the engine; 95 % confidence intervals of the mean, over starts, are",
        ),
        ((1, 2), "in 1 to 2 starts of the engine; 95 % confidence intervals of the mean, over starts, are"),
        ((None, 2), "in 2 starts of the engine; 95 % confidence intervals of the mean, over rounds or starts, are"),
    ],
)
def test_the_caption_says_over_how_many_rounds_and_starts(starts: tuple[int | None, ...], words: str) -> None:
    rows = [row((128, 8, batch), 60.0, 150.0, starts=count) for batch, count in enumerate(starts, 1)]
    assert words in markdown_table(rows)


@pytest.mark.parametrize("table", [markdown_table, csv_table, json_table])
def test_unknown_columns_are_named_with_the_allowed_ones(table: Any) -> None:
    with pytest.raises(ValueError, match=r"unknown column 'inptu', did you mean input\? \(allowed: variant, "):
        table(published(), ["inptu", "batch", "x"])


def test_scaling_is_the_best_shape_that_has_both_ends() -> None:
    ends = [row((8, 8, b), 1.0, sys) for b, sys in ((1, 10.0), (4, 20.0))]
    better = [row((9, 9, b), 1.0, sys) for b, sys in ((1, 10.0), (4, 30.0))]
    other_range = [row((7, 7, b), 1.0, sys) for b, sys in ((2, 1.0), (4, 30.0))]
    assert "- Scaling: 3.0x throughput increase from batch=1 to batch=4 (in=9, out=9)\n" in markdown_table(
        ends + better + other_range
    )
    assert "Scaling" not in markdown_table(ends[:1] + other_range[1:])
    assert "Scaling" not in markdown_table(open_load())


def test_a_headline_that_rests_on_a_suspect_cell_is_marked() -> None:
    rows = [row((8, 8, b), 10.0 * b, 10.0 * b) for b in (1, 2, 4)]
    rows[2] |= {"status": "suspect", "reasons": "drift"}
    table = markdown_table(rows)
    assert "40.0 tok/s (in=8, out=8, batch=4)*\n" in table
    assert "40.0 ms*\n" in table
    assert "batch=1 to batch=4 (in=8, out=8)*\n" in table
    assert "*" not in markdown_table(rows[:2])


def test_many_cells_of_one_reason_are_counted_and_few_are_named() -> None:
    bad = {"status": "invalid", "reasons": "preempted"}
    few = markdown_table([row((8, 8, b), 1.0, 1.0, **bad) for b in (2, 1)])
    assert "2 cells left out as invalid: preempted (in=8, out=8, batch=1 / in=8, out=8, batch=2)." in few
    many = markdown_table([row((8, 8, b), 1.0, 1.0, **bad) for b in range(1, 9)])
    assert "8 cells left out as invalid: preempted (8 cells)." in many


@pytest.mark.parametrize(
    ("name", "title"),
    [
        ("input", "Input"),
        ("rate", "Rate (req/s)"),
        ("ttft_ms", "TTFT (ms)"),
        ("itl_ms_p99", "ITL p99 (ms)"),
        ("sys_tok_s", "Sys tok/s"),
        ("sys_tok_s_low", "Sys tok/s 95 % low"),
        ("req_s", "Req/s"),
        ("goodput_req_s", "Goodput (req/s)"),
        ("power_w", "Power (W)"),
    ],
)
def test_titles_carry_the_unit(name: str, title: str) -> None:
    assert column_title(name) == title


@given(
    variant=st.text(st.characters(codec="utf-8"), min_size=1),
    reasons=st.text(st.characters(codec="utf-8")),
    value=st.one_of(st.none(), st.floats(min_value=0, max_value=1e9), st.just(math.nan)),
)
def test_no_text_breaks_the_table(variant: str, reasons: str, value: float | None) -> None:
    rows = [row((8, 8, 1), value, 2.0, variant=variant), row((8, 8, 2), 1.0, value, reasons=reasons)]
    lines = markdown_table(rows, ["variant", "reasons", "ttft_ms", "sys_tok_s"]).split("\n")
    bars = [len(re.findall(r"\|", re.sub(r"\\[\\|]", "", line))) for line in lines[:4]]
    assert bars == [5, 5, 5, 5]
    assert lines[4] == ""


@given(st.lists(st.tuples(st.integers(1, 64), st.floats(0, 1e6), st.floats(1e-3, 1e6)), min_size=1))
def test_machine_forms_hold_every_number(cells: list[tuple[int, float, float]]) -> None:
    rows = [row((8, 8, batch), ttft, sys) for batch, ttft, sys in cells]
    from_csv = list(csv.DictReader(io.StringIO(csv_table(rows))))
    from_json = json.loads(json_table(rows))
    assert list(from_csv[0]) == list(from_json[0]) == list(rows[0])
    for made, text, read in zip(rows, from_csv, from_json, strict=True):
        assert text["rate"] == ""
        assert read["rate"] is None
        for name in ("ttft_ms", "sys_tok_s", "lag_ms_p99", "batch"):
            assert float(text[name]) == read[name] == pytest.approx(made[name], abs=6e-7)  # halves are rounded to even


@given(st.lists(st.tuples(st.integers(1, 4), st.floats(0, 1e4), st.floats(0, 1e4)), min_size=1))
def test_headlines_are_the_extremes_of_what_is_shown(cells: list[tuple[int, float, float]]) -> None:
    rows = [row((8, n, batch), ttft, sys) for n, (batch, ttft, sys) in enumerate(cells, start=1)]
    for one in rows:  # no intervals: all numbers keep one decimal
        one |= {f"{name}_{end}": None for name in ("ttft_ms", "sys_tok_s") for end in ("low", "high")}
    table = markdown_table(rows)
    peak = max(rows, key=lambda one: one["sys_tok_s"])
    ttft = [one["ttft_ms"] for one in rows]
    assert f"- Peak throughput: {peak['sys_tok_s']:.1f} tok/s ({cell_name(peak)})" in table
    ends = list(dict.fromkeys(f"{end(ttft):.1f}" for end in (min, max)))
    assert f"- TTFT{' range' if len(ends) > 1 else ''}: {chr(0x2013).join(ends)} ms" in table  # of one cell no range


@pytest.mark.parametrize(
    ("value", "half", "text"),
    [(254.73, 3.1, "254.7"), (254.73, 31, "255"), (5038.2, 310, "5040"), (5038.2, 99, "5038"), (0.04, 0.1, "0.0"),
     (24.06, 0.0, "24.1"), (24.06, None, "24.1"), (24.06, 9.9, "24.1"), (24.06, 10.0, "24")],
)  # fmt: skip
def test_a_number_has_no_more_digits_than_its_interval_supports(value: float, half: float | None, text: str) -> None:
    ends = {"low": None, "high": None} if half is None else {"low": value - half, "high": value + half}
    one = row((8, 8, 1), 1.0, value, **{f"sys_tok_s_{end}": at for end, at in ends.items()})
    assert f"| 1.0 | {text} |" in markdown_table([one])
    assert f"- Peak throughput: {text} tok/s" in markdown_table([one])
    assert json.loads(json_table([one]))[0]["sys_tok_s"] == value  # machines get all of it


@given(st.floats(1e-6, 1e9), st.floats(1e-9, 1e6), st.integers(0, 4))
def test_rounding_moves_a_number_by_less_than_a_twentieth_of_its_half_width(
    value: float, half: float, most: int
) -> None:
    places = decimals(most, half)
    assert places <= most
    if places < most:
        assert 10.0**-places <= half / 10 * (1 + 1e-9)  # two digits of the half-width are kept ...
        assert 10.0**-places > half / 100  # ... and no third
        assert abs(float(rounded(value, places)) - value) <= 10.0**-places * 0.500001 + 1e-9 * value


def test_scaling_is_rounded_by_the_intervals_of_both_ends() -> None:
    ends = [
        row((8, 8, b), 1.0, sys, sys_tok_s_low=sys / 2, sys_tok_s_high=sys * 1.5) for b, sys in ((1, 1), (32, 31.4))
    ]
    assert "- Scaling: 31x throughput" in markdown_table(ends)


def test_a_pivot_has_a_column_for_each_batch() -> None:
    rows = [row((i, 64, b), 10.0 * b, 10.0 * i * b, sys_tok_s_low=None) for i in (8, 16) for b in (32, 1, 4)][:-1]
    rows[1] |= {"status": "suspect", "reasons": "drift"}
    rows[2] |= {"status": "invalid", "sys_tok_s": 9999.0}
    parts = pivot_parts(rows, parse_pivot("batch:sys_tok_s"))
    assert list(parts.table) == [
        "| Input | Output | Batch 1 | Batch 32 |",
        "|---|---|---|---|",
        "| 8 | 64 | 80.0* | 2560.0 |",
        "| 16 | 64 | 160.0 | 5120.0 |",
    ]
    assert parts.caption[0] == "The columns by batch hold Sys tok/s."
    assert "9999" not in parts.markdown()
    assert (
        "| 8 | 64 | 80.0* | ~~9999.0~~ | 2560.0 |"
        in pivot_parts(rows, ("batch", "sys_tok_s"), include_invalid=True).table
    )
    assert pivot_rows(rows, ("batch", "sys_tok_s"))[0] == {
        "input": 8, "output": 64, "sys_tok_s batch=1": 80.0, "sys_tok_s batch=32": 2560.0,
    }  # fmt: skip


@pytest.mark.parametrize("text", ["", "batch", "batch:", "sys_tok_s:batch", "batch:input", "key:sys_tok_s"])
def test_what_is_no_pivot_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"must be AXIS:COLUMN, as batch:sys_tok_s \(allowed axes: variant, load, "):
        parse_pivot(text)


def test_a_pivot_of_unknown_columns_or_of_two_cells_in_one_place_is_refused() -> None:
    with pytest.raises(ValueError, match="unknown column 'speed'"):
        pivot_parts(published(), ("batch", "speed"))
    with pytest.raises(ValueError, match="two cells have the same input, output, batch"):
        pivot_parts([*published(), *published()], ("batch", "sys_tok_s"))


@given(st.lists(st.tuples(st.sampled_from(["", "a", "b|c"]), st.integers(1, 3), st.integers(1, 3)), unique=True))
def test_a_pivot_loses_no_number(cells: list[tuple[str, int, int]]) -> None:
    rows = [row((i, 8, b), 1.0, 1000.0 + n, variant=v) for n, (v, i, b) in enumerate(cells)]
    for axis in ("batch", "variant", "input"):
        found = [value for one in pivot_rows(rows, (axis, "sys_tok_s")) for name, value in one.items() if "sys" in name]
        assert sorted(value for value in found if value is not None) == [one["sys_tok_s"] for one in rows]
        assert all(f"| {1000 + n}" in pivot_parts(rows, (axis, "sys_tok_s")).markdown() for n in range(len(rows)))


def test_a_summary_folds_a_long_table() -> None:
    rows = [row((8, n, 1), 1.0, 1.0, status="suspect", reasons="drift") for n in range(1, 20)]
    text = table_parts(rows).github("a | <b>")
    assert text.startswith("### a \\| \\<b\\>\n\n- Peak throughput: 1.0 tok/s")
    assert "<details><summary>19 rows</summary>\n\n| Input |" in text
    assert text.index("are suspect: drift (19 cells)") < text.index("<details>")
    assert "<details>" not in table_parts(rows[:12]).github("t")


def test_no_rows_are_a_table_without_lines() -> None:
    empty = "| Input | Output | Batch | TTFT (ms) | Sys tok/s |\n|---|---|---|---|---|\n\nNo cell has a number.\n"
    assert markdown_table([]) == empty
    assert json.loads(json_table([])) == []


def test_output_is_what_was_received_where_answers_ended_by_themselves() -> None:
    rows = [
        row((64, 512, batch), 30.0, rate, output_tokens=tokens)
        for batch, rate, tokens in ((1, 81.0, 10.0), (4, 300.0, 183.25), (8, 500.0, 10.2))
    ]
    table = markdown_table(rows)
    assert [line.split(" | ")[1] for line in table.splitlines()[2:5]] == ["10 of 512", "183.2 of 512", "10.2 of 512"]
    assert "- Peak throughput: 500.0 tok/s (in=64, out=10.2 of 512, batch=8)" in table
    assert "\nOutput: mean tokens received, of the limit asked" in table
    assert "Scaling: 6.2x" in table
    assert "Scaling" not in markdown_table(rows[:2]), "answers of other lengths are no ratio"
    exact = markdown_table([row((64, 512, 1), 30.0, 81.0, output_tokens=512.0)])
    assert "| 64 | 512 | 1 |" in exact
    assert "received" not in exact.replace("receiving", "")
