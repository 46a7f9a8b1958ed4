"""Figures of a history: small multiples, a panel a cell, with the levels and the commits at which they change."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchbench.comparison.verdicts import BETTER, TITLES
from benchbench.figures import sheet as sheets
from benchbench.figures.choose import COLOURS
from benchbench.figures.plots import write_figures
from benchbench.history.history_tables import day, interval_of, levels_of
from benchbench.history.series import Segment, Series
from benchbench.spec.cell import cell_name

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

PANELS = 12
NIGHT: Any = {"color": "#777777", "marker": "o", "linestyle": "", "markersize": 2.6}
UNUSED: Any = {"color": "#444444", "marker": "x", "linestyle": "", "markersize": 4.5}
LEVEL: Any = {"color": COLOURS[0], "linewidth": 1.8}
WORSE: Any = {"color": COLOURS[1], "linewidth": 1.2}
BETTER_LINE: Any = {"color": COLOURS[2], "linewidth": 1.2}
SEGMENT: Any = {"color": "#444444", "linewidth": 1.0, "linestyle": (0, (1, 2))}


def draw_history(series: Sequence[Series], out: Path, formats: Sequence[str] = ("png", "svg")) -> list[Path]:
    """Draw `history_METRIC` into `out`, which is made, for each metric; the files. Raises OSError."""
    return write_figures(history_figures(series), out, formats)


def history_figures(series: Sequence[Series]) -> Iterator[tuple[str, Figure]]:
    """The figure of each metric, with its name; to be drawn and written in `sheet.STYLE`."""
    for metric in dict.fromkeys(each.metric for each in series):
        yield f"history_{metric}", _figure([each for each in series if each.metric == metric], metric)


def _figure(series: Sequence[Series], metric: str) -> Figure:
    """Those with steps first, the latest step first."""
    ranked = sorted(series, key=lambda each: -max((c.first.when_ns for _, c in each.changes), default=0))
    shown = ranked[:PANELS]
    columns = min(2 if sheets.width_in() > 6 else 1, len(shown))
    rows = math.ceil(len(shown) / columns)
    nights = {id(p.night): p.night for each in series for segment in each.segments for p in segment.points}
    days = sorted(day(night.when_ns) for night in nights.values())
    title = f"{len(nights)} nights, {days[0]} to {days[-1]}; bars: 95 % over the starts of a night"
    title += f" · {PANELS} of {len(series)} series, those with steps first" if len(series) > PANELS else ""
    shifts = [change.step.shift for each in shown for _, change in each.changes]
    unused = any(p.use != "used" for each in shown for segment in each.segments for p in segment.points)
    marks = [
        *(("a night", NIGHT, True), ("level", LEVEL, True), ("not used", UNUSED, unused)),
        *(
            ("step for the worse", WORSE, min(shifts, default=0) < 0),
            ("better", BETTER_LINE, max(shifts, default=0) > 0),
        ),
        ("other conditions", SEGMENT, any(len(each.segments) > 1 for each in shown)),
    ]
    legend: sheets.Legend = tuple((name, look) for name, look, there in marks if there)
    heading = f"{TITLES[metric]} over nights"
    size: Any = {"height": max(2.6, 1.75 * rows), "rows": rows, "columns": columns}
    figure, panels = sheets.make_frame(heading, title, legend, **size, names=[str(each.cell) for each in shown])
    for axes, each in zip(panels, shown, strict=False):
        _panel(axes, each)
    for axes in panels[len(shown) :]:
        axes.set_visible(False)
    return figure


def _panel(axes: Axes, each: Series) -> None:
    """Nights in their order, all segments of a series side by side; times in ms."""
    scale = 1e3 if BETTER[each.metric] < 0 else 1.0
    points = [point for segment in each.segments for point in segment.points]
    used = [scale * each.unit(point.value.log) for point in points if point.use == "used" and point.value]
    low, high = sheets.wide_span(used, 0.12)
    lines = min(3, len(each.changes))  # of names at steps, which stand above the nights
    axes.set_ylim(low, high + (high - low) * 0.1 * lines / (1 - 0.1 * lines))
    axes.set_xlim(-1, len(points))
    start = 0
    for number, segment in enumerate(each.segments):
        if number:
            axes.axvline(start - 0.5, **SEGMENT, zorder=1)
        _segment(axes, each, segment, start, scale)
        start += len(segment.points)
    axes.set_title(cell_name(dict(each.cell)))
    places = sorted({round(k * (start - 1) / 4) for k in range(5)})
    axes.set_xticks(places, labels=[day(points[place].night.when_ns)[5:] for place in places])
    axes.set_ylabel("ms" if scale > 1 else {"goodput_req_s": "req/s"}.get(each.metric, "tok/s"), fontsize=8)
    axes.tick_params(labelsize=7.5)


def _segment(axes: Axes, each: Series, segment: Segment, start: int, scale: float) -> None:
    """Its nights, levels and steps. What is not used stands at the foot where it lies outside, or has no value."""
    levels, spans, (bottom, top) = levels_of(segment), dict[float, list[int]](), axes.get_ylim()
    steps = {id(segment.known[step.at]): step for step in segment.changes.steps}
    for place, point in enumerate(segment.points, start):
        if (level := levels.get(id(point))) is not None:
            spans.setdefault(level, []).append(place)
        value = bottom if point.value is None else scale * each.unit(point.value.log)
        value = min(max(value, bottom + 0.04 * (top - bottom)), top - 0.04 * (top - bottom))
        axes.plot([place], [value], **(NIGHT if point.use == "used" else UNUSED), zorder=3)
        low, high = interval_of(each, point)
        if low is not None and high is not None and point.use == "used":
            axes.vlines([place], [scale * low], [scale * high], color=NIGHT["color"], linewidth=0.6, zorder=2)
        if step := steps.get(id(point)):
            axes.axvline(place - 0.5, **(WORSE if step.shift < 0 else BETTER_LINE), zorder=1.5)
            change = 100 * math.expm1(step.shift * BETTER[each.metric])  # of the figure itself: of times up is worse
            _name_step(axes, place - 0.5, f"{point.night.build[:9]} {change:+.1f} %", len(spans) - 2)
    for level, places in spans.items():
        ends, height = [places[0] - 0.5, places[-1] + 0.5], scale * each.unit(level)
        axes.plot(ends, [height, height], **LEVEL, zorder=4)


def _name_step(axes: Axes, place: float, text: str, number: int) -> None:
    """The commit at a step's line, on the side with more room; the next one a line lower."""
    right = place < sum(axes.get_xlim()) / 2
    style: Any = {"ha": "left" if right else "right", "va": "top", "fontsize": 7.5, "color": "#333333"}
    box: Any = {"facecolor": "#FFFFFF", "edgecolor": "none", "pad": 0.6, "alpha": 0.7}
    at = (place, 0.98 - 0.09 * (number % 3))
    offset = (3 if right else -3, 0)
    text = text.replace("-", "\N{MINUS SIGN}")
    axes.annotate(text, at, offset, ("data", "axes fraction"), "offset points", zorder=5, bbox=box, **style)
