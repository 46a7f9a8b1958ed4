"""What a notebook shows of a result: plain HTML tables. Every text is escaped; nothing is loaded and nothing runs."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from html import escape

from benchbench.analysis.runs import Run
from benchbench.figures.caption import run_title
from benchbench.report.summary_table import AXES, cell_text, column_title, in_order
from benchbench.safe_text import printable

MOST = 60  # rows of a table
_FIGURES = ("ttft_ms", "tpot_ms", "e2el_ms", "sys_tok_s")
_DASH = "\N{EN DASH}"


def html_table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Plain texts as a table, of which the first MOST rows are shown."""
    lines = [f"<tr>{_cells('td', row)}</tr>" for row in rows[:MOST]]
    more = f"<p>{len(rows) - MOST} more rows</p>" if len(rows) > MOST else ""
    return f"<table><thead><tr>{_cells('th', head)}</tr></thead><tbody>{''.join(lines)}</tbody></table>{more}"


def paragraphs(texts: Iterable[str]) -> str:
    """Each text a paragraph."""
    return "".join(f"<p>{_text(text)}</p>" for text in texts)


def _cells(tag: str, texts: Iterable[str]) -> str:
    return "".join(f"<{tag}>{_text(text)}</{tag}>" for text in texts)


def _text(text: object) -> str:
    return escape(printable(text))


def run_html(run: Run, counts: str) -> str:
    """The cells of a run; of an invalid one no number is shown, but why."""
    rows = in_order(run.rows)
    axes = [name for name in AXES if any(row.get(name) not in {None, ""} for row in rows)]
    if len({row["load"] for row in rows}) == 1:
        axes.remove("load")
    figures = [name for name in _FIGURES if any(row.get(name) is not None for row in rows)]
    words = ["status", "reasons"] if any(row["reasons"] for row in rows) else ["status"]
    body = [
        [
            *(cell_text(row, name) for name in axes),
            *(_DASH if row["status"] == "invalid" else cell_text(row, name) for name in figures),
            *((row[name] or "").replace(";", ", ") for name in words),
        ]
        for row in rows
    ]
    table = html_table([column_title(name) for name in (*axes, *figures, *words)], body)
    return paragraphs([f"{run_title(run)} · {counts}"]) + table + paragraphs([str(run.path)])
