"""How error and cost grow with streams, workers, rates, cells and events; tables on stdout, figures into a folder.

    nice -n -5 .venv/bin/python benchmarks/growth.py plots/growth     # some 20 minutes on a quiet machine
    .venv/bin/python benchmarks/growth.py /tmp/growth --only rates    # one of: streams, rates, plans, reading

- streams: static batches of --streams at TOK_S tokens a second in all, against the simulator, which knows the truth
- rates: RATE_STREAMS streams at --rates tokens a second in all, until server or client is at its end
- plans: CPU of main's process a cell, as `plans.py` has it, which says more
- reading: wall of `bench table` a million token events, as `reading.py` has it

Numbers of workers take turns, and a figure is the median of --repeats. `times`: CPU a token (a cell, an event) against
the first line of its table, which is of the same run and so of the same machine.
"""

from __future__ import annotations

import argparse
import math
import os
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any

from command_cost import call
from plans import costs
from reading import OUTPUT, made_run

from benchbench.engines.simulator import SimulatorProcess
from benchbench.figures import choose, sheet
from benchbench.figures.plots import write_figures
from benchbench.selftest.instrument_check import measure_instrument

if TYPE_CHECKING:
    from matplotlib.figure import Figure

TOK_S, RATE_STREAMS, SECONDS = 20_000.0, 256, 2.0
STREAMS, WORKERS = [32, 128, 512, 2048, 4096, 8192], [1, 2, 4]
RATES = [5_000, 10_000, 20_000, 40_000, 80_000, 160_000]
NAMES = ("ttft_error_ms_mean", "ttft_error_ms_p99", "itl_error_ms_p99", "cpu_us_per_token", "send_skew_ms")
LOOK = ("color", "marker", "linestyle")
HEADINGS = {
    "streams": "Error and cost over streams",
    "rates": "Error and cost over the rate",
    "plans": "Cost of large plans",
    "reading": "Cost of bench table over token events",
}
Row = dict[str, float]


def instrument(loads: Sequence[tuple[int, float]], workers: Sequence[int], repeats: int) -> Iterator[Row]:
    """Errors, ms, and CPU, us a token, of each (streams, tok/s in all) by each number of workers."""
    for streams, tok_s in loads:
        results: dict[int, list[dict[str, Any]]] = {count: [] for count in workers}
        for _ in range(repeats):
            for count in workers:
                results[count].append(measure_instrument(streams, tok_s / streams, SECONDS, count))
        for count, rows in results.items():
            figures = {name: median(float(row[name]) for row in rows) for name in (*NAMES, "shared_share")}
            reached = median(float(row["server_tok_s"]) for row in rows)
            yield {"streams": streams, "asked_tok_s": tok_s, "tok_s": reached, "workers": count, **figures}


def plans(sizes: Sequence[int]) -> Iterator[Row]:
    """CPU of main's process, ms a cell, of a sweep and of its table, the same for one cell taken off."""
    with SimulatorProcess("fixed", scale=0.001) as server:
        one = costs(1, server.url, ("sweep", "table"))
        for cells in sizes:
            many = costs(cells, server.url, ("sweep", "table"))
            each = {f"{name}_ms": 1e3 * (many[name].cpu_s - one[name].cpu_s) / cells for name in ("sweep", "table")}
            yield {"cells": cells, **each, "sweep_mb": many["sweep"].peak_mb}


def reading(cells: Sequence[int]) -> Iterator[Row]:
    """Wall, s, and memory, MB, of `bench table` over runs of so many cells of 625,000 token events."""
    for count in cells:
        with tempfile.TemporaryDirectory() as place:
            made_run(Path(place) / "run", count, 5, 125)
            _, wall_s, peak_mb = min(call(("table", "run"), Path(place)) for _ in range(3))
        events = count * 5 * 125 * OUTPUT
        yield {"events": events, "wall_s": wall_s, "s_per_million": wall_s / events * 1e6, "mb": peak_mb}


def printed(name: str, rows: Iterator[Row], cost: str) -> list[Row]:
    """The rows, each printed as it comes, with its cost against the first one's."""
    kept: list[Row] = []
    for row in rows:
        if not kept:
            print(f"\n## {name}\n\n| {' | '.join(row)} | times |\n|{'---|' * (len(row) + 1)}")
        kept.append(row)
        texts = [f"{value:,}" if isinstance(value, int) else f"{value:.3g}" for value in row.values()]
        print(f"| {' | '.join(texts)} | {row[cost] / kept[0][cost]:.2f} |", flush=True)
    return kept


