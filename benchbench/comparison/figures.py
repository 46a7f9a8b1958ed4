"""Figures of a comparison: ratios with intervals, ratios over the grid, both sides' curves, and the baseline over time.

Drawn as `plots` draws. Verdicts have a colour of Okabe and Ito's and a marker of their own.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, Any

from benchbench.analysis.stats import two_stage_estimate
from benchbench.comparison.pairs import Pair
from benchbench.comparison.tables import cells_of, headline
from benchbench.comparison.verdicts import PRIMARY, TITLES, Effect
from benchbench.figures import sheet as sheets
from benchbench.figures.plots import write_figures

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from benchbench.spec.cell import CellInfo

LOOKS: dict[str, dict[str, Any]] = {
    "faster": {"color": "#0072B2", "marker": ">"},
    "slower": {"color": "#D55E00", "marker": "<"},
    "equivalent": {"color": "#009E73", "marker": "D"},
    "undecided": {"color": "#777777", "marker": "o", "markerfacecolor": "white"},
}
SIDES = (("#E69F00", "s", (0, (5, 2))), ("#0072B2", "o", "-"))  # base, candidate
PANELS = 12


def draw_comparisons(
    pairs: Sequence[Pair], out: Path, title: str, formats: Sequence[str] = ("png", "svg")
) -> list[Path]:
    """Draw every figure whose data exist into `out`, which is made, and return the files written.

    `compare_forest`, `compare_heatmap`, `compare_curves`, `compare_blocks`; of several candidates each with its name.
    """
    named = (
        (f"{name}-{pair.candidate}" if len(pairs) > 1 else name, figure)
        for pair in pairs
        for name, figure in comparison_figures(pair, title)
    )
    return write_figures(named, out, formats)


def comparison_figures(pair: Pair, title: str) -> Iterator[tuple[str, Figure]]:
    """Each figure of a comparison whose data exist, with its name; to be drawn and written in `sheet.STYLE`."""
    small = f"{title} · {pair.candidate} against {pair.base}"
    for draw in (_forest, _heatmap, _curves, _blocks) if pair.compared.cells else ():
        if figure := draw(pair, small):
            yield f"compare_{draw.__name__.lstrip('_')}", figure


def overview(pairs: Sequence[Pair], title: str) -> Figure | None:
    """The geometric means of many candidates against one baseline, the best first."""
    overalls = [(overall.ratio.point, pair) for pair in pairs if (overall := headline(pair))]
    ranked = [pair for _, pair in sorted(overalls, key=lambda known: -known[0])]
    if not ranked:
        return None
    names = [pair.candidate for pair in ranked]
    heading = f"Which is better than {pairs[0].base}? (geometric means)"
    rows = {
        metric: [(line, overall) for line, pair in enumerate(ranked) if (overall := headline(pair, metric))]
        for metric in PRIMARY
    }
    return _ratio_panels(heading, title, names, rows, pairs[0].margin)


def _shape(cell: CellInfo) -> str:
    return f"{cell.input:,} → {cell.output:,}"


def _load(cell: CellInfo) -> float:
    return cell.batch if cell.batch is not None else float(cell.rate or 0)


def _forest(pair: Pair, title: str) -> Figure | None:
    """Ratios as percent better, a line a cell; the geometric mean stands last, below a rule."""
    metrics = [metric for metric in PRIMARY if cells_of(pair, [metric])]
    labels = [comparison.cell for comparison in cells_of(pair, metrics[:1])]
    names = [f"{_shape(pair.cells[label])} at {sheets.short(_load(pair.cells[label]))}" for label in labels]
    batched = all(cell.batch is not None for cell in pair.cells.values())
    rows: dict[str, list[tuple[float, Effect]]] = {}
    for metric in metrics:
        rows[metric] = [(labels.index(c.cell), c) for c in cells_of(pair, [metric]) if c.cell in labels]
        if overall := headline(pair, metric):
            rows[metric].append((len(labels), overall))
    heading = f"Is {pair.candidate} better than {pair.base}? (in → out at {'batch' if batched else 'rate'})"
    figure = _ratio_panels(heading, title, [*names, "geometric mean"], rows, pair.margin)
    for axes in figure.axes:
        axes.axhline(len(labels) - 0.5, color="#BBBBBB", linewidth=0.6)
    return figure


def _ratio_panels(
    heading: str,
    title: str,
    names: Sequence[str],
    rows: Mapping[str, Sequence[tuple[float, Effect]]],
    margin: float,
) -> Figure:
    """A panel a metric, a line a name: (line, ratio) of each that is known."""
    row_in = max(0.15, min(0.26, 9 / len(names)))
    legend = tuple((name, {"linestyle": "-", **look}) for name, look in LOOKS.items())
    height = row_in * (len(names) + 1)
    figure, panels = sheets.make_frame(heading, title, legend, height=height, columns=len(rows), sharey=True)
    panels[0].set_yticks(range(len(names)), labels=[sheets.cut(name, sheets.name_room()) for name in names])
    panels[0].set_ylim(len(names) - 0.25, -0.75)
    for axes, (metric, points) in zip(panels, rows.items(), strict=True):
        _ratios(axes, points, margin)
        axes.tick_params(axis="y", length=0, labelsize=min(9.0, row_in * 45))
        axes.grid(visible=False, axis="y")
        axes.set_xlabel(f"{TITLES[metric]}: % better")
    return figure


def _ratios(axes: Axes, rows: Sequence[tuple[float, Effect]], margin: float) -> None:
    """Points and intervals in percent; intervals that are much wider than the points' spread leave the picture."""
    points = [100 * (effect.ratio.point - 1) for _, effect in rows]
    intervals = [
        [100 * (min(end, 1e6) - 1) for end in (effect.ratio.low, effect.ratio.high) if end is not None]
        for _, effect in rows
    ]
    band, ends = 100 * margin, [end for interval in intervals for end in interval]
    reach = 1.1 * min(max(map(abs, [*points, *ends, 2 * band])), max(3 * max(map(abs, points)), 6 * band))
    axes.axvspan(100 * (1 / (1 + margin) - 1), band, color="#EEEEEE", zorder=0)
    axes.axvline(0, color="#888888", linewidth=0.8, zorder=1)
    for (y, effect), point, interval in zip(rows, points, intervals, strict=True):
        look = LOOKS[effect.verdict]
        axes.plot(interval, [y] * len(interval), color=look["color"], linewidth=1.4, zorder=2)
        axes.plot([point], [y], **{"linestyle": "", "markersize": 5, "markeredgewidth": 1.2, **look}, zorder=3)
    axes.set_xlim(-reach, reach)


