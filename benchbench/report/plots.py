"""Figures of summary rows, as PNG and SVG: throughput, TTFT, Pareto, heat map, and one cell's timeline.

Drawn with matplotlib's figure objects, never pyplot, and laid out by hand in inches: a layout engine would
draw every figure twice. Colours are Okabe and Ito's (jfly.uni-koeln.de/color) or cividis, and never the
only distinction. Invalid cells are left out; suspect ones are hollow.
"""

from __future__ import annotations

import math
import textwrap
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchbench.report.table import Row, number

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

WIDTH_IN = 7.2  # 750 px, a model card's width, at 104 px per inch: 9 pt text is 13 px there
PNG_DPI = 200
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "<", ">", "h")
DASHES: tuple[Any, ...] = ("-", (0, (5, 2)), (0, (1, 1.5)), (0, (6, 2, 1, 2)))
PHASES = (("waiting", "#BBBBBB"), ("prefill (sent to first token)", "#E69F00"), ("decode", "#0072B2"))
TIMELINE_REQUESTS = 512  # more bars would be thinner than a pixel
_STYLE: Any = {
    "font.family": "sans-serif",
    "font.sans-serif": ["DejaVu Sans", "Arial", "Helvetica"],
    "font.size": 9.0,
    "text.parse_math": False,  # a dollar sign in a model's name is not a formula
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": "#666666",
    "axes.axisbelow": True,
    "svg.fonttype": "none",
    "svg.hashsalt": "benchbench",
}


@dataclass(frozen=True)
class Timeline:
    """The requests of one round of one cell: four lists of one length, in seconds from the round's start.

    scheduled, sent, first token, last token; NaN where a request did not get that far.
    """

    label: str
    starts_s: Sequence[float]
    sent_s: Sequence[float]
    first_s: Sequence[float]
    last_s: Sequence[float]


@dataclass(frozen=True)
class _Line:
    """The cells of one variant and shape, along the axis of load (batch or rate)."""

    rows: tuple[Row, ...]
    colour: str
    marker: str
    dash: Any


@dataclass(frozen=True)
class _Sheet:
    """What every figure needs: the run's title, its usable rows as lines, and the legend of their styles."""

    title: str
    axis: str
    lines: tuple[_Line, ...]
    legend: tuple[tuple[str, dict[str, Any]], ...]

    @property
    def rows(self) -> list[Row]:
        return [row for line in self.lines for row in line.rows]

    @property
    def axis_label(self) -> str:
        return "Batch (requests in flight)" if self.axis == "batch" else "Request rate (req/s)"


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
    if unknown := set(formats) - {"png", "svg"}:
        raise ValueError(f"unknown plot format {', '.join(sorted(unknown))} (allowed: png, svg)")
    import matplotlib as mpl

    out.mkdir(parents=True, exist_ok=True)
    files: list[Path] = []
    with mpl.rc_context(_STYLE):
        sheet = _sheet(rows, title)
        figures: dict[str, Callable[[_Sheet], Figure | None]] = {
            "throughput": _throughput,
            "ttft_batch": _ttft_batch,
            "ttft_input": _ttft_input,
            "pareto": _pareto,
            "heatmap": _heatmap,
            "timeline": lambda sheet: _timeline(timeline, sheet.title) if timeline else None,
        }
        for name, draw in figures.items():
            figure = draw(sheet)
            if figure is not None:
                files += [_save(figure, out / f"{name}.{form}") for form in formats]
    return files


def _save(figure: Figure, path: Path) -> Path:
    # The canvases are called directly: savefig first draws once more only to find the layout.
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.backends.backend_svg import FigureCanvasSVG

    if path.suffix == ".png":
        figure.set_dpi(PNG_DPI)
        agg: Any = FigureCanvasAgg(figure)
        agg.print_png(path, pil_kwargs={"compress_level": 3})
    else:
        svg: Any = FigureCanvasSVG(figure)
        svg.print_svg(path, metadata={"Date": None})
    return path


