"""What the figures share: the frame with heading, subtitle and legend, the axes, curves, and names at their ends.

matplotlib's constrained layout places everything. Colours are Okabe and Ito's (jfly.uni-koeln.de/color) or steps of
cividis, and never the only distinction: lines have markers and dashes of their own. Thin dots are bounds, thin grey
dashes ideals. A line breaks where a cell between two points has no valid number.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

from benchbench.figures.choose import Line, Panel, Point, Sheet
from benchbench.figures.fonts import BASE, families, note_of
from benchbench.figures.lettering import shortened, width_of, wrapped
from benchbench.figures.text_width import points_of
from benchbench.report.summary_table import number

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Legend = tuple[tuple[str, dict[str, Any]], ...]  # label and style of each entry

STYLE: Any = {
    "figure.constrained_layout.w_pad": 0.08,
    "figure.constrained_layout.h_pad": 0.06,
    "figure.figsize": (7.2, 3.6),  # 750 px wide, a model card's width, at 104 px per inch: 9 pt text is 13 px there
    "font.family": [BASE],
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
BOUND: Any = {"color": "#444444", "linestyle": (0, (1, 2.5)), "linewidth": 1.1}  # dots: the speed of light
IDEAL: Any = {"color": "#777777", "linestyle": (0, (4, 2)), "linewidth": 1.0}  # dashes: the smallest batch, times n
ABSENT: Any = {"color": "#444444", "linestyle": "", "marker": "x"}
SUSPECT: Any = {"color": "#444444", "linestyle": "", "marker": "o", "markerfacecolor": "white"}
PANEL_NAMES = 4  # so many lines of each of several panels carry their names
_NARROW_IN = 6.0  # a phone's figures are narrower
_END_PT = 10.0  # between names at the ends of lines
_ASIDE_PT = 12.0  # from a panel to these: a mark beside the line's last point would look like one more


def is_narrow() -> bool:
    """Whether the style is that of a phone."""
    return width_in() < _NARROW_IN


def width_in() -> float:
    """The figures' width in inches, which is a matter of style."""
    import matplotlib as mpl

    return float(mpl.rcParams["figure.figsize"][0])


def make_frame(  # noqa: PLR0913 - a frame's parts
    heading: str,
    title: str,
    legend: Legend = (),
    *,
    height: float | None = None,
    rows: int = 1,
    columns: int = 1,
    sharex: bool = False,
    sharey: bool = False,
    names: Iterable[str] = (),
) -> tuple[Figure, list[Axes]]:
    """A figure with ``rows`` x ``columns`` panels, together about ``height`` inches high.

    Heading and run title stand above, the legend in columns below. `names`: what else will be written, so that a font
    is found for it.
    """
    import matplotlib as mpl
    import numpy as np
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D

    width, usual = mpl.rcParams["figure.figsize"]
    mpl.rcParams["font.family"], missing = families([heading, title, *names, *(label for label, _ in legend)])
    note = "" if is_narrow() else note_of(missing)  # a page is written in its reader's fonts
    small, heads = _lines(note + title, 4, 8), _lines(heading, 2, 11, bold=True)
    labels = [shortened(label, 42) for label, _ in legend]
    # matplotlib does not break a legend into rows: an entry is 8 characters of handle and its label, an inch 14.
    lengths = [8 + width_of(label) for label in labels]
    columns_of = range(len(lengths), 1, -1)
    fits = (n for n in columns_of if sum(max(part) for part in np.array_split(lengths, n)) <= 14 * width)
    ncols = next(fits, 1)
    height = (usual if height is None else height) + 0.9 + 0.15 * len(small) + 0.18 * math.ceil(len(legend) / ncols)
    height += 0.18 * (len(heads) - 1)
    figure = Figure(figsize=(width, height), facecolor="white", layout="constrained")
    figure.suptitle("\n".join(heads), x=0.01, ha="left", fontsize=11, fontweight="bold")
    body = figure.add_subfigure(figure.add_gridspec(1, 1)[0])  # so that the run title has a line of its own
    body.suptitle("\n".join(small), x=0.01, ha="left", fontsize=8, color="#555555")
    if legend:
        looks = [{"markersize": 5, **look, "label": label} for label, (_, look) in zip(labels, legend, strict=True)]
        handles = [Line2D([], [], **look) for look in looks]
        figure.legend(handles=handles, loc="outside lower center", ncols=ncols)
    panels = body.subplots(rows, columns, squeeze=False, sharex=sharex, sharey=sharey)
    return figure, list(panels.flat)


