"""Figures of a comparison: ratios with intervals, ratios over the grid, both sides' curves, and the baseline over time.

Drawn as `plots` draws; `forest` has the ratios. Undecided cells are grey in all of them.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, Any

from benchbench.analysis.stats import two_stage_estimate
from benchbench.comparison.forest import change_text, limit_of, ratio_panels, reach_of, ticks_of
from benchbench.comparison.pairs import Pair
from benchbench.comparison.tables import SHOWN, cells_of, headline
from benchbench.comparison.verdicts import PRIMARY, Comparison, Effect
from benchbench.datasets.row_lengths import lengths_shown
from benchbench.figures import sheet as sheets
from benchbench.figures.choose import OTHERS, looks, spread, with_gaps
from benchbench.figures.grid import SHOWN_COLUMNS, SHOWN_ROWS, Bar, GridCell, draw_grid
from benchbench.figures.lettering import short_names
from benchbench.figures.plots import write_figures

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from benchbench.spec.cell import CellInfo

SIDES: tuple[dict[str, Any], ...] = tuple(  # base, candidate: as the first two variants elsewhere
    dict(zip(("color", "marker", "linestyle"), looks(place), strict=True)) for place in (0, 1)
)
PANELS = 12
FOREST = 60  # cells
FEW_PAIRS = 3  # of more candidates there is an overview
DRAWN = 8  # candidates that have files of their own
HEAT = ["#D45E00", "#F7F7F7", "#0072B1"]  # not quite the lines' colours, which a page makes lighter on a dark ground
UNDECIDED = (0.85, 0.85, 0.85, 1.0)  # not one of the greys that a dark page turns into its own


def draw_comparisons(
    pairs: Sequence[Pair], out: Path, title: str, formats: Sequence[str] = ("png", "svg")
) -> list[Path]:
    """Draw every figure whose data exist into `out`, which is made, and return the files written.

    `compare_forest`, `compare_heatmap`, `compare_curves`, `compare_blocks`; of several candidates each with its name,
    of more than DRAWN those of the best alone. `compare_overview` of more than FEW_PAIRS.
    """
    return write_figures(_named_figures(pairs, title), out, formats)


def _named_figures(pairs: Sequence[Pair], title: str) -> Iterator[tuple[str, Figure]]:
    if len(pairs) > FEW_PAIRS and (figure := overview(pairs, title)):
        yield "compare_overview", figure
    for pair in pairs if len(pairs) <= DRAWN else [best_of(pairs)]:
        for name, figure in comparison_figures(pair, title):
            yield f"{name}-{pair.candidate}" if len(pairs) > 1 else name, figure


def best_of(pairs: Sequence[Pair]) -> Pair:
    """The fastest candidate by the geometric mean of its ratios."""
    ratios = [overall.ratio.point if (overall := headline(pair)) else 0.0 for pair in pairs]
    return pairs[ratios.index(max(ratios))]


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
    base = short_names([pairs[0].base, *names])[pairs[0].base]
    heading = f"Which is better than {base}? (geometric means)"
    rows = {
        metric: [(line, overall) for line, pair in enumerate(ranked) if (overall := headline(pair, metric))]
        for metric in PRIMARY
    }
    return ratio_panels(heading, title, names, rows, pairs[0].margin)


def _names(pair: Pair) -> tuple[str, str]:
    """Of base and candidate, as they are written in figures."""
    short = short_names([pair.base, pair.candidate])
    return short[pair.base], short[pair.candidate]


def _shape(cell: CellInfo) -> str:
    lengths = (cell.input, cell.output)
    texts = lengths_shown(cell) if cell.lengths else [f"{length:,}" for length in lengths]
    return " → ".join(texts)


def _load(cell: CellInfo) -> float:
    return cell.batch if cell.batch is not None else float(cell.rate or 0)


def _forest(pair: Pair, title: str) -> Figure | None:
    """Ratios of all metrics, a line a cell, by shape; the geometric mean stands last, below a rule."""
    metrics = [metric for metric in SHOWN if cells_of(pair, [metric])]
    labels = list(dict.fromkeys(comparison.cell for comparison in cells_of(pair, metrics)))
    shown = shown_cells(cells_of(pair, metrics), labels)
    names = [f"{_shape(pair.cells[label])} at {sheets.short(_load(pair.cells[label]))}" for label in shown]
    batched = all(cell.batch is not None for cell in pair.cells.values())
    rows: dict[str, list[tuple[float, Effect]]] = {}
    for metric in metrics:
        rows[metric] = [(shown.index(c.cell), c) for c in cells_of(pair, [metric]) if c.cell in shown]
        if overall := headline(pair, metric):
            rows[metric].append((len(shown), overall))
    if len(shown) < len(labels):
        title += f" · {len(shown)} of {len(labels):,} cells: decided ones first, then by how far they are from equal"
    base, candidate = _names(pair)
    heading = f"Is {candidate} better than {base}? (in → out at {'batch' if batched else 'rate'})"
    figure = ratio_panels(heading, title, [*names, "geometric mean"], rows, pair.margin)
    for axes in figure.axes:
        axes.axhline(len(shown) - 0.5, color="#BBBBBB", linewidth=0.6)
    return figure


def shown_cells(comparisons: Sequence[Comparison], labels: Sequence[str]) -> list[str]:
    """Of the labels at most FOREST, in their order: decided cells first, then those whose ratio is furthest from 1."""
    weights = dict.fromkeys(labels, (0, 0.0))
    for effect in comparisons:
        decided = effect.metric in PRIMARY and effect.verdict in {"faster", "slower"}
        weights[effect.cell] = max(weights[effect.cell], (int(decided), abs(math.log(effect.ratio.point))))
    kept = set(sorted(labels, key=lambda label: weights[label], reverse=True)[:FOREST])
    return [label for label in labels if label in kept]


def _heatmap(pair: Pair, title: str) -> Figure | None:
    """Sys tok/s as percent better: a row per shape, a column per batch (or rate)."""
    from matplotlib.colors import LinearSegmentedColormap, Normalize

    ratios = cells_of(pair, PRIMARY[:1])
    if len(ratios) < 2:
        return None
    every = sorted({(pair.cells[effect.cell].input, pair.cells[effect.cell].output) for effect in ratios})
    every_load = sorted({_load(pair.cells[effect.cell]) for effect in ratios})
    shapes, loads = spread(every, SHOWN_ROWS), spread(every_load, SHOWN_COLUMNS)
    step = reach_of(ratios, pair.margin)
    limit = limit_of(step)
    scale = LinearSegmentedColormap.from_list("better", HEAT).resampled(15)
    norm = Normalize(-limit, limit, clip=True)
    cells = []
    for effect in ratios:
        cell = pair.cells[effect.cell]
        if (cell.input, cell.output) not in shapes or _load(cell) not in loads:
            continue
        mark = {"equivalent": " =", "undecided": " ?"}.get(effect.verdict, "")
        colour = UNDECIDED if effect.verdict == "undecided" else scale(norm(math.log(effect.ratio.point)))
        text = change_text(effect.ratio.point).removesuffix(" %") + mark
        at = loads.index(_load(cell)), shapes.index((cell.input, cell.output))
        cells.append(GridCell(*at, text, colour, bold=not mark))
    heading = "Sys tok/s: change from {} to {} (%)".format(*_names(pair))
    small = title + " · bold: faster or slower, =: equivalent, grey and ?: undecided"
    small += f" · {len(shapes)} of {len(every):,} shapes" if len(shapes) < len(every) else ""
    small += f" · {len(loads)} of {len(every_load):,} loads" if len(loads) < len(every_load) else ""
    batched = pair.cells[ratios[0].cell].batch is not None
    label = "Batch (requests in flight)" if batched else "Request rate (req/s)"
    names = {(cell.input, cell.output): _shape(cell) for cell in pair.cells.values()}
    bar = Bar(scale, norm, "% better" if step < 1 else "factor", ticks_of(step))
    return draw_grid(heading, small, [names[shape] for shape in shapes], loads, label, cells, bar)


def _values(pair: Pair, cell: str, side: str) -> list[float]:
    """Sys tok/s of one side's starts."""
    samples = (sample for sample in pair.samples if sample.cell == cell and sample.metric == PRIMARY[0])
    return [value for sample in samples if (value := getattr(sample, side)) is not None]


