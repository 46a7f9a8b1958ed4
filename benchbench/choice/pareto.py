"""The picture of many settings: throughput against latency, with intervals, and which of them are best.

Drawn as `figures.plots` draws. A panel a cell; a number names a setting in all panels, since names are long.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from benchbench.choice.answer import Answer, CellAnswer
from benchbench.choice.elimination import noise_with_blocks
from benchbench.choice.from_run import geometric_mean
from benchbench.figures import sheet as sheets
from benchbench.figures.choose import COLOURS, GREY, MARKERS, spread
from benchbench.figures.plots import write_figures
from benchbench.products.product import short_settings
from benchbench.student.t_distribution import t_quantile

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

PANELS = 6
NAMED = 10  # settings; the others are grey
_NAME = 34  # characters


class Dot(NamedTuple):
    """A setting in a cell: geometric means over starts, in ms and tok/s (of one GPU, where known), with 95 % intervals.

    Their noise is pooled over the settings, since two starts of one know little of it.
    """

    setting: str
    x: float
    y: float
    x_ends: tuple[float, float]
    y_ends: tuple[float, float]


def draw_best(answer: Answer, out: Path, title: str, formats: Sequence[str] = ("png", "svg")) -> list[Path]:
    """Draw `best_pareto` into `out`, which is made; the files, none where no cell has two settings. Raises OSError."""
    return write_figures(best_figures(answer, title), out, formats)


def best_figures(answer: Answer, title: str) -> Iterator[tuple[str, Figure]]:
    """Each figure whose data exist, with its name; to be drawn and written in `sheet.STYLE`."""
    if figure := pareto(answer, title):
        yield "best_pareto", figure


def pareto(answer: Answer, title: str) -> Figure | None:
    """The picture, to be drawn in `sheet.STYLE`; None where no cell has two settings with numbers."""
    latency = "ttft" if answer.metric == "ttft" or not _have_tpot(answer) else "tpot"
    drawn = [(cell, dots) for cell in answer.cells if len(dots := dots_of(answer, cell, latency)) > 1]
    if not drawn:
        return None
    panels = spread(drawn, PANELS)
    named = _named(answer, panels)
    short = short_settings(list(answer.trial.settings), _NAME)
    looks = {
        setting: {"color": COLOURS[k % len(COLOURS)], "marker": MARKERS[k % len(MARKERS)], "linestyle": ""}
        for k, setting in enumerate(named)
    }
    legend = tuple((f"{k} {short[setting]}", looks[setting]) for k, setting in enumerate(named, 1))
    others = len({dot.setting for _, dots in panels for dot in dots} - {*named})
    legend += ((f"{others} others", {"color": GREY, "marker": "o", "linestyle": ""}),) if others else ()
    cut = f" · {len(panels)} of {len(drawn)} cells" if len(drawn) > len(panels) else ""
    columns = min(len(panels), 2 if sheets.is_narrow() or len(panels) in {2, 4} else 3)
    rows = math.ceil(len(panels) / columns)
    figure, axes = sheets.make_frame(
        "Settings: throughput against latency",
        f"{title} · 95 % intervals over starts · ringed: the best and what cannot be told from it{cut}",
        legend,
        height=max(2.6, 2.3 * rows),
        rows=rows,
        columns=columns,
        names=list(short.values()),
    )
    for pane in axes[len(panels) :]:
        pane.set_visible(False)
    for pane, (cell, dots) in zip(axes, panels, strict=False):
        _panel(pane, cell, dots, looks)
    per = "tok/s per GPU" if answer.trial.gpus else "Sys tok/s"
    sheets.outer_labels(axes[: len(panels)], f"{latency.upper()} (ms), less is better", f"{per} (output)")
    return figure


def _have_tpot(answer: Answer) -> bool:
    return any("tpot" in of for settings in answer.trial.figures.values() for of in settings.values())


def dots_of(answer: Answer, cell: CellAnswer, latency: str) -> list[Dot]:
    """The settings of a cell that have numbers and are not invalid in it."""
    known = answer.trial.figures[cell.label]
    valid = [s.setting for s in cell.standings if s.place != "invalid"]
    settings = [s for s in valid if known.get(s, {}).get(latency) and known[s].get("sys_tok_s")]
    x = _means({s: known[s][latency] for s in settings})
    y = _means({s: known[s]["sys_tok_s"] for s in settings})
    dots = []
    for setting in settings:
        gpus = answer.trial.gpus.get(setting, 1)
        low, ms, high = (1e3 * value for value in x[setting])
        least, speed, most = (value / gpus for value in y[setting])
        dots.append(Dot(setting, ms, speed, (low, high), (least, most)))
    return dots


def _means(starts: Mapping[str, Sequence[float]]) -> dict[str, tuple[float, float, float]]:
    """Geometric mean of each setting's starts, between the ends of its interval, which are the mean without noise."""
    noise = noise_with_blocks({s: dict(enumerate(map(math.log, values))) for s, values in starts.items()})
    half = t_quantile(0.975, noise.degrees) * noise.sd if noise else 0.0
    means = {s: geometric_mean(values) for s, values in starts.items()}
    spans = {s: math.exp(half / math.sqrt(len(values))) for s, values in starts.items()}
    return {s: (mean / spans[s], mean, mean * spans[s]) for s, mean in means.items()}


