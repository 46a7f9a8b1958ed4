"""Markdown as a terminal shows it: tables aligned, the status coloured, lines wrapped to the width. Pure.

What is drawn is read from the Markdown itself, so that a terminal and a file cannot differ.
"""

from __future__ import annotations

import io
import re
from collections.abc import Iterator, Sequence
from itertools import groupby
from typing import TYPE_CHECKING

from benchbench.safe_text import printable

if TYPE_CHECKING:
    from markdown_it import MarkdownIt
    from rich.console import Console
    from rich.text import Text

LEAST_WIDTH = 20  # narrower terminals get lines of this width
DEFINITIONS = (  # how lines begin that say what a column is: for those who ask
    *("Batch: requests ", "Rate: requests started ", "Output: mean tokens received, "),
    *("TTFT: from sending ", "Sys tok/s: output tokens ", "Run tok/s: output tokens ", "Goodput: req/s times "),
)
_STYLES = {  # a word of these columns, or of a finding's heading: its colour
    **dict.fromkeys(("valid", "faster", "yes"), "green"),
    **dict.fromkeys(("suspect", "suspicious"), "yellow"),
    **dict.fromkeys(("invalid", "slower", "impossible"), "red"),
}
_STATUS = {"Status", "Verdict"}
_AXES = {"Variant", "Tool", "Load", "Input", "Output", "Batch", "Rate (req/s)", "Metric", "Kernel"}
_NUMBER = re.compile(r"(~~)?[-+±<>]?\d[\d,.]*\S*( %| of \S+)?|\N{EN DASH}|-|")
_GAP = 2  # between columns
_WHOLE = 24  # texts of so many places are not wrapped, and longer words are cut there


def rendered(markdown: str, width: int, *, colour: bool, definitions: bool = True) -> str:
    """Lines for a terminal of this width; with `colour` the status has one, else there is no escape at all.

    A table that is too wide is cut between its columns into several, each with the axes: a number is never cut.
    Without `definitions` the lines are left out that say what columns mean.
    """
    from markdown_it import MarkdownIt

    reader = MarkdownIt("commonmark").enable(["table", "strikethrough"])
    console = _console(max(width, LEAST_WIDTH), colour=colour)
    lines = markdown.split("\n")
    if not definitions:
        lines = [line for line in lines if not line.startswith(DEFINITIONS)]
    for is_table, block in groupby(lines, lambda line: line.startswith("|")):
        if is_table:
            _print_table(console, [*block])
        else:
            for line in block:
                _print_line(console, reader, line)
    assert isinstance(console.file, io.StringIO)  # noqa: S101 - as made below
    text = "\n".join(line.rstrip() for line in console.file.getvalue().split("\n"))
    return re.sub(r"\n{3,}", "\n\n", text).strip("\n")


def wrapped(text: str, width: int) -> str:
    """Plain lines, wrapped at words; what is longer than a line stays whole."""
    console = _console(max(width, LEAST_WIDTH), colour=False)
    for line in text.split("\n"):
        _print_wrapped(console, line)
    assert isinstance(console.file, io.StringIO)  # noqa: S101
    return console.file.getvalue().rstrip("\n")


def _console(width: int, *, colour: bool) -> Console:
    from rich.console import Console

    return Console(
        file=io.StringIO(),
        width=width,
        force_terminal=colour,
        color_system="standard" if colour else None,
        no_color=not colour,
        legacy_windows=False,
        markup=False,  # names of others may hold anything
        emoji=False,
        highlight=False,
        _environ={},
    )


def _print_line(console: Console, reader: MarkdownIt, line: str) -> None:
    heading = re.match(r"#+ ", line)
    bullet = re.match(r"\s*- ", line)
    mark = heading or bullet
    tokens = reader.parseInline(line[mark.end() :] if mark else line)[0].children or []
    text = "".join(token.markup if token.type in {"s_open", "s_close"} else token.content for token in tokens)
    _print_wrapped(console, (bullet[0] if bullet else "") + text.rstrip(), is_heading=bool(heading))


