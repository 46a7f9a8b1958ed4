"""One cell's rounds -> its summary: estimates over rounds, pooled percentiles, and whether to trust them. Pure."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
import pyarrow as pa

from benchbench.analysis.evidence import Measured, evidence_of, measured, pilot_of
from benchbench.analysis.metrics import (
    Pools,
    RoundMetrics,
    by_start,
    in_blocks,
    in_own_unit,
    over_starts,
    pooled,
    round_metrics,
)
from benchbench.analysis.reasons import Reason, Status
from benchbench.analysis.stats import Estimate, two_stage_estimate
from benchbench.analysis.utilization import Utilization, utilization_of
from benchbench.analysis.validity import Evidence, status_of
from benchbench.events.round_events import Recorded
from benchbench.host.energy import Usage, stragglers, throttled, usage
from benchbench.model.roofline import Platform
from benchbench.slo.attainment import meets
from benchbench.spec.cell import CellInfo
from benchbench.steadiness.steadiness import order_of
from benchbench.store.arrow import Floats
from benchbench.tails.tail_bound import TailBound, tail_bound

LIKE_OUTPUTS = 0.05  # answers that end by themselves differ in length from run to run


@dataclass(frozen=True, slots=True)
class CellSummary:
    """A cell's numbers. Estimates are over rounds, in s and 1/s; percentiles are pooled over requests or gaps."""

    cell: CellInfo
    rounds: tuple[RoundMetrics, ...]
    warmups: tuple[RoundMetrics, ...]
    estimates: Mapping[str, Estimate | None]
    evidence: Evidence
    status: Status
    reasons: tuple[Reason, ...]
    facts: tuple[Mapping[str, Any], ...]
    usage: Usage | None
    pools: Pools
    utilization: Utilization | None = None
    spoiled: int = 0  # rounds that were set aside and measured again: nothing else here knows of them

    def estimate(self, column: str, end: str = "point") -> float | None:
        """Mean over rounds (`end` point) or end of its interval (low, high), in the column's unit."""
        estimate = self.estimates[column.replace("_ms", "")]
        value = getattr(estimate, end, None)
        return value * 1e3 if value is not None and "_ms" in column else value


def summarise(
    cell: CellInfo,
    tables: Sequence[Recorded],
    warmups: Sequence[Recorded] = (),
    samples: pa.Table | None = None,
    platform: Platform | None = None,
    spoiled: int = 0,
) -> CellSummary:
    """Summary of a cell from the tables of its measured rounds and of its warm-up rounds, in order, and telemetry's.

    With `platform`, what was served on what, also its bounds and how much of the hardware it used.
    """
    taken = [measured(cell, table) for table in tables]
    return summary_of(cell, taken, metrics_of(cell, warmups), samples, platform, spoiled)


def summary_of(
    cell: CellInfo,
    taken: Sequence[Measured],
    before: tuple[RoundMetrics, ...],
    samples: pa.Table | None,
    platform: Platform | None,
    spoiled: int,
) -> CellSummary:
    """The same of what was taken of each measured round, and the metrics of the warm-up rounds before."""
    rounds, facts = tuple(r.metrics for r in taken), tuple(r.facts for r in taken)
    estimates = {}
    for name, figure in FIGURES.items():
        values = over_starts(rounds, figure)
        estimates[name] = two_stage_estimate(values, len(values) if in_blocks(rounds) else pilot_of(cell, rounds))
    used = usage([r.window for r in taken if r.window], samples)
    gpus = used.gpus if used else ()
    pools = Pools(rounds)
    evidence = evidence_of(cell, taken, before, pools)
    utilization = utilization_of(cell, platform, estimates, evidence) if platform else None
    evidence = replace(
        evidence,
        throttled=throttled(gpus),
        straggler=stragglers(gpus, cell.validity.straggler),
        too_fast=utilization.too_fast if utilization else (),
        unlikely=utilization.unlikely if utilization else (),
    )
    status, reasons = status_of(evidence, cell.validity)
    return CellSummary(
        cell, rounds, before, estimates, evidence, status, reasons, facts, used, pools, utilization, spoiled
    )


def metrics_of(cell: CellInfo, rounds: Iterable[Recorded]) -> tuple[RoundMetrics, ...]:
    """The metrics of each round of a cell."""
    return tuple(round_metrics(r, load=cell.load, in_flight=cell.batch, slo=cell.slo) for r in rounds)


Value = str | int | float | None


