"""What the figures of a run share: which rows are lines and how each line looks, the frame, the axes.

matplotlib's constrained layout places everything. Colours are Okabe and Ito's (jfly.uni-koeln.de/color) or steps of
cividis, and never the only distinction.
"""

from __future__ import annotations

import math
import textwrap
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from statistics import fmean, median
from typing import TYPE_CHECKING, Any, NamedTuple

from benchbench.report.summary_table import Row, number

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Legend = tuple[tuple[str, dict[str, Any]], ...]  # label and style of each entry

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "<", ">", "h")
DASHES: tuple[Any, ...] = ("-", (0, (5, 2)), (0, (1, 1.5)), (0, (6, 2, 1, 2)))
CHOSEN = 4  # of more variants only so many are told apart
GREY = "#BBBBBB"
STYLE: Any = {
    "figure.constrained_layout.w_pad": 0.08,
    "figure.constrained_layout.h_pad": 0.06,
    "figure.figsize": (7.2, 3.6),  # 750 px wide, a model card's width, at 104 px per inch: 9 pt text is 13 px there
    "font.family": "sans-serif",
    "font.sans-serif": ["DejaVu Sans", "Arial", "Helvetica"],
    "font.size": 9.0,
    "axes.titlesize": 8.5,
    "axes.grid": True,
    "grid.color": "#DDDDDD",
    "grid.linewidth": 0.6,
    "xtick.color": "#333333",
    "ytick.color": "#333333",
    "xtick.major.size": 3,
    "ytick.major.size": 3,
    "legend.frameon": False,
    "legend.fontsize": 8.5,
    "legend.columnspacing": 1.6,
    "text.parse_math": False,  # a dollar sign in a model's name is not a formula
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": "#666666",
    "axes.axisbelow": True,
    "svg.fonttype": "none",
    "svg.hashsalt": "benchbench",
}
BOUND: Any = {"color": "#444444", "linestyle": (0, (1, 2.5)), "linewidth": 0.9}
_MARKED: Any = {"color": "#444444", "linestyle": ""}  # a legend's entry of which only the marker counts
_TICKS = 12  # at most so many on the axis of load


@dataclass(frozen=True)
class Line:
    """The cells of one variant and shape along the axis of load, and how they look."""

    rows: tuple[Row, ...]
    colour: str
    marker: str
    dash: Any

    def points(self, axis: str, name: str) -> list[tuple[float, float, Row]]:
        """(value on the axis, value of the column, row) of each row that has the column."""
        return [(row[axis], value, row) for row in self.rows if (value := number(row, name)) is not None]


class GridCell(NamedTuple):
    """A cell of a heat map: column, row, text, RGBA colour."""

    x: int
    y: int
    text: str
    colour: tuple[float, float, float, float]
    bold: bool = False


@dataclass(frozen=True)
class Sheet:
    """The usable rows of a run as lines over its axis of load (batch, or rate where no row has a batch)."""

    title: str
    axis: str
    lines: tuple[Line, ...]
    legend: Legend
    others: tuple[Line, ...] = ()  # of variants that are too many to be told apart

    @property
    def rows(self) -> list[Row]:
        return [row for line in self.lines for row in line.rows]

    @property
    def axis_label(self) -> str:
        return "Batch (requests in flight)" if self.axis == "batch" else "Request rate (req/s)"

    def has(self, name: str) -> bool:
        """Whether any row has a number in this column."""
        return any(number(row, name) is not None for row in self.rows)

    def suspect_entry(self, name: str) -> Legend:
        """The legend's entry for hollow markers, if a suspect row has a number in this column."""
        if not any(row.get("status") == "suspect" and number(row, name) is not None for row in self.rows):
            return ()
        return (("hollow: suspect", {**_MARKED, "marker": "o", "markerfacecolor": "white"}),)

    def bound_entry(self, name: str) -> Legend:
        """The legend's entry for the hardware's bound, if any row has a number in this column."""
        return (("dotted: speed of light", BOUND),) if self.has(name) else ()