def _sheet(rows: Sequence[Row], title: str) -> _Sheet:
    usable = [row for row in rows if row.get("status") != "invalid"]
    axis = "rate" if all(row.get("batch") is None for row in usable) else "batch"
    groups: dict[tuple[str, int, int], list[Row]] = {}
    for row in usable:
        if number(row, axis):
            groups.setdefault((row.get("variant") or "", row["input"], row["output"]), []).append(row)
    styles, legend = _styles(sorted(groups))
    lines = [
        _Line(tuple(sorted(group, key=lambda row: row[axis])), **styles[shape])
        for shape, group in sorted(groups.items())
    ]
    return _Sheet(title, axis, tuple(lines), tuple(legend))


def _styles(
    shapes: Sequence[tuple[str, int, int]],
) -> tuple[dict[tuple[str, int, int], dict[str, Any]], list[tuple[str, dict[str, Any]]]]:
    """A style for each line, and the legend. Variants differ by dash; shapes by colour and marker.

    Where there are more shapes than colours, the colour is the input's and the marker the output's, so that
    27 lines need a legend of 12 entries.
    """
    variants, pairs = _unique(v for v, _, _ in shapes), _unique((i, o) for _, i, o in shapes)
    inputs, outputs = _unique(i for i, _ in pairs), _unique(o for _, o in pairs)
    dashes = {variant: DASHES[n % len(DASHES)] for n, variant in enumerate(variants)}
    if len(pairs) <= len(COLOURS):
        look = {pair: (COLOURS[n], MARKERS[n]) for n, pair in enumerate(pairs)}
        legend = [
            (f"in {i:,}, out {o:,}", {"color": look[i, o][0], "marker": look[i, o][1]}) for i, o in pairs
        ]
    else:
        colour = dict(zip(inputs, _ordered_colours(len(inputs)), strict=True))
        marker = {output: MARKERS[n % len(MARKERS)] for n, output in enumerate(outputs)}
        look = {(i, o): (colour[i], marker[o]) for i, o in pairs}
        legend = [(f"input {i:,}", {"color": colour[i]}) for i in inputs]
        legend += [
            (f"output {o:,}", {"color": "#444444", "marker": marker[o], "linestyle": ""}) for o in outputs
        ]
    if variants not in ([], [""]):
        legend += [(v or "(no variant)", {"color": "#444444", "linestyle": dashes[v]}) for v in variants]
    keys = ("colour", "marker", "dash")
    return {(v, i, o): dict(zip(keys, (*look[i, o], dashes[v]), strict=True)) for v, i, o in shapes}, legend


def _unique(values: Any) -> list[Any]:  # noqa: ANN401 - tuples and strings alike
    return sorted(set(values))


def _ordered_colours(count: int) -> list[str]:
    """Distinct hues while they last, else steps of cividis short of its pale end."""
    if count <= len(COLOURS):
        return list(COLOURS[:count])
    import matplotlib as mpl
    from matplotlib.colors import to_hex

    scale = mpl.colormaps["cividis"]
    return [to_hex(scale(0.85 * n / (count - 1))) for n in range(count)]


