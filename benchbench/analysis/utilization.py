"""A cell against what the hardware allows at best (`model.roofline`). Pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from benchbench.analysis.stats import Estimate
from benchbench.analysis.validity import Evidence
from benchbench.model.roofline import ROUNDING, Bounds, Platform, bounds, mfu_mbu
from benchbench.spec.cell import CellInfo

MOSTLY_SINGLE = 0.9  # below this many events a token there were fewer steps than tokens, so that MBU is not known


@dataclass(frozen=True, slots=True)
class Utilization:
    """A cell against its bounds. `mfu`, `mbu`, `sol` (Sys tok/s over its likely bound): shares of 1.

    `too_fast`, `unlikely`: the numbers beyond a bound and beyond a likely one, in words.
    """

    platform: Platform
    limits: Bounds
    likely: Bounds
    mfu: float | None
    mbu: float | None
    sol: float | None
    too_fast: tuple[str, ...]
    unlikely: tuple[str, ...]


def utilization_of(
    cell: CellInfo, platform: Platform, estimates: Mapping[str, Estimate | None], evidence: Evidence
) -> Utilization | None:
    """The cell's bounds, how near it came, and which of its numbers are beyond them by more than their interval.

    None where answers are as long as the server likes (`output: as_served`), whose lengths bound nothing, and where
    lengths differ within a round: attention grows faster than the mean, and the batch is not full until a round's end.
    """
    if cell.output_mode != "exact" or cell.lengths or cell.input is None:
        return None
    seen = replace(platform, passes=min(platform.passes, _passes(evidence)))
    batch = cell.requests if cell.load == "open" else cell.batch or 1
    of: dict[str, Any] = {"input": cell.input, "output": cell.output, "batch": batch}
    least = of | {"input": cell.input - (evidence.hits.prefix_tokens if evidence.hits else 0)}  # as if all hit
    limits, likely = (bounds(seen, **least, load=cell.load, likely=which) for which in (False, True))
    point = {name: estimate.point for name, estimate in estimates.items() if estimate}
    mfu, mbu = mfu_mbu(
        platform,
        **of,
        prefill_s=point.get("ttft_last") if cell.load == "static" and not evidence.hits else None,
        tpot_s=point.get("tpot") if cell.load != "open" and seen.passes > MOSTLY_SINGLE else None,
    )
    rate, most = point.get("sys_tok_s"), likely.sys_tok_s
    too_fast = _beyond(estimates, limits, evidence.send_skew_s)
    unlikely = _above(estimates["sys_tok_s"], most) if most != limits.sys_tok_s else []
    sol = rate / most if rate is not None and most else None
    return Utilization(platform, limits, likely, mfu, mbu, sol, tuple(too_fast), () if too_fast else tuple(unlikely))


def _passes(evidence: Evidence) -> float:
    """Passes of the model per token after the first, at least: tokens of one pass come in one event, or in several."""
    following = evidence.tokens - evidence.requests
    events = max(0, evidence.events - evidence.requests)
    return min(1.0, events / following) if following and evidence.grouped else 1.0


def _beyond(estimates: Mapping[str, Estimate | None], limits: Bounds, skew_s: float) -> list[str]:
    """`skew_s`: a batch's work begins with its first send, so that later requests wait less."""
    lines = []
    for name, least, slack in (("ttft", limits.ttft_s, skew_s), ("tpot", limits.tpot_s, 0.0)):
        mean = estimates[name]
        if mean and least and max(mean.point, mean.high or 0.0) + slack < least * (1 - ROUNDING):
            lines.append(f"mean {name.upper()} {mean.point * 1e3:.2f} ms is below {least * 1e3:.2f}")
    return lines + _above(estimates["sys_tok_s"], limits.sys_tok_s)


def _above(rate: Estimate | None, most: float | None) -> list[str]:
    if rate and most and min(rate.point, rate.point if rate.low is None else rate.low) > most * (1 + ROUNDING):
        return [f"Sys tok/s {rate.point:,.1f} is above {most:,.1f}"]
    return []
