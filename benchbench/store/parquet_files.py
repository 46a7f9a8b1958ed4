"""Parquet files, written with checksums by one function, and read by one that says what is wrong with a file."""

from __future__ import annotations

import io
import os
import zlib
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

import orjson

from benchbench.errors import RunError

if TYPE_CHECKING:
    import pyarrow as pa

_NAME = b"benchbench-crc32"  # of the entry in a file's metadata, whose value is _NAME:12345678
_DIGITS = 8
LARGE, PIECE = 8 << 20, 1 << 20  # bytes of a file, and of what is read of one at once


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
    pq.write_table(table.replace_schema_metadata(metadata), sink, write_page_checksum=True, **options)
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
    """The table in a file. Of one from before there were checksums nobody can tell whether its numbers are as stored.

    Raises RunError, which ends with `remedy`, for a file that is damaged, missing or of another kind.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        data = path.read_bytes()
        has_checksum = _check(data)
        # Of a small file most of the time would go to threads and to the layer of file systems.
        with pq.ParquetFile(pa.BufferReader(data)) as file:
            table = file.read(use_threads=len(data) > LARGE)
        if len(data) > LARGE:
            pa.default_memory_pool().release_unused()
        for column in () if has_checksum else table.columns:
            column.validate(full=column.type == pa.string())  # text that is no UTF-8 would end a reader later
        metadata = dict(table.schema.metadata or {})
        metadata.pop(_NAME, None)
        orjson.loads(metadata.get(b"benchbench", b"{}"))
    except Exception as error:  # noqa: BLE001 - damaged bytes make readers raise anything
        reason = (str(error).splitlines() or [type(error).__name__])[0][:200]
        raise RunError(f"{path}: damaged, or no file of this tool ({reason}): {remedy}") from None
    return table.replace_schema_metadata(metadata)


def _place(data: bytes) -> int:
    return data.rfind(_NAME + b":") + len(_NAME) + 1


def _check(data: bytes) -> bool:
    """Whether the file has a checksum of its own. Raises ValueError when it is not that of its bytes."""
    place, view, crc = _place(data), memoryview(data), 0
    for part in (view[:place], b"0" * _DIGITS, view[place + _DIGITS :]):
        crc = zlib.crc32(part, crc)
    if _NAME in data and data[place : place + _DIGITS] != b"%08x" % crc:
        raise ValueError("its bytes are not those that were written")
    return _NAME in data
