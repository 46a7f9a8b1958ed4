"""Figures of summary rows, as PNG and SVG: throughput, TTFT, Pareto, heat map, and one cell's timeline.

Drawn with matplotlib's figure objects, never pyplot; what is shown is decided in `choose`. Invalid cells are left out
and counted in the small print; suspect ones are hollow, or starred in the heat map.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchbench.datasets.row_lengths import tokens_text
from benchbench.figures import choose
from benchbench.figures import sheet as sheets
from benchbench.figures.choose import Line, Panel, Point, Sheet, variant_of
from benchbench.figures.grid import SHOWN_COLUMNS, SHOWN_ROWS, Bar, GridCell, draw_grid
from benchbench.figures.phases import Timeline, draw_timeline
from benchbench.figures.schemes import follow_scheme
from benchbench.figures.sheet import Legend
from benchbench.figures.trade_off import pareto
from benchbench.report.summary_table import Row, number

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["Timeline", "draw_plots", "figures", "write_figures"]

PNG_DPI = 200
_TICK: Any = {"marker": "|", "linestyle": "", "markersize": 9, "markeredgewidth": 1.3}
LOG_FROM = 8.0  # a y axis that spans more than this is logarithmic


def draw_plots(
    rows: list[Row],
    timeline: Timeline | None,
    out: Path,
    title: str,
    formats: Sequence[str] = ("png", "svg"),
) -> list[Path]:
    """Draw every figure whose data exist into ``out``, which is made, and return the files written.

    ``throughput``, ``scaling``, ``ttft_batch``, ``ttft_input``, ``pareto``, ``heatmap`` and ``timeline``, each in every
    format. Cells that make no curve, as those of one load, are dots with intervals; one alone is no figure, nor are
    few points. ``title`` names the run, in small print (`caption.run_title`). Where no row has a batch the axis is the
    rate. The same rows give the same bytes of SVG. Raises ValueError for a format other than png or svg, OSError if a
    file cannot be written.
    """
    if unknown := sorted(set(formats) - {"png", "svg"}):
        raise ValueError(f"unknown plot format {', '.join(unknown)} (allowed: png, svg)")
    return write_figures(figures(rows, timeline, title), out, formats)


def write_figures(named: Iterable[tuple[str, Figure]], out: Path, formats: Sequence[str]) -> list[Path]:
    """Draw named figures, as they come, into `out`, which is made; the files. Raises OSError."""
    import warnings

    import matplotlib as mpl

    out.mkdir(parents=True, exist_ok=True)
    with mpl.rc_context(sheets.STYLE), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing")  # the subtitle says so
        return [path for name, figure in named for path in _write(figure, out / name, formats)]


def figures(rows: Sequence[Row], timeline: Timeline | None, title: str) -> Iterator[tuple[str, Figure]]:
    """Each figure whose data exist, with its name; to be drawn and written in the style of `sheet.STYLE`."""
    sheet = choose.make_sheet(rows, title)
    for draw in (_throughput, _scaling, _ttft_batch, _ttft_input, pareto, _heatmap):
        if figure := draw(sheet):
            yield draw.__name__.lstrip("_"), figure
    if timeline and (figure := draw_timeline(timeline, title)):
        yield "timeline", figure


def _write(figure: Figure, stem: Path, formats: Sequence[str]) -> list[Path]:
    """Each format of one figure, whose parts are placed once."""
    engine = figure.get_layout_engine()
    if engine:
        engine.execute(figure)
        figure.set_layout_engine("none")
    return [_write_one(figure, stem.with_name(f"{stem.name}.{form}")) for form in formats]


def _write_one(figure: Figure, path: Path) -> Path:
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
        follow_scheme(path)
    return path


def _throughput(sheet: Sheet) -> Figure | None:
    """Sys tok/s over the load. Log-log: what grows with the batch is straight, and cannot cross its ideal."""
    return _over_load(sheet, "System throughput", "sys_tok_s", "sys_tok_s_bound", "Sys tok/s (output)")


def _ttft_batch(sheet: Sheet) -> Figure | None:
    return _over_load(sheet, "Time to first token", "ttft_ms", "ttft_bound_ms", "TTFT (ms)")


def _scaling(sheet: Sheet) -> Figure | None:
    """Sys tok/s as a share of the ideal: where a larger batch stops to pay."""
    shares = choose.with_shares(sheet)
    if not choose.loads_of(shares, choose.SHARE):
        return None
    return _over_load(shares, "Share of ideal throughput", choose.SHARE, "", "Sys tok/s (% of ideal)")


def _over_load(sheet: Sheet, heading: str, name: str, bound: str, label: str) -> Figure | None:
    """A column and its bounds over the load, in panels; cells that make no curve as dots."""
    heading += ", mean and 95 % interval"
    if not choose.loads_of(sheet, name):
        return _dots(sheet, heading, name, bound, label)
    panels, note = choose.panels_of(sheet, name)
    ideals = [_ideal_slopes(panel, sheet.axis) if name == "sys_tok_s" else [] for panel in panels]
    smallest = min(row[sheet.axis] for row in sheet.rows)
    ideal: Legend = (
        ((f"ideal: batch {sheets.short(smallest)} times n", sheets.IDEAL),)
        if any(ideals) or name == choose.SHARE
        else ()
    )
    entries = () if sheets.are_named_at_ends(panels) else sheets.line_entries(panels)
    marks = (*sheets.suspect_entry(sheet, name), *sheets.absent_entry(panels, sheet.axis, name))
    legend = (*entries, *ideal, *_bound_entry(sheet, bound), *marks)
    if sheet.crowd:
        legend += ((f"{len(sheet.crowd)} others", {"color": choose.GREY}),)
    figure, axes = sheets.panel_frame(heading, sheet.title + note, panels, legend)
    values: list[float] = []
    for pane, panel, slopes in zip(axes, panels, ideals, strict=True):
        values += sheets.draw_lines(pane, panel, sheet.axis, name)
        values += sheets.draw_bound(pane, panel.lines, sheet.axis, bound)
        values += _draw_ideal(pane, panel, sheet.axis, slopes)
        if name == choose.SHARE:
            pane.axhline(100, **sheets.IDEAL, zorder=1)
            values.append(100)
    _scales(axes, panels, sheet, values, label, math.inf if name == choose.SHARE else LOG_FROM)
    _name_ends(axes, panels, sheet.axis, name)
    return figure


def _scales(
    axes: Sequence[Axes], panels: Sequence[Panel], sheet: Sheet, values: Sequence[float], label: str, wide: float
) -> None:
    """The shared scales of panels over the load, and what they are."""
    loads = [row[sheet.axis] for panel in panels for line in (*panel.lines, *panel.others) for row in line.rows]
    for pane in axes:
        sheets.log2_axis(pane, loads, "", most=12 if len(axes) == 1 else 7)
        label_of = sheets.value_axis(pane, values, label, wide=wide)
        pane.set_ylabel("")
    sheets.outer_labels(axes, sheet.axis_label, label_of)


def _name_ends(axes: Sequence[Axes], panels: Sequence[Panel], axis: str, name: str) -> None:
    """Names at the ends of lines, if these carry their names."""
    height_pt = 190 if len(axes) == 1 else 95
    for pane, panel in zip(axes, panels, strict=True) if sheets.are_named_at_ends(panels) else ():
        ends = [(line, means[-1][1]) for line in panel.lines if (means := line.means(axis, name))]
        sheets.end_names(pane, ends, height_pt)


def _ideal_slopes(panel: Panel, axis: str) -> list[float]:
    """Sys tok/s per request in flight at the smallest batch, of each line that goes on to a larger one."""
    curves = [curve for line in panel.lines if axis == "batch" and (curve := line.means(axis, "sys_tok_s"))]
    smallest = min((curve[0][0] for curve in curves), default=0)
    return [curve[0][1] / smallest for curve in curves if curve[0][0] == smallest < curve[-1][0]]


def _draw_ideal(axes: Axes, panel: Panel, axis: str, slopes: Sequence[float]) -> list[float]:
    """Each line has an ideal of its own; they differ little, so that a band stands for them all."""
    if not slopes:
        return []
    loads = [row[axis] for line in panel.lines for row in line.rows]
    ends = [min(loads), max(loads)]
    low, high = ([slope * x for x in ends] for slope in (min(slopes), max(slopes)))
    axes.fill_between(ends, low, high, color="#EEEEEE", zorder=1)
    for edge in (low, high) if high[0] > 1.1 * low[0] else (high,):
        axes.plot(ends, edge, **sheets.IDEAL, zorder=1)
    return [high[-1]]


def _bound_entry(sheet: Sheet, name: str) -> Legend:
    """The legend's entry for the hardware's bound, if any row has a number in this column."""
    return (("dotted: speed of light", sheets.BOUND),) if sheet.has(name) else ()


def _dots(sheet: Sheet, heading: str, name: str, bound: str, label: str) -> Figure | None:
    """Cells that make no curve, side by side: a line each, its dot and interval; a single one is no picture."""
    lines, note = choose.dots_of(sheet, name)
    if len(lines) < 2:
        return None
    names = [line.name for line in lines]
    limit: Legend = (("tick: speed of light", {"color": sheets.BOUND["color"], **_TICK}),) if sheet.has(bound) else ()
    legend, height = (*limit, *sheets.suspect_entry(sheet, name)), max(0.9, 0.22 * len(lines))
    figure, (axes,) = sheets.make_frame(heading, sheet.title + note, legend, height=height, names=names)
    values: list[float] = []
    for y, line in enumerate(lines):
        row = line.rows[0]
        ends = [end for way in ("low", "high") if (end := number(row, f"{name}_{way}")) is not None]
        axes.plot(ends, [y] * len(ends), color=line.colour, linewidth=1.4)
        value = number(row, name) or 0.0
        sheets.draw_markers(axes, line, [Point(value, y, row)], 5)
        values += [value, *ends]
        if (best := number(row, bound)) is not None:
            axes.plot([best], [y], color=sheets.BOUND["color"], **_TICK)
            values.append(best)
    axes.set_yticks(range(len(names)), labels=names)
    axes.set_ylim(len(names) - 0.4, -0.6)
    axes.tick_params(axis="y", length=0)
    axes.grid(visible=False, axis="y")
    axes.set_xlim(0, 1.06 * max(values) or 1)
    axes.xaxis.set_major_formatter(lambda value, _: sheets.short(value))
    axes.set_xlabel(label)
    return figure


def _ttft_input(sheet: Sheet) -> Figure | None:
    """TTFT over input, through the mean over output lengths: a line a load; with variants a panel a load."""
    rows = [row for row in sheet.rows if number(row, "ttft_ms") is not None and number(row, "input")]
    inputs = sorted({row["input"] for row in rows})
    if len(inputs) < 2 or len(rows) < choose.POINTS:
        return None
    loads = sorted({row[sheet.axis] for row in rows})
    drawn = choose.spread(loads, choose.LINES)
    note = f" · {len(drawn)} of {len(loads)} loads" if len(drawn) < len(loads) else ""
    word = "batch" if sheet.axis == "batch" else "rate"
    panels = _input_panels(sheet, rows, drawn, word)
    panels = choose.with_absent(sheet, panels, "ttft_ms", (sheet.axis, "variant", "output"))
    entries = () if sheets.are_named_at_ends(panels) else sheets.line_entries(panels)
    marks = (*sheets.suspect_entry(sheet, "ttft_ms"), *sheets.absent_entry(panels, "input", "ttft_ms"))
    legend = (*entries, *_bound_entry(sheet, "ttft_bound_ms"), *marks)
    heading = "Time to first token over input length, mean"
    figure, axes = sheets.panel_frame(heading, sheet.title + note, panels, legend)
    values: list[float] = []
    for pane, panel in zip(axes, panels, strict=True):
        values += sheets.draw_others(pane, [line.curve("input", "ttft_ms") for line in panel.others])
        for line in panel.lines:
            points = line.points("input", "ttft_ms")
            sheets.draw_curve(pane, line.curve("input", "ttft_ms"), **sheets.stroke(line), linewidth=1.3)
            sheets.draw_markers(pane, line, points, 4)
            values += [point.y for point in points]
        values += sheets.draw_bound(pane, panel.lines, "input", "ttft_bound_ms")
        sheets.mark_absent(pane, panel.lines, "input", "ttft_ms")
    for pane in axes:
        sheets.log2_axis(pane, inputs, "", most=12 if len(axes) == 1 else 5)
        label = sheets.value_axis(pane, values, "TTFT (ms)", wide=LOG_FROM)
        pane.set_ylabel("")
    several = len({row["output"] for row in rows}) > 1
    sheets.outer_labels(axes, "Input (tokens)" + ("; lines are means over output lengths" if several else ""), label)
    _name_ends(axes, panels, "input", "ttft_ms")
    return figure


def _input_panels(sheet: Sheet, rows: Sequence[Row], loads: Sequence[float], word: str) -> list[Panel]:
    """Of variants a panel a load, else one panel with a line a load."""
    of: dict[tuple[float, str], list[Row]] = {}
    for row in rows:
        of.setdefault((row[sheet.axis], variant_of(row)), []).append(row)
    names = [f"{word} {sheets.short(load)}" for load in loads]
    if sheet.named:
        return [
            Panel(
                name,
                tuple(Line(sheet.names[v], tuple(of[x, v]), *sheet.look(v)) for v in sheet.variants if (x, v) in of),
                tuple(
                    Line(sheet.names[v], tuple(of[x, v]))
                    for v in choose.spread(sheet.crowd, choose.OTHERS)
                    if (x, v) in of
                ),
            )
            for name, x in zip(names, loads, strict=True)
        ]
    drawn = [(name, of[x, ""]) for name, x in zip(names, loads, strict=True) if (x, "") in of]
    return [Panel("", tuple(Line(name, tuple(own), *choose.looks(n)) for n, (name, own) in enumerate(drawn)))]


def _heatmap(sheet: Sheet) -> Figure | None:
    """Sys tok/s as a grid: a row per shape, a column per batch (or rate), grey where there is no number."""
    import matplotlib as mpl
    from matplotlib.colors import Normalize

    rows = [r for r in sheet.rows if number(r, "sys_tok_s") is not None and variant_of(r) in sheet.variants]
    if len(rows) < choose.POINTS:
        return None
    of: dict[tuple[int, int, str], list[Row]] = {}
    for row in rows:
        of.setdefault((row["input"], row["output"], variant_of(row)), []).append(row)
    every = sorted({key[:2] for key in of})
    drawn = choose.spread(every, max(4, SHOWN_ROWS // len(sheet.variants)))
    shapes = [(*shape, variant) for shape in drawn for variant in sheet.variants if (*shape, variant) in of]
    every_load = sorted({row[sheet.axis] for row in rows})
    loads = choose.spread(every_load, SHOWN_COLUMNS)
    title = sheet.title + (" · *: suspect" if sheets.suspect_entry(sheet, "sys_tok_s") else "")
    title += f" · {len(drawn)} of {len(every):,} shapes" if len(drawn) < len(every) else ""
    title += f" · {len(loads)} of {len(every_load):,} loads" if len(loads) < len(every_load) else ""
    scale, norm = mpl.colormaps["cividis"].resampled(16), Normalize(0, max(row["sys_tok_s"] for row in rows) or 1.0)
    cells = [
        GridCell(
            loads.index(row[sheet.axis]),
            y,
            f"{row['sys_tok_s']:,.{int(row['sys_tok_s'] < 1000)}f}{'*' * (row.get('status') == 'suspect')}",
            scale(norm(row["sys_tok_s"])),
        )
        for y, shape in enumerate(shapes)
        for row in of[shape]
        if row[sheet.axis] in loads
    ]
    names = [f"{tokens_text(i)} → {o:,}" + (f", {sheet.names[v]}" if sheet.named else "") for i, o, v in shapes]
    heading = "System throughput (Sys tok/s)"
    return draw_grid(heading, title, names, loads, sheet.axis_label, cells, Bar(scale, norm, "Sys tok/s"))