def _curves(pair: Pair, title: str) -> Figure | None:
    """Sys tok/s of both sides over the load, a panel a shape; bars are 95 % intervals over starts."""
    cells = [(comparison.cell, pair.cells[comparison.cell]) for comparison in cells_of(pair, PRIMARY[:1])]
    names = {(cell.input, cell.output): _shape(cell) for _, cell in cells}
    shapes = sorted(names)
    if not shapes:
        return None
    cut = f" · the first {PANELS} of {len(shapes)} shapes" if len(shapes) > PANELS else ""
    shapes = shapes[:PANELS]
    columns = min(3 if sheets.width_in() > 6 else 2, len(shapes))
    rows = math.ceil(len(shapes) / columns)
    legend: sheets.Legend = tuple(zip(_names(pair), SIDES, strict=True))
    gaps = {shape: _gaps(pair, [cell for _, cell in cells], shape) for shape in shapes}
    legend += (("no valid number", sheets.ABSENT),) if any(gaps.values()) else ()
    heading, height = "Sys tok/s of both, 95 % intervals over starts", (3.2 if columns == 1 else 2.1) * rows
    figure, panels = sheets.make_frame(heading, title + cut, legend, height=height, rows=rows, columns=columns)
    for axes, shape in zip(panels, shapes, strict=False):
        loads = [(_load(cell), label) for label, cell in cells if (cell.input, cell.output) == shape]
        _panel(axes, pair, sorted(loads), gaps[shape])
        axes.set_title(names[shape])
        axes.set_xlabel("Batch" if cells[0][1].batch is not None else "Rate (req/s)", fontsize=8)
    for axes in panels[len(shapes) :]:
        axes.set_visible(False)
    return figure


