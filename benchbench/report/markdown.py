"""Markdown tables, written and read. Pure."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, NamedTuple

from benchbench.safe_text import printable

if TYPE_CHECKING:
    from markdown_it.token import Token


class MarkdownTable(NamedTuple):
    """A table as plain texts. `line`: of its head, from 1; each row has its line."""

    line: int
    head: list[str]
    rows: list[tuple[int, list[str]]]


def escape_markdown(text: str) -> str:
    """Text that Markdown shows as it stands, in a table too; underscores within words are left alone."""
    text = printable(" ".join(text.split()))
    return re.sub(r"([\\`*\[\]<>|~#$&])|(?<![^\W_])_|_(?![^\W_])", r"\\\g<0>", text)


def write_table(head: Sequence[str], rows: Iterable[Sequence[object]]) -> list[str]:
    """The lines of a table. Cells are Markdown: plain texts go through `escape_markdown` first."""
    lines = ["|" + "|".join(f" {cell} " if cell != "" else " " for cell in cells) + "|" for cells in (head, *rows)]
    return [lines[0], "|" + "---|" * len(head), *lines[1:]]


def read_tables(text: str) -> list[MarkdownTable]:
    """The tables (GitHub's kind) of a text, in its order.

    Cells are as a reader sees them: without escapes, emphasis and links; what is struck through keeps its `~~`.
    A row has as many cells as the head.
    """
    from markdown_it import MarkdownIt

    tables: list[MarkdownTable] = []
    rows: list[tuple[int, list[str]]] = []
    for token in MarkdownIt("commonmark").enable(["table", "strikethrough"]).parse(text):
        if token.type == "tr_open":
            rows.append(((token.map or [0])[0] + 1, []))
        elif token.type == "inline" and rows:
            rows[-1][1].append("".join(_plain(token.children or [])).strip())
        elif token.type == "table_close":
            (line, head), *body = rows
            tables.append(MarkdownTable(line, head, body))
            rows = []
    return tables


def _plain(tokens: list[Token]) -> Iterator[str]:
    for token in tokens:
        yield token.markup if token.type in {"s_open", "s_close"} else token.content
