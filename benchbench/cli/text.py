"""Text for a terminal."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any


def one_line(text: object) -> str:
    """`text` with line ends and control characters written out: a server's words may hold any."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in str(text))


def rounds_text(rows: Sequence[Mapping[str, Any]], fixed: int = 10) -> str:
    """What rounds until sure cost, beside a fixed number of rounds for every cell."""
    measured = [row for row in rows if row["rounds"]]
    spent = sum(row["requests"] for row in measured)
    even = sum(row["requests"] // row["rounds"] * fixed for row in measured)
    return f"Rounds: as many as the asked interval needs took {spent:,} requests; a fixed {fixed} would take {even:,}."


def remedies(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """For each reason that a cell is not valid: what it means and what to do about it."""
    from benchbench.analysis.validity import Reason

    codes = {code for row in rows for code in (row["reasons"] or "").split(";")}
    said: dict[str, str] = {}
    for reason in Reason:
        if reason.code in codes:  # of two with one code the milder comes first
            said.setdefault(reason.code, f"{reason.code}: {reason.meaning}; {reason.remedy}")
    return list(said.values())
