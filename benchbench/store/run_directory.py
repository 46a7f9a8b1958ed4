"""The run directory: what it holds, written so that a kill at any moment loses at most the unfinished round.

manifest.json     what was asked: spec as resolved, plan, versions, host, git state, format version
journal.jsonl     what happened, one line each, append-only
records/          one Parquet file a finished round, `CELL-PHASE-NUMBER.parquet`; its presence means finished
spoiled/          rounds that were measured again (`--retry`), `CELL-PHASE-NUMBER.TIME.parquet`: in no figure
fidelity/         what each start of a variant answered, `VARIANT-BLOCK.parquet`
telemetry/        what GPUs and host did meanwhile (`telemetry.Sampler`), one Parquet file a cell
summary.parquet, summary.csv, table.md, plots/    made from the records, at any time again
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import itertools
import os
import re
import shutil
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

import orjson

from benchbench.errors import RunError
from benchbench.safe_text import csv_text
from benchbench.store.facts import Manifest
from benchbench.store.parquet_files import parquet_bytes, parquet_pieces, read_parquet, write_parquet
from benchbench.store.requests import FORMAT_VERSION, problem_of

if TYPE_CHECKING:
    import pyarrow as pa

_RECORD = re.compile(r"([^.].*-(?:warmup|measured))-(\d{4,})\.parquet")
STARTED_AGAIN = "server_started_again"  # of the journal: see `RunDirectory.doubted`
EDITED = "manifest.json was changed after it was written: what it says of sweep, checks and machine may be wrong"
_AGAIN = "remove it, and bench sweep --resume measures this round again"


def replace_file(path: Path, data: bytes | Callable[[IO[bytes]], None], like: os.stat_result | None = None) -> None:
    """Write `path` so that a reader sees the old or the whole new content, or what `data` writes, also after a crash.

    `like`: whose mode and, where that is allowed, owner the file gets. A failed write leaves nothing behind.
    What it writes to has a random name and did not exist before: a link that somebody planted is not followed.
    """
    temporary = path.with_name(f".bench-{os.urandom(8).hex()}.tmp")
    flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
    descriptor = os.open(temporary, flags, 0o666)
    try:
        with os.fdopen(descriptor, "w+b") as file:
            if like is not None:
                with contextlib.suppress(PermissionError):
                    os.fchown(file.fileno(), like.st_uid, like.st_gid)
                os.fchmod(file.fileno(), like.st_mode & 0o7777)
            if isinstance(data, bytes):
                file.write(data)
            else:
                data(file)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def _format_of(manifest: Manifest) -> int:
    """The format. Raises ValueError, AttributeError, KeyError and TypeError for what is no manifest."""
    version = int(manifest.get("format", 0))
    if version <= FORMAT_VERSION and not (manifest["spec"]["engine"]["kind"] and isinstance(manifest["plan"], list)):
        raise ValueError("it names no engine and no plan")
    return version


def _seal(manifest: Mapping[str, Any]) -> str:
    """Of all that a manifest says but this."""
    parts = {name: value for name, value in manifest.items() if name != "sha256"}
    return hashlib.sha256(orjson.dumps(parts, option=orjson.OPT_SORT_KEYS)).hexdigest()


class RunDirectory:
    """A run on disk. Reading needs no lock; `open_for_writing` takes one and holds it until `close`."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.records = path / "records"
        self.opened_ns = 0  # when it was opened for writing
        self._lock: int | None = None
        self._is_new = False  # the folder, by this object
        self._finished: dict[str, set[int]] | None = None  # see `_listed`
        self._spoiled: Counter[str] | None = None  # how many rounds were set aside, by cell
        self._doubted: set[str] | None = None
        self._name: str | None = None  # of the run: see `_named`
        self.unread: dict[Path, str] = {}  # files that were left out, and why

    @classmethod
    def existing(cls, path: str | Path) -> RunDirectory:
        """A run to read. Raises RunError when there is none, or one of a later format."""
        run = cls(Path(path))
        if not (run.path / "manifest.json").is_file():
            why = "not a run directory (it has no manifest.json)" if run.path.exists() else "does not exist"
            raise RunError(f"{path}: {why}")
        run.manifest()
        return run

    # -- writing

    def open_for_writing(self, *, resume: bool) -> None:
        """Make the directory if need be and lock it. Raises RunError: exists without `resume`, or in use."""
        self.opened_ns = time.time_ns()
        exists = (self.path / "manifest.json").exists()
        if exists and not resume:
            raise RunError(f"{self.path}: a run is there (use --resume or another --out; bench sweep: --overwrite)")
        if exists:
            self.manifest()  # raises for one that this version can't continue
        if self.path.exists() and not self.path.is_dir():
            raise RunError(f"{self.path}: not a folder")
        if not exists and self.path.is_dir() and any(self.path.iterdir()) and not (self.path / ".lock").exists():
            raise RunError(f"{self.path}: the folder is not empty and holds no run")
        self._is_new = not self.path.exists()
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

    def drop_if_empty(self) -> None:
        """Remove a folder that `open_for_writing` made when it holds no round and no log."""
        if self._is_new and not any((self.path / "logs").glob("*")) and not any(self.records.iterdir()):
            shutil.rmtree(self.path)

    def close(self) -> None:
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    def write_manifest(self, manifest: Mapping[str, Any]) -> None:
        """Replace manifest.json. Raises OSError, as all that writes does."""
        data = {"format": FORMAT_VERSION, "run": self._run_name(), **manifest}
        data["sha256"] = _seal(data)
        replace_file(self.path / "manifest.json", orjson.dumps(data, option=orjson.OPT_INDENT_2) + b"\n")

    def _run_name(self) -> str:
        """By which its files know each other, drawn before the first is written; "" for a run of an earlier version."""
        if self._name is None:
            earlier = self.earlier()
            self._name = str(earlier.get("run", "")) if earlier else os.urandom(8).hex()
        return self._name

    def _named(self, what: str) -> bytes:
        """What a file of this run holds, as its metadata `record` says it."""
        return f"{what}{f' of run {name}' if (name := self._run_name()) else ''}".encode()

    def _named_round(self, cell: str, phase: str, number: int) -> bytes:
        return self._named(f"cell {cell}, {phase} round {number}")

    def journal(self, event: str, **facts: object) -> None:
        """Append one line. A line is whole or absent: one write, and readers skip a torn last line."""
        line = orjson.dumps({"time_ns": time.time_ns(), "event": event, **facts}) + b"\n"
        file = os.open(self.path / "journal.jsonl", os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o644)
        try:
            if (size := os.fstat(file).st_size) and os.pread(file, 1, size - 1) != b"\n":
                line = b"\n" + line
            os.write(file, line)
        finally:
            os.close(file)

    def write_round(self, table: pa.Table, cell: str, phase: str, number: int) -> None:
        """Store a round's table (`requests.round_table`): from then on the round is finished."""
        record = self._named_round(cell, phase, number)
        options = {"compression": "snappy", "use_dictionary": False, "write_statistics": False}
        replace_file(self._round_path(cell, phase, number), lambda file: write_parquet(file, table, record, **options))
        if self._finished is not None:
            self._finished.setdefault(f"{cell}-{phase}", set()).add(number)

    def set_aside(self, cell: str, number: int) -> None:
        """Move a measured round to `spoiled/`, out of the figures: its number is free for another round."""
        path = self._round_path(cell, "measured", number)
        (self.path / "spoiled").mkdir(exist_ok=True)
        places = (self.path / "spoiled" / f"{path.stem}.{earlier}.parquet" for earlier in itertools.count())
        path.rename(next(place for place in places if not place.exists()))
        if self._finished is not None:
            self._finished[f"{cell}-measured"].discard(number)
        if self._spoiled is not None:
            self._spoiled[cell] += 1

    def spoiled_rounds(self, cell: str) -> int:
        """How many of a cell's measured rounds were set aside."""
        if self._spoiled is None:
            names = [path.name for path in self.path.glob("spoiled/*-measured-*.parquet")]
            self._spoiled = Counter(name.rpartition("-measured-")[0] for name in names)
        return self._spoiled[cell]

    def _round_path(self, cell: str, phase: str, number: int) -> Path:
        return self.records / f"{cell}-{phase}-{number:04d}.parquet"

    # -- reading

    def manifest(self) -> Manifest:
        """Raises RunError when it is damaged, or of a later format."""
        path = self.path / "manifest.json"
        try:
            data: Manifest = orjson.loads(path.read_bytes())
            version = _format_of(data)
        except (OSError, ValueError, AttributeError, KeyError, TypeError) as error:
            reason = f"{type(error).__name__}: {error}"
            raise RunError(f"{path}: damaged, or not of this tool ({reason}): put back a copy of it") from None
        if version > FORMAT_VERSION:
            raise RunError(f"{self.path}: written in format {version}; this version reads up to {FORMAT_VERSION}")
        return data

    def earlier(self) -> Manifest:
        """The manifest, empty where there is none yet."""
        return self.manifest() if (self.path / "manifest.json").exists() else {}

    def events(self) -> Iterator[dict[str, Any]]:
        """The journal, in order, without lines that a crash tore."""
        path = self.path / "journal.jsonl"
        with path.open("rb") if path.exists() else contextlib.nullcontext(()) as lines:
            for line in lines:
                with contextlib.suppress(orjson.JSONDecodeError):
                    event = orjson.loads(line)
                    if isinstance(event, dict) and "event" in event:
                        yield event

    def attempts(self) -> dict[tuple[str, str, int], int]:
        """How often each round, by (cell, phase, number), was begun."""
        return Counter((e["cell"], e["phase"], e["round"]) for e in self.events() if e["event"] == "round_begun")

    def finished_rounds(self, cell: str, phase: str = "measured") -> list[int]:
        """Numbers of the finished rounds of a cell, ascending.

        What else lies there (`._x.parquet` of macOS, `x (1).parquet` of a browser) is not read, and said in `notes`.
        """
        return sorted(self._listed().get(f"{cell}-{phase}", ()))

    def _listed(self) -> dict[str, set[int]]:
        """Numbers of the finished rounds by `CELL-PHASE`: the folder is listed once, what we write is added."""
        if self._finished is None:
            self._finished = {}
            for path in self.records.iterdir() if self.records.is_dir() else ():
                if match := _RECORD.fullmatch(path.name):
                    self._finished.setdefault(match[1], set()).add(int(match[2]))
                elif path.suffix == ".parquet":
                    self.unread[path] = "not the name of a record: remove it"
        return self._finished

    @property
    def doubted(self) -> set[str]:
        """Variants whose server was another process meanwhile, nobody knows with which flags."""
        if self._doubted is None:
            self._doubted = {event["variant"] for event in self.events() if event["event"] == STARTED_AGAIN}
        return self._doubted

    def measured_variants(self) -> set[str]:
        """The variants of which there are rounds; "" without variants.

        Where some are of cells that have left the plan, any variant that was started may have rounds.
        """
        manifest = self.earlier()
        variants = {e["key"]: e["variant"] for e in manifest.get("plan", [])}
        phases = [name.rpartition("-") for name, numbers in self._listed().items() if numbers]
        keys = {cell for cell, _, phase in phases if phase == "measured"}
        started = {start["variant"] for start in manifest.get("starts", [])} if keys - variants.keys() else set()
        return started | {variants[key] for key in keys & variants.keys()}

    def notes(self) -> list[str]:
        """What lies in the folder and was not read so far, and why; whether the manifest is not what was written."""
        edited = [f"{EDITED}."] if self.is_edited() else []
        return edited + [
            f"Not read: {path.relative_to(self.path)} ({why})." for path, why in sorted(self.unread.items())
        ]

    def is_edited(self) -> bool:
        """Whether the manifest was changed after it was written; not known of an earlier version's."""
        manifest = self.earlier()
        return bool(manifest.get("run")) and manifest.get("sha256") != _seal(manifest)

    def read_round(self, cell: str, phase: str, number: int) -> pa.Table:
        """The table of a finished round, its facts in the metadata. Raises RunError, as `pieces` does."""
        (table,) = self.pieces(cell, phase, number, whole=True)
        return table

    def pieces(self, cell: str, phase: str, number: int, *, whole: bool = False) -> Iterator[pa.Table]:
        """That table in pieces, one at least, each read when it is asked for.

        Raises RunError for a file that is damaged, missing, of another kind, or another round's.
        """
        path = self._round_path(cell, phase, number)
        own = self._named_round(cell, phase, number)
        for table in parquet_pieces(path, _AGAIN, whole=whole):
            if problem := problem_of(table):
                raise RunError(f"{path}: no record of this tool ({problem}): {_AGAIN}")
            identity = (table.schema.metadata or {}).get(b"record")
            if identity != own and (identity or self._run_name()):
                what = identity.decode() if identity else "it does not say of which run, as a file of another tool"
                raise RunError(f"{path}: holds another round ({what}): {_AGAIN}")
            yield table

    def read_cell(self, cell: str, phase: str = "measured") -> Iterator[pa.Table]:
        """The tables of a cell's finished rounds, in order, each read when it is asked for."""
        return (self.read_round(cell, phase, number) for number in self.finished_rounds(cell, phase))

    def read_pieces(self, cell: str, phase: str = "measured") -> Iterator[Iterator[pa.Table]]:
        """The same, each in pieces: what sums rounds up needs no round as a whole."""
        return (self.pieces(cell, phase, number) for number in self.finished_rounds(cell, phase))

    def read_summary(self) -> list[dict[str, Any]]:
        """The rows of summary.parquet, one a cell. Raises RunError when it is not there or can't be read."""
        path = self.path / "summary.parquet"
        table = read_parquet(path, "put back a copy of it")
        identity = (table.schema.metadata or {}).get(b"record")
        if identity != self._named("summary") and (identity or self._run_name()):
            raise RunError(f"{path}: not the summary that this run has written: put back a copy of it")
        if missing := {"key", "variant", "status", "input", "output"}.difference(table.schema.names):
            raise RunError(f"{path}: no summary of this tool (no column {min(missing)}): put back a copy of it")
        return list(table.to_pylist())

    def write_summary(self, rows: Sequence[Mapping[str, Any]], units: Mapping[str, str]) -> None:
        """summary.parquet and summary.csv: every cell whatever its status; missing numbers are null and empty.

        `units`: the columns and their units ("": none), which Parquet keeps as each field's metadata `unit`.
        """
        from benchbench.store.arrow import column, table_with_units

        table = table_with_units({name: column([row.get(name) for row in rows]) for name in units}, units)
        replace_file(self.path / "summary.parquet", parquet_bytes(table, self._named("summary")))
        replace_file(self.path / "summary.csv", csv_text(list(units), rows).encode())
