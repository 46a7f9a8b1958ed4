"""A round that is taken in piece by piece is the round as a whole, and its percentiles are numpy's."""

from __future__ import annotations

from collections import Counter
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st
from rounds_made import MS, T0, Made, table_of

from benchbench.errors import RunError
from benchbench.events import round_events
from benchbench.events.round_events import LISTS, gathered
from benchbench.store import parquet_files
from benchbench.store.run_directory import RunDirectory
from benchbench.tails.ranked import percentiles

# Of one byte, of four and of eight; times may go back, as where the clock was set.
STEPS = st.sampled_from([0, 0, 1, 5, 100, 1000, 3 * 10**9, -2, -(10**10)])
EVENTS = st.lists(st.tuples(STEPS, st.sampled_from([1, 1, 2, 300])), max_size=6)


def made(events: list[tuple[int, int]]) -> Made:
    times = np.cumsum([10**11, *(step for step, _ in events)])[1:].tolist()
    return Made(list(zip(times, (tokens for _, tokens in events), strict=True)), lag=[step for step, _ in events])


def alike(a: Any, b: Any) -> None:
    assert a.requests.equals(b.requests)
    for name in a.events.__dataclass_fields__:
        np.testing.assert_array_equal(getattr(a.events, name), getattr(b.events, name), name)


@given(st.lists(EVENTS, min_size=1, max_size=8), st.data())
def test_pieces_sum_up_to_the_round(rows: list[list[tuple[int, int]]], data: st.DataObject) -> None:
    requests = [made(events) for events in rows]
    table = table_of(requests)
    cuts = [0, *sorted(data.draw(st.sets(st.integers(1, len(rows)), max_size=3))), len(rows)]
    whole = gathered(table)
    alike(whole, gathered(table.slice(a, b - a) for a, b in pairwise(cuts)))
    events = whole.events
    assert not set(whole.requests.column_names) & {*LISTS}
    assert events.counts.tolist() == [len(r.events) for r in requests]
    assert events.tokens.tolist() == [sum(n for _, n in r.events) for r in requests]
    assert events.lags_ns.tolist() == [lag for r in requests for lag in r.lag]
    chosen = np.array(data.draw(st.lists(st.booleans(), min_size=len(rows), max_size=len(rows))))
    of_chosen = [r for r, good in zip(requests, chosen, strict=True) if good]
    assert events.gaps_of(np.flatnonzero(chosen)).tolist() == [
        b - a for r in of_chosen for (a, _), (b, _) in pairwise(r.events)
    ]
    times = sorted({T0 + at for r in requests for at, _ in r.events} | {T0})
    begin, end = (data.draw(st.sampled_from(times)) - data.draw(st.integers(0, 1)) for _ in range(2))
    inside = [sum(n for at, n in r.events if begin < T0 + at <= end) for r in requests]
    assert events.tokens_in(begin, end).tolist() == inside
    neighbours = [[a == b for (a, _), (b, _) in pairwise(r.events)] for r in requests]
    assert events.shared == sum(sum(map(max, [False, *same], [*same, False])) for same in neighbours if same)
    assert events.first_shared == sum(same[0] for same in neighbours if same)
    assert events.first_later == sum([*same, False].index(False) for same in neighbours)
    in_one = sum(len(r.events) == 1 and r.events[0][1] >= 4 for r in requests)
    assert events.buffered == in_one + sum(len(same) >= 3 and same.count(False) <= 1 for same in neighbours)


@given(st.lists(st.integers(-5, 10**10), min_size=1, max_size=60), st.sampled_from([np.int64, np.float64]))
def test_percentiles_are_numpys(values: list[int], kind: type[Any]) -> None:
    array, ranks = np.array(values, kind), [0, 12.5, 50, 90, 99, 100]
    assert percentiles(array.copy(), ranks, 1e-9) == np.percentile(np.multiply(array, 1e-9), ranks).tolist()
    mixed = array.copy()
    percentiles(mixed, ranks)
    assert Counter(mixed.tolist()) == Counter(array.tolist())


def test_a_long_record_is_read_in_pieces_and_no_byte_of_it_may_differ(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rng = np.random.default_rng(3)
    steps = [(rng.integers(1, MS, 20).tolist(), rng.integers(1, 3, 20).tolist()) for _ in range(40)]
    table = table_of([made(list(zip(*pair, strict=True))) for pair in steps], {"wall_ns": 7})
    run = RunDirectory(tmp_path)
    run.open_for_writing(resume=False)
    run.write_round(table, "aa", "measured", 0)
    (path,) = run.records.iterdir()
    monkeypatch.setattr(parquet_files, "LARGE", 1000)
    monkeypatch.setattr(parquet_files, "PIECE", 4096)
    pieces = list(run.pieces("aa", "measured", 0))
    assert len(pieces) > 3
    assert pa.concat_tables(pieces).equals(run.read_round("aa", "measured", 0))
    monkeypatch.setattr(round_events, "BLOCK", 50)
    alike(gathered(iter(pieces)), gathered(table))
    data = path.read_bytes()
    for place in range(0, len(data), 97):
        path.write_bytes(data[:place] + bytes([data[place] ^ 16]) + data[place + 1 :])
        with pytest.raises(RunError, match="damaged"):
            next(run.pieces("aa", "measured", 0))
    path.write_bytes(data)
    assert gathered(run.pieces("aa", "measured", 0)).events.latest_ns == gathered(table).events.latest_ns
    run.close()
