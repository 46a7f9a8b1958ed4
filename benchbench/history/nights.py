"""A stored run as a night: its date, its commit, and of each cell a value with what it rests on. Pure."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from statistics import fmean, variance
from typing import Any

from benchbench.analysis.runs import Run
from benchbench.comparison.pairs import Side, sides_of, values_of
from benchbench.comparison.verdicts import BETTER
from benchbench.history.conditions import conditions_of
from benchbench.levels.changes import Value
from benchbench.spec.cell import CellInfo
from benchbench.student.t_distribution import t_quantile

# Metric -> column of a summary, and the factor to the metric's own unit (s, tok/s, req/s).
COLUMNS = {
    "sys_tok_s": ("sys_tok_s", 1.0),
    "ttft": ("ttft_ms", 1e-3),
    "tpot": ("tpot_ms", 1e-3),
    "e2el": ("e2el_ms", 1e-3),
    "goodput_req_s": ("goodput_req_s", 1.0),
}


@dataclass(frozen=True, slots=True)
class Measured:
    """A cell in one night. `values` by metric, empty where it does not count: `why` says so. `suspect`: its reasons."""

    cell: CellInfo
    values: Mapping[str, Value]
    why: str = ""
    suspect: str = ""


@dataclass(frozen=True, slots=True)
class Night:
    """A variant of a run. `when_ns` orders nights: the commit's date where that is known (`dated`), else the run's.

    `cells` by their shape.
    """

    run: Run
    variant: str
    when_ns: int
    measured_ns: int
    dated: bool
    commit: str
    conditions: Mapping[str, str]
    cells: Mapping[str, Measured]

    @property
    def name(self) -> str:
        """The run's folder."""
        return self.run.path.resolve().name

    @property
    def build(self) -> str:
        """The commit, short, else the run."""
        return self.commit or self.name


def nights_of(run: Run) -> list[Night]:
    """One for each variant of a run. Raises RunError for what cannot be read, ValueError for what has no date."""
    manifest = run.manifest
    times = [start["time_ns"] for start in manifest.get("starts") or [] if start.get("time_ns")]
    measured_ns = int(manifest.get("created_ns") or min(times, default=0))
    if run.imported is not None:
        raise ValueError(f"{run.path}: is imported: what other tools measured has no history here")
    if not measured_ns:
        raise ValueError(f"{run.path}: does not say when it was measured")
    nights = []
    for side in sides_of(run):
        commit, committed_ns = _source(manifest, side.variant)
        nights.append(
            Night(
                run,
                side.variant,
                committed_ns or measured_ns,
                measured_ns,
                bool(committed_ns),
                commit,
                conditions_of(manifest, side.variant),
                dict(_from_records(side) if run.has_records else _from_summary(side)),
            )
        )
    return nights


def _source(manifest: Mapping[str, Any], variant: str) -> tuple[str, int]:
    """The commit that was measured, shortened, and its date in ns; empty and 0 where the run does not know."""
    git = (manifest.get("variants") or {}).get(variant) or {}
    starts = [start for start in manifest.get("starts") or [] if start.get("variant", "") == variant]
    side = (starts[-1].get("environment") if starts else None) or manifest.get("engine_environment") or {}
    source = (side.get("sources") or {}).get("vllm") or {}
    commit = git.get("commit") or source.get("commit") or (side.get("vllm") or {}).get("commit") or ""
    date = git.get("committed_ns") if git.get("commit") else source.get("committed_ns")
    changed = not git and source.get("dirty")
    return f"{str(commit)[:12]}{'+changes' * bool(changed)}", int(date or 0)


def _from_records(side: Side) -> Iterator[tuple[str, Measured]]:
    values = values_of(side)
    for shape, cell in values.cells.items():
        by_metric = {
            metric: value
            for metric, blocks in values.means[shape].items()
            if (value := _value(metric, [*blocks.values()])) is not None
        }
        lost = [why for (_, label), why in values.lost.items() if label == shape]
        why = values.dropped.get(shape) or (("; ".join(dict.fromkeys(lost)) or "not measured") if not by_metric else "")
        yield shape, Measured(cell, by_metric, why, values.suspect.get(shape, ""))


def _value(metric: str, means: list[float]) -> Value | None:
    if not means or min(means) <= 0:
        return None
    logs = [BETTER[metric] * math.log(mean) for mean in means]
    return Value(fmean(logs), len(logs), variance(logs) if len(logs) > 1 else None)


def _from_summary(side: Side) -> Iterator[tuple[str, Measured]]:
    """Of a run that was kept small: the rows, whose intervals are over starts where it had several."""
    rows = {row["key"]: row for row in side.run.rows}
    for cell in side.run.cells:
        row = rows.get(cell.key)
        if cell.variant != side.variant or row is None:
            continue
        reasons = str(row.get("reasons") or "")
        if row["status"] == "invalid":
            yield cell.shape, Measured(cell, {}, reasons or "invalid")
            continue
        starts = int(row.get("starts") or 1)
        values = {metric: value for metric in COLUMNS if (value := _of_row(row, metric, starts)) is not None}
        why = "" if values else "not measured"
        yield cell.shape, Measured(cell, values, why, reasons if row["status"] == "suspect" else "")


def _of_row(row: Mapping[str, Any], metric: str, starts: int) -> Value | None:
    column, factor = COLUMNS[metric]
    mean, high = row.get(column), row.get(f"{column}_high")
    if not isinstance(mean, int | float) or not 0 < mean < math.inf:
        return None
    log = BETTER[metric] * math.log(mean * factor)
    if starts < 2 or not isinstance(high, int | float) or not mean < high < math.inf:
        return Value(log, starts)
    return Value(log, starts, starts * ((high - mean) / mean / t_quantile(0.975, starts - 1)) ** 2)
