"""Lengths from a distribution: exact, reproducible, of the law that was asked for, and shown as what they are."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rounds_made import Made, table_of

from benchbench import open_run, sweep
from benchbench.analysis.metrics import round_metrics
from benchbench.cli.dry_run import plan_text
from benchbench.datasets.laws import Law, law_of, longest
from benchbench.datasets.row_lengths import lengths_text
from benchbench.openai.target import Access, make_target
from benchbench.prompts.round_job import SPARE_BATCHES, first_outputs, make_job
from benchbench.report.summary_table import cell_text
from benchbench.spec import Cell, SpecError, make_plan, spec_from_mapping

TARGET = make_target("http://127.0.0.1:8000", "completions", Access())
LOGNORMAL = {"lognormal": {"mean": 64, "p99": 256}}


def spec_of(**changes: Any) -> Any:
    base = {
        "name": "s",
        "model": "m",
        "engine": {"kind": "simulator"},
        "grid": {"input": LOGNORMAL, "output": {"uniform": [4, 12]}, "batch": 4},
        "prompts": {"vocab": [1000, 2000]},
    }
    return spec_from_mapping(base | changes)


def cell_of(**changes: Any) -> Cell:
    return make_plan(spec_of(**changes)).cells[0]


def job_of(cell: Cell, number: int = 0, output: int | None = None) -> Any:
    return make_job(cell, TARGET, (1000, 2000), "measured", number, 0, output)


@given(st.integers(2, 4000), st.floats(1.01, 8), st.integers(0, 9))
@settings(max_examples=30, deadline=None)
def test_a_lognormal_law_has_the_mean_and_the_p99_asked_for(mean: int, times: float, seed: int) -> None:
    law = law_of({"lognormal": {"mean": mean, "p99": mean * times + 1}})
    drawn = np.array(law.draw(np.random.default_rng(seed), 20_000))
    assert drawn.mean() == pytest.approx(mean, rel=0.01, abs=0.3)
    assert np.percentile(drawn, 99) == pytest.approx(mean * times + 1, rel=0.02, abs=1)
    assert law.least <= drawn.min() <= drawn.max() <= (law.most or 0)


@given(st.integers(1, 50), st.integers(0, 50), st.integers(1, 40), st.integers(0, 9))
def test_a_round_has_a_length_of_each_part_of_the_law(least: int, wide: int, count: int, seed: int) -> None:
    law = Law("uniform", least + wide / 2, least, least + wide)
    drawn = law.draw(np.random.default_rng(seed), count)
    edges = [least + k * (wide + 1) / count for k in range(count + 1)]
    assert all(int(low) <= length <= high for length, low, high in zip(sorted(drawn), edges, edges[1:], strict=False))
    assert drawn == law.draw(np.random.default_rng(seed), count)


@pytest.mark.parametrize("load", ["static", "closed", "open"])
def test_requests_ask_for_their_own_lengths_and_for_exactly_them(load: str) -> None:
    grid = {"input": LOGNORMAL, "output": {"uniform": [4, 12]}} | ({"rate": 5} if load == "open" else {"batch": 4})
    cell = cell_of(load={"kind": load}, grid=grid)
    job = job_of(cell)
    bodies = [json.loads(payload.partition(b"\r\n\r\n")[2]) for payload in job.payloads]
    assert [len(body["prompt"]) for body in bodies] == job.asked_input
    assert [body["max_tokens"] for body in bodies] == [body["min_tokens"] for body in bodies] == job.asked_output
    assert len({*job.asked_input}) > 2
    assert (job.payloads, job.asked_output) == (job_of(cell).payloads, job_of(cell).asked_output)
    assert job_of(cell, 1).asked_input != job.asked_input
    # Answers end at their own times, so that the batch would empty out while the steady requests run.
    assert job.spare == (SPARE_BATCHES * 4 if load == "closed" else 0)
    short = job_of(cell, output=5).asked_output
    assert max(short) == 5


def test_the_first_wave_is_spread_over_each_requests_own_length() -> None:
    assert first_outputs([8, 8, 8, 8]) == [8, 6, 4, 2]
    assert first_outputs([10, 4, 1]) == [10, 3, 1]


def test_what_needs_one_length_knows_that_there_is_none() -> None:
    cell = cell_of()
    assert (cell.input, cell.output, longest(cell)) == (64, 8, 512 + 12)
    assert cell.label == "in=≈64 out=≈8 batch=4"
    assert "in=≈64 out=≈8 batch=4 static" in plan_text(make_plan(spec_of()))
    other = cell_of(grid={"input": {"lognormal": {"mean": 64, "p99": 200}}, "output": 8, "batch": 4})
    fixed = cell_of(grid={"input": 64, "output": 8, "batch": 4})
    assert len({cell.key, other.key, fixed.key}) == 3
    assert fixed.info.lengths == ""
    again = make_plan(spec_from_mapping(json.loads(json.dumps(spec_of().model_dump(mode="json"))))).cells[0]
    assert again.key == cell.key


@pytest.mark.parametrize(
    ("axis", "words"),
    [
        ({"lognormal": {"mean": 64}}, "lognormal.p99 is missing"),
        ({"lognormal": {"mean": 64, "p99": 32}}, "min below mean below p99"),
        ({"lognormal": {"mean": 64, "p99": 6400}}, "no law of mean 64 and p99 6400"),
        ({"lognormal": {"mean": 64, "p99": 128, "median": 3}}, 'unknown key "median" (allowed: mean, p99, min, max)'),
        ({"uniform": [9, 3]}, "ascend"),
        ({"uniform": 9}, "two whole numbers"),
        ({"normal": {}}, 'unknown law "normal"'),
        ([64, LOGNORMAL], "two laws of lengths with the means 64"),
        (0, "must be at least 1"),
        ("long", "must be a whole number"),
    ],
)
def test_laws_that_cannot_be_are_refused_in_one_line(axis: Any, words: str) -> None:
    with pytest.raises(SpecError) as caught:
        spec_of(grid={"input": axis, "output": 8, "batch": 4})
    assert [words in str(problem) for problem in caught.value.problems] == [True]


def test_rates_are_sums_of_each_requests_tokens_and_unknown_where_a_prompts_length_is() -> None:
    requests = [
        Made(((100, 1), (200, 3)), asked_input=7, told_input=9),
        Made(((150, 2),), asked_input=5, told_input=None),
    ]
    whole = round_metrics(table_of(requests), load="static", in_flight=2)
    assert whole.input_tokens.tolist() == [9, 5]
    assert whole.sys_tok_s is not None
    assert whole.total_tok_s == pytest.approx(whole.sys_tok_s * (6 + 14) / 6)
    untold = [requests[0], Made(((150, 2),), asked_input=-1, told_input=None)]
    partly = round_metrics(table_of(untold), load="static", in_flight=2)
    assert (partly.total_tok_s, partly.sys_tok_s, partly.input_tokens.tolist()) == (None, whole.sys_tok_s, [9])


def test_a_row_shows_mean_and_percentiles() -> None:
    row: Mapping[str, Any] = {"lengths": "input uniform, 1 to 9", "input": 5, "output": 8, "output_tokens": 8.0}
    assert cell_text(dict(row), "input") == "≈5"
    known = {**row, "input_tokens": 5.2, "input_tokens_p50": 5.0, "input_tokens_p99": 8.9}
    assert cell_text(known, "input") == "5 (p50 5, p99 9)"
    assert cell_text(known, "output") == "8"
    assert lengths_text(known, "output") == ""


def test_a_sweep_measures_them_and_the_server_counts_the_same(tmp_path: Path) -> None:
    engine = {"kind": "simulator", "scale": 0.02}
    rounds = {"min": 3, "max": 3, "warmup": 1}
    outcome = sweep(spec_of(engine=engine, load={"kind": "closed"}, rounds=rounds), tmp_path / "run")
    row = outcome.rows[0]
    assert row["failed"] == 0
    assert row["lengths"] == "input lognormal, mean 64, p99 256, 1 to 512; output uniform, 4 to 12"
    assert row["input_tokens_p50"] < row["input_tokens"] < row["input_tokens_p99"]
    assert (row["mfu"], row["ttft_bound_ms"], row["sol"]) == (None, None, None)
    run = open_run(tmp_path / "run")
    records = run.requests()
    assert (records["asked_input_tokens"] == records["input_tokens"]).all()
    assert (records["asked_output_tokens"] == records["output_tokens"]).all()
    assert "measured input" in run.explain()