def _heatmap(pair: Pair, title: str) -> Figure | None:
    """Sys tok/s as percent better: a row per shape, a column per batch (or rate)."""
    from matplotlib.colors import LinearSegmentedColormap

    ratios = cells_of(pair, PRIMARY[:1])
    if not ratios:
        return None
    shapes = sorted({(cell.input, cell.output) for cell in pair.cells.values()})
    loads = sorted({_load(pair.cells[comparison.cell]) for comparison in ratios})
    scale = LinearSegmentedColormap.from_list("better", ["#D55E00", "#F7F7F7", "#0072B2"])
    reach = max(2 * pair.margin, *(abs(ratio.ratio.point - 1) for ratio in ratios))
    cells = []
    for comparison in ratios:
        cell, change = pair.cells[comparison.cell], comparison.ratio.point - 1
        mark = {"equivalent": " =", "undecided": " ?"}.get(comparison.verdict, "")
        cells.append(
            sheets.GridCell(
                loads.index(_load(cell)),
                shapes.index((cell.input, cell.output)),
                f"{100 * change:+.1f}".replace("-0.0", "+0.0") + mark,
                scale(0.5 + change / reach / 2),
                bold=not mark,
            )
        )
    heading = f"Sys tok/s: change from {pair.base} to {pair.candidate} (%)"
    small = title + " · bold: faster or slower, =: equivalent, ?: undecided"
    batched = pair.cells[ratios[0].cell].batch is not None
    label = "Batch (requests in flight)" if batched else "Request rate (req/s)"
    return sheets.draw_grid(heading, small, [f"{i:,} → {o:,}" for i, o in shapes], loads, label, cells)


def _values(pair: Pair, cell: str, side: str) -> list[float]:
    """Sys tok/s of one side's starts."""
    samples = (sample for sample in pair.samples if sample.cell == cell and sample.metric == PRIMARY[0])
    return [value for sample in samples if (value := getattr(sample, side)) is not None]


