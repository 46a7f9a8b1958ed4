"""The samples of GPUs and host that a sweep stored (`host.sampler`), read."""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Sequence
from itertools import accumulate
from pathlib import Path
from weakref import WeakKeyDictionary

import orjson
import pyarrow as pa

from benchbench.errors import RunError
from benchbench.store.parquet_files import read_parquet
from benchbench.store.run_directory import RunDirectory

KEPT_BYTES = 8 * 2**20  # of tables in memory: cells that are measured one after the other ask for the same files
TABLE_BYTES = 2**15  # of one beside its samples
Span = tuple[int, int]  # first and last, ns
Written = tuple[int, str]  # a file, see `_written`


def _written(name: str) -> Written:
    """The order of writing, by which a file is known: its number, and its name if that is not the number's."""
    stem = name.removesuffix(".parquet")
    number = int(stem) if stem.isdecimal() else -1
    return number, "" if name == _name(number) else name


def _name(number: int) -> str:
    return f"{number:04d}.parquet"


class _Files:
    """A run's telemetry by time. The folder is listed once; from then on the next file has the next number."""

    def __init__(self, run: RunDirectory) -> None:
        self._folder = run.path / "telemetry"
        self._unread = run.unread
        self._listed = sorted(_written(path.name) for path in self._folder.glob("*.parquet"))
        self._next = self._listed[-1][0] + 1 if self._listed else 0
        self._known: list[tuple[int, int, int, str]] = []  # first and last ns of a file and which it is, in order
        self._reach: list[int] = []  # the latest last ns up to there
        self._kept: dict[Written, pa.Table] = {}  # those read last
        self._kept_bytes = 0

    def look(self) -> None:
        """Learn the times of the files that are new."""
        listed, self._listed = self._listed, []
        for file in listed:
            self._learn(file)
        while self.path(self._next, "").exists():
            self._next += 1
            self._learn((self._next - 1, ""))

    def path(self, number: int, name: str) -> Path:
        return self._folder / (name or _name(number))

    def read(self, file: Written) -> pa.Table | None:
        """A file's samples; None for one that cannot be read."""
        if file in self._kept:
            return self._kept[file]
        loaded = self._load(file)
        return loaded[0] if loaded else None

    def _learn(self, file: Written) -> None:
        if loaded := self._load(file):
            self._add((*loaded[1], *file))

    def _load(self, file: Written) -> tuple[pa.Table, Span] | None:
        """A file's samples, from now on in memory, and when they begin and end; None for one that cannot be read."""
        path = self.path(*file)
        if path in self._unread:
            return None
        try:
            table = read_parquet(path, "its samples are missing")
            facts = orjson.loads(table.schema.metadata[b"benchbench"])
            span = int(facts["first_ns"]), int(facts["last_ns"])
        except (RunError, KeyError, TypeError, ValueError) as error:
            self._unread[path] = str(error).removeprefix(f"{path}: ")
            return None
        self._kept[file] = table = table.replace_schema_metadata()
        self._kept_bytes += table.nbytes + TABLE_BYTES
        while self._kept_bytes > KEPT_BYTES:
            self._kept_bytes -= self._kept.pop(next(iter(self._kept))).nbytes + TABLE_BYTES
        return table, span

    def _add(self, entry: tuple[int, int, int, str]) -> None:
        if not self._known or entry > self._known[-1]:
            self._known.append(entry)
            self._reach.append(max([entry[1], *self._reach[-1:]]))
        else:  # the clock was set back
            self._known = sorted([*self._known, entry])
            self._reach = list(accumulate((last for _, last, *_ in self._known), max))

    def touching(self, spans: Sequence[Span]) -> list[Written]:
        """The files that touch one of these spans, in order of writing."""
        files = set[Written]()
        for begin, end in spans:
            near = slice(bisect_left(self._reach, begin), bisect_right(self._known, end, key=lambda entry: entry[0]))
            files |= {(number, name) for _, last, number, name in self._known[near] if last >= begin}
        return sorted(files)


_FILES: WeakKeyDictionary[RunDirectory, _Files] = WeakKeyDictionary()  # of each run that is open


def read_telemetry(run: RunDirectory, spans: Sequence[Span] = ((0, 2**63 - 1),)) -> pa.Table | None:
    """The samples of all files that touch one of these spans, in order of writing; None when there are none.

    A file that cannot be read is left out, and said in the run's `notes`.
    """
    if (files := _FILES.get(run)) is None:
        files = _FILES[run] = _Files(run)
    files.look()
    tables: list[pa.Table] = []
    for file in files.touching(spans):
        if (table := files.read(file)) is None:
            continue
        if tables and table.schema != tables[0].schema:
            run.unread[files.path(*file)] = "other columns than in the files before: its samples are missing"
        else:
            tables.append(table)
    return pa.concat_tables(tables).combine_chunks() if tables else None
