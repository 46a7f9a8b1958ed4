"""The run directory and the columns in it: nothing half written is read, nothing stored changes."""

from __future__ import annotations

import os
import subprocess
import sys
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import orjson
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from rounds_made import T0, Made, columns_of, table_of

from benchbench.errors import RunError
from benchbench.store import arrow as make
from benchbench.store.requests import FORMAT_VERSION, round_facts, round_table
from benchbench.store.run_directory import RunDirectory, replace_file

MANIFEST = {"spec": {"engine": {"kind": "simulator"}}, "plan": []}
REQUESTS = [
    Made([(5, 1), (9, 3)], told=4, cached=2, end=9, lag=[7, 8]),
    Made([], "failed", sent=None, end=None, told_input=None),
    Made([(6, 1)], end=6),
]


@pytest.fixture
def run(tmp_path: Path) -> RunDirectory:
    run = RunDirectory(tmp_path / "run")
    run.open_for_writing(resume=False)
    return run


# ---- files ----------------------------------------------------------------------------------------------


def test_a_file_is_replaced_whole_and_only_when_it_is_on_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "manifest.json"
    replace_file(path, b"old")
    seen = []

    def fsync(fd: int) -> None:
        (temporary,) = set(tmp_path.iterdir()) - {path}
        seen.append((path.read_bytes(), temporary.read_bytes(), os.fstat(fd).st_ino == temporary.stat().st_ino))

    monkeypatch.setattr(os, "fsync", fsync)
    replace_file(path, b"new")
    assert seen == [(b"old", b"new", True)]
    assert [(file.name, file.read_bytes()) for file in tmp_path.iterdir()] == [("manifest.json", b"new")]

    def full(_fd: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space"):
        replace_file(path, b"newer")
    assert path.read_bytes() == b"new"


def test_a_link_that_was_planted_is_not_followed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    victim, path = tmp_path / "victim", tmp_path / "card.md"
    victim.write_bytes(b"mine")
    (tmp_path / ".card.md.tmp").symlink_to(victim)
    replace_file(path, b"new")
    monkeypatch.setattr(os, "urandom", lambda _: b"guessed")
    planted = tmp_path / f".bench-{b'guessed'.hex()}.tmp"
    planted.symlink_to(victim)
    with pytest.raises(FileExistsError):
        replace_file(path, b"newer")
    assert (victim.read_bytes(), path.read_bytes()) == (b"mine", b"new")
    assert planted.is_symlink()


def test_rounds_of_a_cell_are_read_one_at_a_time(run: RunDirectory) -> None:
    for number in (0, 1):
        run.write_round(table_of(REQUESTS), "aa", "measured", number)
    tables = run.read_cell("aa")
    assert len(next(tables)) == len(REQUESTS)
    (run.records / "aa-measured-0001.parquet").unlink()
    with pytest.raises(RunError, match="aa-measured-0001"):
        next(tables)


def test_a_round_that_was_cut_off_in_writing_never_was(run: RunDirectory) -> None:
    table = table_of(REQUESTS)
    for number in (10_000, 2, 0):
        run.write_round(table, "aa", "measured", number)
    run.write_round(table, "aa", "warmup", 1)
    run.write_round(table, "aab", "measured", 3)
    torn = run.records / ".aa-measured-0004.parquet.tmp"
    torn.write_bytes(b"PAR1 half a file")
    assert run.finished_rounds("aa") == [0, 2, 10_000]
    assert run.finished_rounds("aa", "warmup") == [1]
    assert run.finished_rounds("bb") == []
    assert [len(one) for one in run.read_cell("aa")] == [3, 3, 3]
    run.close()
    run.write_manifest(MANIFEST)
    again = RunDirectory(run.path)
    again.open_for_writing(resume=True)
    again.close()
    assert not torn.exists()


def test_a_round_comes_back_as_it_was(run: RunDirectory) -> None:
    labels = {"cell": "aa", "variant": "", "round": 3, "batch": None, "rate": 2.5}
    facts = {"kernel_stamps": True, "turn_max_ns": 2**60, "clock": {"step": [1, None, 0.5]}, "text": 'ü"\n'}
    table = round_table(columns_of(REQUESTS), labels, facts)
    table.validate(full=True)
    run.write_round(table, "aa", "measured", 3)
    back = run.read_round("aa", "measured", 3)
    assert back.equals(table)
    assert round_facts(back) == facts
    assert round_facts(pa.table({})) == {}
    rows = back.to_pylist()
    assert [{name: row[name] for name in labels} for row in rows] == [labels] * 3
    assert [row["event_ns"] for row in rows] == [[T0 + 5, T0 + 9], [], [T0 + 6]]
    assert [row["event_tokens"] for row in rows] == [[1, 3], [], [1]]
    assert [row["lag_ns"] for row in rows] == [[7, 8], [], [0]]
    assert [row["sent_ns"] for row in rows] == [T0, None, T0]
    assert [row["output_tokens"] for row in rows] == [4, None, None]
    assert [row["cached_tokens"] for row in rows] == [2, None, None]
    assert [row["connect_ns"] for row in rows] == [None, None, None]
    assert [row["status"] for row in rows] == ["ok", "failed", "ok"]
    units = {
        name: (back.schema.field(name).metadata or {}).get(b"unit") for name in ("sent_ns", "lag_ns", "rate", "cell")
    }
    assert units == {"sent_ns": b"ns", "lag_ns": b"ns", "rate": b"req/s", "cell": None}
    assert table_of([]).num_rows == 0


# ---- the journal ----------------------------------------------------------------------------------------


def begin(run: RunDirectory, cell: str, phase: str, number: int) -> None:
    run.journal("round_begun", cell=cell, phase=phase, round=number)


def test_a_torn_line_is_skipped_and_costs_no_other(run: RunDirectory) -> None:
    assert list(run.events()) == []
    assert run.attempts() == {}
    begin(run, "aa", "measured", 0)
    begin(run, "aa", "measured", 0)
    journal = run.path / "journal.jsonl"
    whole = journal.read_bytes()
    for cut in range(1, len(whole.splitlines()[1]) + 1):
        journal.write_bytes(whole[:-cut])
        begin(run, "aa", "measured", 1)
        begin(run, "aa", "warmup", 1)
        run.journal("note", text="line\nbreak\r\x85")
        left = 2 if cut == 1 else 1  # only the line's end was lost
        assert run.attempts() == {("aa", "measured", 0): left, ("aa", "measured", 1): 1, ("aa", "warmup", 1): 1}
        assert [event["event"] for event in run.events()] == ["round_begun"] * (left + 2) + ["note"]
    *_, note = run.events()
    assert note["text"] == "line\nbreak\r\x85"
    assert note["time_ns"] > T0 - 10**18


# ---- who may open it ------------------------------------------------------------------------------------


def test_one_writer_at_a_time(run: RunDirectory) -> None:
    with pytest.raises(RunError, match="another sweep is running"):
        RunDirectory(run.path).open_for_writing(resume=False)
    code = "import sys; from benchbench.store.run_directory import *; "
    code += "RunDirectory(Path(sys.argv[1])).open_for_writing(resume=True)"
    words = [sys.executable, "-c", code, str(run.path)]
    other = subprocess.run(words, capture_output=True, text=True, timeout=60, check=False)
    assert "another sweep is running" in other.stderr
    run.close()
    subprocess.run(words, timeout=60, check=True)  # its lock ends with it
    RunDirectory(run.path).open_for_writing(resume=True)


def test_what_is_no_run_is_told_apart(tmp_path: Path) -> None:
    with pytest.raises(RunError, match="does not exist"):
        RunDirectory.existing(tmp_path / "nowhere")
    (tmp_path / "thesis.tex").write_text("mine")
    with pytest.raises(RunError, match="not empty"):
        RunDirectory(tmp_path).open_for_writing(resume=True)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]
    with pytest.raises(RunError, match="not a folder"):
        RunDirectory(tmp_path / "thesis.tex").open_for_writing(resume=False)