def _curves(pair: Pair, title: str) -> Figure | None:
    """Sys tok/s of both sides over the load, a panel a shape; bars are 95 % intervals over starts."""
    cells = [(comparison.cell, pair.cells[comparison.cell]) for comparison in cells_of(pair, PRIMARY[:1])]
    shapes = sorted({(cell.input, cell.output) for _, cell in cells})
    if not shapes:
        return None
    cut = f" · the first {PANELS} of {len(shapes)} shapes" if len(shapes) > PANELS else ""
    shapes = shapes[:PANELS]
    columns = min(3 if sheets.width_in() > 6 else 2, len(shapes))
    rows = math.ceil(len(shapes) / columns)
    legend = tuple(
        (name, {"color": colour, "marker": marker, "linestyle": dash})
        for name, (colour, marker, dash) in zip((pair.base, pair.candidate), SIDES, strict=True)
    )
    heading, height = "Sys tok/s of both, 95 % intervals over starts", (3.2 if columns == 1 else 2.1) * rows
    figure, panels = sheets.make_frame(heading, title + cut, legend, height=height, rows=rows, columns=columns)
    for axes, shape in zip(panels, shapes, strict=False):
        loads = [(_load(cell), label) for label, cell in cells if (cell.input, cell.output) == shape]
        _panel(axes, pair, sorted(loads))
        axes.set_title(f"{shape[0]:,} → {shape[1]:,}")
        axes.set_xlabel("Batch" if cells[0][1].batch is not None else "Rate (req/s)", fontsize=8)
    for axes in panels[len(shapes) :]:
        axes.set_visible(False)
    return figure


def _panel(axes: Axes, pair: Pair, own: Sequence[tuple[float, str]]) -> None:
    top = 0.0
    for side, (colour, marker, dash) in zip(("base", "candidate"), SIDES, strict=True):
        means: list[tuple[float, float, float, float]] = []  # load, mean, and the interval's ends
        for load, label in own:
            values = _values(pair, label, side)
            if mean := two_stage_estimate(values, len(values)):
                low, high = (mean.point if end is None else end for end in (mean.low, mean.high))
                means.append((load, mean.point, low, high))
        style = {"color": colour, "marker": marker, "linestyle": dash, "linewidth": 1.2, "markersize": 4}
        top = max(top, *sheets.draw_curve(axes, means, **style))
        loads, _, lows, highs = zip(*means, strict=True)
        axes.vlines(loads, lows, highs, color=colour, linewidth=1.0)
    sheets.log2_axis(axes, [load for load, _ in own], "")
    sheets.value_axis(axes, [0.0, 1.02 * top], "", wide=math.inf)
    axes.tick_params(labelsize=8)


def _blocks(pair: Pair, title: str) -> Figure | None:
    """How the baseline went from block to block: each cell against its own mean, and the mean of all cells."""
    samples = [sample for sample in pair.samples if sample.metric == PRIMARY[0]]
    if not pair.interleaved or len({sample.block for sample in samples if sample.base is not None}) < 2:
        return None
    colours = [colour for colour, _, _ in SIDES]
    legend: sheets.Legend = (
        (f"{pair.base}, mean over cells", {"color": colours[0], "marker": "s", "linestyle": SIDES[0][2]}),
        (f"{pair.base}, one cell", {"color": "#BBBBBB"}),
        (f"{pair.candidate}, mean over cells", {"color": colours[1], "marker": "o"}),
    )
    figure, (axes,) = sheets.make_frame("Drift and variance from block to block", title, legend)
    for side, (colour, marker, dash) in zip(("base", "candidate"), SIDES, strict=True):
        changes: dict[int, list[float]] = {}
        for cell in dict.fromkeys(sample.cell for sample in samples):
            starts = [(s.block, value) for s in samples if s.cell == cell if (value := getattr(s, side))]
            if not starts:
                continue
            mean = fmean(value for _, value in starts)
            line = [(block, 100 * (value / mean - 1)) for block, value in starts]
            for block, change in line:
                changes.setdefault(block, []).append(change)
            if side == "base":
                axes.plot(*zip(*line, strict=True), color="#BBBBBB", linewidth=0.7, zorder=1)
        means = [(block, fmean(all_of)) for block, all_of in sorted(changes.items())]
        axes.plot(*zip(*means, strict=True), color=colour, marker=marker, linestyle=dash, linewidth=1.6, zorder=3)
    axes.axhline(0, color="#888888", linewidth=0.8, zorder=0)
    axes.set_xticks(range(pair.blocks) if pair.blocks <= 24 else range(0, pair.blocks, 10))
    axes.set_xlabel("Block (a start of each)")
    axes.set_ylabel("Sys tok/s against its own mean (%)")
    return figure
