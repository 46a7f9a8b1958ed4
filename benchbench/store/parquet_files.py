"""Parquet files, written with checksums by one function, and read by one that says what is wrong with a file."""

from __future__ import annotations

import zlib
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchbench.errors import RunError

if TYPE_CHECKING:
    import pyarrow as pa

_MARK = b"benchbench-crc32:"  # in the file's metadata, and after it _DIGITS hexadecimal digits
_DIGITS = 8


def parquet_bytes(table: pa.Table, **options: Any) -> bytes:  # noqa: ANN401 - of pyarrow.parquet.write_table
    """A table as a Parquet file.

    Each page has its CRC32, which other readers can check. They leave lengths, types and metadata unprotected: hence
    one of the whole file, in the metadata `checksum`, whose own digits count as zeros.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    metadata = {**(table.schema.metadata or {}), b"checksum": _MARK + b"0" * _DIGITS}
    buffer = pa.BufferOutputStream()
    pq.write_table(table.replace_schema_metadata(metadata), buffer, write_page_checksum=True, **options)
    data: bytes = buffer.getvalue().to_pybytes()
    place = data.rindex(_MARK) + len(_MARK)
    return data[:place] + b"%08x" % zlib.crc32(data) + data[place + _DIGITS :]


def read_parquet(path: Path, remedy: str) -> pa.Table:
    """The table in a file. Of one from before there were checksums nobody can tell whether its numbers are as stored.

    Raises FileNotFoundError, and RunError, which ends with `remedy`, for a file that is damaged or of another kind.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        data = path.read_bytes()
        place = data.rfind(_MARK) + len(_MARK)
        marked = place >= len(_MARK)
        is_whole = not marked or data[place : place + _DIGITS] == b"%08x" % _crc_of(data, place)
        # Of a file this small most of the time would go to threads and to the layer of file systems.
        with pq.ParquetFile(pa.BufferReader(data), page_checksum_verification=True) as file:
            table = file.read(use_threads=False)
        metadata = dict(table.schema.metadata or {})
        is_whole &= (metadata.pop(b"checksum", None) is not None) == marked
        if not marked:
            table.validate(full=True)  # offsets that lead out of the file would end the process
    except FileNotFoundError:
        raise
    except Exception as error:  # noqa: BLE001 - damaged bytes make readers raise anything
        reason = (str(error).splitlines() or [type(error).__name__])[0][:200]
        raise RunError(f"{path}: damaged, or no file of this tool ({reason}): {remedy}") from None
    if not is_whole:
        raise RunError(f"{path}: damaged, its bytes are not those that were written: {remedy}")
    return table.replace_schema_metadata(metadata)


def _crc_of(data: bytes, place: int) -> int:
    """The CRC32 with zeros at `place`."""
    view = memoryview(data)
    return zlib.crc32(view[place + _DIGITS :], zlib.crc32(b"0" * _DIGITS, zlib.crc32(view[:place])))