def test_a_run_is_not_written_over_without_being_asked(run: RunDirectory) -> None:
    run.write_manifest(MANIFEST)
    run.close()
    with pytest.raises(RunError, match="--resume"):
        RunDirectory(run.path).open_for_writing(resume=False)
    assert RunDirectory.existing(run.path).manifest().items() >= ({"format": FORMAT_VERSION} | MANIFEST).items()


def test_a_later_format_is_neither_read_nor_continued(run: RunDirectory) -> None:
    run.close()
    manifest = run.path / "manifest.json"
    manifest.write_bytes(orjson.dumps({"format": FORMAT_VERSION + 1}))
    with pytest.raises(RunError, match=f"format {FORMAT_VERSION + 1}; this version reads up to {FORMAT_VERSION}"):
        RunDirectory.existing(run.path)
    with pytest.raises(RunError, match="this version reads up to"):
        RunDirectory(run.path).open_for_writing(resume=True)
    damaged = [
        b'{"format": 1',
        b"[]",
        b"{}",
        b"\xff",
        b'{"spec": {}, "plan": []}',
        orjson.dumps(MANIFEST | {"format": "x"}),
    ]
    for text in damaged:
        manifest.write_bytes(text)
        with pytest.raises(RunError, match=r"manifest.json: damaged, or not of this tool .*: put back a copy of it"):
            RunDirectory.existing(run.path)


def test_the_summary_keeps_missing_numbers_missing(run: RunDirectory) -> None:
    rows: list[dict[str, Any]] = [{"a": 1, "b": None, "c": 'x,"y', "left out": 5}, {"a": None, "b": 2.5, "c": ""}]
    run.write_summary(rows, dict.fromkeys("abcd", "") | {"b": "ms"})
    assert (run.path / "summary.csv").read_text() == 'a,b,c,d\n1,,"x,""y",\n,2.5,,\n'
    stored = pq.read_table(run.path / "summary.parquet")
    assert stored.to_pylist() == [
        {"a": 1, "b": None, "c": 'x,"y', "d": None},
        {"a": None, "b": 2.5, "c": "", "d": None},
    ]
    assert [stored.schema.field(name).metadata for name in "ab"] == [None, {b"unit": b"ms"}]