def make_sheet(rows: Sequence[Row], title: str) -> Sheet:
    """Sort the rows into lines, leave out those that are invalid, and say in the title how many.

    Of more than CHOSEN variants the first (a sweep's baseline, as a rule) and those of most Sys tok/s are `lines`.
    """
    usable = [row for row in rows if row.get("status") != "invalid"]
    if left_out := len(rows) - len(usable):
        title += f" · {left_out} invalid cell{'s'[: left_out > 1]} left out"
    axis = "rate" if all(row.get("batch") is None for row in usable) else "batch"
    groups: dict[tuple[str, int, int], list[Row]] = {}
    for row in usable:
        if number(row, axis):
            groups.setdefault((row.get("variant") or "", row["input"], row["output"]), []).append(row)
    variants = list(dict.fromkeys(variant for variant, _, _ in groups))
    chosen = variants if len(variants) <= CHOSEN else _chosen(variants, usable, axis)
    looks, legend = _looks(sorted(shape for shape in groups if shape[0] in chosen), crowd=chosen != variants)
    if chosen != variants:
        title += f" · {chosen[0]} and the {CHOSEN - 1} fastest of {len(variants)} variants"
        legend += ((f"{len(variants) - CHOSEN} others", {"color": GREY}),)
    lines: dict[bool, list[Line]] = {True: [], False: []}
    for shape, group in sorted(groups.items()):
        look = looks.get(shape, (GREY, "", "-"))
        lines[shape in looks].append(Line(tuple(sorted(group, key=lambda row: row[axis])), *look))
    return Sheet(title, axis, tuple(lines[True]), legend, tuple(lines[False]))


def _chosen(variants: Sequence[str], rows: Sequence[Row], axis: str) -> list[str]:
    """The first, and CHOSEN - 1 others by their mean log Sys tok/s against the median variant, cell by cell."""
    cells: dict[tuple[Any, ...], dict[str, float]] = {}
    for row in rows:
        if (value := number(row, "sys_tok_s")) and value > 0:
            cells.setdefault((row["input"], row["output"], row[axis]), {})[row.get("variant") or ""] = math.log(value)
    scores: dict[str, list[float]] = {variant: [] for variant in variants}
    for speeds in cells.values():
        for variant, value in speeds.items():
            scores[variant].append(value - median(speeds.values()))
    ranked = sorted(variants[1:], key=lambda variant: -fmean(scores[variant] or [-math.inf]))
    return [variants[0], *ranked[: CHOSEN - 1]]


def _looks(
    shapes: Sequence[tuple[str, int, int]], *, crowd: bool
) -> tuple[dict[tuple[str, int, int], tuple[str, str, Any]], Legend]:
    """Colour, marker and dash of each line, and the legend. Variants differ by dash; in a crowd, by colour.

    A shape has a colour and a marker of its own; where there are more shapes than colours, the colour is the
    input's and the marker the output's, so that 27 lines need a legend of 12 entries.
    """
    pairs = sorted({(i, o) for _, i, o in shapes})
    if crowd:
        colours = dict(zip(sorted({v for v, _, _ in shapes}), COLOURS, strict=False))
        markers = {pair: MARKERS[n % len(MARKERS)] for n, pair in enumerate(pairs)}
        legend = [(v or "no variant", {"color": c}) for v, c in colours.items()]
        legend += [(f"in {i:,}, out {o:,}", {**_MARKED, "marker": m}) for (i, o), m in markers.items()]
        return {(v, i, o): (colours[v], markers[i, o], "-") for v, i, o in shapes}, tuple(legend)
    if len(pairs) <= len(COLOURS):
        look = {pair: (COLOURS[n], MARKERS[n]) for n, pair in enumerate(pairs)}
        legend = [(f"in {i:,}, out {o:,}", {"color": c, "marker": m}) for (i, o), (c, m) in look.items()]
    else:
        inputs, outputs = sorted({i for i, _ in pairs}), sorted({o for _, o in pairs})
        colour = dict(zip(inputs, ordered_colours(len(inputs)), strict=True))
        marker = {output: MARKERS[n % len(MARKERS)] for n, output in enumerate(outputs)}
        look = {(i, o): (colour[i], marker[o]) for i, o in pairs}
        legend = [(f"input {i:,}", {"color": c}) for i, c in colour.items()]
        legend += [(f"output {o:,}", {**_MARKED, "marker": m}) for o, m in marker.items()]
    dashes, entries = variant_dashes(v for v, _, _ in shapes)
    return {(v, i, o): (*look[i, o], dashes[v]) for v, i, o in shapes}, (*legend, *entries)


def variant_dashes(variants: Iterable[str]) -> tuple[dict[str, Any], Legend]:
    """A dash for each variant, and the legend's entries for them: none if no variant has a name."""
    dashes = {variant: DASHES[n % len(DASHES)] for n, variant in enumerate(sorted(set(variants)))}
    if set(dashes) <= {""}:
        return dashes, ()
    return dashes, tuple((v or "no variant", {"color": "#444444", "linestyle": d}) for v, d in dashes.items())


def ordered_colours(count: int) -> list[str]:
    """Distinct hues while they last, else steps of cividis short of its pale end."""
    if count <= len(COLOURS):
        return list(COLOURS[:count])
    import matplotlib as mpl
    from matplotlib.colors import to_hex

    scale = mpl.colormaps["cividis"]
    return [to_hex(scale(0.85 * n / (count - 1))) for n in range(count)]


