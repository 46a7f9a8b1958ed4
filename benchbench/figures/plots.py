"""Figures of summary rows, as PNG and SVG: throughput, TTFT, Pareto, heat map, and one cell's timeline.

Drawn with matplotlib's figure objects, never pyplot. Invalid cells are left out and counted in the small
print; suspect ones are hollow, or starred in the heat map.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, Any

from benchbench.figures import sheet as sheets
from benchbench.figures.sheet import Legend, Line, Sheet
from benchbench.report.summary_table import Row, number

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

PNG_DPI = 200
PHASES = (
    ("waiting (to be sent)", "#BBBBBB"),
    ("prefill (sent to first token)", "#E69F00"),
    ("decode (to last token)", "#0072B2"),
)
TIMELINE_REQUESTS = 512  # more bars would be thinner than a pixel
LOG_FROM = 8.0  # a y axis that spans more than this is logarithmic


@dataclass(frozen=True)
class Timeline:
    """The requests of one round of one cell: four lists of one length, in seconds from the round's start.

    Scheduled, sent, first token, last token; NaN where a request did not get that far.
    """

    label: str
    starts_s: Sequence[float]
    sent_s: Sequence[float]
    first_s: Sequence[float]
    last_s: Sequence[float]


def draw_plots(
    rows: list[Row],
    timeline: Timeline | None,
    out: Path,
    title: str,
    formats: Sequence[str] = ("png", "svg"),
) -> list[Path]:
    """Draw every figure whose data exist into ``out``, which is made, and return the files written.

    ``throughput``, ``ttft_batch``, ``ttft_input``, ``pareto``, ``heatmap`` and ``timeline``, each in every
    format. ``title`` names the run, in small print. Where no row has a batch the axis is the rate. The same
    rows give the same bytes of SVG. Raises ValueError for a format other than png or svg, OSError if a file
    cannot be written.
    """
    if unknown := sorted(set(formats) - {"png", "svg"}):
        raise ValueError(f"unknown plot format {', '.join(unknown)} (allowed: png, svg)")
    return write_figures(figures(rows, timeline, title), out, formats)


def write_figures(named: Iterable[tuple[str, Figure]], out: Path, formats: Sequence[str]) -> list[Path]:
    """Draw named figures, as they come, into `out`, which is made; the files. Raises OSError."""
    import matplotlib as mpl

    out.mkdir(parents=True, exist_ok=True)
    with mpl.rc_context(sheets.STYLE), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing")  # a title in a script that the font lacks
        return [_write(figure, out / f"{name}.{form}") for name, figure in named for form in formats]


def figures(rows: Sequence[Row], timeline: Timeline | None, title: str) -> Iterator[tuple[str, Figure]]:
    """Each figure whose data exist, with its name; to be drawn and written in the style of `sheet.STYLE`."""
    sheet = sheets.make_sheet(rows, title)
    for draw in (_throughput, _ttft_batch, _ttft_input, _pareto, _heatmap):
        if figure := draw(sheet):
            yield draw.__name__.lstrip("_"), figure
    if timeline and (figure := _timeline(timeline, title)):
        yield "timeline", figure


def _write(figure: Figure, path: Path) -> Path:
    # The canvases are called directly: savefig would draw once more.
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.backends.backend_svg import FigureCanvasSVG

    if path.suffix == ".png":
        figure.set_dpi(PNG_DPI)
        png: Any = FigureCanvasAgg(figure)
        png.print_png(path, pil_kwargs={"compress_level": 3})
    else:
        svg: Any = FigureCanvasSVG(figure)
        svg.print_svg(path, metadata={"Date": None})
    return path


def _throughput(sheet: Sheet) -> Figure | None:
    """Sys tok/s over the load. Log-log: what grows with the batch is straight, and cannot cross its ideal."""
    if not sheet.has("sys_tok_s"):
        return None
    loads, slopes = [row[sheet.axis] for row in sheet.rows], _ideal_slopes(sheet)
    style: Any = {"color": "#777777", "linestyle": (0, (4, 2)), "linewidth": 1.0}
    ideal: Legend = ((f"ideal from batch {min(loads)}", style),) if slopes else ()
    figure, axes, values = _over_load(sheet, "System throughput", "sys_tok_s", "sys_tok_s_bound", ideal)
    if slopes:
        # Each line has an ideal of its own; they differ little, so a band stands for them all.
        ends = [min(loads), max(loads)]
        low, high = ([slope * x for x in ends] for slope in (min(slopes), max(slopes)))
        axes.fill_between(ends, low, high, color="#EEEEEE", zorder=1)
        for edge in (low, high):
            axes.plot(ends, edge, **style, zorder=1)
        values.append(high[-1])
    sheets.value_axis(axes, values, "Sys tok/s (output; mean, 95 % interval)", wide=LOG_FROM)
    return figure


def _over_load(
    sheet: Sheet, heading: str, name: str, bound: str, more: Legend = ()
) -> tuple[Figure, Axes, list[float]]:
    """A column and its bound over the axis of load, and all values drawn. `more`: further entries of the legend."""
    legend = (*sheet.legend, *more, *sheet.bound_entry(bound), *sheet.suspect_entry(name))
    figure, (axes,) = sheets.make_frame(heading, sheet.title, legend)
    values = sheets.draw_lines(axes, sheet, name)
    values += sheets.draw_bound(axes, sheet.lines, sheet.axis, bound)
    sheets.log2_axis(axes, [row[sheet.axis] for row in sheet.rows], sheet.axis_label)
    return figure, axes, values


def _ideal_slopes(sheet: Sheet) -> list[float]:
    """Sys tok/s per request in flight at the smallest batch, of each line that goes on to a larger one."""
    if sheet.axis != "batch":
        return []
    smallest = min(row["batch"] for row in sheet.rows)
    ends = [points for line in sheet.lines if (points := line.points("batch", "sys_tok_s"))]
    return [points[0][1] / smallest for points in ends if points[0][0] == smallest < points[-1][0]]


def _ttft_batch(sheet: Sheet) -> Figure | None:
    if not sheet.has("ttft_ms"):
        return None
    figure, axes, values = _over_load(sheet, "Time to first token", "ttft_ms", "ttft_bound_ms")
    sheets.value_axis(axes, values, "TTFT (ms; mean, 95 % interval)", wide=LOG_FROM)
    return figure


def _ttft_input(sheet: Sheet) -> Figure | None:
    """TTFT over input, a line per batch (or rate) and variant, through the mean over output lengths."""
    rows = [row for row in sheet.rows if number(row, "ttft_ms") is not None and number(row, "input")]
    if not rows:
        return None
    loads = sorted({row[sheet.axis] for row in rows})
    colours = dict(zip(loads, sheets.ordered_colours(len(loads)), strict=True))
    markers = {load: sheets.MARKERS[n % len(sheets.MARKERS)] for n, load in enumerate(loads)}
    dashes, variant_entries = sheets.variant_dashes(row.get("variant") or "" for row in rows)
    loads_legend = [
        (f"{sheet.axis} {sheets.short(load)}", {"color": colours[load], "marker": markers[load]}) for load in loads
    ]
    legend = (*loads_legend, *variant_entries, *sheet.bound_entry("ttft_bound_ms"), *sheet.suspect_entry("ttft_ms"))
    figure, (axes,) = sheets.make_frame("Time to first token over input length", sheet.title, legend)
    groups: dict[tuple[Any, str], list[Row]] = {}
    for row in rows:
        groups.setdefault((row[sheet.axis], row.get("variant") or ""), []).append(row)
    lines = [Line(tuple(group), colours[load], markers[load], dashes[v]) for (load, v), group in groups.items()]
    for line in lines:
        points = line.points("input", "ttft_ms")
        means = [(x, fmean(y for at, y, _ in points if at == x)) for x in sorted({x for x, _, _ in points})]
        sheets.draw_curve(axes, means, color=line.colour, linestyle=line.dash, linewidth=1.3)
        sheets.draw_markers(axes, line, points, 4)
    values = [row["ttft_ms"] for row in rows] + sheets.draw_bound(axes, lines, "input", "ttft_bound_ms")
    several = len({row["output"] for row in rows}) > 1
    label = "Input (tokens)" + ("; lines are means over output lengths" if several else "")
    sheets.log2_axis(axes, [row["input"] for row in rows], label)
    sheets.value_axis(axes, values, "TTFT (ms; mean)", wide=LOG_FROM)
    return figure


def _pareto(sheet: Sheet) -> Figure | None:
    """Sys tok/s against the speed of one stream; the upper edge of each batch's points carries its number."""
    streams = [
        [(x, y, row) for _, y, row in line.points(sheet.axis, "sys_tok_s") if (x := _stream_tok_s(row))]
        for line in (*sheet.lines, *sheet.others)
    ]
    coloured, grey = streams[: len(sheet.lines)], streams[len(sheet.lines) :]
    points = [point for stream in streams for point in stream]
    if not points:
        return None
    legend = (*sheet.legend, *sheet.suspect_entry("sys_tok_s"))
    figure, (axes,) = sheets.make_frame("Throughput against speed per stream", sheet.title, legend)
    sheets.draw_others(axes, grey)
    for line, stream in zip(sheet.lines, coloured, strict=True):
        sheets.draw_curve(axes, stream, color=line.colour, linestyle=line.dash, linewidth=1.1, alpha=0.8)
        sheets.draw_markers(axes, line, stream, 5)
    tops: dict[Any, tuple[float, float]] = {}
    for x, y, row in sorted((point for stream in coloured for point in stream), key=lambda point: -point[1]):
        tops.setdefault(row[sheet.axis], (x, y))
    for load in sheets.thinned(sorted(tops)):
        axes.annotate(sheets.short(load), tops[load], (5, 4), textcoords="offset points", fontsize=8, color="#333333")
    axes.set_xlabel(f"tok/s per stream, mean (numbers at points: {sheet.axis})")
    speeds = [x for x, _, _ in points]
    margin = 0.1 * (max(speeds) - min(speeds)) or 0.5 * speeds[0]
    axes.set_xlim(max(0.0, min(speeds) - margin), max(speeds) + margin)
    sheets.value_axis(axes, [y for _, y, _ in points], "Sys tok/s (output; mean)", wide=math.inf)
    return figure


