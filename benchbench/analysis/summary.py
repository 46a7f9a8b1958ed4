"""One cell's rounds -> its summary: estimates over rounds, pooled percentiles, and whether to trust them. Pure."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from benchbench.analysis.cell import CellInfo
from benchbench.analysis.evidence import evidence_of
from benchbench.analysis.metrics import (
    RoundMetrics,
    by_start,
    in_blocks,
    over_starts,
    percentile,
    pooled,
    round_metrics,
)
from benchbench.analysis.roofline import Platform, Utilization, utilization_of
from benchbench.analysis.server_times import ServerTimes, server_times
from benchbench.analysis.stats import Estimate, two_stage_estimate
from benchbench.analysis.validity import Evidence, Reason, Status, status_of
from benchbench.host.energy import Usage, stragglers, throttled, usage, window_of
from benchbench.store.arrow import Floats
from benchbench.store.requests import round_facts

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
    *("rounds_needed", "warmup_rounds", "queue_ms", "preemptions", "prefix_hits", "foreign_tokens"),
    *("server_ttft_ms", "server_queue_ms", "server_itl_ms", "outside_ttft_ms", "server_times"),
    *("power_w", "energy_j", "tok_per_j", "j_per_tok", "gpu_temp_c_max", "gpu_clock_mhz", "gpu_clock_mhz_min"),
    "throttle",
    "starts",
    "tool",  # that measured, of an imported row; None is this one
    *("ttft_bound_ms", "tpot_bound_ms", "sys_tok_s_bound", "mfu", "mbu", "sol"),
)


@dataclass(frozen=True, slots=True)
class CellSummary:
    """A cell's numbers. Estimates are over rounds, in s and 1/s; percentiles are pooled over requests or gaps."""

    cell: CellInfo
    rounds: tuple[RoundMetrics, ...]
    warmups: tuple[RoundMetrics, ...]
    estimates: Mapping[str, Estimate | None]
    evidence: Evidence
    server: ServerTimes | None
    status: Status
    reasons: tuple[Reason, ...]
    facts: tuple[Mapping[str, Any], ...]
    usage: Usage | None
    utilization: Utilization | None = None