def _lines(text: str, most: int, size: float, *, bold: bool = False) -> list[str]:
    """A text in so many lines at most, as wide as the figure; the last one loses its middle if it must."""

    def wide(part: str) -> float:
        return points_of(part, size, bold=bold)

    room = 0.97 * 72 * width_in()
    lines, rest = wrapped(text, room, wide), " ".join(text.split())
    if len(lines) <= most:
        return lines
    for line in lines[: most - 1]:
        rest = rest.removeprefix(line).lstrip()
    return [*lines[: most - 1], shortened(rest, room, wide)]


def panel_columns(panels: int) -> int:
    """How many stand beside each other."""
    return 2 if panels == 4 else min(2 if is_narrow() else 3, panels)


def panel_frame(
    heading: str, title: str, panels: Sequence[Panel], legend: Legend, row_in: float = 2.1
) -> tuple[Figure, list[Axes]]:
    """A frame with axes for each panel, which share their scales; a single one has the usual height."""
    columns = panel_columns(len(panels))
    rows = math.ceil(len(panels) / columns)
    height = None if rows == columns == 1 else max(2.4, row_in * rows)
    names = [line.name for panel in panels for line in panel.lines]
    figure, axes = make_frame(
        heading, title, legend, height=height, rows=rows, columns=columns, sharex=True, sharey=True, names=names
    )
    for unused in axes[len(panels) :]:
        unused.set_visible(False)
    for place, (pane, panel) in enumerate(zip(axes, panels, strict=False)):
        pane.set_title(panel.title)
        if place + columns >= len(panels):  # nothing stands below
            pane.xaxis.set_tick_params(labelbottom=True)
    return figure, axes[: len(panels)]


def outer_labels(axes: Sequence[Axes], x: str, y: str) -> None:
    """Axis labels, written once: x below the lowest row's panels, y at the left of all."""
    if len(axes) == 1:
        axes[0].set_xlabel(x)
        axes[0].set_ylabel(y)
        return
    body = axes[0].figure
    body.supxlabel(x, fontsize="medium")
    body.supylabel(y, fontsize="medium")


def are_named_at_ends(panels: Sequence[Panel]) -> bool:
    """Whether lines carry their names at their ends: where these are few and short, and panels wide; else a legend."""
    if panel_columns(len(panels)) > (1 if is_narrow() else 2):
        return False
    most = 14 if len(panels) == 1 and not is_narrow() else 9
    many = 6 if len(panels) == 1 else PANEL_NAMES
    names = (line.name for panel in panels for line in panel.lines)
    return all(len(panel.lines) <= many for panel in panels) and all(width_of(name) <= most for name in names)


def line_entries(panels: Sequence[Panel]) -> Legend:
    """The legend of all lines."""
    lines = {line.name: line for panel in panels for line in panel.lines}
    return tuple((name, {**stroke(line), "marker": line.marker}) for name, line in lines.items() if name)