def _frame(
    heading: str,
    title: str,
    legend: Sequence[tuple[str, dict[str, Any]]] = (),
    *,
    height: float = 3.6,
    left: float = 0.85,
    right: float = 0.25,
) -> tuple[Figure, Axes]:
    """A figure with axes ``height`` inches high, heading and run title above, legend in columns below."""
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D

    small = textwrap.wrap(title, 100)[:3]
    longest = max((len(label) for label, _ in legend), default=1)
    columns = max(1, min(len(legend), int(WIDTH_IN / (0.075 * longest + 0.55))))
    legend_in = 0.2 * math.ceil(len(legend) / columns) + 0.15 if legend else 0.0
    top, bottom = 0.45 + 0.16 * len(small), 0.52 + legend_in
    total = top + height + bottom
    figure = Figure(figsize=(WIDTH_IN, total), facecolor="white")
    axes = figure.add_axes((left / WIDTH_IN, bottom / total, 1 - (left + right) / WIDTH_IN, height / total))
    figure.text(0.12 / WIDTH_IN, 1 - 0.1 / total, heading, va="top", fontsize=11, fontweight="bold")
    figure.text(0.12 / WIDTH_IN, 1 - 0.33 / total, "\n".join(small), va="top", fontsize=8, color="#555555")
    if legend:
        handles = [Line2D([], [], label=label, markersize=5, **style) for label, style in legend]
        corner = (0.5, 0.05 / total)
        figure.legend(
            handles=handles,
            loc="lower center",
            bbox_to_anchor=corner,
            ncols=columns,
            frameon=False,
            fontsize=8.5,
            borderpad=0,
            borderaxespad=0,
            labelspacing=0.35,
            handlelength=2.4,
        )
    axes.grid(visible=True, color="#DDDDDD", linewidth=0.6)
    axes.tick_params(colors="#333333", length=3)
    return figure, axes


def _points(line: _Line, axis: str, name: str) -> list[tuple[float, float, Row]]:
    return [(row[axis], value, row) for row in line.rows if (value := number(row, name)) is not None]


def _markers(axes: Axes, points: Sequence[tuple[float, float, Row]], line: _Line, size: float) -> None:
    """Filled markers for valid cells, hollow ones for suspect cells."""
    for suspect, face in ((False, line.colour), (True, "white")):
        some = [(x, y) for x, y, row in points if (row.get("status") == "suspect") == suspect]
        if some:
            axes.plot(
                *zip(*some, strict=True),
                linestyle="",
                marker=line.marker,
                color=line.colour,
                markerfacecolor=face,
                markersize=size,
                markeredgewidth=1.1,
                zorder=4,
            )


def _lines(axes: Axes, sheet: _Sheet, name: str) -> list[float]:
    """A line per shape of the column ``name`` over the axis of load, with intervals; returns the values."""
    values: list[float] = []
    for line in sheet.lines:
        points = _points(line, sheet.axis, name)
        axes.plot(
            [x for x, _, _ in points],
            [y for _, y, _ in points],
            color=line.colour,
            linestyle=line.dash,
            linewidth=1.3,
            zorder=2,
        )
        spans = [
            (x, row[f"{name}_low"], row[f"{name}_high"])
            for x, _, row in points
            if number(row, f"{name}_low") is not None and number(row, f"{name}_high") is not None
        ]
        for cap in (1, 2):
            axes.plot(
                [span[0] for span in spans],
                [span[cap] for span in spans],
                linestyle="",
                marker="_",
                color=line.colour,
                markersize=6,
                zorder=3,
            )
        axes.vlines(
            [x for x, _, _ in spans],
            [low for _, low, _ in spans],
            [high for _, _, high in spans],
            color=line.colour,
            linewidth=1.0,
            zorder=3,
        )
        _markers(axes, points, line, 5)
        values += [y for _, y, _ in points] + [high for _, _, high in spans]
    return values


def _load_axis(axes: Axes, values: Sequence[float], label: str) -> None:
    """A log2 x axis with ticks at the values that occur, thinned until they do not touch."""
    found = _unique(values)
    gap = math.log2(found[-1] / found[0]) / 12
    ticks = found[:1]
    for value in found[1:]:
        if math.log2(value / ticks[-1]) >= gap:
            ticks.append(value)
    pad = 2 ** max(0.3, 0.5 * gap) if len(found) > 1 else 2.0
    axes.set_xscale("log", base=2)
    axes.set_xticks(ticks, labels=[_short(tick) for tick in ticks])
    axes.minorticks_off()
    axes.set_xlim(found[0] / pad, found[-1] * pad)
    axes.set_xlabel(label)


