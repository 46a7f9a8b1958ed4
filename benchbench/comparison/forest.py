"""Ratios with intervals, a line each, on a scale that says how large a difference is: the picture of a comparison.

The scale is of log-ratios, symmetrical, and one of few (STEPS), so that +3 % looks like +3 % in each picture. An
interval that leaves it ends in an arrow. What is undecided is grey.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from benchbench.comparison.verdicts import TITLES, Effect
from benchbench.figures import sheet as sheets
from benchbench.figures.lettering import short_names

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

LOOKS: dict[str, dict[str, Any]] = {
    "faster": {"color": "#0072B2", "marker": ">"},
    "slower": {"color": "#D55E00", "marker": "<"},
    "equivalent": {"color": "#009E73", "marker": "D"},
    "undecided": {"color": "#777777", "marker": "o", "markerfacecolor": "white"},
}
STEPS = (0.02, 0.05, 0.1, 0.2, 0.3, 0.5, 3.0, 9.0, 99.0)  # +5 % and -5 %; above 1 a factor, 4 and 1 / 4
MARGIN, MDE = "#EEEEEE", "#BBBBBB"
_FITS = 0.9  # of the points of all panels


def reach_of(effects: Iterable[Effect], margin: float, *, ends: bool = False) -> float:
    """The step of the scale: all decided points and most others fit, and so do twice the margin.

    `ends`: the intervals of decided ones too.
    """
    effects = list(effects)
    needed = [2 * math.log1p(margin)]
    for ratio in (effect.ratio for effect in effects if effect.verdict != "undecided"):
        bounds = (ratio.low, ratio.high) if ends else ()
        needed += [abs(math.log(end)) for end in (ratio.point, *bounds) if end]
    others = sorted(abs(math.log(effect.ratio.point)) for effect in effects)
    needed += others[: math.ceil(_FITS * len(others))]
    return next((step for step in STEPS if limit_of(step) >= max(needed)), STEPS[-1])


def limit_of(step: float) -> float:
    """Half of the scale, a log-ratio."""
    return -math.log1p(-step) if step < 1 else math.log1p(step)


def ticks_of(step: float) -> tuple[list[float], list[str]]:
    """Places (log-ratios) and texts of the scale: percent, or factors."""
    if step >= 1:
        root = math.sqrt(1 + step)
        factors = [(1 / (1 + step), f"÷{1 + step:g}"), (1 / root, f"÷{root:.2g}"), (1.0, "×1")]  # noqa: RUF001 - times
        factors += [(root, f"×{root:.2g}"), (1 + step, f"×{1 + step:g}")]  # noqa: RUF001 - times
        return [math.log(factor) for factor, _ in factors], [text for _, text in factors]
    changes = (-step, -step / 2, 0.0, step / 2, step)
    return [math.log1p(change) for change in changes], [f"{100 * c:+g}" if c else "0" for c in changes]


def change_text(ratio: float) -> str:
    """A ratio as a change: `+2.3 %`, or a factor where it is more than twice or less than half."""
    if 0.5 <= ratio <= 2:
        return f"{100 * (ratio - 1):+.1f} %".replace("-0.0 ", "+0.0 ")
    return f"×{ratio:.2g}"  # noqa: RUF001 - times


def ratio_panels(
    heading: str,
    title: str,
    names: Sequence[str],
    rows: Mapping[str, Sequence[tuple[float, Effect]]],
    margin: float,
) -> Figure:
    """A panel a metric, a line a name: (line, ratio) of each that is known."""
    row_in = max(0.15, min(0.26, 9 / len(names)))
    effects = [effect for points in rows.values() for _, effect in points]
    step, narrow = reach_of(effects, margin, ends=True), sheets.is_narrow()
    height = row_in * (len(names) + 1) * (len(rows) if narrow else 1) + (0.6 * (len(rows) - 1) if narrow else 0)
    grid: Any = {"rows": len(rows), "sharex": True} if narrow else {"columns": len(rows), "sharey": True}
    legend = _legend({effect.verdict for effect in effects}, margin, _cut(effects, limit_of(step)))
    figure, panels = sheets.make_frame(heading, title, legend, height=height, names=names, **grid)
    size = min(9.0, row_in * 45)
    for axes, (metric, points) in zip(panels, rows.items(), strict=True):
        _ratios(axes, points, margin, step, min(7.0, size))
        if narrow or axes is panels[0]:
            axes.set_yticks(range(len(names)), labels=list(short_names(names).values()))
        axes.set_ylim(len(names) - 0.25, -0.75)
        axes.tick_params(axis="y", length=0, labelsize=size)
        axes.grid(visible=False, axis="y")
        axes.set_title(f"{TITLES[metric]}: {'% better' if step < 1 else 'factor, better'} →", fontsize=8.5)
    return figure


def _legend(verdicts: Iterable[str], margin: float, cut: bool) -> sheets.Legend:
    entries = [(name, {"linestyle": "-", **look}) for name, look in LOOKS.items() if name in verdicts]
    entries.append((f"margin: within {100 * margin:g} % is equivalent", {"color": MARGIN, "linewidth": 8}))
    entries.append(("MDE: found with 80 % power", {"color": MDE, "linewidth": 5}))
    if cut:
        entries.append(("goes on beyond the scale", {"color": "#777777", "marker": 5, "linestyle": ""}))
    return tuple(entries)


def _cut(effects: Iterable[Effect], limit: float) -> bool:
    ends = (end for e in effects for end in (e.ratio.low, e.ratio.high, e.ratio.point) if end is not None)
    return any(abs(math.log(end)) > limit if end > 0 else True for end in ends)


def _ratios(axes: Axes, rows: Sequence[tuple[float, Effect]], margin: float, step: float, size: float) -> None:
    """Points, intervals, MDE and verdicts of one metric."""
    limit = limit_of(step)
    axes.axvspan(-math.log1p(margin), math.log1p(margin), color=MARGIN, zorder=0)
    axes.axvline(0, color="#888888", linewidth=0.8, zorder=1)
    for y, effect in rows:
        look = LOOKS[effect.verdict]
        if (mde := effect.mde_family) is not None:
            reach = min(math.log1p(mde), 1.1 * limit)
            axes.plot([-reach, reach], [y, y], color=MDE, linewidth=3.5, solid_capstyle="butt", zorder=1.5)
        ends = [effect.ratio.low, effect.ratio.high]
        if None not in ends:
            low, high = (math.log(end) if end else -math.inf for end in ends)
            axes.plot([max(low, -limit), min(high, limit)], [y, y], color=look["color"], linewidth=1.4, zorder=2)
            for beyond, at, arrow in ((low < -limit, -limit, 4), (high > limit, limit, 5)):
                if beyond:
                    style = {"marker": arrow, "markersize": 7, "color": look["color"]}
                    axes.plot([at], [y], clip_on=False, zorder=4, **style)
        point = max(-limit, min(limit, math.log(effect.ratio.point)))
        marker = {"linestyle": "", "markersize": 5, "markeredgewidth": 1.2, **look}
        axes.plot([point], [y], clip_on=False, zorder=3, **marker)
        change = change_text(effect.ratio.point)  # in percent, as the scale says if it is one of them
        words = f"{change.removesuffix(' %') if step < 1 else change} {effect.verdict}"
        place: Any = axes.get_yaxis_transform()
        axes.annotate(words, (1.0, y), (5, 0), place, "offset points", va="center", fontsize=size, color="#333333")
    axes.set_xlim(-1.03 * limit, 1.03 * limit)
    places, texts = ticks_of(step)
    every = 1 if sheets.is_narrow() else 2  # beside each other panels have room for three ticks
    axes.set_xticks(places[::every], labels=texts[::every])
    axes.tick_params(axis="x", labelsize=8)
