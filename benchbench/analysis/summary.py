"""One cell's rounds -> its summary: estimates over rounds, pooled percentiles, and whether to trust them. Pure."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any

import numpy as np

from benchbench.analysis.metrics import Floats, RoundMetrics, Slo, round_metrics
from benchbench.analysis.stats import Estimate, mean_estimate
from benchbench.analysis.validity import Budgets, Reason, Seen, Status, judge
from benchbench.record.requests import round_facts

if TYPE_CHECKING:
    import pyarrow as pa

# The first columns are a contract with other programs; new ones go to the end.
COLUMNS = (
    *("variant", "input", "output", "batch", "load", "status", "reasons", "rounds", "requests", "failed"),
    *("ttft_ms", "ttft_ms_low", "ttft_ms_high", "ttft_ms_p50", "ttft_ms_p90", "ttft_ms_p99", "tpot_ms"),
    *("itl_ms_p50", "itl_ms_p99", "e2el_ms", "sys_tok_s", "sys_tok_s_low", "sys_tok_s_high", "total_tok_s", "req_s"),
    *("lag_ms_p99", "rate", "ttft_ms_first", "ttft_ms_last", "tpot_ms_low", "tpot_ms_high"),
    *("e2el_ms_low", "e2el_ms_high", "e2el_ms_p50", "e2el_ms_p90", "e2el_ms_p99", "ttft_scheduled_ms"),
    *("stream_tok_s", "goodput_req_s", "run_tok_s", "round_s", "shared_share", "send_skew_ms", "lag_ms_p50"),
    *("lag_ms_max", "turn_ms_max", "client_cpu_share", "resent", "key"),
)


@dataclass(frozen=True, slots=True)
class CellInfo:
    """What analysis needs to know of a cell: an entry of the manifest's plan."""

    key: str
    variant: str
    input: int
    output: int
    batch: int | None
    rate: float | None
    load: str
    requests: int
    rounds_min: int
    prompts: str
    output_mode: str
    slo: Slo | None
    budgets: Budgets

    @classmethod
    def from_entry(cls, entry: Mapping[str, Any]) -> CellInfo:
        """Raises KeyError for an entry without a needed field."""
        slo = {name: entry["slo"].get(name) for name in ("ttft_ms", "tpot_ms", "e2el_ms")}
        limits = {f"{name.removesuffix('_ms')}_s": ms / 1e3 for name, ms in slo.items() if ms is not None}
        known = {field.name for field in fields(Budgets)}
        budgets = {name: value for name, value in entry["validity"].items() if name in known}
        plain = {field.name: entry[field.name] for field in fields(cls) if field.name not in {"slo", "budgets"}}
        return cls(**plain, slo=Slo(**limits) if limits else None, budgets=Budgets(**budgets))


@dataclass(frozen=True, slots=True)
class CellSummary:
    """A cell's numbers. Estimates are over rounds, in s and 1/s; percentiles are pooled over requests or gaps."""

    cell: CellInfo
    rounds: tuple[RoundMetrics, ...]
    estimates: Mapping[str, Estimate | None]
    status: Status
    reasons: tuple[Reason, ...]
    facts: tuple[Mapping[str, Any], ...]
    resent: int

    @property
    def requests(self) -> int:
        return sum(one.requests for one in self.rounds)

    @property
    def failed(self) -> int:
        return sum(one.failed for one in self.rounds)


_ESTIMATES: dict[str, Callable[[RoundMetrics], float | None]] = {
    "ttft": lambda one: _mean(one.ttft_s),
    "ttft_first": lambda one: _edge(one.ttft_s, np.min),
    "ttft_last": lambda one: _edge(one.ttft_s, np.max),
    "ttft_scheduled": lambda one: _mean(one.ttft_scheduled_s),
    "tpot": lambda one: _mean(one.tpot_s),
    "e2el": lambda one: _mean(one.e2el_s),
    "sys_tok_s": lambda one: one.sys_tok_s,
    "run_tok_s": lambda one: one.run_tok_s,
    "total_tok_s": lambda one: one.total_tok_s,
    "req_s": lambda one: one.req_s,
    "goodput_req_s": lambda one: one.goodput_req_s,
    "stream_tok_s": lambda one: _mean(1 / one.tpot_s[one.tpot_s > 0]),
    "round_s": lambda one: one.duration_s,
}


def _mean(values: Floats) -> float | None:
    return float(values.mean()) if len(values) else None


def _edge(values: Floats, edge: Callable[[Floats], Any]) -> float | None:
    return float(edge(values)) if len(values) else None


