"""The data island: what the page's script needs of each cell, as JSON that cannot end the element it stands in."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from benchbench.analysis.reasons import Reason
from benchbench.analysis.runs import Run
from benchbench.comparison.pairs import Pair
from benchbench.comparison.tables import cells_of, ratio_text
from benchbench.events.round_events import gathered
from benchbench.report.summary_table import AXES, Row, cell_text, column_title, in_order, number
from benchbench.safe_text import printable
from benchbench.spec.cell import cell_name
from benchbench.store.arrow import Ints, array_of
from benchbench.store.requests import RequestStatus

METRICS = (
    *("ttft_ms", "ttft_ms_p50", "ttft_ms_p99", "tpot_ms", "itl_ms_p50", "itl_ms_p99", "e2el_ms", "e2el_ms_p99"),
    *("sys_tok_s", "run_tok_s", "stream_tok_s", "req_s", "goodput_req_s", "sol", "power_w", "tok_per_j", "energy_j"),
)
RATIOS = {  # above 1 the candidate is better, for latencies too
    "sys_tok_s": "Ratio of Sys tok/s",
    "ttft": "Ratio of TTFT",
    "tpot": "Ratio of TPOT",
}
REQUESTS = 64  # bars of a timeline at most, and
ALL_REQUESTS = 16_384  # of all timelines of a page
RUN = "place of the run"  # a row's, while rows are sorted
_FINEST = 200_000  # steps over a round
_DASH = "\N{EN DASH}"


Value = tuple[float | str | None, ...]  # number, low, high, text, interval's text, and of a ratio its verdict


def island(
    planned: Sequence[Row],
    runs: Sequence[Run],
    headings: Sequence[str],
    ratios: Mapping[int, Mapping[str, Value]],
) -> str:
    """JSON of all cells, in the order of tables; `headings` and `ratios`: a line for each run, `ratios_of`.

    `axes` are (name, title, its words in the order of the plan, which is that of the figures' colours), `metrics`
    (name, title); a cell has its values of both, its reasons, and the timeline of its last
    measured round where the run has records. Raises RunError.
    """
    rows = in_order(planned)
    places = [row[RUN] for row in rows]
    axes = [name for name in ("tool", *AXES) if _varies(rows, name)]
    words = {name: [*dict.fromkeys(row[name] for row in planned if isinstance(row.get(name), str))] for name in axes}
    models = [printable(run.manifest["spec"]["model"]) for run in runs]
    metrics = [name for name in METRICS if any(number(row, name) is not None for row in rows)]
    mixed = len(set(models)) > 1  # then no chart may have two of them in one panel without saying so
    most = max(8, min(REQUESTS, ALL_REQUESTS // max(len(rows), 1)))
    compared = [title for title in RATIOS.values() if any(title in of_cell for of_cell in ratios.values())]
    cells = []
    for cell_number, (row, place) in enumerate(zip(rows, places, strict=True)):
        of_cell = ratios.get(cell_number, {})
        cell: dict[str, Any] = {
            "name": cell_name(row),
            "run": place,
            "at": [*([models[place]] if mixed else []), *(row.get(name) for name in axes)],
            "status": row["status"],
            "reasons": [code for code in (row.get("reasons") or "").split(";") if code],
            "values": [*(_value(row, name) for name in metrics), *(of_cell.get(title) for title in compared)],
        }
        if times := timeline(runs[place], row["key"], most):
            cell["timeline"] = times
        cells.append(cell)
    data = {
        "axes": [
            *([("model", "Model", list(dict.fromkeys(models)))] if mixed else []),
            *((name, column_title(name), words[name]) for name in axes),
        ],
        "metrics": [*((name, column_title(name)) for name in metrics), *((title, title) for title in compared)],
        "ratios": compared,
        "reasons": {f"{reason.status} {reason.code}": (reason.meaning, reason.remedy) for reason in _reasons(rows)},
        "runs": [printable(heading) for heading in headings],
        "cells": cells,
    }
    text = json.dumps(data, allow_nan=False, separators=(",", ":"))
    return text.replace("<", r"\u003c").replace(">", r"\u003e").replace("&", r"\u0026")


def _varies(rows: Sequence[Row], name: str) -> bool:
    """Whether an axis is one: whether it has a value anywhere; load where there are two."""
    values = {row.get(name) for row in rows}
    return len(values) > 1 if name == "load" else bool(values - {None, ""})


def ratios_of(
    runs: Sequence[Run], compared: Iterable[tuple[int, Sequence[Pair]]], numbers: Mapping[tuple[int, str], int]
) -> dict[int, dict[str, Value]]:
    """Cell -> title -> its ratio to the baseline. `compared`: the pairs of the runs at these places; `numbers`: the
    cell of a run's place and a key.
    """
    ratios: dict[int, dict[str, Value]] = {}
    for place, pairs in compared:
        keys = {(printable(cell.variant), cell.shape): cell.key for cell in runs[place].cells}
        for pair in pairs:
            for effect in cells_of(pair, list(RATIOS)):
                ends = (effect.ratio.point, effect.ratio.low, effect.ratio.high)
                finite = (None if end is None or not math.isfinite(end) else float(f"{end:.6g}") for end in ends)
                cell = numbers[place, keys[pair.candidate, effect.cell]]
                value = (*finite, *ratio_text(effect), effect.verdict)
                ratios.setdefault(cell, {})[RATIOS[effect.metric]] = value
    return ratios


def _value(row: Row, name: str) -> Value | None:
    value, low, high = (number(row, f"{name}{end}") for end in ("", "_low", "_high"))
    if value is None:
        return None
    texts = (cell_text(row, f"{name}_{end}").removesuffix("*") for end in ("low", "high"))
    ends = "" if low is None or high is None else _DASH.join(texts)
    return (*(None if end is None else float(f"{end:.6g}") for end in (value, low, high)), cell_text(row, name), ends)


def _reasons(rows: Sequence[Row]) -> list[Reason]:
    codes = {code for row in rows for code in (row.get("reasons") or "").split(";")}
    return [reason for reason in Reason if reason.code in codes]


def timeline(run: Run, key: str, most: int) -> dict[str, Any] | None:
    """The last measured round of a cell: (due, sent, first token, last token, whether it failed) of `most` requests.

    Times are whole multiples of `unit_ms` from the round's first due time, None where a request did not get that far;
    of more requests every so many-th is there, the first and the last among them. None without such a round.
    """
    rounds = run.directory.finished_rounds(key) if run.has_records else []
    if not rounds:
        return None
    table, events = gathered(run.directory.pieces(key, "measured", rounds[-1]))
    due, sent = (array_of(table[name]).astype(np.int64) for name in ("scheduled_ns", "sent_ns"))
    if not (due >= 0).any():
        return None
    first, last = (np.where(events.counts > 0, at, -1) for at in (events.first_ns, events.last_ns))
    times = np.stack([due, sent, first, last])
    start = due[due >= 0].min()
    unit_ms = _unit_ms(int(times.max() - start))
    order = np.argsort(np.where(sent >= 0, sent, due), kind="stable")
    kept = order[np.unique(np.linspace(0, len(order) - 1, min(most, len(order))).round().astype(int))]
    failed = [status != RequestStatus.OK for status in table["status"].to_pylist()]
    requests = [[*_steps(times[:, place], start, unit_ms), int(failed[place])] for place in kept]
    return {"unit_ms": unit_ms, "of": len(order), "requests": requests}


def _unit_ms(span_ns: int) -> float:
    """The power of ten ms, 1 us or more, that divides a span into at most _FINEST steps."""
    unit = 0.001
    while span_ns > _FINEST * unit * 1e6:
        unit = round(unit * 10, 3)
    return unit


def _steps(times_ns: Ints, start_ns: int, unit_ms: float) -> list[int | None]:
    return [None if time < 0 else round((int(time) - int(start_ns)) / (unit_ms * 1e6)) for time in times_ns]
