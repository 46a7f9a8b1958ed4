"""Parquet files, written with checksums by one function, and read by one that says what is wrong with a file."""

from __future__ import annotations

import io
import os
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

import orjson

from benchbench.errors import RunError

if TYPE_CHECKING:
    import pyarrow as pa

_NAME = b"benchbench-crc32"  # of the entry in a file's metadata, whose value is _NAME:12345678
_DIGITS = 8
LARGE, PIECE = 8 << 20, 1 << 20  # bytes of a file, and of what is read of one at once
_COLUMN = 1 << 18  # and of a column
_GROUP = 64 << 20  # bytes of a table that are written at once


def parquet_bytes(table: pa.Table, record: bytes = b"", **options: Any) -> bytes:  # noqa: ANN401 - of write_table
    """A table as a Parquet file, as `write_parquet` makes it."""
    file = io.BytesIO()
    write_parquet(file, table, record, **options)
    return file.getvalue()


def write_parquet(file: IO[bytes], table: pa.Table, record: bytes = b"", **options: Any) -> None:  # noqa: ANN401
    """Write a table as a Parquet file to an empty file. `record`: what it is, in the metadata of this name; `options`
    are pyarrow's. A long round is never in memory as a whole.

    Each page has its CRC32, for other readers (checking it takes arrow as long as all else). It leaves lengths, types
    and metadata unprotected: hence one of the whole file, in the metadata `benchbench-crc32`, its digits as zeros.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    metadata = {**(table.schema.metadata or {}), _NAME: _NAME + b":" + b"0" * _DIGITS}
    metadata |= {b"record": record} if record else {}
    sink = pa.PythonFile(file, mode="w")
    rows = max(1, len(table) * _GROUP // max(1, table.nbytes))
    pq.write_table(table.replace_schema_metadata(metadata), sink, rows, write_page_checksum=True, **options)
    end = file.seek(0, os.SEEK_END)
    file.seek(end - 8)
    footer = end - 8 - int.from_bytes(file.read(4), "little")
    file.seek(footer)
    place = footer + _place(file.read())
    file.seek(0)
    crc = 0
    while piece := file.read(PIECE):
        crc = zlib.crc32(piece, crc)
    file.seek(place)
    file.write(b"%08x" % crc)


def read_parquet(path: Path, remedy: str) -> pa.Table:
    """The table in a file. Raises RunError as `parquet_pieces` does."""
    (table,) = parquet_pieces(path, remedy, whole=True)
    return table


def parquet_pieces(path: Path, remedy: str, *, whole: bool = False) -> Iterator[pa.Table]:
    """The table in a file, in pieces of some PIECE bytes of it, one at least; `whole`: as one.

    Of one from before there were checksums nobody can tell whether its numbers are as stored. Raises RunError, which
    ends with `remedy`, for a file that is damaged, missing or of another kind.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        size = path.stat().st_size
        # Of a small file most of the time would go to threads and to the layer of file systems.
        source = pa.OSFile(str(path)) if size > LARGE else pa.BufferReader(path.read_bytes())
        has_checksum = _check(source, size)
        with pq.ParquetFile(source, buffer_size=_COLUMN if size > LARGE else 0, pre_buffer=False) as file:
            rows = file.metadata.num_rows
            if whole or not rows or size < 2 * PIECE:
                tables = iter([file.read(use_threads=size > LARGE)])
            else:
                batches = file.iter_batches(max(1, rows * PIECE // size), use_threads=size > LARGE)
                tables = (pa.Table.from_batches([batch]) for batch in batches)
            for table in tables:
                for column in () if has_checksum else table.columns:
                    column.validate(full=column.type == pa.string())  # text that is no UTF-8 would end a reader later
                metadata = dict(table.schema.metadata or {})
                metadata.pop(_NAME, None)
                orjson.loads(metadata.get(b"benchbench", b"{}"))
                yield table.replace_schema_metadata(metadata)
        if size > LARGE:
            pa.default_memory_pool().release_unused()
    except Exception as error:  # noqa: BLE001 - damaged bytes make readers raise anything
        reason = (str(error).splitlines() or [type(error).__name__])[0][:200]
        raise RunError(f"{path}: damaged, or no file of this tool ({reason}): {remedy}") from None


def _place(data: bytes) -> int:
    return data.rfind(_NAME + b":") + len(_NAME) + 1


def _check(file: pa.NativeFile, size: int) -> bool:
    """Whether a file has a checksum of its own. Raises ValueError when it is not that of its bytes."""
    file.seek(max(0, size - PIECE))
    end = file.read()
    place, crc = size - len(end) + _place(end), 0
    for begin, after in ((0, place), (place + _DIGITS, size)):
        file.seek(begin)
        while len(piece := file.read_buffer(max(0, min(PIECE, after - file.tell())))):
            crc = zlib.crc32(piece, crc)
        crc = zlib.crc32(b"0" * _DIGITS, crc) if after == place else crc
    file.seek(0)
    if _NAME in end and end[_place(end) :][:_DIGITS] != b"%08x" % crc:
        raise ValueError("its bytes are not those that were written")
    return _NAME in end
