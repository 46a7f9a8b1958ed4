"""llm-d's Benchmark Report 0.2 as JSON: one workload stage a file, by whatever tool it names.

A report that `bench export` wrote holds the whole row of summary.csv, which is taken as it is.
"""

from __future__ import annotations

from typing import Any, Literal

from pydantic import AliasPath, BaseModel, Field

from benchbench.analysis.runs import OWN
from benchbench.analysis.summary import COLUMNS
from benchbench.importers.own_cell import OwnCell
from benchbench.importers.result import Count, ImportedResult, Positive, imported, numbers, parsed
from benchbench.plausible.loads import load_of

TOOL = "llm-d report"
_LATENCIES = {"ttft": "time_to_first_token", "tpot": "time_per_output_token"}
_LATENCIES |= {"itl": "inter_token_latency", "e2el": "request_latency"}
_RATES = {"run_tok_s": "output_token_rate", "total_tok_s": "total_token_rate", "req_s": "request_rate"}
_LENGTHS = {
    **{f"asked_{name}": f"scenario.load.standardized.{name}_seq_len.value" for name in ("input", "output")},
    **{name: f"results.request_performance.aggregate.requests.{name}_length.mean" for name in ("input", "output")},
}
_SCALES = {"ms": 1.0, "s": 1e3, "ms/token": 1.0, "s/token": 1e3}  # to ms
_AT = ("results", "request_performance", "aggregate")
_NATIVE = ("scenario", "load", "native", "config")
_LOAD = ("scenario", "load", "standardized")


class _Report(BaseModel):
    version: Literal["0.2", "0.2.1"]
    start: str = Field("", validation_alias=AliasPath("run", "time", "start"))
    tool: str = Field(validation_alias=AliasPath(*_LOAD, "tool"))
    model: str | None = Field(None, validation_alias=AliasPath("scenario", "stack", 0, "standardized", "model", "name"))
    tool_version: str = Field("", validation_alias=AliasPath(*_LOAD, "tool_version"))
    rate: Positive | None = Field(None, validation_alias=AliasPath(*_LOAD, "rate_qps"))
    concurrency: int | None = Field(None, gt=0, validation_alias=AliasPath(*_LOAD, "concurrency"))
    total: Count = Field(validation_alias=AliasPath(*_AT, "requests", "total"))
    failures: Count | None = Field(None, validation_alias=AliasPath(*_AT, "requests", "failures"))
    row: dict[str, Any] | None = Field(None, validation_alias=AliasPath(*_NATIVE, "benchbench"))
    notes: list[str] = Field([], validation_alias=AliasPath(*_NATIVE, "notes"))


def read_llm_d(data: dict[str, Any]) -> ImportedResult:
    """The one cell of a report. Raises ValueError."""
    report = parsed(_Report, data, TOOL)
    failed = report.failures or 0
    if failed > report.total:
        raise ValueError(f"{TOOL}: requests.failures: {failed} of {report.total}")
    done = report.total - failed
    common: dict[str, Any] = {"done": done, "failed": failed, "date": report.start, "model": report.model or ""}
    if report.row is not None and report.tool == OWN:
        return _own(report.row, report, common)
    if report.concurrency is None and report.rate is None:
        raise ValueError(f"{TOOL}: scenario.load.standardized: neither concurrency nor rate_qps: unknown load")
    lengths = numbers(data, _LENGTHS, TOOL)
    return imported(
        _values(data) if done else {},
        load=load_of(report.total, report.concurrency, report.rate),
        inputs=(lengths.get("input", lengths.get("asked_input")), lengths.get("asked_input")),
        outputs=(lengths.get("output", lengths.get("asked_output")), lengths.get("asked_output")),
        tool=f"{report.tool} ({TOOL})",
        version=report.tool_version,
        conditions={"max_concurrency": report.concurrency or "unlimited"} if report.rate else {},
        **common,
    )


def _own(stored: dict[str, Any], report: _Report, common: dict[str, Any]) -> ImportedResult:
    figures = {name: name for name in stored.keys() & COLUMNS.keys() if COLUMNS[name].decimals is not None}
    values = numbers(stored, figures | {"starts": "starts"}, TOOL) if common["done"] else {}
    cell = parsed(OwnCell, {**stored, "notes": report.notes}, TOOL)
    return imported(values, load=(cell.load, cell.batch, cell.rate), **common, **cell.labels(report.tool_version))


def _values(data: dict[str, Any]) -> dict[str, float]:
    """Means and percentiles; of a latency in a unit that is none, ValueError."""
    aggregate = data["results"]["request_performance"]["aggregate"]
    values = numbers(aggregate, {ours: f"throughput.{theirs}.mean" for ours, theirs in _RATES.items()}, TOOL)
    for ours, theirs in _LATENCIES.items():
        stats = (aggregate.get("latency") or {}).get(theirs)
        if not isinstance(stats, dict):
            continue
        if stats.get("units") not in _SCALES:
            raise ValueError(f"{TOOL}: latency.{theirs}.units: {stats.get('units')!r} (allowed: {', '.join(_SCALES)})")
        paths = {f"{ours}_ms": "mean", **{f"{ours}_ms_p{q}": f"p{q}" for q in (50, 90, 99)}}
        scale = _SCALES[stats["units"]]
        values |= {name: value * scale for name, value in numbers(stats, paths, TOOL).items()}
    return values