def draw(rows: Sequence[Row], x: str, columns: Sequence[tuple[str, str]], path: Path) -> None:
    """A panel a column over `x`, a line a number of workers where there are several."""
    write_figures(drawn(rows, x, columns, path.stem), path.parent, ["svg"])


def drawn(rows: Sequence[Row], x: str, columns: Sequence[tuple[str, str]], name: str) -> Iterator[tuple[str, Figure]]:
    """The figure with its name, to be made in `sheet.STYLE`."""
    looks = {count: dict(zip(LOOK, choose.looks(n), strict=True)) for n, count in enumerate(workers_of(rows))}
    legend = [(f"{count:g} worker{'s'[: count > 1]}", look) for count, look in looks.items() if count]
    across = 2 if len(columns) in {2, 4} else 3
    down = math.ceil(len(columns) / across)
    size: Any = {"height": 2.3 * down, "rows": down, "columns": across}
    small = f"{os.cpu_count()} CPUs" + ("" if name == "reading" else ", which the embedded simulator shares")
    figure, panels = sheet.make_frame(HEADINGS[name], small, legend if len(legend) > 1 else (), **size)
    for axes, (column, label) in zip(panels, columns, strict=True):
        for count, look in looks.items():
            points = [(row[x], row[column]) for row in rows if row.get("workers", 0) == count]
            sheet.draw_curve(axes, points, **look, linewidth=1.2, markersize=4)
        sheet.log2_axis(axes, [row[x] for row in rows], x.replace("asked_tok_s", "tok/s asked"), most=7)
        sheet.value_axis(axes, [row[column] for row in rows], "", wide=math.inf)
        axes.set_title(label)
    yield name, figure


def workers_of(rows: Sequence[Row]) -> list[float]:
    """The numbers of workers, ascending; 0 where there is none."""
    return sorted({row.get("workers", 0) for row in rows})


def main() -> None:
    """Measure, print, draw."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--only", choices=("streams", "rates", "plans", "reading"))
    parser.add_argument("--streams", type=int, nargs="+", default=STREAMS)
    parser.add_argument("--rates", type=int, nargs="+", default=RATES)
    parser.add_argument("--workers", type=int, nargs="+", default=WORKERS)
    parser.add_argument("--cells", type=int, nargs="+", default=[100, 1000, 4000], help="of plans, multiples of 10")
    parser.add_argument("--repeats", type=int, default=3)
    given = parser.parse_args()
    errors = [("ttft_error_ms_p99", "TTFT error, p99 (ms)"), ("itl_error_ms_p99", "ITL error, p99 (ms)")]
    errors += [("cpu_us_per_token", "CPU (µs a token)")]
    streams = [(count, TOK_S) for count in given.streams]
    rates = [(RATE_STREAMS, float(rate)) for rate in given.rates]
    parts: dict[str, tuple[Callable[[], Iterator[Row]], str, str, list[tuple[str, str]]]] = {
        "streams": (
            lambda: instrument(streams, given.workers, given.repeats),
            "cpu_us_per_token",
            "streams",
            [*errors, ("send_skew_ms", "Send skew (ms)")],
        ),
        "rates": (
            lambda: instrument(rates, given.workers, given.repeats),
            "cpu_us_per_token",
            "asked_tok_s",
            [*errors, ("tok_s", "tok/s reached")],
        ),
        "plans": (
            lambda: plans(given.cells),
            "sweep_ms",
            "cells",
            [
                ("sweep_ms", "Sweep, CPU (ms a cell)"),
                ("table_ms", "Table, CPU (ms a cell)"),
                ("sweep_mb", "Sweep, memory (MB)"),
            ],
        ),
        "reading": (
            lambda: reading([1, 4, 16]),
            "s_per_million",
            "events",
            [("s_per_million", "Wall (s a million events)"), ("mb", "Memory (MB)")],
        ),
    }
    print(f"{os.cpu_count()} CPUs, load average {os.getloadavg()[0]:.1f} at the start")
    for name, (measure, cost, x, columns) in parts.items():
        if given.only in {None, name}:
            draw(printed(name, measure(), cost), x, columns, given.folder / f"{name}.svg")
    print(f"\nload average {os.getloadavg()[0]:.1f} at the end")


if __name__ == "__main__":
    main()
