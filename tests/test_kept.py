"""A run without records/: its manifest and its summary.parquet are all that is known, and it says so."""

from __future__ import annotations

import csv
import shutil
from pathlib import Path

import pytest
from driving import bench
from runs_made import BRANCHES, made_run

from benchbench import open_run
from benchbench.analysis.summary import COLUMNS, UNITS
from benchbench.errors import RunError
from benchbench.store.run_directory import RunDirectory

PLAIN = {name: value for name, value in BRANCHES.items() if name not in {"variants", "blocks"}}


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """The same run with its records, and without."""
    whole = made_run(tmp_path_factory.mktemp("runs") / "whole", PLAIN, lambda cell, _, k: (50.0 + cell.input + k, 10.0))
    RunDirectory(whole).write_summary(open_run(whole).rows, UNITS)
    small = whole.with_name("small")
    shutil.copytree(whole, small, ignore=shutil.ignore_patterns("records", "journal.jsonl", ".lock"))
    return whole, small


def test_its_rows_are_the_summarys_and_its_table_says_so(runs: tuple[Path, Path]) -> None:
    whole, small = map(open_run, runs)
    assert (whole.has_records, small.has_records) == (True, False)
    assert small.rows == whole.rows
    frame = small.summary()
    assert list(frame.columns) == list(COLUMNS)
    assert {str(frame[name].dtype) for name in ("power_w", "rate", "throttle", "preemptions")} == {"float64"}
    shown = [bench("table", path).stdout for path in runs]
    added = "Records are not kept here: these numbers are the stored summary's.\n"
    assert added in shown[1]
    assert shown[1].replace(added, "") == shown[0]
    assert bench("table", runs[1], "--format", "csv").stdout == bench("table", runs[0], "--format", "csv").stdout


def test_what_needs_records_refuses_in_one_line(runs: tuple[Path, Path]) -> None:
    key = open_run(runs[1]).cells[0].key
    for command in (["explain", runs[1]], ["plot", runs[1], "--cell", key], ["compare", runs[0], runs[1]]):
        result = bench(*command)
        assert (result.exit_code, len(result.stderr.splitlines())) == (2, 1)
        assert "small: has no records of requests" in result.stderr
    for ask in (open_run(runs[1]).requests, open_run(runs[1]).rounds):
        with pytest.raises(RunError, match="has no records"):
            ask()


@pytest.mark.usefixtures("drawn_here")
def test_it_is_plotted_without_a_timeline(runs: tuple[Path, Path], tmp_path: Path) -> None:
    result = bench("plot", runs[1], "--out", tmp_path, "--format", "svg")
    assert result.exit_code == 0
    names = {path.stem for path in tmp_path.iterdir()}
    assert {"throughput", "ttft_batch", "heatmap"} <= names
    assert "timeline" not in names


def test_a_summary_that_is_broken_or_missing_is_named(runs: tuple[Path, Path], tmp_path: Path) -> None:
    broken = tmp_path / "broken"
    shutil.copytree(runs[1], broken)
    (broken / "summary.parquet").write_bytes(b"PAR1 no")
    result = bench("table", broken)
    assert result.exit_code == 2
    assert "summary.parquet: damaged, or no file of this tool" in result.stderr
    (broken / "summary.parquet").unlink()
    assert "holds no numbers" in bench("table", broken).stderr


# ---- A run of before this test was written -------------------------------------------------------------


def test_a_run_stored_before_reads_the_same_numbers() -> None:
    run = open_run(Path(__file__).parent / "data" / "stored-run")
    stored = list(csv.DictReader((run.path / "summary.csv").read_text(encoding="utf-8").splitlines()))
    assert len(stored) == len(run.rows) == 3
    for before, now in zip(stored, run.rows, strict=True):
        for name, text in before.items():
            value = now[name]  # intervals were scipy's t once: the 12th digit may be another
            kept: object = pytest.approx(float(text), rel=1e-12) if isinstance(value, float) else text
            assert (value if isinstance(value, float) else "" if value is None else str(value)) == kept, name
    strict, loose = run.cells[0], run.cells[2]
    assert (strict.label, loose.label) == ("in=128 out=16 batch=1", "in=1024 out=8 batch=2")
    assert (strict.slo.ttft_ms, strict.slo.tpot_ms, strict.slo.e2el_ms, loose.slo.ttft_ms) == (40, None, 1000, 20)
    assert (strict.validity.shared_invalid, loose.validity.shared_invalid, loose.validity.cached_tokens) == (
        0.1,
        0.3,
        3,
    )
    assert (strict.load, strict.requests, strict.warmup, strict.rounds_min, strict.capped) == ("static", 1, 1, 2, False)
    assert [entry.key for entry in run.cells] == [row["key"] for row in run.rows]
    stored = run.manifest["plan"][0]
    assert strict.to_entry() == {**stored, "spread": False, "lengths": "", "slo": {**stored["slo"], "statistic": "p99"}}