def _stream_tok_s(row: Row) -> float | None:
    tpot = number(row, "tpot_ms")
    return number(row, "stream_tok_s") or (1e3 / tpot if tpot else None)


def _heatmap(sheet: Sheet) -> Figure | None:
    """Sys tok/s as a grid: a row per shape, a column per batch (or rate), grey where there is no number."""
    if not sheet.has("sys_tok_s"):
        return None
    import matplotlib as mpl

    loads = sorted({row[sheet.axis] for row in sheet.rows})
    names = [_shape_name(line.rows[0]) for line in sheet.lines]
    values = [
        (loads.index(load), y, value, "*" * (row.get("status") == "suspect"))
        for y, line in enumerate(sheet.lines)
        for load, value, row in line.points(sheet.axis, "sys_tok_s")
    ]
    scale, top = mpl.colormaps["cividis"], max(value for _, _, value, _ in values) or 1.0
    places = 1 if len(loads) <= 12 else 0
    cells = [sheets.GridCell(x, y, f"{value:,.{places}f}{star}", scale(value / top)) for x, y, value, star in values]
    starred = " · *: suspect" if sheet.suspect_entry("sys_tok_s") else ""
    title = sheet.title + starred
    return sheets.draw_grid("System throughput (Sys tok/s)", title, names, loads, sheet.axis_label, cells)