# ---- columns, against pyarrow's own way -----------------------------------------------------------------

INTS = st.integers(-(2**63), 2**63 - 1)
TEXTS = st.lists(st.none() | st.text(max_size=5), max_size=20)


def same(found: pa.Array, expected: pa.Array) -> None:
    found.validate(full=True)
    assert found.type == expected.type
    assert found.equals(expected)


@given(st.lists(st.none() | st.integers(0, 2**31 - 1), max_size=20), st.sampled_from([np.int32, np.int64, np.float64]))
def test_numbers(values: list[int | None], kind: type) -> None:
    array: Any = np.array([-1 if value is None else value for value in values], kind)
    same(make.numbers(array, array >= 0), pa.array(values, pa.from_numpy_dtype(np.dtype(kind))))
    same(make.numbers(array[::2]), pa.array(array[::2].tolist(), pa.from_numpy_dtype(np.dtype(kind))))


@given(st.lists(st.booleans(), max_size=20))
def test_flags(values: list[bool]) -> None:
    same(make.flags(np.array(values, np.bool_)), pa.array(values, pa.bool_()))


@given(TEXTS)
@example([])
@example([None])
@example(["ü\0", "", None, "\U0001f40c"])
def test_texts(values: list[str | None]) -> None:
    same(make.texts(values), pa.array(values, pa.string()))
    if any(value is not None for value in values):
        same(make.column(values), pa.array(values, pa.string()))


def test_text_that_is_no_unicode_is_kept_readable() -> None:
    same(make.texts(["a\udc80b"]), pa.array(["a?b"]))


@given(st.lists(st.none() | INTS, max_size=20), st.lists(st.none() | INTS | st.floats(allow_nan=False), max_size=20))
def test_columns_of_numbers(whole: list[int | None], mixed: list[float | None]) -> None:
    present = [value for value in mixed if value is not None]
    all_whole = bool(present) and all(isinstance(value, int) for value in present)
    same(make.column(whole), pa.array(whole, pa.int64() if set(whole) - {None} else pa.float64()))
    floats = [None if value is None else float(value) for value in mixed]
    same(make.column(mixed), pa.array(mixed, pa.int64()) if all_whole else pa.array(floats, pa.float64()))


@given(st.none() | INTS | st.floats(allow_nan=False) | st.text(max_size=5), st.integers(0, 9))
def test_constant(value: str | float | None, count: int) -> None:
    kinds = {int: pa.int64(), float: pa.float64(), str: pa.string(), type(None): pa.float64()}
    kind = kinds[type(value)] if count or isinstance(value, str) else pa.float64()
    same(make.constant(value, count), pa.array([value] * count, kind))


ROWS = st.lists(st.lists(INTS, max_size=4), max_size=9)


@given(ROWS)
def test_lists(rows: list[list[int]]) -> None:
    offsets = np.cumsum([0, *map(len, rows)]).astype(np.int32)
    values = np.array([value for row in rows for value in row], np.int64)
    same(make.lists(offsets, values), pa.array(rows, pa.list_(pa.int64())))


def chunked(values: list[Any], cuts: list[int], kind: pa.DataType) -> pa.ChunkedArray:
    """`values` in chunks, each a slice out of a longer array: offsets that are not 0."""
    edges = [0, *sorted(cut for cut in cuts if cut <= len(values)), len(values)]
    whole = pa.array([*values[:1], *values, *values[:1]], kind)
    before = min(1, len(values))
    pieces = [whole.slice(before + low, high - low) for low, high in pairwise(edges)]
    return pa.chunked_array(pieces, kind)


CUTS = st.lists(st.integers(0, 9), max_size=3)


@given(st.lists(st.none() | st.integers(0, 2**31 - 1), max_size=20), CUTS, st.sampled_from([pa.int32(), pa.int64()]))
@example([], [], pa.int64())
@example([None], [], pa.int32())
def test_array_of(values: list[int | None], cuts: list[int], kind: pa.DataType) -> None:
    found = make.array_of(chunked(values, cuts, kind))
    assert found.tolist() == [-1 if value is None else value for value in values]
    assert found.dtype == kind.to_pandas_dtype()
    assert make.array_of(pa.chunked_array([], kind)).tolist() == []


@given(ROWS, CUTS)
@example([], [])
@example([[], []], [1])
def test_lists_of(rows: list[list[int]], cuts: list[int]) -> None:
    offsets, values = make.lists_of(chunked(rows, cuts, pa.list_(pa.int64())))
    assert [values[low:high].tolist() for low, high in pairwise(offsets)] == rows
    assert len(values) == offsets[-1]
    assert make.lists_of(pa.chunked_array([], pa.list_(pa.int64())))[0].tolist() == [0]
