"""A cell as analysis knows it: an entry of the manifest's plan."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

from benchbench.analysis.metrics import Slo
from benchbench.analysis.validity import Budgets


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
    rounds_max: int
    rel_ci: float
    warmup: int | str
    capped: bool  # an open load with a limit of requests in flight: waiting in our own queue is meant
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
