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
    return f"Rounds until sure: {spent:,} measured requests; {fixed} rounds of every cell would be {even:,}."
