"""numpy arrays and lists -> Arrow columns, by their buffers.

`pyarrow.array` would do, but it imports pandas (0.4 s) to see whether its argument is a Series.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]


def _bits(flags: npt.NDArray[np.bool_]) -> pa.Buffer:
    return pa.py_buffer(np.packbits(flags, bitorder="little"))


def numbers(values: npt.NDArray[Any], known: npt.NDArray[np.bool_] | None = None) -> pa.Array:
    """A column of the array's own type; null where `known` is False."""
    buffer = pa.py_buffer(np.ascontiguousarray(values))
    valid = None if known is None or known.all() else _bits(known)
    return pa.Array.from_buffers(pa.from_numpy_dtype(values.dtype), len(values), [valid, buffer])


def flags(values: npt.NDArray[np.bool_]) -> pa.Array:
    """A column of true and false."""
    return pa.Array.from_buffers(pa.bool_(), len(values), [None, _bits(values)])


def texts(values: Sequence[str | None]) -> pa.Array:
    """A column of text; null for None."""
    parts = [b"" if value is None else value.encode("utf-8", "replace") for value in values]
    offsets = np.concatenate([[0], np.cumsum([len(part) for part in parts], dtype=np.int64)]).astype(np.int32)
    known = np.array([value is not None for value in values], np.bool_)
    buffers = [None if known.all() else _bits(known), pa.py_buffer(offsets), pa.py_buffer(b"".join(parts))]
    return pa.Array.from_buffers(pa.string(), len(values), buffers)


def constant(value: str | float | None, count: int) -> pa.Array:
    """`count` times the same text or number."""
    if isinstance(value, str):
        return texts([value] * count)
    return column([value] * count)


def lists(offsets: npt.NDArray[np.int32], values: npt.NDArray[Any]) -> pa.Array:
    """A column of lists: row k holds values[offsets[k]:offsets[k + 1]]."""
    return pa.ListArray.from_arrays(numbers(offsets), numbers(values))


def column(values: Sequence[Any]) -> pa.Array:
    """A column of JSON-like scalars: text if anything is text, else whole numbers, else floats; None is null."""
    present = [value for value in values if value is not None]
    if any(isinstance(value, str) for value in present):
        return texts(values)
    known = np.array([value is not None for value in values], np.bool_)
    kind = np.int64 if present and all(isinstance(value, int) for value in present) else np.float64
    return numbers(np.array([0 if value is None else value for value in values], kind), known)


def table_with_units(arrays: Mapping[str, pa.Array], units: Mapping[str, str]) -> pa.Table:
    """A table whose fields have their unit, where they have one, as metadata `unit`."""
    fields = [
        pa.field(name, array.type, metadata={"unit": unit} if (unit := units.get(name)) else None)
        for name, array in arrays.items()
    ]
    return pa.Table.from_arrays(list(arrays.values()), schema=pa.schema(fields))


def _whole(column: pa.ChunkedArray) -> pa.Array:
    return column.chunk(0) if column.num_chunks == 1 else column.combine_chunks()  # which copies one, too


def array_of(column: pa.ChunkedArray, missing: float = -1) -> npt.NDArray[Any]:
    """A column of fixed-width numbers as a numpy array, `missing` where it is null (`to_numpy` imports pandas)."""
    array = _whole(column)
    valid, data = array.buffers()
    values = np.frombuffer(data, array.type.to_pandas_dtype(), len(array) + array.offset)[array.offset :]
    if valid is None or array.null_count == 0:
        return values
    known = np.unpackbits(np.frombuffer(valid, np.uint8), bitorder="little", count=len(array) + array.offset)
    return np.where(known[array.offset :].astype(np.bool_), values, missing)


def lists_of(column: pa.ChunkedArray) -> tuple[npt.NDArray[np.int64], npt.NDArray[Any]]:
    """(offsets, values) of a column of lists: row k holds values[offsets[k]:offsets[k + 1]]."""
    array = _whole(column)
    offsets = array_of(pa.chunked_array([array.offsets])).astype(np.int64)
    values = array.values.slice(offsets[0], offsets[-1] - offsets[0])  # `flatten` imports pyarrow.compute
    return offsets - offsets[0], array_of(pa.chunked_array([values]))