def _print_wrapped(console: Console, line: str, *, is_heading: bool = False) -> None:
    """One line at words, further ones under the beginning of the text of a bullet or of what has a name in front."""
    from rich.text import Text

    indent = re.match(r"\s*- |\s+[\w' -]{1,20}: +|\s*", line)
    assert indent  # noqa: S101 - it matches nothing, too
    text = Text(printable(line[indent.end() :]), overflow="ignore")
    if is_heading:
        for word in re.finditer(r"Impossible|Suspicious", text.plain):
            text.stylize(_STYLES[word[0].lower()], *word.span())
    pieces = text.wrap(console, max(console.width - indent.end(), LEAST_WIDTH // 2)) or [Text()]
    for k, piece in enumerate(pieces):
        piece.rstrip()
        prefix = " " * indent.end() if k else indent[0]
        console.print(Text(prefix) + piece, soft_wrap=True)


# ---- Tables ---------------------------------------------------------------------------------------------


def _print_table(console: Console, lines: Sequence[str]) -> None:
    from benchbench.report.markdown import read_tables

    tables = read_tables("\n".join(lines))
    if not tables:  # no table after all
        for line in lines:
            console.print(printable(line), soft_wrap=True)
    for table in tables:
        rows = [[re.sub(r";(?=\S)", "; ", printable(cell)) for cell in row] for _, row in table.rows]
        columns = [
            _Column(printable(head), [row[k] for row in rows if k < len(row)]) for k, head in enumerate(table.head)
        ]
        for number, group in enumerate(_groups(columns, console.width)):
            if number:
                console.print()
            _print_columns(console, group)


class _Column:
    """A column as texts. `least`: the width without which a number or a word would be cut; `most`: all on one line."""

    def __init__(self, head: str, cells: Sequence[str]) -> None:
        from rich.cells import cell_len

        self.head, self.cells = head, cells
        self.is_number = all(_NUMBER.fullmatch(cell) for cell in cells)
        widths = [cell_len(cell) for cell in cells]
        words = [cell_len(word) for word in head.split()]
        self.most = max([cell_len(head), *widths])
        self.least = max([1, *words, *(widths if self.is_number else [min(width, _WHOLE) for width in widths])])


def _groups(columns: Sequence[_Column], width: int) -> Iterator[list[tuple[_Column, int]]]:
    """The columns with their widths, in as many tables as it takes: each begins with the axes."""
    axes = 0
    while axes < len(columns) - 1 and columns[axes].head in _AXES:
        axes += 1
    if sum(column.least + _GAP for column in columns[:axes]) > width:
        axes = 0
    kept, group = columns[:axes], [*columns[:axes]]
    for column in columns[axes:]:
        if len(group) > axes and sum(member.least + _GAP for member in (*group, column)) - _GAP > width:
            yield _widths(group, width)
            group = [*kept]
        group.append(column)
    yield _widths(group, width)


def _widths(columns: Sequence[_Column], width: int) -> list[tuple[_Column, int]]:
    """Each column's least, and what is left shared out among those that have use for it."""
    widths = [min(column.least, width) for column in columns]
    left = width - sum(widths) - _GAP * (len(columns) - 1)
    while left > 0 and (short := [k for k, column in enumerate(columns) if widths[k] < column.most]):
        for k in short[:left]:
            widths[k] += 1
        left -= len(short[:left])
    return [*zip(columns, widths, strict=True)]


def _print_columns(console: Console, columns: Sequence[tuple[_Column, int]]) -> None:
    from rich import box
    from rich.table import Table
    from rich.text import Text

    table = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False, padding=(0, _GAP - 1, 0, 0), header_style="")
    for column, width in columns:
        table.add_column(
            Text(column.head), width=width, justify="right" if column.is_number else "left", overflow="fold"
        )
    for row in range(max((len(column.cells) for column, _ in columns), default=0)):
        table.add_row(*(_cell(column.head, column.cells[row]) for column, _ in columns))
    console.print(table)


def _cell(head: str, text: str) -> Text:
    from rich.text import Text

    cell = Text(text)
    if head in _STATUS:
        cell.stylize(_STYLES.get(text, ""))
    elif text.startswith("~~"):
        cell.stylize("red")
    elif re.fullmatch(r"[\d.]+\*", text):
        cell.stylize("yellow")
    return cell