def _shape_name(row: Row) -> str:
    shape = f"{row['input']:,} → {row['output']:,}"
    return (
        f"{sheets.cut(row['variant'], sheets.name_room() - len(shape) - 2)}: {shape}" if row.get("variant") else shape
    )


def _timeline(timeline: Timeline, title: str) -> Figure | None:
    """Bars of waiting, prefill and decode for each request, in the order of their schedule."""
    from matplotlib.collections import PolyCollection
    from matplotlib.ticker import MaxNLocator

    stamps = (timeline.starts_s, timeline.sent_s, timeline.first_s, timeline.last_s)
    requests = sorted(zip(*stamps, strict=True))
    bars = requests[:TIMELINE_REQUESTS]
    end = max((stamp for request in bars for stamp in request if math.isfinite(stamp)), default=0.0)
    if end <= 0:
        return None
    cut = f" · the first {len(bars)} of {len(requests):,} requests" if len(bars) < len(requests) else ""
    legend = tuple((name, {"color": colour, "linewidth": 6}) for name, colour in PHASES)
    height = max(1.2, min(sheets.width_in() * 5 / 7.2, 0.13 * len(bars)))
    heading = f"Timeline of one round: {timeline.label}"
    figure, (axes,) = sheets.make_frame(heading, title + cut, legend, height=height)
    few = len(bars) <= 64  # gaps between more bars than that would only be stripes
    half = 0.42 if few else 0.5
    for phase, (_, colour) in enumerate(PHASES):
        spans = [(y, request[phase], request[phase + 1]) for y, request in enumerate(bars, start=1)]
        boxes = [((a, y - half), (b, y - half), (b, y + half), (a, y + half)) for y, a, b in spans if b > a]
        axes.add_collection(PolyCollection(boxes, facecolors=colour, linewidths=0, antialiaseds=few), autolim=False)
    axes.set_xlim(0, 1.02 * end)
    axes.set_ylim(len(bars) + 0.7, 0.3)
    axes.grid(visible=False, axis="y")
    axes.yaxis.set_major_locator(MaxNLocator("auto", integer=True, min_n_ticks=1))
    axes.set_xlabel("Time since the round began (s)")
    axes.set_ylabel("Request")
    return figure