def _gaps(pair: Pair, cells: Sequence[CellInfo], shape: tuple[int | None, int]) -> list[float]:
    """Loads between those compared of a shape that were planned and are not compared."""
    own = {_load(cell) for cell in cells if (cell.input, cell.output) == shape}
    planned = {_load(cell) for cell in pair.planned_cells.values() if (cell.input, cell.output) == shape}
    return sorted(load for load in planned - own if min(own) < load < max(own))


def _panel(axes: Axes, pair: Pair, own: Sequence[tuple[float, str]], gaps: Sequence[float]) -> None:
    top = 0.0
    for side, look in zip(("base", "candidate"), SIDES, strict=True):
        means: list[tuple[float, float, float, float]] = []  # load, mean, and the interval's ends
        for load, label in own:
            values = _values(pair, label, side)
            if mean := two_stage_estimate(values, len(values)):
                low, high = (mean.point if end is None else end for end in (mean.low, mean.high))
                means.append((load, mean.point, low, high))
        curve = with_gaps((mean[:2] for mean in means), gaps)
        sheets.draw_curve(axes, curve, **look, linewidth=1.2, markersize=4)
        loads, points, lows, highs = zip(*means, strict=True)
        top = max(top, *points)
        axes.vlines(loads, lows, highs, color=look["color"], linewidth=1.0)
    axes.plot(gaps, [0.04] * len(gaps), transform=axes.get_xaxis_transform(), **sheets.ABSENT, markersize=4.5)
    sheets.log2_axis(axes, [load for load, _ in own], "")
    sheets.value_axis(axes, [0.0, 1.02 * top], "", wide=math.inf)
    axes.tick_params(labelsize=8)


def _blocks(pair: Pair, title: str) -> Figure | None:
    """How the baseline went from block to block: each cell against its own mean, and the mean of all cells."""
    samples = [sample for sample in pair.samples if sample.metric == PRIMARY[0]]
    if not pair.interleaved or len({sample.block for sample in samples if sample.base is not None}) < 2:
        return None
    base, candidate = _names(pair)
    legend: sheets.Legend = (
        (f"{base}, mean over cells", SIDES[0]),
        (f"{base}, one cell", {"color": "#BBBBBB"}),
        (f"{candidate}, mean over cells", SIDES[1]),
    )
    figure, (axes,) = sheets.make_frame("Drift and variance from block to block", title, legend)
    blocks = {*range(pair.blocks)}
    for side, look in zip(("base", "candidate"), SIDES, strict=True):
        changes: dict[int, list[float]] = {}
        of: dict[str, list[tuple[int, float]]] = {}
        for sample in samples:
            if value := getattr(sample, side):
                of.setdefault(sample.cell, []).append((sample.block, value))
        shown = set(spread(list(of), OTHERS))
        for cell, starts in of.items():
            mean = fmean(value for _, value in starts)
            line = [(block, 100 * (value / mean - 1)) for block, value in starts]
            for block, change in line:
                changes.setdefault(block, []).append(change)
            if side == "base" and cell in shown:
                broken = with_gaps(line, blocks - dict(line).keys())
                sheets.draw_curve(axes, broken, color="#BBBBBB", linewidth=0.7, zorder=1)
        means = [(block, fmean(all_of)) for block, all_of in changes.items()]
        sheets.draw_curve(axes, with_gaps(means, blocks - changes.keys()), **look, linewidth=1.6, zorder=3)
    axes.axhline(0, color="#888888", linewidth=0.8, zorder=0)
    least = 200 * pair.margin  # so that noise which decides nothing looks small
    axes.set_ylim(min(axes.get_ylim()[0], -least), max(axes.get_ylim()[1], least))
    axes.set_xticks(range(0, pair.blocks, 1 if pair.blocks <= 24 else 10))
    axes.set_xlabel("Block (a start of each)")
    axes.set_ylabel("Sys tok/s against its own mean (%)")
    return figure