@dataclass(frozen=True, slots=True)
class Column:
    """A column of the summary: key, title, unit, decimals in a table (None: printed as it is), value (None: undefined).

    `figure`: of a mean over rounds, one round's value, in s or 1/s.
    """

    name: str
    title: str
    unit: str
    decimals: int | None
    value: Callable[[CellSummary], Value]
    figure: Callable[[RoundMetrics], float | None] | None = None

    @property
    def heading(self) -> str:
        """Title and unit, as a table's head has them; the axes' stand alone."""
        alone = self.decimals is None or not self.unit or self.unit.lower() in self.title.lower().split()
        return self.title if alone else f"{self.title} ({self.unit})"


def _value(path: str, scale: float = 1) -> Callable[[CellSummary], Value]:
    """The number (times `scale`) or text at a dotted path of attributes; None where a part of the path is None."""

    def value(summary: CellSummary) -> Value:
        end: Any = summary
        for name in path.split("."):
            end = getattr(end, name, None)
        scaled: Value = end if end is None or scale == 1 else end * scale
        return scaled

    return value


def _plain(path: str, unit: str = "", title: str = "") -> Column:
    """A column that is printed as it is."""
    name = path.rpartition(".")[2]
    return Column(name, title or name.replace("_", " ").capitalize(), unit, None, _value(path))


def _at(path: str, name: str, title: str, unit: str, decimals: int) -> Column:
    """The attribute at a path, seconds in ms."""
    return Column(name, title, unit, decimals, _value(path, 1e3 if unit == "ms" else 1))


def _mean(name: str, title: str, unit: str, decimals: int, figure: Callable[[RoundMetrics], float | None]) -> Column:
    """The mean over rounds of a round's figure."""
    return Column(name, title, unit, decimals, lambda summary: summary.estimate(name), figure)


def _interval(name: str, title: str, unit: str, decimals: int) -> list[Column]:
    """The ends of the 95 % interval of a mean over rounds."""
    return [
        Column(
            f"{name}_{end}", f"{title} 95 % {end}", unit, decimals, partial(CellSummary.estimate, column=name, end=end)
        )
        for end in ("low", "high")
    ]


def _percentiles(array: str, title: str, decimals: int, ranks: Sequence[int]) -> list[Column]:
    """Percentiles in ms of one of RoundMetrics' arrays, s, pooled over rounds; rank 100 is called max."""
    tails = {rank: "max" if rank == 100 else f"p{rank}" for rank in ranks}
    name = array.removesuffix("_s")
    return [
        Column(
            f"{name}_ms_{tail}", f"{title} {tail}", "ms", decimals, partial(_pooled, array=array, rank=rank, scale=1e3)
        )
        for rank, tail in tails.items()
    ]


def _pooled(summary: CellSummary, array: str, rank: int, scale: float = 1) -> float | None:
    value = summary.pools[array].percentiles[rank]
    return None if value is None else value * scale


def tail_of(summary: CellSummary, array: str, rank: int) -> TailBound:
    """The upper bound of a percentile of one of RoundMetrics' arrays, in s; groups are rounds, with blocks starts."""
    starts = by_start(summary.rounds) if in_blocks(summary.rounds) else [[r] for r in summary.rounds]
    name, unit = in_own_unit(array)
    return tail_bound([pooled(rounds, name) for rounds in starts], rank, unit)


def _bound_ms(summary: CellSummary, array: str, rank: int) -> float | None:
    upper = tail_of(summary, array, rank).upper
    return None if upper is None else upper * 1e3


def within_limit(summary: CellSummary, name: str) -> float | None:
    """The share of the requests that goodput counts which are within the SLO's limit of ttft, tpot or e2el."""
    limit_ms, requests = getattr(summary.cell.slo, f"{name}_ms"), sum(len(r.e2el_s) for r in summary.rounds)
    if limit_ms is None or not requests:
        return None
    return 1 - sum(int((getattr(r, f"{name}_s") > limit_ms / 1e3).sum()) for r in summary.rounds) / requests


def _of(values: Floats, figure: Callable[[Floats], Any]) -> float | None:
    return float(figure(values)) if len(values) else None


_average = partial(_of, figure=np.mean)


def _share(part: float, whole: float) -> float | None:
    return part / whole if whole else None


def _facts(summary: CellSummary, name: str) -> list[Any]:
    return [facts.get(name, 0) for facts in summary.facts]


def _queue_ms(summary: CellSummary) -> float | None:
    """Mean time in the server's own queue, ms, from its histogram's deltas; None when it does not tell."""
    views = [facts["server"] for facts in summary.facts if facts.get("server")]
    count = sum(view.get("queue_count") or 0 for view in views)
    return _share(1e3 * sum(view.get("queue_s_sum") or 0.0 for view in views), count)


