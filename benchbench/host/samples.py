"""The samples of GPUs and host that a sweep stored (`host.sampler`), read."""

from __future__ import annotations

from collections.abc import Sequence

import orjson
import pyarrow as pa

from benchbench.errors import RunError
from benchbench.store.parquet_files import read_parquet
from benchbench.store.run_directory import RunDirectory

Span = tuple[int, int]  # first and last, ns


def read_telemetry(run: RunDirectory, spans: Sequence[Span] = ((0, 2**63 - 1),)) -> pa.Table | None:
    """The samples of all files that touch one of these spans, in order of writing; None when there are none.

    A file that cannot be read is left out, and said in the run's `notes`.
    """
    tables: list[pa.Table] = []
    for path in sorted((run.path / "telemetry").glob("*.parquet")):
        known = run.telemetry_spans.get(path)
        if path in run.unread or (known and not _touch(known, spans)):
            continue
        try:
            table = read_parquet(path, "its samples are missing")
            facts = orjson.loads(table.schema.metadata[b"benchbench"])
            known = run.telemetry_spans[path] = int(facts["first_ns"]), int(facts["last_ns"])
        except (RunError, KeyError, TypeError, ValueError) as error:
            run.unread[path] = str(error).removeprefix(f"{path}: ")
            continue
        table = table.replace_schema_metadata()
        if tables and table.schema != tables[0].schema:
            run.unread[path] = "other columns than in the files before: its samples are missing"
        elif _touch(known, spans):
            tables.append(table)
    return pa.concat_tables(tables) if tables else None


def _touch(span: Span, spans: Sequence[Span]) -> bool:
    return any(span[0] <= last and span[1] >= first for first, last in spans)