def _value_axis(axes: Axes, values: Sequence[float], label: str, wide: float = math.inf) -> None:
    """A linear y axis from 0, or a log one ticked at 1, 2, 5 if the values span more than ``wide`` times."""
    low, high = min(values), max(values)
    if low > 0 and high / low > wide:
        axes.set_yscale("log")
        low, high = low / 1.25, high * 1.25
        powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
        ticks = [step * 10.0**power for power in powers for step in (1, 2, 5)]
        axes.set_yticks([tick for tick in ticks if low <= tick <= high])
        axes.minorticks_off()
        axes.set_ylim(low, high)
    else:
        axes.set_ylim(0, 1.08 * high or 1)
    axes.yaxis.set_major_formatter(lambda value, _: _short(value))
    axes.set_ylabel(label)


def _short(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 or value == int(value) else f"{value:g}"


def _with_suspect(
    sheet: _Sheet, name: str, *more: tuple[str, dict[str, Any]]
) -> list[tuple[str, dict[str, Any]]]:
    hollow = any(row.get("status") == "suspect" and number(row, name) is not None for row in sheet.rows)
    style = {"color": "#444444", "linestyle": "", "marker": "o", "markerfacecolor": "white"}
    return [*sheet.legend, *more, *([("hollow: suspect", style)] if hollow else [])]


def _throughput(sheet: _Sheet) -> Figure | None:
    if not any(_points(line, sheet.axis, "sys_tok_s") for line in sheet.lines):
        return None
    ideal: tuple[str, dict[str, Any]] = (
        "ideal (grows with the batch)",
        {"color": "#777777", "linestyle": (0, (2, 2)), "linewidth": 1.0},
    )
    slopes = _ideal_slopes(sheet)
    figure, axes = _frame(
        "System throughput", sheet.title, _with_suspect(sheet, "sys_tok_s", *([ideal] if slopes else []))
    )
    values = _lines(axes, sheet, "sys_tok_s")
    loads = [row[sheet.axis] for row in sheet.rows]
    if slopes:
        # Each shape has an ideal of its own; they differ little, so a band stands for them all.
        steps = 64
        xs = [min(loads) * (max(loads) / min(loads)) ** (n / steps) for n in range(steps + 1)]
        low, high = ([slope * x for x in xs] for slope in (min(slopes), max(slopes)))
        axes.fill_between(xs, low, high, color="#EEEEEE", zorder=1)
        for edge in (low, high):
            axes.plot(xs, edge, **ideal[1], zorder=1)
        values.append(min(max(high), 1.6 * max(values)))
    _load_axis(axes, loads, sheet.axis_label)
    _value_axis(axes, values, "Sys tok/s (output, mean, 95 % interval)")
    return figure


def _ideal_slopes(sheet: _Sheet) -> list[float]:
    """Sys tok/s per request in flight at the smallest batch, of each line that goes on to a larger one."""
    if sheet.axis != "batch":
        return []
    smallest = min(row["batch"] for row in sheet.rows)
    ends = [points for line in sheet.lines if (points := _points(line, "batch", "sys_tok_s"))]
    return [points[0][1] / smallest for points in ends if points[0][0] == smallest < points[-1][0]]


def _ttft_batch(sheet: _Sheet) -> Figure | None:
    if not any(_points(line, sheet.axis, "ttft_ms") for line in sheet.lines):
        return None
    figure, axes = _frame("Time to first token", sheet.title, _with_suspect(sheet, "ttft_ms"))
    values = _lines(axes, sheet, "ttft_ms")
    _load_axis(axes, [row[sheet.axis] for row in sheet.rows], sheet.axis_label)
    _value_axis(axes, values, "TTFT (ms, mean, 95 % interval)", wide=20)
    return figure


def _ttft_input(sheet: _Sheet) -> Figure | None:
    rows = [row for row in sheet.rows if number(row, "ttft_ms") is not None and row["input"] > 0]
    if not rows:
        return None
    loads, variants = (
        _unique(row[sheet.axis] for row in rows),
        _unique(row.get("variant") or "" for row in rows),
    )
    colours = _ordered_colours(len(loads))
    looks = {load: (colours[n], MARKERS[n % len(MARKERS)]) for n, load in enumerate(loads)}
    dashes = {variant: DASHES[n % len(DASHES)] for n, variant in enumerate(variants)}
    legend = [(f"{sheet.axis} {_short(load)}", {"color": c, "marker": m}) for load, (c, m) in looks.items()]
    legend += [(v, {"color": "#444444", "linestyle": dashes[v]}) for v in variants if v]
    legend += _with_suspect(sheet, "ttft_ms")[len(sheet.legend) :]
    figure, axes = _frame("Time to first token over input length", sheet.title, legend)
    for (load, (colour, marker)), variant in ((item, v) for item in looks.items() for v in variants):
        some = tuple(r for r in rows if r[sheet.axis] == load and (r.get("variant") or "") == variant)
        line = _Line(some, colour, marker, dashes[variant])
        points = _points(line, "input", "ttft_ms")
        inputs = _unique(x for x, _, _ in points)
        at = [[y for x, y, _ in points if x == length] for length in inputs]
        axes.plot(inputs, [sum(ys) / len(ys) for ys in at], color=colour, linestyle=line.dash, linewidth=1.3)
        _markers(axes, points, line, 4)
    _load_axis(
        axes, [row["input"] for row in rows], "Input (tokens); the line is the mean over output lengths"
    )
    _value_axis(axes, [row["ttft_ms"] for row in rows], "TTFT (ms, mean)", wide=20)
    return figure


def _stream_tok_s(row: Row) -> float | None:
    tpot = number(row, "tpot_ms")
    return number(row, "stream_tok_s") or (1e3 / tpot if tpot else None)


def _pareto(sheet: _Sheet) -> Figure | None:
    found = [
        [(x, y, row) for _, y, row in _points(line, sheet.axis, "sys_tok_s") if (x := _stream_tok_s(row))]
        for line in sheet.lines
    ]
    if not any(found):
        return None
    figure, axes = _frame(
        "Throughput against speed per stream", sheet.title, _with_suspect(sheet, "sys_tok_s")
    )
    for line, points in zip(sheet.lines, found, strict=True):
        axes.plot(
            [x for x, _, _ in points],
            [y for _, y, _ in points],
            color=line.colour,
            linestyle=line.dash,
            linewidth=1.1,
            alpha=0.8,
        )
        _markers(axes, points, line, 5)
    everything = [point for points in found for point in points]
    few = len(sheet.lines) <= 2
    tops: dict[Any, tuple[float, float, Row]] = {}
    for n, point in enumerate(sorted(everything, key=lambda point: -point[1])):
        tops.setdefault(n if few else point[2][sheet.axis], point)
    for x, y, row in tops.values():
        axes.annotate(
            _short(row[sheet.axis]), (x, y), (5, 4), textcoords="offset points", fontsize=8, color="#333333"
        )
    axes.set_xlabel(f"tok/s per stream (further right: faster for one user; numbers at points: {sheet.axis})")
    axes.set_xlim(0, 1.08 * max(x for x, _, _ in everything))
    _value_axis(axes, [y for _, y, _ in everything], "Sys tok/s (output)")
    return figure


def _heatmap(sheet: _Sheet) -> Figure | None:
    values = [value for row in sheet.rows if (value := number(row, "sys_tok_s")) is not None]
    if not values:
        return None
    import matplotlib as mpl
    import numpy as np
    from matplotlib.colors import Normalize

    loads = _unique(row[sheet.axis] for row in sheet.rows)
    names = [_shape_name(line.rows[0]) for line in sheet.lines]
    left = 0.75 + 0.068 * max(map(len, names))
    row_in = max(0.17, min(0.32, 12 / len(names)))
    starred = any(row.get("status") == "suspect" for row in sheet.rows)
    title = sheet.title + (" · *: suspect" if starred else "")
    figure, axes = _frame("System throughput (Sys tok/s)", title, height=row_in * len(names), left=left)
    grid = np.full((len(names), len(loads)), np.nan)
    for y, line in enumerate(sheet.lines):
        for load, value, _ in _points(line, sheet.axis, "sys_tok_s"):
            grid[y, loads.index(load)] = value
    norm, scale = Normalize(0, max(values)), mpl.colormaps["cividis"]
    axes.pcolormesh(np.ma.masked_invalid(grid), cmap=scale, norm=norm, edgecolors="white", linewidth=1.0)
    cell_in = (WIDTH_IN - left - 0.25) / len(loads)
    upright = cell_in < 0.36
    size = min(8.5, row_in * (30 if upright else 55), 200 * cell_in)
    for y, line in enumerate(sheet.lines):
        for load, value, row in _points(line, sheet.axis, "sys_tok_s"):
            text = (f"{value:.0f}" if upright else f"{value:,.1f}") + "*" * (row.get("status") == "suspect")
            red, green, blue, _ = scale(norm(value))
            light = 0.299 * red + 0.587 * green + 0.114 * blue > 0.5
            axes.text(
                loads.index(load) + 0.5,
                y + 0.5,
                text,
                ha="center",
                va="center",
                fontsize=size,
                rotation=90 if upright else 0,
                color="black" if light else "white",
            )
    axes.grid(visible=False)
    axes.set_facecolor("#F2F2F2")
    axes.set_xticks(np.arange(len(loads)) + 0.5, labels=[_short(load) for load in loads])
    axes.set_yticks(np.arange(len(names)) + 0.5, labels=names)
    axes.tick_params(length=0)
    axes.invert_yaxis()
    axes.set_xlabel(sheet.axis_label)
    axes.set_ylabel("Input → output (tokens)")
    return figure


def _shape_name(row: Row) -> str:
    variant = f"{row['variant']}: " if row.get("variant") else ""
    return f"{variant}{row['input']:,} → {row['output']:,}"


def _timeline(timeline: Timeline, title: str) -> Figure | None:
    """Bars of waiting, prefill and decode for each request, in the order of their schedule."""
    from matplotlib.collections import PolyCollection
    from matplotlib.ticker import MaxNLocator

    stamps = (timeline.starts_s, timeline.sent_s, timeline.first_s, timeline.last_s)
    requests = sorted(zip(*stamps, strict=True))
    shown = requests[:TIMELINE_REQUESTS]
    end = max((stamp for request in shown for stamp in request if math.isfinite(stamp)), default=0.0)
    if end <= 0:
        return None
    cut = f" · the first {len(shown)} of {len(requests):,} requests" if len(shown) < len(requests) else ""
    legend = [(name, {"color": colour, "linewidth": 6}) for name, colour in PHASES]
    height = max(1.6, min(5.0, 0.13 * len(shown)))
    heading = f"Timeline of one round: {timeline.label}"
    figure, axes = _frame(heading, title + cut, legend, height=height)
    for phase, (_, colour) in enumerate(PHASES):
        bars = [(y, request[phase], request[phase + 1]) for y, request in enumerate(shown, start=1)]
        boxes = [((a, y - 0.42), (b, y - 0.42), (b, y + 0.42), (a, y + 0.42)) for y, a, b in bars if b > a]
        axes.add_collection(PolyCollection(boxes, facecolors=colour, linewidths=0), autolim=False)
    axes.set_xlim(0, 1.02 * end)
    axes.set_ylim(len(shown) + 0.7, 0.3)
    axes.grid(visible=False, axis="y")
    axes.yaxis.set_major_locator(MaxNLocator("auto", integer=True, min_n_ticks=1))
    axes.set_xlabel("Time since the round began (s)")
    axes.set_ylabel("Request")
    return figure
