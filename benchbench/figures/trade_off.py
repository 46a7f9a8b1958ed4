"""Throughput against the speed of one stream: what a larger batch costs the one who waits."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from benchbench.figures import choose
from benchbench.figures import sheet as sheets
from benchbench.figures.choose import Line, Point, Sheet
from benchbench.report.summary_table import Row, number

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


def pareto(sheet: Sheet) -> Figure | None:
    """Sys tok/s against the speed of one stream, in panels; each point with its batch."""
    fast = [row | {"stream": speed} for row in sheet.rows if (speed := _stream_tok_s(row))]
    slow = [row for row in sheet.rows if not _stream_tok_s(row)]
    plane = replace(sheet, rows=tuple(fast), left_out=(*sheet.left_out, *slow))
    if len({row[sheet.axis] for row in fast}) < 2 or choose.loads_of(plane, "sys_tok_s") < choose.POINTS:
        return None
    panels, note = choose.panels_of(plane, "sys_tok_s")
    legend = (*sheets.line_entries(panels), *sheets.suspect_entry(sheet, "sys_tok_s"))
    if sheet.crowd:
        legend += ((f"{len(sheet.crowd)} others", {"color": choose.GREY}),)
    heading = "Throughput against speed per stream, means"
    curves = [[(line, _front(line, sheet.axis)) for line in (*panel.lines, *panel.others)] for panel in panels]
    points = [point for of in curves for _, curve in of for point in curve if not math.isnan(point.y)]
    if len(points) < sum(len(curve) for of in curves for _, curve in of):
        note += f" · a line breaks where a {'batch' if sheet.axis == 'batch' else 'rate'} has no valid number"
    figure, axes = sheets.panel_frame(heading, sheet.title + note, panels, legend, row_in=2.3)
    ends, label = sheets.wide_span([point.x for point in points]), ""
    for pane, panel, of in zip(axes, panels, curves, strict=True):
        sheets.draw_others(pane, [curve for line, curve in of if line in panel.others])
        for line, curve in of[: len(panel.lines)]:
            sheets.draw_curve(pane, curve, **sheets.stroke(line), linewidth=1.1, alpha=0.8)
            sheets.draw_markers(pane, line, curve, 4.5)
        pane.set_xlim(*ends)
        pane.xaxis.set_major_locator(_few_ticks(len(axes)))
        label = sheets.value_axis(pane, [point.y for point in points], "Sys tok/s (output)", wide=math.inf)
        pane.set_ylabel("")
        room = (0.04, 0.045) if len(axes) == 1 else (0.12, 0.08)
        _name_points(pane, [curve for _, curve in of[: len(panel.lines)]], sheet.axis, room)
    sheets.outer_labels(axes, f"tok/s per stream (numbers at points: {sheet.axis})", label)
    return figure


def _few_ticks(panels: int) -> Any:  # noqa: ANN401 - matplotlib's
    from matplotlib.ticker import MaxNLocator

    return MaxNLocator(8 if panels == 1 else 4)


def _front(line: Line, axis: str) -> list[Point]:
    """(tok/s of one stream, Sys tok/s) in the order of the load; NaN where one between two has no number."""
    known = [(x, Point(row["stream"], y, row)) for x, y, row in line.points(axis, "sys_tok_s")]
    inner = [x for x, y in line.curve(axis, "sys_tok_s") if math.isnan(y) and known[0][0] < x < known[-1][0]]
    gaps = [(x, Point(math.nan, math.nan, {})) for x in inner]
    return [point for _, point in sorted([*known, *gaps], key=lambda place: place[0])]


def _name_points(axes: Axes, curves: Sequence[Sequence[Point]], axis: str, room: tuple[float, float]) -> None:
    """The load at each point, right above or left below it, unless numbers stand at both."""
    scale, taken = axes.transScale + axes.transLimits, list[tuple[float, float]]()
    known = (point for curve in curves for point in curve if point.row)
    for point in sorted(known, key=lambda point: -point.y):
        x, y = scale.transform((point.x, point.y))
        for side, offset, align in ((1, (4, 4), "left"), (-1, (-4, -10), "right")):
            at = (x + side * room[0] / 2, y + side * room[1] / 2)
            inside = side > 0 or (at[0] > room[0] / 2 and at[1] > room[1] / 2)  # not across an axis
            if inside and all(abs(at[0] - a) > room[0] or abs(at[1] - b) > room[1] for a, b in taken):
                taken.append(at)
                style: Any = {"ha": align, "fontsize": 7.5, "color": "#333333"}
                axes.annotate(sheets.short(point.row[axis]), point[:2], offset, textcoords="offset points", **style)
                break


def _stream_tok_s(row: Row) -> float | None:
    tpot = number(row, "tpot_ms")
    return number(row, "stream_tok_s") or (1e3 / tpot if tpot else None)
