"""What a terminal shows of tables: the Markdown's own content, aligned, wrapped, and steered by nobody's names."""

from __future__ import annotations

import itertools
import os
import pty
import re
import subprocess
import sys
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from driving import read_terminal
from hypothesis import given
from hypothesis import strategies as st
from rich.cells import cell_len
from test_table import published, row

from benchbench.cli.rendering import DEFINITIONS, rendered, wrapped
from benchbench.report.markdown import read_tables
from benchbench.report.summary_table import markdown_table, table_parts

GOLDEN = Path(__file__).parent / "golden"
STORED = Path(__file__).parent / "data" / "stored-run"
SHOWN = ("table_published.md", "table_with_invalid.md", "compare.md", "table_columns.md")
WIDE = [
    *("variant", "input", "output", "batch", "status", "reasons", "ttft_ms", "ttft_ms_low", "ttft_ms_high"),
    *("sys_tok_s", "sys_tok_s_low", "sys_tok_s_high", "lag_ms_p99"),
]
ESCAPE = re.compile(r"\x1b\[[0-9;]*m")


def as_shown(width: int) -> str:
    """The golden tables, and one with more columns than a terminal has room for."""
    texts = [(GOLDEN / name).read_text(encoding="utf-8") for name in SHOWN]
    rows = [row((128, 128, 8), 60.0, 150.0, status="suspect", reasons="client_lag;drift", variant="a b"), *published()]
    texts.append(markdown_table(rows, WIDE))
    return "\n\n\n".join(rendered(text, width, colour=False, definitions=False) for text in texts) + "\n"


@pytest.mark.parametrize("width", [80, 120])
def test_golden(width: int) -> None:
    text = as_shown(width)
    assert text == (GOLDEN / f"terminal_{width}.txt").read_text(encoding="utf-8")
    assert max(map(cell_len, text.splitlines())) <= width


@pytest.mark.parametrize("width", [20, 40, 80, 120, 500])
@pytest.mark.parametrize("name", SHOWN)
def test_no_number_of_the_markdown_is_lost_or_cut(name: str, width: int) -> None:
    markdown = (GOLDEN / name).read_text(encoding="utf-8")
    words = rendered(markdown, width, colour=False).split()
    cells = {cell for table in read_tables(markdown) for _, cells in table.rows for cell in cells}
    assert {cell for cell in cells if re.fullmatch(r"(~~)?[\d.]+(~~|\*)?", cell)} <= {*words}


def test_only_the_status_has_a_colour() -> None:
    text = rendered((GOLDEN / "table_with_invalid.md").read_text(encoding="utf-8"), 80, colour=True)
    coloured = re.findall(r"\x1b\[(\d+)m(.*?)\x1b\[0m", text)
    assert {colour for colour, word in coloured if word.endswith("*")} == {"33"}
    assert {colour for colour, word in coloured if word.startswith("~~")} == {"31"}
    assert all(word.endswith("*") or word.startswith("~~") for _, word in coloured)
    assert ESCAPE.sub("", text) == rendered((GOLDEN / "table_with_invalid.md").read_text("utf-8"), 80, colour=False)
    verdicts = rendered((GOLDEN / "compare.md").read_text(encoding="utf-8"), 120, colour=True)
    assert {word for _, word in re.findall(r"\x1b\[(\d+)m(.*?)\x1b\[0m", verdicts)} == {"faster"}


def test_every_line_that_defines_a_column_is_for_those_who_ask() -> None:
    loads = [("static", 4, None), ("closed", 4, None), ("open", None, 2.0)]
    for kinds in itertools.chain.from_iterable(itertools.combinations(loads, n) for n in (1, 2, 3)):
        rows: list[dict[str, Any]] = [
            row((8, 8, batch), 1.0, 2.0, load=load, rate=rate, goodput_req_s=1.0, run_tok_s=3.0, output_tokens=5.0)
            for load, batch, rate in kinds
        ]
        columns = [*("load", "input", "output", "batch", "rate", "ttft_ms", "sys_tok_s", "run_tok_s", "goodput_req_s")]
        *definitions, rounds = table_parts(rows, columns).caption
        assert all(line.startswith(DEFINITIONS) for line in definitions), definitions
        assert not rounds.startswith(DEFINITIONS)
        shown = rendered(markdown_table(rows, columns), 200, colour=False, definitions=False)
        assert rounds in shown
        assert not any(line in shown for line in definitions)
        assert all(line in rendered(markdown_table(rows, columns), 999, colour=False) for line in definitions)


