"""How a row, or a cell as a run stores it, shows lengths that differ within a round. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def differs(row: Mapping[str, Any], axis: str) -> bool:
    """Whether the lengths of `input` or `output` follow a law: `lengths` names it then."""
    return f"{axis} " in str(row.get("lengths"))


def short_text(row: Mapping[str, Any], axis: str) -> str:
    """`≈1024` of a law, by its mean; `file` where only the server can tell it."""
    return "file" if row.get(axis) is None else f"≈{row[axis]}"


def tokens_text(length: int | None) -> str:
    """A length as figures name it; `file` where only the server can tell it."""
    return "file" if length is None else f"{length:,}"


def lengths_shown(cell: Any) -> list[str]:  # noqa: ANN401 - a CellInfo, whose room is a later one
    """Input and output of a stored cell, as a table's axes show them without its measurements."""
    row = {name: getattr(cell, name) for name in ("input", "output", "lengths")}
    return [short_text(row, axis) if differs(row, axis) else str(row[axis]) for axis in ("input", "output")]


def lengths_text(row: Mapping[str, Any], axis: str) -> str:
    """As measured, `1019 (p50 812, p99 3990)`, mean and percentiles over requests; empty where all are alike."""
    if not differs(row, axis):
        return ""
    mean, *ranks = (row.get(f"{axis}_tokens{name}") for name in ("", "_p50", "_p99"))
    if mean is None or None in ranks:
        return short_text(row, axis)
    return f"{mean:.0f} (p50 {ranks[0]:.0f}, p99 {ranks[1]:.0f})"
