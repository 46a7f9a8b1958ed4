"""A client's script, for mypy: what benchbench gives has types, and what it does not know is refused.

Each `type: ignore` must be needed (mypy --strict): it stands where a mistake has to be found.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import assert_type

import pandas as pd

import benchbench
from benchbench import Audit, BenchError, BestSettings, Outcome, Run, RunComparison, SpecError, SweepSpec


def measured(sweep_file: Path) -> Run | None:
    """A sweep, and what it left."""
    try:
        spec = benchbench.load_spec(sweep_file, ["rounds.max=3"])
    except SpecError as error:
        sys.exit(str(error))
    assert_type(spec, SweepSpec)
    assert_type(benchbench.spec_from_mapping({"name": "mine"}), SweepSpec)
    assert_type(benchbench.best(spec, out="runs/best", metric="ttft"), Outcome)
    outcome = benchbench.sweep(spec, out="runs/mine", plots=False)
    assert_type(outcome, Outcome)
    return benchbench.open_run(outcome.path) if outcome.state == "complete" else None


def frames(run: Run) -> dict[str, float]:
    """The numbers of a run."""
    assert_type(run.summary(), pd.DataFrame)
    assert_type(run.rounds("all"), pd.DataFrame)
    assert_type(run.telemetry(), pd.DataFrame)
    assert_type(run.replicas(), pd.DataFrame)
    requests = run.requests("measured", events=True)
    assert_type(requests, pd.DataFrame)
    means = requests[requests["steady"]].groupby("cell")["ttft_ms"].mean()
    events = sum(batch.num_rows for batch in run.tokens())
    return {str(cell): float(mean) for cell, mean in means.items()} | {"events": float(events)}


def made(run: Run, card: Path, folder: Path) -> Sequence[Path]:
    """All that can be made of a run."""
    assert_type(run.table("github", columns=["input", "ttft_ms"]), str)
    assert_type(run.table(pivot="batch:sys_tok_s"), str)
    assert_type(run.explain("batch>=1"), str)
    assert_type(run.publish(card, after="# Model", dry_run=True), str)
    assert_type(run.export("csv", folder / "csv").files, tuple[Path, ...])
    audit = run.audit(hardware="H100 SXM", count=8, parameters="70B")
    assert_type(audit, Audit)
    assert_type(benchbench.audit_file(card).impossible, bool)
    assert_type(benchbench.runs_table([run, run], "csv"), str)
    page = benchbench.write_page([run], folder / "page.html")
    return [page, run.write_page(folder / "again.html"), *run.draw(folder, formats=["svg"])]


def compared(run: Run, other: Run | str) -> tuple[str, ...]:
    """Two runs, or the variants of one."""
    comparison = benchbench.compare_runs(run, other, margin=0.02, allow_unlike=True)
    assert_type(comparison, RunComparison)
    assert_type(run.compare(other, base="main").summary(), pd.DataFrame)
    assert_type(comparison.means(), pd.DataFrame)
    assert_type(comparison.table("md", metrics=["ttft"]), str)
    assert_type(benchbench.history_of([run, other], metrics=["ttft"]).steps(), pd.DataFrame)
    best = run.best(metric="tpot")
    assert_type(best, BestSettings)
    return (*comparison.sentences, best.default)


def mistakes(run: Run) -> None:
    """What a type checker must refuse."""
    benchbench.open_rum("runs/mine")  # type: ignore[attr-defined]
    run.table("xml")  # type: ignore[arg-type]
    run.requests("warm")  # type: ignore[arg-type]
    run.audit(gpus=8)  # type: ignore[call-arg]
    run.compare(margin="1%")  # type: ignore[arg-type]
    benchbench.sweep("my-sweep.yaml")  # type: ignore[arg-type]


def main(path: str, card: str, folder: str) -> None:
    try:
        run = benchbench.open_run(path)
        numbers, files = frames(run), made(run, Path(card), Path(folder))
    except BenchError as error:
        sys.exit(str(error))
    if not numbers["events"] or not all(file.is_file() for file in files):
        sys.exit("nothing was made")
