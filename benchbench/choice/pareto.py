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
from benchbench.products.product import initials_in, short_settings
from benchbench.student.t_distribution import t_quantile

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

PANELS = 6
NAMED = 10  # settings; the others are grey
_NAME = 34  # characters
_PANEL_PT = 125.0  # about the height of a panel
_NEAR_PT = 9.0  # from a dot to its number; from further away a line leads there
_LEADER: Any = {"arrowstyle": "-", "linewidth": 0.5, "color": "#777777", "shrinkA": 3, "shrinkB": 3}


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
    cut += f" · {meaning}" if (meaning := initials_in({setting: short[setting] for setting in named})) else ""
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
        _panel(pane, cell, dots, looks, columns)
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


def beside(
    named: Sequence[tuple[float, ...]], dots: Sequence[tuple[float, ...]], size: tuple[float, float]
) -> list[tuple[float, float]]:
    """Where the number of each named place stands, as an offset, all in points of a panel so wide and high.

    As near as there is room, beside its dot and on no other dot or number; where there is none, furthest from these.
    """
    taken: list[tuple[float, float]] = []
    offsets = []
    for x, y in named:
        free: list[tuple[float, tuple[float, float]]] = []  # how much room, from 1 on enough, and the offset
        for radius in (_NEAR_PT, 17.0, 26.0, 35.0, 44.0):
            for turn in (1, 3, 7, 5, 2, 6, 0, 4):  # above to the right first
                dx, dy = radius * math.cos(turn * math.pi / 4), radius * math.sin(turn * math.pi / 4)
                at = (x + dx, y + dy)
                if not (5 <= at[0] <= size[0] - 5 and 5 <= at[1] <= size[1] - 5):
                    continue
                gaps = [max(abs(at[0] - a) / 11, abs(at[1] - b) / 10) for a, b in taken]
                gaps += [math.hypot(at[0] - a, at[1] - b) / 7 for a, b in dots]
                free.append((min(gaps, default=1.0), (dx, dy)))
        best = max(free, default=(0.0, (_NEAR_PT, 0.0)))
        offset = next((offset for gap, offset in free if gap >= 1), best[1])
        taken.append((x + offset[0], y + offset[1]))
        offsets.append(offset)
    return offsets


def _panel(axes: Axes, cell: CellAnswer, dots: Sequence[Dot], looks: dict[str, dict[str, Any]], columns: int) -> None:
    line = front(dots)
    axes.plot([dot.x for dot in line], [dot.y for dot in line], color="#777777", linewidth=0.8, zorder=1)
    spans = [
        _span([dot.x for dot in dots], [end for dot in dots for end in dot.x_ends]),
        _span([dot.y for dot in dots], [end for dot in dots for end in dot.y_ends]),
    ]
    for dot in reversed(dots):
        look = looks.get(dot.setting, {"color": GREY, "marker": "o"})
        colour = look["color"]
        axes.plot(dot.x_ends, [dot.y, dot.y], color=colour, linewidth=1.0, zorder=2)
        axes.plot([dot.x, dot.x], dot.y_ends, color=colour, linewidth=1.0, zorder=2)
        axes.plot([dot.x], [dot.y], **{"markersize": 4.5, **look, "linestyle": ""}, zorder=3)
        if dot.setting in cell.kept:
            axes.plot([dot.x], [dot.y], marker="o", markersize=10, color="#333333", markerfacecolor="none", zorder=4)
    axes.set_xlim(*spans[0])
    axes.set_ylim(*spans[1])
    size = (72 * sheets.width_in() / columns - 45, _PANEL_PT)
    places = [
        tuple((v - low) / (high - low) * pt for v, (low, high), pt in zip(dot[1:3], spans, size, strict=True))
        for dot in dots
    ]
    numbers = {setting: str(number) for number, setting in enumerate(looks, 1)}
    named = [(place, dot) for place, dot in zip(places, dots, strict=True) if dot.setting in looks]
    offsets = beside([place for place, _ in named], places, size)
    for (_, dot), offset in zip(named, offsets, strict=True):
        far: Any = {"arrowprops": _LEADER} if math.hypot(*offset) > _NEAR_PT + 1 else {}
        style: Any = {"fontsize": 8, "ha": "center", "va": "center", "color": "#333333", "zorder": 5, **far}
        axes.annotate(numbers[dot.setting], (dot.x, dot.y), offset, textcoords="offset points", **style)
    axes.tick_params(labelsize=8)
    assert cell.info is not None  # noqa: S101 - only the default has none
    load = f"batch {cell.info.batch}" if cell.info.batch is not None else f"{cell.info.rate:g} req/s"
    axes.set_title(f"{cell.info.input:,} → {cell.info.output:,} at {load}")
