"""One round of one cell as a timeline for the plots."""

from __future__ import annotations

import math
from collections.abc import Sequence

import orjson

from benchbench.analysis.runs import Run
from benchbench.events.round_events import gathered
from benchbench.figures.phases import Timeline
from benchbench.report.summary_table import Row


def timeline_of(run: Run, rows: list[Row], key: str | None = None) -> Timeline | None:
    """The last measured round of cell `key`; by default of the valid cell with the most requests in flight.

    `rows` are the run's summary rows. None when there is no such round; RunError for a `key` where no records are kept.
    """
    if not run.has_records:
        if key is not None:
            run.need_records()
        return None
    usable = [row for row in rows if row["rounds"] and (row["status"] != "invalid" or row["key"] == key)]
    chosen = [row for row in usable if key is None or row["key"] == key]
    if not chosen:
        return None
    row = max(chosen, key=lambda row: (row["batch"] or row["rate"] or 0, row["input"], row["output"]))
    cell = next(cell for cell in run.cells if cell.key == row["key"])
    number = run.directory.finished_rounds(cell.key)[-1]
    table, events = gathered(run.directory.pieces(cell.key, "measured", number))
    scheduled = [value or 0 for value in table["scheduled_ns"].to_pylist()]
    start = min(scheduled)

    def seconds(values: Sequence[int | None]) -> list[float]:
        return [float("nan") if value is None else (value - start) / 1e9 for value in values]

    return Timeline(
        label=cell.shape,
        starts_s=seconds(scheduled),
        sent_s=seconds(table["sent_ns"].to_pylist()),
        first_s=seconds([at or None for at in events.first_ns.tolist()]),
        last_s=seconds([at or None for at in events.last_ns.tolist()]),
        queued_s=_queued(table["server_metrics"].to_pylist()) if "server_metrics" in table.column_names else (),
    )


def _queued(texts: Sequence[str | None]) -> Sequence[float]:
    """How long each request was queued, in s, by the answer of the server; none where no answer says it."""
    times = [(orjson.loads(text) if text else {}).get("queue_time_ms") for text in texts]
    if not any(times):
        return ()
    return [math.nan if value is None else value / 1e3 for value in times]