def cut(text: str, most: int) -> str:
    """Text that fits: its end gives way to an ellipsis."""
    return text if len(text) <= most else f"{text[: most - 1]}…"


def width_in() -> float:
    """The figures' width in inches, which is a matter of style."""
    import matplotlib as mpl

    return float(mpl.rcParams["figure.figsize"][0])


def name_room() -> int:
    """How many characters names at the left of a figure may have."""
    return int(6 * width_in())


def make_frame(
    heading: str,
    title: str,
    legend: Legend = (),
    *,
    height: float | None = None,
    rows: int = 1,
    columns: int = 1,
    sharey: bool = False,
) -> tuple[Figure, list[Axes]]:
    """A figure with ``rows`` x ``columns`` panels, together about ``height`` inches high.

    Heading and run title stand above, the legend in columns below.
    """
    import matplotlib as mpl
    import numpy as np
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D

    width, usual = mpl.rcParams["figure.figsize"]
    small = textwrap.wrap(title, int(15.6 * width))[:3]
    labels = [cut(label, 36) for label, _ in legend]
    # matplotlib does not break a legend into rows: an entry is 8 characters of handle and its label, an inch 14.
    lengths = [8 + len(label) for label in labels]
    columns_of = range(len(lengths), 1, -1)
    fits = (n for n in columns_of if sum(max(part) for part in np.array_split(lengths, n)) <= 14 * width)
    ncols = next(fits, 1)
    height = (usual if height is None else height) + 0.9 + 0.15 * len(small) + 0.18 * math.ceil(len(legend) / ncols)
    figure = Figure(figsize=(width, height), facecolor="white", layout="constrained")
    figure.suptitle(cut(heading, int(11 * width)), x=0.01, ha="left", fontsize=11, fontweight="bold")
    body = figure.add_subfigure(figure.add_gridspec(1, 1)[0])  # so that the run title has a line of its own
    body.suptitle("\n".join(small), x=0.01, ha="left", fontsize=8, color="#555555")
    if legend:
        looks = [{"markersize": 5, **look, "label": label} for label, (_, look) in zip(labels, legend, strict=True)]
        handles = [Line2D([], [], **look) for look in looks]
        figure.legend(handles=handles, loc="outside lower center", ncols=ncols)
    return figure, list(body.subplots(rows, columns, squeeze=False, sharey=sharey).flat)


def draw_grid(
    heading: str, title: str, names: Sequence[str], loads: Sequence[float], label: str, cells: Sequence[GridCell]
) -> Figure:
    """A heat map: a row per name of a shape, a column per load, each cell with its text; `label`: of the loads."""
    row_in, column_in = max(0.17, min(0.3, 12 / len(names))), 0.8 * width_in() / len(loads)
    figure, (axes,) = make_frame(heading, title, height=row_in * len(names))
    longest = max(len(cell.text) for cell in cells)
    upright = column_in < 0.06 * longest
    # A digit is 0.64 of its size wide: 102 points an inch leave a tenth free.
    along, across = (row_in, column_in) if upright else (column_in, row_in)
    style: Any = {"fontsize": min(8.5, 102 * along / longest, 58 * across), "rotation": 90 if upright else 0}
    for cell in cells:
        axes.fill_between([cell.x, cell.x + 1], cell.y, cell.y + 1, color=cell.colour, edgecolor="white", linewidth=1)
        red, green, blue, _ = cell.colour
        ink = "#111111" if 0.299 * red + 0.587 * green + 0.114 * blue > 0.5 else "#FAFAFA"
        weight = "bold" if cell.bold else "normal"
        x, y = cell.x + 0.5, cell.y + 0.5
        axes.text(x, y, cell.text, ha="center", va="center", color=ink, fontweight=weight, **style)
    axes.grid(visible=False)
    axes.set_facecolor("#F2F2F2")
    axes.set_xlim(0, len(loads))
    axes.set_ylim(len(names), 0)
    axes.set_xticks([n + 0.5 for n in range(len(loads))], labels=[short(load) for load in loads])
    axes.set_yticks([n + 0.5 for n in range(len(names))], labels=[cut(name, name_room()) for name in names])
    axes.tick_params(length=0)
    axes.tick_params(axis="x", labelsize=9 if len(loads) <= 16 else 6.5)
    axes.annotate("in → out (tokens)", (0, 0), (-4, -5), "axes fraction", "offset points", ha="right", va="top")
    axes.set_xlabel(label)
    return figure


