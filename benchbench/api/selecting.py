"""Runs and cells chosen by what a user calls them: a path; a key, or a selection such as `batch>=8,input=128`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from benchbench.analysis.runs import Run
from benchbench.report.summary_table import Row
from benchbench.spec.cell import CellInfo

AnyRun = Run | str | Path


def opened(run: AnyRun) -> Run:
    """The run, or that in this folder. Raises RunError."""
    return run if isinstance(run, Run) else Run(run)


def chosen(cells: Sequence[CellInfo], words: Sequence[str]) -> list[CellInfo]:
    """The cells that any of `words` names, by key (or its beginning) or selection; all without words.

    Raises ValueError.
    """
    return [cells[k] for k in _matching([dict(cell) for cell in cells], words)]


def chosen_rows(rows: Sequence[Row], words: Sequence[str]) -> list[Row]:
    """`chosen` of summary rows."""
    return [rows[k] for k in _matching(rows, words)]


def _matching(cells: Sequence[Mapping[str, Any]], words: Sequence[str]) -> list[int]:
    """Indices, in the order of `words` and each once."""
    from benchbench.spec import SelectionError, parse_selection

    if not words:
        return list(range(len(cells)))
    indices: list[int] = []
    for word in words:
        by_key = [k for k, cell in enumerate(cells) if len(word) >= 4 and str(cell["key"]).startswith(word)]
        if by_key:
            indices += by_key
            continue
        try:
            selection = parse_selection(word, {str(cell.get("variant") or ""): None for cell in cells})
        except SelectionError as error:
            raise ValueError(f"{word}: {error.message} (allowed: a cell's key, or {error.allowed})") from None
        matching = [k for k, cell in enumerate(cells) if selection.matches(cell)]
        if not matching:
            raise ValueError(f"{word}: selects none of the {len(cells)} cells")
        indices += matching
    return list(dict.fromkeys(indices))
