"""Which cells of a run are meant on the command line."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from benchbench.analysis.summary import CellSummary
from benchbench.report.summary_table import Row
from benchbench.spec import SelectionError, parse_selection


def chosen(summaries: Sequence[CellSummary], words: Sequence[str]) -> list[CellSummary]:
    """The summaries that any of `words` names, by key (or its beginning) or selection; all without words.

    Raises ValueError.
    """
    return [summaries[k] for k in _matching([summary.cell.to_entry() for summary in summaries], words)]


def chosen_rows(rows: Sequence[Row], words: Sequence[str]) -> list[Row]:
    """`chosen` of summary rows."""
    return [rows[k] for k in _matching(rows, words)]


def _matching(cells: Sequence[Mapping[str, Any]], words: Sequence[str]) -> list[int]:
    """Indices, in the order of `words` and each once."""
    if not words:
        return list(range(len(cells)))
    found: list[int] = []
    for word in words:
        by_key = [k for k, cell in enumerate(cells) if len(word) >= 4 and str(cell["key"]).startswith(word)]
        if by_key:
            found += by_key
            continue
        try:
            selection = parse_selection(word)
        except SelectionError as error:
            raise ValueError(f"{word}: {error.message} (allowed: a cell's key, or {error.allowed})") from None
        matching = [k for k, cell in enumerate(cells) if selection.matches(cell)]
        if not matching:
            raise ValueError(f"{word}: selects none of the {len(cells)} cells")
        found += matching
    return list(dict.fromkeys(found))