def end_names(axes: Axes, lines: Sequence[tuple[Line, float]], height_pt: float) -> None:
    """The name of each (line, last y) at the right of a panel so high, level with its end, none on top of another."""
    from matplotlib.transforms import ScaledTranslation

    if len(lines) == 1 and not lines[0][0].name:
        return
    scale = axes.transScale + axes.transLimits
    ends = [(line, float(scale.transform((axes.get_xlim()[1], y))[1])) for line, y in lines]
    ends.sort(key=lambda end: end[1])
    places = apart([place for _, place in ends], _END_PT / height_pt)
    assert axes.figure is not None  # noqa: S101 - of a figure
    aside = ScaledTranslation(_ASIDE_PT / 72, 0, axes.figure.dpi_scale_trans)
    for (line, _), place in zip(ends, places, strict=True):
        mark: Any = {"marker": line.marker, "color": line.colour, "markersize": 4, "linestyle": ""}
        axes.plot([1.0], [place], transform=axes.transAxes + aside, clip_on=False, **mark)
        style: Any = {"va": "center", "fontsize": 8, "color": "#333333"}
        axes.annotate(line.name, (1.0, place), (_ASIDE_PT + 5, 0), "axes fraction", "offset points", **style)


def apart(places: Sequence[float], gap: float) -> list[float]:
    """Ascending places moved as little as needed to be `gap` apart, from 0 up to 1 while they fit."""
    moved: list[float] = []
    for place in places:
        moved.append(max(place, moved[-1] + gap) if moved else max(place, 0.0))
    limit = max(1.0, gap * (len(moved) - 1))
    for at in reversed(range(len(moved))):
        moved[at] = min(moved[at], limit)
        limit = moved[at] - gap
    return moved


# ---- Curves ---------------------------------------------------------------------------------------------


def stroke(line: Line) -> dict[str, Any]:
    """Colour and dashes of a line."""
    return {"color": line.colour, "linestyle": line.dashes}


def suspect_entry(sheet: Sheet, name: str) -> Legend:
    """The legend's entry for hollow markers, if a suspect row has a number in this column."""
    if any(row.get("status") == "suspect" and number(row, name) is not None for row in sheet.rows):
        return (("hollow: suspect", SUSPECT),)
    return ()


def absent_entry(panels: Sequence[Panel], axis: str, name: str) -> Legend:
    """The legend's entry for the marks of `mark_absent`, if there are any."""
    places = [place for panel in panels for line in panel.lines for place in line.curve(axis, name)]
    known = [x for x, y in places if not math.isnan(y)]
    seen = any(math.isnan(y) and min(known) <= x <= max(known) for x, y in places)
    return (("no valid number", ABSENT),) if seen else ()


def mark_absent(axes: Axes, lines: Sequence[Line], axis: str, name: str) -> None:
    """A cross at the foot of a panel for each place at which a line has no valid number, those of others above it."""
    taken: dict[float, int] = {}
    for line in lines:
        for x in (x for x, y in line.curve(axis, name) if math.isnan(y)):
            taken[x] = taken.get(x, 0) + 1
            style: Any = {**ABSENT, "color": line.colour, "markersize": 4.5, "markeredgewidth": 1.2}
            axes.plot([x], [0.06 * taken[x] - 0.02], transform=axes.get_xaxis_transform(), zorder=4, **style)


def draw_markers(axes: Axes, line: Line, points: Sequence[Point], size: float) -> None:
    """Filled markers for valid cells, hollow ones for suspect cells."""
    look: Any = {"linestyle": "", "marker": line.marker, "color": line.colour, "markersize": size}
    for suspect, face in ((False, line.colour), (True, "white")):
        if cells := [point for point in points if (point.row.get("status") == "suspect") == suspect]:
            draw_curve(axes, cells, **look, markeredgewidth=1.1, markerfacecolor=face, zorder=4)


def draw_curve(axes: Axes, points: Sequence[Sequence[Any]], **style: Any) -> list[float]:  # noqa: ANN401 - matplotlib's
    """A line through points, of which the first two items are x and y; returns all y."""
    values = [point[1] for point in points]
    axes.plot([point[0] for point in points], values, **style)
    return values


