"""What the figures of a run share: which rows are lines and how each line looks, the frame, the axes.

Figures are laid out by hand, in inches: a layout engine would draw every figure twice. Colours are Okabe
and Ito's (jfly.uni-koeln.de/color) or steps of cividis, and never the only distinction.
"""

from __future__ import annotations

import math
import textwrap
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from statistics import fmean, median
from typing import TYPE_CHECKING, Any

from benchbench.report.summary_table import Row, number

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Legend = tuple[tuple[str, dict[str, Any]], ...]  # label and style of each entry

RIGHT_IN = 0.25
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "<", ">", "h")
DASHES: tuple[Any, ...] = ("-", (0, (5, 2)), (0, (1, 1.5)), (0, (6, 2, 1, 2)))
CHOSEN = 4  # of more variants only so many are told apart
GREY = "#BBBBBB"
STYLE: Any = {
    "figure.figsize": (7.2, 3.6),  # 750 px wide, a model card's width, at 104 px per inch: 9 pt text is 13 px there
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
BOUND: Any = {"color": "#444444", "linestyle": (0, (1, 2.5)), "linewidth": 0.9}
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
        style = {"color": "#444444", "linestyle": "", "marker": "o", "markerfacecolor": "white"}
        return (("hollow: suspect", style),)

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
    for found in cells.values():
        for variant, value in found.items():
            scores[variant].append(value - median(found.values()))
    ranked = sorted(variants[1:], key=lambda variant: -fmean(scores[variant] or [-math.inf]))
    return [variants[0], *ranked[: CHOSEN - 1]]


def _looks(
    shapes: Sequence[tuple[str, int, int]], *, crowd: bool
) -> tuple[dict[tuple[str, int, int], tuple[str, str, Any]], Legend]:
    """Colour, marker and dash of each line, and the legend. Variants differ by dash; in a crowd, by colour.

    A shape has a colour and a marker of its own; where there are more shapes than colours, the colour is the
    input's and the marker the output's, so that 27 lines need a legend of 12 entries.
    """
    pairs = distinct((i, o) for _, i, o in shapes)
    if crowd:
        colours = dict(zip(distinct(v for v, _, _ in shapes), COLOURS, strict=False))
        markers = {pair: MARKERS[n % len(MARKERS)] for n, pair in enumerate(pairs)}
        named = [(v or "no variant", {"color": c}) for v, c in colours.items()]
        named += [
            (f"in {i:,}, out {o:,}", {"color": "#444444", "linestyle": "", "marker": m})
            for (i, o), m in markers.items()
        ]
        return {(v, i, o): (colours[v], markers[i, o], "-") for v, i, o in shapes}, tuple(named)
    if len(pairs) <= len(COLOURS):
        look = {pair: (COLOURS[n], MARKERS[n]) for n, pair in enumerate(pairs)}
        legend = [(f"in {i:,}, out {o:,}", {"color": c, "marker": m}) for (i, o), (c, m) in look.items()]
    else:
        inputs, outputs = distinct(i for i, _ in pairs), distinct(o for _, o in pairs)
        colour = dict(zip(inputs, ordered_colours(len(inputs)), strict=True))
        marker = {output: MARKERS[n % len(MARKERS)] for n, output in enumerate(outputs)}
        look = {(i, o): (colour[i], marker[o]) for i, o in pairs}
        grey = {"color": "#444444", "linestyle": ""}
        legend = [(f"input {i:,}", {"color": c}) for i, c in colour.items()]
        legend += [(f"output {o:,}", {**grey, "marker": m}) for o, m in marker.items()]
    dashes, entries = variant_dashes(v for v, _, _ in shapes)
    return {(v, i, o): (*look[i, o], dashes[v]) for v, i, o in shapes}, (*legend, *entries)


def variant_dashes(variants: Iterable[str]) -> tuple[dict[str, Any], Legend]:
    """A dash for each variant, and the legend's entries for them: none if no variant has a name."""
    dashes = {variant: DASHES[n % len(DASHES)] for n, variant in enumerate(distinct(variants))}
    if set(dashes) <= {""}:
        return dashes, ()
    return dashes, tuple((v or "no variant", {"color": "#444444", "linestyle": d}) for v, d in dashes.items())


def distinct(values: Iterable[Any]) -> list[Any]:
    return sorted(set(values))


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


def name_room() -> int:
    """How many characters names at the left of a figure may have."""
    return int((width_in() / 2 - 0.3) / 0.07)


def width_in() -> float:
    """The figures' width in inches, which is a matter of style."""
    import matplotlib as mpl

    return float(mpl.rcParams["figure.figsize"][0])


def make_frame(
    heading: str, title: str, legend: Legend = (), *, height: float | None = None, left: float = 0.8
) -> tuple[Figure, Axes]:
    """A figure with axes ``height`` inches high: heading and run title above, the legend in columns below."""
    import matplotlib as mpl
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D

    width, usual = mpl.rcParams["figure.figsize"]
    height = usual if height is None else height
    small = textwrap.wrap(title, int(15.6 * width))[:3]
    legend = tuple((cut(label, 36), look) for label, look in legend)
    columns = _legend_columns([label for label, _ in legend])
    rows = math.ceil(len(legend) / columns)
    left = min(left, width / 2)
    top, bottom = 0.42 + 0.15 * len(small), 0.5 + (0.1 + 0.17 * rows if rows else 0)
    total = top + height + bottom
    figure = Figure(figsize=(width, total), facecolor="white")
    box = (left / width, bottom / total, 1 - (left + RIGHT_IN) / width, height / total)
    axes = figure.add_axes(box)
    edge = 0.1 / width
    figure.text(edge, 1 - 0.09 / total, cut(heading, int(11 * width)), va="top", fontsize=11, fontweight="bold")
    figure.text(edge, 1 - 0.31 / total, "\n".join(small), va="top", fontsize=8, color="#555555")
    if legend:
        figure.legend(
            handles=[Line2D([], [], **{"label": label, "markersize": 5, **style}) for label, style in legend],
            loc="lower center",
            bbox_to_anchor=(0.5, 0.06 / total),
            ncols=columns,
            frameon=False,
            fontsize=8.5,
            borderpad=0,
            borderaxespad=0,
            labelspacing=0.4,
            handlelength=2.4,
            columnspacing=1.6,
        )
    axes.grid(visible=True, color="#DDDDDD", linewidth=0.6)
    axes.tick_params(colors="#333333", length=3)
    return figure, axes


def _legend_columns(labels: Sequence[str]) -> int:
    """The columns of the lowest legend that fits the figure's width; matplotlib fills the first ones first."""
    for rows in range(1, len(labels)):
        columns = math.ceil(len(labels) / rows)
        small, larger = divmod(len(labels), columns)
        starts = [n * small + min(n, larger) for n in range(columns + 1)]
        widths = [max(map(len, labels[start:end])) for start, end in pairwise(starts)]
        if sum(0.07 * width + 0.58 for width in widths) <= width_in() - 0.1:
            return columns
    return 1


def draw_markers(axes: Axes, line: Line, points: Sequence[tuple[float, float, Row]], size: float) -> None:
    """Filled markers for valid cells, hollow ones for suspect cells."""
    for suspect, face in ((False, line.colour), (True, "white")):
        some = [(x, y) for x, y, row in points if (row.get("status") == "suspect") == suspect]
        axes.plot(
            [x for x, _ in some],
            [y for _, y in some],
            linestyle="",
            marker=line.marker,
            color=line.colour,
            markerfacecolor=face,
            markersize=size,
            markeredgewidth=1.1,
            zorder=4,
        )


def draw_lines(axes: Axes, sheet: Sheet, name: str) -> list[float]:
    """Every line of the column ``name`` over the axis of load, with its intervals; returns all values drawn."""
    grey = [[(x, y) for x, y, _ in line.points(sheet.axis, name)] for line in sheet.others]
    values = draw_others(axes, grey)
    width, size = (1.3, 5.0) if len(sheet.lines) <= 9 else (0.9, 4.0)
    for line in sheet.lines:
        points = line.points(sheet.axis, name)
        xs, ys = [x for x, _, _ in points], [y for _, y, _ in points]
        axes.plot(xs, ys, color=line.colour, linestyle=line.dash, linewidth=width, zorder=2)
        ends = [(x, number(row, f"{name}_low"), number(row, f"{name}_high")) for x, _, row in points]
        bars = [(x, low, high) for x, low, high in ends if low is not None and high is not None]
        xs, lows, highs = ([bar[n] for bar in bars] for n in range(3))
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
        xs, ys = [x for x, _ in points], [y for _, y in points]
        axes.plot(xs, ys, color=line.colour, linestyle=BOUND["linestyle"], linewidth=0.9, zorder=1)
        values += ys
    return values


def draw_others(axes: Axes, lines: Sequence[Sequence[tuple[float, float]]]) -> list[float]:
    """The (x, y) of lines that are not told apart, thin and grey; returns all y."""
    from matplotlib.collections import LineCollection

    if lines:
        axes.add_collection(LineCollection(lines, colors=GREY, linewidths=0.6, zorder=1.5), autolim=False)
    return [y for points in lines for _, y in points]


def log2_axis(axes: Axes, values: Sequence[float], label: str) -> None:
    """A log2 x axis whose ticks are values that occur, thinned until their numbers do not touch."""
    found = distinct(values)
    pad = 2 ** max(0.3, math.log2(found[-1] / found[0]) / 24) if len(found) > 1 else 2.0
    axes.set_xscale("log", base=2)
    ticks = thinned(found)
    axes.set_xticks(ticks, labels=[short(tick) for tick in ticks])
    axes.minorticks_off()
    axes.set_xlim(found[0] / pad, found[-1] * pad)
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
    low, high = min(values), max(values)
    if low > 0 and high / low > wide:
        low, high = low / 1.2, high * 1.2
        powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
        steps = (1, 2, 5) if len(powers) < 6 else (1,)
        axes.set_yscale("log")
        ticks = [step * 10.0**power for power in powers for step in steps]
        axes.set_yticks([tick for tick in ticks if low <= tick <= high])
        axes.minorticks_off()
        axes.set_ylim(low, high)
        label += ", log scale"
    else:
        axes.set_ylim(0, 1.08 * high or 1)
    axes.yaxis.set_major_formatter(lambda value, _: short(value))
    axes.set_ylabel(label)


def short(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 or value == int(value) else f"{value:g}"
