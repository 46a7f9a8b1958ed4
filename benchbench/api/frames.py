"""The records of a run as DataFrames, and its token events as a stream of Arrow batches."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from benchbench.analysis.metrics import request_times
from benchbench.analysis.runs import Run
from benchbench.analysis.summary import COLUMNS, metrics_of
from benchbench.spec.cell import CellInfo
from benchbench.store.requests import round_facts

if TYPE_CHECKING:
    import pandas as pd
    import pyarrow as pa

Phase = Literal["measured", "warmup", "all"]
PHASES = ("warmup", "measured")
_EVENTS = ["event_ns", "event_tokens", "lag_ns"]
_TIMES = ["ttft_ms", "tpot_ms", "e2el_ms", "steady"]


class _Round(NamedTuple):
    """A finished round and what it is called."""

    cell: CellInfo
    phase: str
    number: int
    table: pa.Table


def _rounds(run: Run, phase: Phase) -> Iterator[_Round]:
    """Each finished round, read when its turn comes. Raises RunError, and ValueError for an unknown phase."""
    if phase not in {*PHASES, "all"}:
        raise ValueError(f"phase {phase!r}: unknown (allowed: measured, warmup, all)")
    run.need_records()
    return (
        _Round(cell, name, number, run.directory.read_round(cell.key, name, number))
        for cell in run.cells
        for name in (PHASES if phase == "all" else (phase,))
        for number in run.directory.finished_rounds(cell.key, name)
    )


def requests_frame(run: Run, phase: Phase, *, events: bool) -> pd.DataFrame:
    """One row a request: `Run.requests`."""
    import pandas as pd
    import pyarrow as pa

    tables = [_timed(item, events=events) for item in _rounds(run, phase)]
    if not tables:
        return pd.DataFrame(columns=["cell", "phase", "round", "index", "status", *_TIMES])
    whole = {
        pa.int64(): pd.Int64Dtype()
    }  # as floats, which pandas makes of ints with gaps, times would be off by 100 ns
    frame: pd.DataFrame = pa.concat_tables(tables, promote_options="default").to_pandas(types_mapper=whole.get)
    return frame


def _timed(item: _Round, *, events: bool) -> pa.Table:
    import pyarrow as pa

    times = request_times(item.table, load=item.cell.load, in_flight=item.cell.batch)
    table = item.table if events else item.table.drop_columns(_EVENTS)
    for name, values in zip(_TIMES, (1e3 * times.ttft_s, 1e3 * times.tpot_s, 1e3 * times.e2el_s), strict=False):
        table = table.append_column(name, pa.array(values))
    return table.append_column("steady", pa.array(times.steady)).replace_schema_metadata()


def rounds_frame(run: Run, phase: Phase) -> pd.DataFrame:
    """One row a finished round: `Run.rounds`."""
    import pandas as pd

    return pd.DataFrame([_round_row(item) for item in _rounds(run, phase)])


def _round_row(item: _Round) -> dict[str, Any]:
    (metrics,) = metrics_of(item.cell, [item.table])
    axes = {name: getattr(item.cell, name) for name in ("variant", "input", "output", "batch", "rate")}
    figures = {
        name: value * (1e3 if column.unit == "ms" else 1)
        for name, column in COLUMNS.items()
        if column.figure and (value := column.figure(metrics)) is not None
    }
    names = {"cell": item.cell.key, "phase": item.phase, "round": item.number, "block": metrics.block}
    return names | axes | figures | dict(round_facts(item.table))


def token_batches(run: Run, phase: Phase) -> pa.RecordBatchReader:
    """One row a token event, a batch a round: `Run.tokens`."""
    import pyarrow as pa

    keys, phases = pa.array([cell.key for cell in run.cells], pa.string()), pa.array(PHASES)
    names = pa.dictionary(pa.int32(), pa.string())
    columns = {"cell": names, "phase": names, "round": pa.int32(), "index": pa.int32()}
    schema = pa.schema({**columns, "since_send_ms": pa.float64(), "tokens": pa.int32()})
    places = {cell.key: place for place, cell in enumerate(run.cells)}

    def constant(place: int, values: pa.Array, count: int) -> pa.Array:
        return pa.DictionaryArray.from_arrays(pa.repeat(pa.scalar(place, pa.int32()), count), values)

    def batch(item: _Round) -> pa.RecordBatch:
        index, since_send_ms, tokens = _events(item.table)
        count = len(tokens)
        return pa.record_batch(
            [
                constant(places[item.cell.key], keys, count),
                constant(PHASES.index(item.phase), phases, count),
                pa.repeat(pa.scalar(item.number, pa.int32()), count),
                index,
                since_send_ms,
                tokens,
            ],
            schema=schema,
        )

    return pa.RecordBatchReader.from_batches(schema, map(batch, _rounds(run, phase)))


def _events(table: pa.Table) -> tuple[pa.Array, pa.Array, pa.Array]:
    """Of each token event: its request's index, ms since that was sent, and its tokens."""
    import numpy as np
    import pyarrow as pa

    from benchbench.store.arrow import array_of, lists_of

    offsets, times_ns = lists_of(table["event_ns"])
    sent_ns = np.repeat(array_of(table["sent_ns"]), np.diff(offsets))
    index = np.repeat(array_of(table["index"]), np.diff(offsets)).astype(np.int32)
    tokens = lists_of(table["event_tokens"])[1].astype(np.int32)
    return pa.array(index), pa.array((times_ns - sent_ns) / 1e6, mask=sent_ns < 0), pa.array(tokens)