def _order(summary: CellSummary) -> tuple[float | None, float | None]:
    """`order_of` the rounds' (or starts') Sys tok/s; (None, None) also where a round has none."""
    values = over_starts(summary.rounds, lambda r: r.sys_tok_s)
    known = all(r.sys_tok_s is not None for r in summary.rounds)
    return (order_of(values) if known else None) or (None, None)


BOUNDED = (("ttft", 90, 1), ("ttft", 99, 1), ("itl", 99, 2), ("e2el", 90, 1), ("e2el", 99, 1))  # decimals
_TTFT, _TPOT = ("ttft_ms", "TTFT", "ms", 1), ("tpot_ms", "TPOT", "ms", 2)
_E2EL, _SYS = ("e2el_ms", "E2EL", "ms", 1), ("sys_tok_s", "Sys tok/s", "tok/s", 1)
# The first columns are a contract with other programs; new ones go to the end.
COLUMNS = {
    column.name: column
    for column in (
        _plain("cell.variant"),
        _plain("cell.input", "tokens"),
        _plain("cell.output", "tokens"),
        _plain("cell.batch", "requests"),
        _plain("cell.load"),
        _plain("status"),
        Column("reasons", "Reasons", "", None, lambda s: ";".join(dict.fromkeys(r.code for r in s.reasons))),
        _plain("evidence.rounds"),
        _plain("evidence.requests"),
        Column("failed", "Failed", "", None, lambda s: s.evidence.failed + s.evidence.wrong_length),
        _mean(*_TTFT, lambda r: _average(r.ttft_s)),
        *_interval(*_TTFT),
        *_percentiles("ttft_s", "TTFT", 1, (50, 90, 99)),
        _mean(*_TPOT, lambda r: _average(r.tpot_s)),
        *_percentiles("itl_s", "ITL", 2, (50, 99)),
        _mean(*_E2EL, lambda r: _average(r.e2el_s)),
        _mean(*_SYS, lambda r: r.sys_tok_s),
        *_interval(*_SYS),
        _mean("total_tok_s", "Total tok/s", "tok/s", 1, lambda r: r.total_tok_s),
        _mean("req_s", "Req/s", "req/s", 2, lambda r: r.req_s),
        *_percentiles("lag_s", "Client lag", 3, (99,)),
        _plain("cell.rate", "req/s", "Rate (req/s)"),
        _mean("ttft_ms_first", "TTFT first", "ms", 1, lambda r: _of(r.ttft_s, np.min)),
        _mean("ttft_ms_last", "TTFT last", "ms", 1, lambda r: _of(r.ttft_s, np.max)),
        *_interval(*_TPOT),
        *_interval(*_E2EL),
        *_percentiles("e2el_s", "E2EL", 1, (50, 90, 99)),
        _mean("ttft_scheduled_ms", "TTFT from schedule", "ms", 1, lambda r: _average(r.ttft_scheduled_s)),
        _mean("stream_tok_s", "Stream tok/s", "tok/s", 1, lambda r: _average(1 / r.tpot_s[r.tpot_s > 0])),
        _mean("goodput_req_s", "Goodput", "req/s", 2, lambda r: r.goodput_req_s),
        _mean("run_tok_s", "Run tok/s", "tok/s", 1, lambda r: r.run_tok_s),
        _mean("round_s", "Round", "s", 1, lambda r: r.duration_s),
        Column("shared_share", "Shared share", "", 4, lambda s: _share(s.evidence.shared_events, s.evidence.events)),
        Column("send_skew_ms", "Send skew", "ms", 1, lambda s: s.evidence.send_skew_s * 1e3 if s.rounds else None),
        *_percentiles("lag_s", "Client lag", 3, (50, 100)),
        Column("turn_ms_max", "Turn max", "ms", 1, lambda s: max(_facts(s, "turn_max_ns")) / 1e6 if s.rounds else None),
        Column(
            *("client_cpu_share", "Client cpu share", "", 2),
            lambda s: _share(sum(_facts(s, "cpu_ns")), sum(_facts(s, "wall_ns"))),
        ),
        Column("resent", "Resent", "", None, lambda s: sum(_facts(s, "resent"))),
        _plain("cell.key"),
        _plain("evidence.rounds_needed"),
        Column("warmup_rounds", "Warmup rounds", "", None, lambda s: len(s.warmups)),
        Column("queue_ms", "Queue", "ms", 1, _queue_ms),
        _plain("evidence.preemptions"),
        _plain("evidence.prefix_hits", "tokens"),
        _plain("evidence.foreign_tokens", "tokens"),
        _at("evidence.server.ttft_s", "server_ttft_ms", "Server TTFT", "ms", 2),
        _at("evidence.server.queue_s", "server_queue_ms", "Server queue", "ms", 2),
        _at("evidence.server.itl_s", "server_itl_ms", "Server ITL", "ms", 2),
        _at("evidence.server.outside_s", "outside_ttft_ms", "TTFT outside the server", "ms", 1),
        Column("server_times", "Server times", "", None, _value("evidence.server.source")),
        _at("usage.power_w", "power_w", "Power", "W", 1),
        _at("usage.energy_j", "energy_j", "Energy", "J", 1),
        _at("usage.tok_per_j", "tok_per_j", "tok/J", "tok/J", 1),
        _at("usage.j_per_tok", "j_per_tok", "J/tok", "J/tok", 3),
        _at("usage.temperature_c_max", "gpu_temp_c_max", "GPU max", "°C", 0),
        _at("usage.core_clock_mhz", "gpu_clock_mhz", "GPU clock", "MHz", 0),
        _at("usage.core_clock_mhz_min", "gpu_clock_mhz_min", "GPU clock min", "MHz", 0),
        _plain("usage.throttle"),
        Column("starts", "Starts", "", None, lambda s: len(by_start(s.rounds)) if in_blocks(s.rounds) else None),
        Column("tool", "Tool", "", None, lambda _: None),  # that measured, of an imported row; None is this one
        _at("utilization.limits.ttft_s", "ttft_bound_ms", "TTFT bound", "ms", 1),
        _at("utilization.limits.tpot_s", "tpot_bound_ms", "TPOT bound", "ms", 2),
        _at("utilization.limits.sys_tok_s", "sys_tok_s_bound", "Sys tok/s bound", "tok/s", 1),
        _at("utilization.mfu", "mfu", "MFU", "", 3),
        _at("utilization.mbu", "mbu", "MBU", "", 3),
        _at("utilization.sol", "sol", "Share of speed of light", "", 3),
        _mean("ttft_cold_ms", "TTFT of the first batch", "ms", 1, lambda r: _average(r.ttft_cold_s)),
        _at("utilization.likely.sys_tok_s", "sys_tok_s_likely", "Sys tok/s likely bound", "tok/s", 1),
        _mean("output_tokens", "Output received", "tokens", 1, lambda r: _average(r.output_tokens)),
        Column("lag1", "Lag-1 autocorrelation", "", 2, lambda s: _order(s)[0]),
        Column("trend", "Trend over rounds", "", 2, lambda s: _order(s)[1]),
        _plain("spoiled", "rounds", "Spoiled rounds"),
        *(
            Column(
                *(f"{name}_ms_p{q}_upper", f"{name.upper()} p{q} at most", "ms", k),
                partial(_bound_ms, array=f"{name}_s", rank=q),
            )
            for name, q, k in BOUNDED
        ),
        *(
            Column(f"slo_{name}_share", f"Within {name.upper()} limit", "", 4, partial(within_limit, name=name))
            for name in ("ttft", "tpot", "e2el")
        ),
        Column("slo_met", "Meets the SLO", "", None, lambda s: meets(s.cell.slo, s.estimate)),
        _plain("cell.prompts"),
        _plain("cell.lengths"),
        Column("input_tokens", "Input received", "tokens", 1, lambda s: s.pools["input_tokens"].mean),
        *(
            Column(f"{name}_p{q}", f"{name.replace('_', ' ')} p{q}", "", 0, partial(_pooled, array=name, rank=q))
            for name in ("input_tokens", "output_tokens")
            for q in (50, 99)
        ),
        _at("evidence.hits.rate", "hit_rate", "Hit rate", "", 3),
        _mean("ttft_hit_ms", "TTFT of hits", "ms", 1, lambda r: _average(r.ttft_s[r.hits.hit]) if r.hits else None),
        _mean("ttft_miss_ms", "TTFT of misses", "ms", 1, lambda r: _average(r.ttft_s[~r.hits.hit]) if r.hits else None),
        _at("evidence.acceptance.rate", "acceptance_rate", "Acceptance", "", 3),
        _at("evidence.acceptance.length", "acceptance_length", "Tokens per draft", "tokens", 2),
        _at("evidence.acceptance.tokens_per_step", "tokens_per_step", "Tokens per step", "tokens", 3),
    )
}
UNITS = {name: column.unit for name, column in COLUMNS.items()}
FIGURES = {name.replace("_ms", ""): column.figure for name, column in COLUMNS.items() if column.figure}


def like_outputs(a: float | None, b: float | None) -> bool:
    """Whether two mean lengths of answers are of one shape: within 5 %, or unknown."""
    return a is None or b is None or abs(a - b) <= LIKE_OUTPUTS * max(a, b)


def summary_row(summary: CellSummary) -> dict[str, Any]:
    """The flat row of summary.csv, keys as in COLUMNS."""
    return {name: column.value(summary) for name, column in COLUMNS.items()}