def summarise(cell: CellInfo, tables: Sequence[pa.Table]) -> CellSummary:
    """Summary of a cell from the tables of its measured rounds, in order."""
    rounds = tuple(round_metrics(table, load=cell.load, in_flight=cell.batch, slo=cell.slo) for table in tables)
    facts = tuple(round_facts(table) for table in tables)
    estimates = {}
    for name, figure in _ESTIMATES.items():
        values = [value for one in rounds if (value := figure(one)) is not None]
        estimates[name] = mean_estimate(values)
    status, reasons = judge(_seen(cell, tables, rounds, facts), cell.budgets)
    resent = sum(_total(table, "resent") for table in tables)
    return CellSummary(cell, rounds, estimates, status, reasons, facts, resent)


def _total(table: pa.Table, name: str) -> int:
    import pyarrow.compute as pc

    return int(pc.sum(table[name]).as_py() or 0)


def _seen(
    cell: CellInfo,
    tables: Sequence[pa.Table],
    rounds: Sequence[RoundMetrics],
    facts: Sequence[Mapping[str, Any]],
) -> Seen:
    wrong = unknown = blind = 0
    for table in tables:
        rows = zip(
            table["status"].to_pylist(),
            table["input_tokens"].to_pylist(),
            table["asked_input_tokens"].to_pylist(),
            table["output_tokens"].to_pylist(),
            strict=True,
        )
        for status, told, asked, output in rows:
            if status == "ok":
                wrong += told is not None and told != asked
                unknown += told is None
                blind += output is None
    windowed = all(one.windowed for one in rounds)
    if cell.load == "closed":
        windowed = windowed and cell.requests >= 4 * (cell.batch or 1)
    return Seen(
        rounds=len(rounds),
        rounds_asked=cell.rounds_min,
        requests=sum(one.requests for one in rounds),
        failed=sum(one.failed for one in rounds),
        events=sum(len(one.lag_s) for one in rounds),
        shared_events=sum(one.shared_events for one in rounds),
        first_shared=sum(one.first_shared for one in rounds),
        buffered=sum(one.buffered for one in rounds),
        cached_tokens=sum(_total(table, "cached_tokens") for table in tables),
        input_wrong=wrong,
        input_unknown=unknown,
        output_unknown=blind,
        token_ids=cell.prompts == "token_ids",
        clock_step_ns=max((fact.get("clock_step_ns", 0) for fact in facts), default=0),
        kernel_stamps=all(fact.get("kernel_stamps", True) for fact in facts),
        windowed=windowed,
    )


def _pooled(rounds: Sequence[RoundMetrics], name: str) -> Floats:
    return np.concatenate([getattr(one, name) for one in rounds]) if rounds else np.array([])


def _percentile(values: Floats, q: float) -> float | None:
    """Percentile by numpy's linear rule, None of nothing."""
    return float(np.percentile(values, q)) if len(values) else None


def summary_row(summary: CellSummary) -> dict[str, Any]:
    """The flat row of summary.csv, keys as in COLUMNS: latencies in ms, rates in 1/s, None where undefined."""
    cell, rounds = summary.cell, summary.rounds
    row: dict[str, Any] = dict.fromkeys(COLUMNS)
    for name in ("variant", "input", "output", "batch", "load", "rate", "key"):
        row[name] = getattr(cell, name)
    row |= {
        "status": summary.status,
        "reasons": ";".join(dict.fromkeys(reason.code for reason in summary.reasons)),
        "rounds": len(rounds),
        "requests": summary.requests,
        "failed": summary.failed,
        "resent": summary.resent,
    }
    for name, estimate in summary.estimates.items():
        column, scale = (name, 1.0) if name.endswith("_s") else (f"{name}_ms", 1e3)
        column = {"ttft_first_ms": "ttft_ms_first", "ttft_last_ms": "ttft_ms_last"}.get(column, column)
        if estimate is not None:
            row[column] = estimate.point * scale
            if estimate.low is not None and estimate.high is not None and f"{column}_low" in row:
                row[f"{column}_low"], row[f"{column}_high"] = estimate.low * scale, estimate.high * scale
    for metric in ("ttft", "e2el", "itl", "lag"):
        pool = _pooled(rounds, f"{metric}_s") * 1e3
        for q in (50, 90, 99):
            if f"{metric}_ms_p{q}" in row:
                row[f"{metric}_ms_p{q}"] = _percentile(pool, q)
        if metric == "lag":
            row["lag_ms_max"] = float(pool.max()) if len(pool) else None
    events = sum(len(one.lag_s) for one in rounds)
    row["shared_share"] = sum(one.shared_events for one in rounds) / events if events else None
    row["send_skew_ms"] = max((one.send_skew_s for one in rounds), default=0.0) * 1e3 if rounds else None
    row["turn_ms_max"] = (
        max((fact.get("turn_max_ns", 0) for fact in summary.facts), default=0) / 1e6 if rounds else None
    )
    wall = sum(fact.get("wall_ns", 0) for fact in summary.facts)
    row["client_cpu_share"] = sum(fact.get("cpu_ns", 0) for fact in summary.facts) / wall if wall else None
    return row
