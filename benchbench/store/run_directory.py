"""The run directory: what it holds, written so that a kill at any moment loses at most the unfinished round.

manifest.json     what was asked: spec as resolved, plan, versions, host, git state, format version
journal.jsonl     what happened, one line each, append-only
records/          one Parquet file a finished round, `CELL-PHASE-NUMBER.parquet`; its presence means finished
fidelity/         what each start of a variant answered, `VARIANT-BLOCK.parquet`
telemetry/        what GPUs and host did meanwhile (`telemetry.Sampler`), one Parquet file a cell
summary.parquet, summary.csv, table.md, plots/    made from the records, at any time again
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import orjson

from benchbench.errors import RunError
from benchbench.safe_text import csv_text
from benchbench.store.facts import Manifest
from benchbench.store.requests import FORMAT_VERSION

if TYPE_CHECKING:
    import pyarrow as pa


def replace_file(path: Path, data: bytes, like: os.stat_result | None = None) -> None:
    """Write `path` so that a reader sees the old or the whole new content, also after a crash.

    `like`: whose mode and, where that is allowed, owner the file gets. A failed write leaves nothing behind.
    What it writes to has a random name and did not exist before: a link that somebody planted is not followed.
    """
    temporary = path.with_name(f".bench-{os.urandom(8).hex()}.tmp")
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
    descriptor = os.open(temporary, flags, 0o666)
    try:
        with os.fdopen(descriptor, "wb") as file:
            if like is not None:
                with contextlib.suppress(PermissionError):
                    os.fchown(file.fileno(), like.st_uid, like.st_gid)
                os.fchmod(file.fileno(), like.st_mode & 0o7777)
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def _touch(span: tuple[int, int], spans: Sequence[tuple[int, int]]) -> bool:
    return any(span[0] <= last and span[1] >= first for first, last in spans)


class RunDirectory:
    """A run on disk. Reading needs no lock; `open_for_writing` takes one and holds it until `close`."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.records = path / "records"
        self._lock: int | None = None
        self._finished: dict[str, list[int]] | None = None  # by `CELL-PHASE`; of the folder as it was when last asked
        self._spans: dict[Path, tuple[int, int]] = {}  # of the files of telemetry, which do not change

    @classmethod
    def existing(cls, path: str | Path) -> RunDirectory:
        """A run to read. Raises RunError when there is none, or one of a later format."""
        run = cls(Path(path))
        if not (run.path / "manifest.json").is_file():
            raise RunError(f"{path}: not a run directory (it has no manifest.json)")
        run.manifest()
        return run

    # -- writing

    def open_for_writing(self, *, resume: bool) -> None:
        """Make the directory if need be and lock it. Raises RunError: exists without `resume`, or in use."""
        exists = (self.path / "manifest.json").exists()
        if exists and not resume:
            raise RunError(f"{self.path}: there is a run already (use --resume to continue it, or another --out)")
        if exists:
            self.manifest()  # raises for one that this version can't continue
        if self.path.exists() and not self.path.is_dir():
            raise RunError(f"{self.path}: not a folder")
        if not exists and self.path.is_dir() and any(self.path.iterdir()) and not (self.path / ".lock").exists():
            raise RunError(f"{self.path}: the folder is not empty and holds no run")
        try:
            self.records.mkdir(parents=True, exist_ok=True)
            self._lock = os.open(self.path / ".lock", os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o644)
        except OSError as error:
            raise RunError(f"{self.path}: cannot write here: {error.strerror}") from None
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            self.close()
            raise RunError(f"{self.path}: another sweep is running in this folder") from None
        for folder in (".", "records", "telemetry", "fidelity"):
            for leftover in self.path.glob(f"{folder}/.*.tmp"):
                leftover.unlink()

    def close(self) -> None:
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    def write_manifest(self, manifest: Mapping[str, Any]) -> None:
        """Replace manifest.json. Raises OSError, as all that writes does."""
        data = {"format": FORMAT_VERSION, **manifest}
        replace_file(self.path / "manifest.json", orjson.dumps(data, option=orjson.OPT_INDENT_2) + b"\n")

    def journal(self, event: str, **facts: object) -> None:
        """Append one line. A line is whole or absent: one write, and readers skip a torn last line."""
        line = orjson.dumps({"time_ns": time.time_ns(), "event": event, **facts}) + b"\n"
        file = os.open(self.path / "journal.jsonl", os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o644)
        try:
            if os.fstat(file).st_size and not self._ends_whole():
                line = b"\n" + line
            os.write(file, line)
        finally:
            os.close(file)

    def _ends_whole(self) -> bool:
        with (self.path / "journal.jsonl").open("rb") as file:
            file.seek(-1, os.SEEK_END)
            return file.read(1) == b"\n"

    def write_round(self, table: pa.Table, cell: str, phase: str, number: int) -> None:
        """Store a round's table (`requests.round_table`): from then on the round is finished."""
        import pyarrow as pa
        import pyarrow.parquet as pq

        buffer = pa.BufferOutputStream()
        pq.write_table(table, buffer, compression="snappy", use_dictionary=False, write_statistics=False)
        replace_file(self._round_path(cell, phase, number), buffer.getvalue().to_pybytes())
        self._finished = None

    def write_answers(self, table: pa.Table, variant: str, block: int) -> None:
        """Store what a variant answered in a block (`answers.answers_table`)."""
        import pyarrow as pa
        import pyarrow.parquet as pq

        buffer = pa.BufferOutputStream()
        pq.write_table(table, buffer)
        path = self.answers_path(variant, block)
        path.parent.mkdir(exist_ok=True)
        replace_file(path, buffer.getvalue().to_pybytes())

    def answers_path(self, variant: str, block: int) -> Path:
        """Where these answers are, once they are stored."""
        return self.path / "fidelity" / f"{variant}-{block}.parquet"

    def _round_path(self, cell: str, phase: str, number: int) -> Path:
        return self.records / f"{cell}-{phase}-{number:04d}.parquet"

    # -- reading

    def manifest(self) -> Manifest:
        """Raises RunError when it is no JSON, or of a later format."""
        try:
            data: Manifest = orjson.loads((self.path / "manifest.json").read_bytes())
        except orjson.JSONDecodeError as error:
            raise RunError(f"{self.path}/manifest.json: not JSON: {error}") from None
        version = data.get("format", 0)
        if version > FORMAT_VERSION:
            raise RunError(f"{self.path}: written in format {version}; this version reads up to {FORMAT_VERSION}")
        return data

    def events(self) -> Iterator[dict[str, Any]]:
        """The journal, in order, without lines that a crash tore."""
        path = self.path / "journal.jsonl"
        for line in path.read_bytes().splitlines() if path.exists() else []:
            with contextlib.suppress(orjson.JSONDecodeError):
                yield orjson.loads(line)

    def attempts(self) -> dict[tuple[str, str, int], int]:
        """How often each round, by (cell, phase, number), was begun."""
        counts: dict[tuple[str, str, int], int] = {}
        for event in self.events():
            if event.get("event") == "round_begun":
                key = (event["cell"], event["phase"], event["round"])
                counts[key] = counts.get(key, 0) + 1
        return counts

    def finished_rounds(self, cell: str, phase: str = "measured") -> list[int]:
        """Numbers of the finished rounds of a cell, ascending. The folder is listed once, and after a write of ours."""
        if self._finished is None:
            self._finished = {}
            for path in self.records.iterdir() if self.records.is_dir() else ():
                if path.suffix == ".parquet":
                    whose, _, number = path.stem.rpartition("-")
                    self._finished.setdefault(whose, []).append(int(number))
        return sorted(self._finished.get(f"{cell}-{phase}", []))

    def measured_variants(self) -> set[str]:
        """The variants of which there are rounds; "" without variants."""
        entries = self.manifest()["plan"] if (self.path / "manifest.json").exists() else []
        return {entry["variant"] for entry in entries if self.finished_rounds(entry["key"])}

    def read_round(self, cell: str, phase: str, number: int) -> pa.Table:
        """The table of a finished round, its facts in the metadata. Raises FileNotFoundError for another."""
        import pyarrow as pa
        import pyarrow.parquet as pq

        # Of a file this small most of the time would go to threads and to the layer of file systems.
        with pq.ParquetFile(pa.BufferReader(self._round_path(cell, phase, number).read_bytes())) as file:
            return file.read(use_threads=False)

    def read_cell(self, cell: str, phase: str = "measured") -> list[pa.Table]:
        """The tables of a cell's finished rounds, in order."""
        return [self.read_round(cell, phase, number) for number in self.finished_rounds(cell, phase)]

    def read_answers(self, variant: str) -> dict[int, pa.Table]:
        """What a variant answered, by block."""
        import pyarrow.parquet as pq

        names = [path.stem.rpartition("-") for path in (self.path / "fidelity").glob("*.parquet")]
        blocks = sorted(int(block) for name, _, block in names if name == variant)
        return {block: pq.read_table(self.answers_path(variant, block), partitioning=None) for block in blocks}

    def read_summary(self) -> list[dict[str, Any]]:
        """The rows of summary.parquet, one a cell. Raises RunError when it is not there or can't be read."""
        import pyarrow as pa
        import pyarrow.parquet as pq

        path = self.path / "summary.parquet"
        try:
            with pq.ParquetFile(path) as file:
                rows: list[dict[str, Any]] = file.read().to_pylist()
        except (OSError, pa.ArrowException) as error:
            raise RunError(f"{path}: not a summary that can be read: {error}") from None
        return rows

    def read_telemetry(self, spans: Sequence[tuple[int, int]] = ((0, 2**63 - 1),)) -> pa.Table | None:
        """The samples of all files that touch one of these spans, ns, in order of writing; None when there are none."""
        import pyarrow as pa
        import pyarrow.parquet as pq

        tables = []
        for path in sorted((self.path / "telemetry").glob("*.parquet")):
            if path in self._spans and not _touch(self._spans[path], spans):
                continue
            with pq.ParquetFile(path) as file:  # pq.read_table imports pandas
                facts = orjson.loads(file.schema_arrow.metadata[b"benchbench"])
                self._spans[path] = facts["first_ns"], facts["last_ns"]
                if _touch(self._spans[path], spans):
                    tables.append(file.read().replace_schema_metadata())
        return pa.concat_tables(tables) if tables else None

    def write_summary(self, rows: Sequence[Mapping[str, Any]], units: Mapping[str, str]) -> None:
        """summary.parquet and summary.csv: every cell whatever its status; missing numbers are null and empty.

        `units`: the columns and their units ("": none), which Parquet keeps as each field's metadata `unit`.
        """
        import pyarrow as pa
        import pyarrow.parquet as pq

        from benchbench.store.arrow import column, table_with_units

        table = table_with_units({name: column([row.get(name) for row in rows]) for name in units}, units)
        buffer = pa.BufferOutputStream()
        pq.write_table(table, buffer)
        replace_file(self.path / "summary.parquet", buffer.getvalue().to_pybytes())
        replace_file(self.path / "summary.csv", csv_text(list(units), rows).encode())