def draw_markers(axes: Axes, line: Line, points: Sequence[tuple[float, float, Row]], size: float) -> None:
    """Filled markers for valid cells, hollow ones for suspect cells."""
    look: Any = {"linestyle": "", "marker": line.marker, "color": line.colour, "markersize": size}
    for suspect, face in ((False, line.colour), (True, "white")):
        cells = [point for point in points if (point[2].get("status") == "suspect") == suspect]
        draw_curve(axes, cells, **look, markeredgewidth=1.1, markerfacecolor=face, zorder=4)


def draw_curve(axes: Axes, points: Sequence[Sequence[Any]], **style: Any) -> list[float]:  # noqa: ANN401 - matplotlib's
    """A line through points, of which the first two items are x and y; returns all y."""
    values = [point[1] for point in points]
    axes.plot([point[0] for point in points], values, **style)
    return values


def draw_lines(axes: Axes, sheet: Sheet, name: str) -> list[float]:
    """Every line of the column ``name`` over the axis of load, with its intervals; returns all values drawn."""
    values = draw_others(axes, [line.points(sheet.axis, name) for line in sheet.others])
    width, size = (1.3, 5.0) if len(sheet.lines) <= 9 else (0.9, 4.0)
    for line in sheet.lines:
        points = line.points(sheet.axis, name)
        ys = draw_curve(axes, points, color=line.colour, linestyle=line.dash, linewidth=width, zorder=2)
        ends = [(x, number(row, f"{name}_low"), number(row, f"{name}_high")) for x, _, row in points]
        bars = [(x, low, high) for x, low, high in ends if low is not None and high is not None]
        xs, lows, highs = ([bar[place] for bar in bars] for place in range(3))
        axes.vlines(xs, lows, highs, color=line.colour, linewidth=1.0, zorder=3)
        axes.plot(xs + xs, lows + highs, linestyle="", marker="_", markersize=6, color=line.colour, zorder=3)
        draw_markers(axes, line, points, size)
        values += ys + lows + highs
    return values


def draw_bound(axes: Axes, lines: Iterable[Line], axis: str, name: str) -> list[float]:
    """What the hardware allows at best, dotted in each line's colour over ``axis``; returns all values drawn."""
    values: list[float] = []
    for line in lines:
        points = sorted({(x, y) for x, y, _ in line.points(axis, name)})
        values += draw_curve(axes, points, **BOUND | {"color": line.colour}, zorder=1)
    return values


def draw_others(axes: Axes, lines: Sequence[Sequence[tuple[float, float, Row]]]) -> list[float]:
    """The (x, y, row) of lines that are not told apart, thin and grey; returns all y."""
    from matplotlib.collections import LineCollection

    if lines:
        curves = [[(x, y) for x, y, _ in points] for points in lines]
        axes.add_collection(LineCollection(curves, colors=GREY, linewidths=0.6, zorder=1.5), autolim=False)
    return [y for points in lines for _, y, _ in points]


def log2_axis(axes: Axes, values: Sequence[float], label: str) -> None:
    """A log2 x axis whose ticks are values that occur, thinned until their numbers do not touch."""
    loads = sorted(set(values))
    pad = 2 ** max(0.3, math.log2(loads[-1] / loads[0]) / 24) if len(loads) > 1 else 2.0
    axes.set_xscale("log", base=2)
    ticks = thinned(loads)
    axes.set_xticks(ticks, labels=[short(tick) for tick in ticks])
    axes.minorticks_off()
    axes.set_xlim(loads[0] / pad, loads[-1] * pad)
    axes.set_xlabel(label)


def thinned(values: Sequence[float]) -> list[float]:
    """Of ascending positive values those that stand apart on a log axis; powers of two where they are many."""
    if len(values) > _TICKS:
        powers = [value for value in values if math.log2(value).is_integer()]
        values = powers if len(powers) > 2 else values
    gap = math.log2(values[-1] / values[0]) / _TICKS
    kept = list(values[:1])
    for value in values[1:]:
        if math.log2(value / kept[-1]) >= gap:
            kept.append(value)
    return kept


def value_axis(axes: Axes, values: Sequence[float], label: str, wide: float) -> None:
    """A linear y axis from 0, or a log one ticked at 1, 2, 5 if the values span more than ``wide`` times."""
    from matplotlib.ticker import LogLocator

    low, high = min(values), max(values)
    if low > 0 and high / low > wide:
        low, high = low / 1.2, high * 1.2
        axes.set_yscale("log")
        axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5) if high / low < 1e4 else (1,), numticks=16))
        axes.minorticks_off()
        axes.set_ylim(low, high)
        label += ", log scale"
    else:
        axes.set_ylim(0, 1.08 * high or 1)
    axes.yaxis.set_major_formatter(lambda value, _: short(value))
    axes.set_ylabel(label)


def short(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 or value == int(value) else f"{value:g}"