def front(dots: Sequence[Dot]) -> list[Dot]:
    """Those that no other one beats in both, from the shortest latency on."""
    kept: list[Dot] = []
    for dot in sorted(dots, key=lambda dot: (dot.x, -dot.y)):
        if not kept or dot.y > kept[-1].y:
            kept.append(dot)
    return kept


def _named(answer: Answer, panels: Sequence[tuple[CellAnswer, Sequence[Dot]]]) -> list[str]:
    """At most NAMED settings: the default, the best of the cells, their sets, then the fronts."""
    wanted = [answer.default.best, *(cell.best for cell, _ in panels)]
    wanted += [setting for cell, _ in panels for setting in cell.kept]
    wanted += [dot.setting for _, dots in panels for dot in front(dots)]
    return list(dict.fromkeys(filter(None, wanted)))[:NAMED]


def _span(means: Sequence[float], ends: Sequence[float]) -> tuple[float, float]:
    """Ends of an axis that holds the means and their intervals; of long ones no more than as much again at each end."""
    low, high = sheets.wide_span(means, 0.1)
    return sheets.wide_span([*means, *(min(max(end, 2 * low - high), 2 * high - low) for end in ends)], 0.1)


def _panel(axes: Axes, cell: CellAnswer, dots: Sequence[Dot], looks: dict[str, dict[str, Any]]) -> None:
    line = front(dots)
    axes.plot([dot.x for dot in line], [dot.y for dot in line], color="#777777", linewidth=0.8, zorder=1)
    spans = [
        _span([dot.x for dot in dots], [end for dot in dots for end in dot.x_ends]),
        _span([dot.y for dot in dots], [end for dot in dots for end in dot.y_ends]),
    ]
    taken: list[tuple[float, float]] = []  # places of numbers, as shares of the panel
    for dot in reversed(dots):
        look = looks.get(dot.setting, {"color": GREY, "marker": "o"})
        colour = look["color"]
        axes.plot(dot.x_ends, [dot.y, dot.y], color=colour, linewidth=1.0, zorder=2)
        axes.plot([dot.x, dot.x], dot.y_ends, color=colour, linewidth=1.0, zorder=2)
        axes.plot([dot.x], [dot.y], **{"markersize": 4.5, **look, "linestyle": ""}, zorder=3)
        if dot.setting in cell.kept:
            axes.plot([dot.x], [dot.y], marker="o", markersize=10, color="#333333", markerfacecolor="none", zorder=4)
        if dot.setting in looks:
            at = tuple((v - low) / (high - low) for v, (low, high) in zip(dot[1:3], spans, strict=True))
            near = sum(abs(at[0] - x) < 0.1 and abs(at[1] - y) < 0.1 for x, y in taken)
            taken.append((at[0], at[1]))
            side = ((-8 - 9 * near) * (1 if at[0] > 0.5 else -1), -10 if at[1] > 0.5 else 10)
            style: Any = {"fontsize": 8, "ha": "center", "va": "center", "color": "#333333"}
            number = f"{list(looks).index(dot.setting) + 1}"
            axes.annotate(number, (dot.x, dot.y), side, textcoords="offset points", **style)
    axes.set_xlim(*spans[0])
    axes.set_ylim(*spans[1])
    axes.tick_params(labelsize=8)
    assert cell.info is not None  # noqa: S101 - only the default has none
    load = f"batch {cell.info.batch}" if cell.info.batch is not None else f"{cell.info.rate:g} req/s"
    axes.set_title(f"{cell.info.input:,} → {cell.info.output:,} at {load}")