ESTIMATES: dict[str, Callable[[RoundMetrics], float | None]] = {
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


def summarise(
    cell: CellInfo,
    tables: Sequence[pa.Table],
    warmups: Sequence[pa.Table] = (),
    samples: pa.Table | None = None,
    platform: Platform | None = None,
) -> CellSummary:
    """Summary of a cell from the tables of its measured rounds and of its warm-up rounds, in order, and telemetry's.

    With `platform`, what was served on what, also its bounds and how much of the hardware it used.
    """
    rounds, before = metrics_of(cell, tables), metrics_of(cell, warmups)
    facts = tuple(round_facts(table) for table in tables)
    estimates = {}
    for name, figure in ESTIMATES.items():
        values = over_starts(rounds, figure)
        estimates[name] = two_stage_estimate(values, len(values) if in_blocks(rounds) else cell.rounds_min)
    used = usage([window for table in tables if (window := window_of(table))], samples)
    gpus = used.gpus if used else ()
    evidence = evidence_of(cell, tables, rounds, before, facts)
    utilization = utilization_of(cell, platform, estimates, evidence) if platform else None
    evidence = replace(
        evidence,
        throttled=throttled(gpus),
        straggler=stragglers(gpus, cell.budgets.straggler),
        too_fast=utilization.too_fast if utilization else (),
    )
    status, reasons = status_of(evidence, cell.budgets)
    server = server_times(tables, rounds, facts)
    return CellSummary(cell, rounds, before, estimates, evidence, server, status, reasons, facts, used, utilization)


def metrics_of(cell: CellInfo, tables: Sequence[pa.Table]) -> tuple[RoundMetrics, ...]:
    """The metrics of each round of a cell."""
    return tuple(round_metrics(table, load=cell.load, in_flight=cell.batch, slo=cell.slo) for table in tables)


def summary_row(summary: CellSummary) -> dict[str, Any]:
    """The flat row of summary.csv, keys as in COLUMNS: latencies in ms, rates in 1/s, None where undefined."""
    cell, rounds, evidence = summary.cell, summary.rounds, summary.evidence
    row: dict[str, Any] = dict.fromkeys(COLUMNS)
    for name in ("variant", "input", "output", "batch", "load", "rate", "key"):
        row[name] = getattr(cell, name)
    row |= {
        "status": summary.status,
        "reasons": ";".join(dict.fromkeys(reason.code for reason in summary.reasons)),
        "rounds": len(rounds),
        "starts": len(by_start(rounds)) if in_blocks(rounds) else None,
        "requests": evidence.requests,
        "failed": evidence.failed + evidence.wrong_length,
        "rounds_needed": evidence.rounds_needed,
        "warmup_rounds": len(summary.warmups),
        "preemptions": evidence.preemptions,
        "prefix_hits": evidence.prefix_hits,
        "foreign_tokens": evidence.foreign_tokens,
        "resent": sum(fact.get("resent", 0) for fact in summary.facts),
    }
    for name, estimate in summary.estimates.items():
        column, scale = (name, 1.0) if name.endswith("_s") else (f"{name}_ms", 1e3)
        column = {"ttft_first_ms": "ttft_ms_first", "ttft_last_ms": "ttft_ms_last"}.get(column, column)
        if estimate is not None:
            row[column] = estimate.point * scale
            if estimate.low is not None and estimate.high is not None and f"{column}_low" in row:
                row[f"{column}_low"], row[f"{column}_high"] = estimate.low * scale, estimate.high * scale
    for metric in ("ttft", "e2el", "itl", "lag"):
        pool = pooled(rounds, f"{metric}_s") * 1e3
        for q in (50, 90, 99):
            if f"{metric}_ms_p{q}" in row:
                row[f"{metric}_ms_p{q}"] = percentile(pool, q)
        if metric == "lag":
            row["lag_ms_max"] = float(pool.max()) if len(pool) else None
    row["shared_share"] = evidence.shared_events / evidence.events if evidence.events else None
    row["send_skew_ms"] = evidence.send_skew_s * 1e3 if rounds else None
    row["queue_ms"] = _queue_ms(summary.facts)
    if server := summary.server:
        row |= {"server_ttft_ms": server.ttft_s * 1e3, "outside_ttft_ms": server.outside_s * 1e3}
        row["server_queue_ms"] = server.queue_s * 1e3 if server.queue_s is not None else None
        row["server_itl_ms"] = server.itl_s * 1e3 if server.itl_s is not None else None
        row["server_times"] = server.source
    row["turn_ms_max"] = (
        max((fact.get("turn_max_ns", 0) for fact in summary.facts), default=0) / 1e6 if rounds else None
    )
    wall = sum(fact.get("wall_ns", 0) for fact in summary.facts)
    row["client_cpu_share"] = sum(fact.get("cpu_ns", 0) for fact in summary.facts) / wall if wall else None
    row |= _usage_columns(summary.usage) if summary.usage else {}
    return row | (_utilization_columns(summary.utilization) if summary.utilization else {})


def _utilization_columns(utilization: Utilization) -> dict[str, Any]:
    limits = utilization.limits
    return {
        "ttft_bound_ms": limits.ttft_s and limits.ttft_s * 1e3,
        "tpot_bound_ms": limits.tpot_s and limits.tpot_s * 1e3,
        "sys_tok_s_bound": limits.sys_tok_s,
        "mfu": utilization.mfu,
        "mbu": utilization.mbu,
        "sol": utilization.sol,
    }


def _usage_columns(used: Usage) -> dict[str, Any]:
    """Over all GPUs: sums of power and energy, the hottest, the mean clock, the lowest clock, all throttle reasons."""
    clocks = [gpu.core_clock_mhz for gpu in used.gpus if gpu.core_clock_mhz is not None]
    told = [gpu.throttle for gpu in used.gpus if gpu.throttle is not None]
    return {
        "power_w": used.power_w,
        "energy_j": used.energy_j,
        "tok_per_j": used.tok_per_j,
        "j_per_tok": 1 / used.tok_per_j if used.tok_per_j else None,
        "gpu_temp_c_max": max(
            (g.temperature_c_max for g in used.gpus if g.temperature_c_max is not None), default=None
        ),
        "gpu_clock_mhz": sum(clocks) / len(clocks) if clocks else None,
        "gpu_clock_mhz_min": min(
            (g.core_clock_mhz_min for g in used.gpus if g.core_clock_mhz_min is not None), default=None
        ),
        "throttle": ";".join(sorted({word for words in told for word in words})) if told else None,
    }


def _queue_ms(facts: Sequence[Mapping[str, Any]]) -> float | None:
    """Mean time in the server's own queue, ms, from its histogram's deltas; None when it does not tell."""
    views = [fact["server"] for fact in facts if fact.get("server")]
    count = sum(view.get("queue_count") or 0 for view in views)
    return 1e3 * sum(view.get("queue_s_sum") or 0.0 for view in views) / count if count else None
