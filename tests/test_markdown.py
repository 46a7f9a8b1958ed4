"""Markdown tables: what is written is read back."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from benchbench.report.markdown import escape_markdown, read_tables, write_table

CELL = st.text(st.sampled_from("ab_*~`<>&|\\[](){}#!:-$1. ") | st.characters(codec="utf-8", categories=["L", "N", "S"]))
CELLS = CELL.map(lambda text: " ".join(text.split()))


@given(st.integers(1, 4).flatmap(lambda n: st.lists(st.lists(CELLS, min_size=n, max_size=n), min_size=1, max_size=4)))
def test_escaped_cells_are_read_back(rows: list[list[str]]) -> None:
    head, *body = ([*map(escape_markdown, row)] for row in rows)
    text = "\n".join(["# Title", "", *write_table(head, body), "", "- an item", "", "end"])
    (table,) = read_tables(text)
    assert (table.line, table.head) == (3, rows[0])
    assert table.rows == [(5 + number, row) for number, row in enumerate(rows[1:])]


def test_a_reader_sees_no_markup() -> None:
    text = "> | **a** | [b](http://c) |\n> |:---|---:|\n> | ~~1.5~~ | `2` |\n> | 3 |\n\n1. x\n\n| d |\n|-|\n\ne"
    first, second = read_tables(text)
    assert first == (1, ["a", "b"], [(3, ["~~1.5~~", "2"]), (4, ["3", ""])])
    assert second == (8, ["d"], [])