def draw_lines(axes: Axes, panel: Panel, axis: str, name: str) -> list[float]:
    """Every line of a column over the axis of load, through means, with each cell's interval; all values drawn."""
    values = draw_others(axes, [line.curve(axis, name) for line in panel.others])
    for line in panel.lines:
        points = line.points(axis, name)
        draw_curve(axes, line.curve(axis, name), **stroke(line), linewidth=1.3, zorder=2)
        ends = [(x, number(row, f"{name}_low"), number(row, f"{name}_high")) for x, _, row in points]
        bars = [(x, low, high) for x, low, high in ends if low is not None and high is not None]
        xs, lows, highs = ([bar[place] for bar in bars] for place in range(3))
        axes.vlines(xs, lows, highs, color=line.colour, linewidth=1.0, zorder=3)
        axes.plot(xs + xs, lows + highs, linestyle="", marker="_", markersize=5, color=line.colour, zorder=3)
        draw_markers(axes, line, points, 4.5)
        least = min((point.y for point in points), default=0.0) / 2  # longer intervals leave a log axis at its foot
        values += [point.y for point in points] + [low for low in lows if low > least] + highs
    mark_absent(axes, panel.lines, axis, name)
    return values


def draw_bound(axes: Axes, lines: Sequence[Line], axis: str, name: str) -> list[float]:
    """What the hardware allows at best, dotted: grey where all lines have the same, else in their colours; all y."""
    curves = {line.colour: line.means(axis, name) for line in lines}
    several = len({tuple(curve) for curve in curves.values()}) > 1
    values: list[float] = []
    for colour, curve in curves.items() if several else [(BOUND["color"], next(iter(curves.values()), []))]:
        values += draw_curve(axes, curve, **BOUND | {"color": colour}, zorder=1)
    return values


def draw_others(axes: Axes, lines: Sequence[Sequence[Sequence[Any]]]) -> list[float]:
    """Lines that are not told apart, thin and grey; returns all y."""
    from matplotlib.collections import LineCollection

    if lines:
        curves = [[point[:2] for point in points] for points in lines]
        axes.add_collection(LineCollection(curves, colors="#BBBBBB", linewidths=0.6, zorder=1.5), autolim=False)
    return [point[1] for points in lines for point in points if not math.isnan(point[1])]


# ---- Axes -----------------------------------------------------------------------------------------------


def log2_axis(axes: Axes, values: Sequence[float], label: str, most: int = 12) -> None:
    """A log2 x axis whose ticks are values that occur, thinned until their numbers do not touch."""
    loads = sorted(set(values))
    pad = 2 ** max(0.3, math.log2(loads[-1] / loads[0]) / 24) if len(loads) > 1 else 2.0
    axes.set_xscale("log", base=2)
    ticks = thinned(loads, most)
    axes.set_xticks(ticks, labels=[short(tick) for tick in ticks])
    axes.minorticks_off()
    axes.set_xlim(loads[0] / pad, loads[-1] * (1 + (pad - 1) / 2))
    axes.set_xlabel(label)


def thinned(values: Sequence[float], most: int = 12) -> list[float]:
    """Of ascending positive values those that stand apart on a log axis; powers of two where they are many."""
    if len(values) > most:
        powers = [value for value in values if math.log2(value).is_integer()]
        values = powers if len(powers) > 2 else values
    gap = math.log2(values[-1] / values[0]) / most
    kept = list(values[:1])
    for value in values[1:]:
        if math.log2(value / kept[-1]) >= gap:
            kept.append(value)
    return kept


def value_axis(axes: Axes, values: Sequence[float], label: str, wide: float) -> str:
    """A linear y axis from 0, or a log one ticked at 1, 2, 5 if the values span more than ``wide`` times; its label."""
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
    return label


def wide_span(values: Sequence[float], least: float = 0.5) -> tuple[float, float]:
    """Ends of a linear axis that holds the values and spans at least `least` of their middle: noise stays small."""
    low, high = min(values), max(values)
    half = max(0.58 * (high - low), least * (low + high) / 4)
    return max(0.0, (low + high) / 2 - half), (low + high) / 2 + half


def short(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 or value == int(value) else f"{value:g}"