HOSTILE = ("[red]x[/red]", "[link=http://a]b", ":smile:", "\x1b[31mred", "\x9b31m", "a|b", "a\nb", "a\u202eb",
           "&#27;[31m", "<b>", "`c`", "**d**", "~~5~~", "漢字" * 20, "x" * 4000, "\\", "_a_", "[/]")  # fmt: skip


@pytest.mark.parametrize("name", HOSTILE)
@pytest.mark.parametrize("colour", [False, True])
def test_names_are_shown_and_never_obeyed(name: str, colour: bool) -> None:
    rows = [row((8, 8, 1), 1.5, 2.5, variant=name, reasons=name, status="suspect")]
    text = rendered(markdown_table(rows, ["variant", "input", "ttft_ms", "reasons"]), 80, colour=colour)
    bare = ESCAPE.sub("", text) if colour else text
    assert all(line.isprintable() for line in bare.split("\n"))
    assert set(re.findall(r"\x1b\[(\d+)m", text)) <= {"0", "31", "33"}
    assert "1.5*" in bare.split()
    if name.isprintable() and " " not in name and len(name) < 20:
        assert name.replace(";", "; ") in bare


@given(st.text(max_size=60), st.integers(20, 200))
def test_any_name_is_printable_and_within_the_width(name: str, width: int) -> None:
    rows = [row((8, 8, 1), 1.5, 2.5, variant=name)]
    text = rendered(markdown_table(rows, ["variant", "batch", "sys_tok_s"]), width, colour=False)
    lines = text.split("\n")
    assert all(line.isprintable() for line in lines)
    assert max(cell_len(line) for line in lines[: lines.index("") if "" in lines else None]) <= width


def test_plain_lines_keep_long_words_whole() -> None:
    path = "/" + "a" * 100
    assert wrapped(f"one two three four {path} five [red]", 20) == f"one two three four\n{path}\nfive [red]"


# ---- In a terminal, and elsewhere -----------------------------------------------------------------------


def in_terminal(*arguments: str, **env: str) -> str:
    ours, theirs = pty.openpty()
    command = [sys.executable, "-m", "benchbench.cli.main", *arguments]
    clean = {name: value for name, value in os.environ.items() if name not in {"NO_COLOR", "COLUMNS", "FORCE_COLOR"}}
    with subprocess.Popen(command, stdout=theirs, env={**clean, "TERM": "xterm-256color", **env}) as process:
        os.close(theirs)
        shown = read_terminal(ours)
    assert process.returncode == 0
    return shown


def test_a_terminal_gets_a_drawn_table_and_a_pipe_markdown() -> None:
    columns = ["--columns", "input,output,batch,status,ttft_ms"]
    shown = in_terminal("table", str(STORED), *columns, COLUMNS="70")
    assert "|" not in shown
    assert re.search(r"Input  Output  Batch  Status +TTFT \(ms\)\n─+\n", shown)
    assert "TTFT: from sending" not in shown
    assert "TTFT: from sending" in in_terminal("table", str(STORED), *columns, "-v", COLUMNS="200")
    assert max(map(cell_len, ESCAPE.sub("", shown).splitlines())) <= 70
    piped = subprocess.run(
        [sys.executable, "-m", "benchbench.cli.main", "table", str(STORED), *columns],
        capture_output=True, text=True, check=True, env={**os.environ, "FORCE_COLOR": "1", "COLUMNS": "40"},
    ).stdout  # fmt: skip
    assert "| Input | Output | Batch | Status | TTFT (ms) |\n|---|---|---|---|---|\n" in piped
    assert "TTFT: from sending the request to receiving its first token, mean over requests." in piped
    assert not ESCAPE.search(piped)


@cache
def drawn(*words: str) -> str:
    return in_terminal(*words)


@pytest.mark.parametrize("env", [{"NO_COLOR": "1"}, {"TERM": "dumb"}, {"TERM": "unknown"}])
def test_no_escapes_where_none_are_wanted(env: dict[str, str]) -> None:
    words = ("table", str(STORED), "--include-invalid", "--columns", "batch,status,ttft_ms")
    shown = in_terminal(*words, **env)
    assert "\x1b" not in shown
    assert ESCAPE.sub("", drawn(*words)) == shown
