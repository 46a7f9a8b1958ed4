"""Comparisons of which one side has no records: ratios of summary rows, never a verdict. Pure.

What another tool measured differs from ours in its clocks, its client and its definitions, and a stored summary tells
nothing of starts, so that nothing separates the change from all of that. The interval, where both sides have one over
their rounds or runs, is from both by the method of variance estimates recovery, on logs, here of candidate / base:

    low = d - sqrt((c - c_low)^2 + (b_high - b)^2),  high = d + sqrt((c_high - c)^2 + (b - b_low)^2),  d = c - b

G. Y. Zou, A. Donner, Statist. Med. 27 (2008) 1693-1702.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

from benchbench.analysis.runs import OWN
from benchbench.analysis.stats import Estimate
from benchbench.comparison.pairs import METRICS, Pair, Side, label_of
from benchbench.comparison.verdicts import CONFIDENCE, Compared, Comparison

RATES = ("sys_tok_s", "run_tok_s")
UNTESTED = dict.fromkeys(("p_value", "p_adjusted", "noise", "mde", "mde_family", "more_blocks"))


def pair_of_rows(base: Side, candidate: Side, margin: float = 0.01) -> Pair:
    """Compare two sides cell by cell, by their rows alone. Every verdict is undecided."""
    notes: list[str] = []
    old, new = _rows(base, notes), _rows(candidate, notes)
    notes += [f"{label} is left out: only {base.name} has it" for label in old.keys() - new.keys()]
    notes += [f"{label} is left out: only {candidate.name} has it" for label in new.keys() - old.keys()]
    both = [label for label in old if label in new]
    for label in both:
        loads = old[label]["load"], new[label]["load"]
        if loads[0] != loads[1]:
            notes.append(f"{label}: of unlike loads, {loads[0] or 'not told'} and {loads[1] or 'not told'}")
    cells = {cell.key: cell for side in (base, candidate) for cell in side.run.cells}
    return Pair(
        base=base.name,
        candidate=candidate.name,
        cells={label: cells[old[label]["key"]] for label in both},
        samples=(),
        compared=Compared(
            cells=tuple(
                one
                for metric in (*METRICS, "run_tok_s")
                for label in both
                for one in _compared(label, metric, old[label], new[label])
            ),
            overall=(),
            left_out=(),
            warnings=(),
        ),
        blocks=1,
        interleaved=False,
        margin=margin,
        absent="",
        notes=tuple(notes),
        fidelity="not_measured",
        fidelity_note="outputs were not compared",
        fidelity_mode="off",
        across=_why(base, candidate, _tools(base), _tools(candidate)),
    )


def _tools(side: Side) -> str:
    tools = {row["tool"] or OWN for row in side.run.rows if (row["variant"] or "") == side.variant}
    return ", ".join(sorted(tools)) or OWN


def _why(base: Side, candidate: Side, old: str, new: str) -> str:
    if old != new:
        return f"{base.name} was measured by {old} and {candidate.name} by {new}, whose definitions differ"
    return "a side has no records of its requests, so that nothing is known of its starts"


def _rows(side: Side, notes: list[str]) -> dict[str, dict[str, Any]]:
    """By label; invalid cells are left out with a note."""
    labels = {cell.key: label_of(cell) for cell in side.run.cells}
    found = {}
    for row in side.run.rows:
        if (row["variant"] or "") == side.variant:
            label = labels[row["key"]]
            if row["status"] == "invalid":
                notes.append(f"{side.name}: {label} dropped as invalid ({row['reasons'].replace(';', ', ')})")
            else:
                found[label] = row
    return found


def _compared(label: str, metric: str, old: dict[str, Any], new: dict[str, Any]) -> Iterator[Comparison]:
    """The ratio of one cell's metric, where both sides have it."""
    column, scale = (metric, 1.0) if metric in RATES else (f"{metric}_ms", 1e-3)
    one, other = _logs(old, column), _logs(new, column)
    if one is None or other is None:
        return
    (b, b_low, b_high), (c, c_low, c_high) = (one, other) if metric in RATES else (other, one)
    d, told = c - b, "" if c_low < c_high and b_low < b_high else "no interval over runs on a side"
    low = None if told else math.exp(d - math.hypot(c - c_low, b_high - b))
    high = None if told else math.exp(d + math.hypot(c_high - c, b - b_low))
    count = min(int(row["rounds"] or 1) for row in (old, new))
    yield Comparison(
        cell=label,
        metric=metric,
        base=old[column] * scale,
        candidate=new[column] * scale,
        ratio=Estimate(math.exp(d), low, high, CONFIDENCE, count, "from the rows' intervals over rounds, logs"),
        verdict="undecided",
        warnings=(told,) if told else (),
        **UNTESTED,
    )


def _logs(row: dict[str, Any], column: str) -> tuple[float, float, float] | None:
    """(value, low, high) as logs; without an interval all three are the value."""
    value, low, high = (row.get(f"{column}{end}") for end in ("", "_low", "_high"))
    if not value or not 0 < value < math.inf:
        return None
    if low is None or high is None or not 0 < low <= high:
        low = high = value
    return math.log(value), math.log(low), math.log(high)
