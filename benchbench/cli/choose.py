"""Which cells of a run are meant on the command line."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict

from benchbench.analysis.summary import CellSummary
from benchbench.spec import SelectionError, parse_selection


def chosen(summaries: Sequence[CellSummary], words: Sequence[str]) -> list[CellSummary]:
    """The summaries that any of `words` names, by key (or its beginning) or selection; all without words.

    Raises ValueError.
    """
    if not words:
        return list(summaries)
    found: list[CellSummary] = []
    for word in words:
        by_key = [summary for summary in summaries if len(word) >= 4 and summary.cell.key.startswith(word)]
        if by_key:
            found += by_key
            continue
        try:
            selection = parse_selection(word)
        except SelectionError as error:
            raise ValueError(f"{word}: {error.message} (allowed: a cell's key, or {error.allowed})") from None
        matching = [summary for summary in summaries if selection.matches(asdict(summary.cell))]
        if not matching:
            raise ValueError(f"{word}: selects none of the {len(summaries)} cells")
        found += matching
    return list({summary.cell.key: summary for summary in found}.values())
