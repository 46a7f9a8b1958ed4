"""The picture of searches for a capacity: what is limited over the load, the limit, and the answer."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from benchbench.figures import sheet as sheets
from benchbench.figures.caption import PROBES
from benchbench.figures.choose import COLOURS, spread
from benchbench.figures.lettering import shortened
from benchbench.figures.plots import LOG_FROM, write_figures

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

PANELS = 9
LOOKS: dict[str, dict[str, Any]] = {
    "explored": {"color": "#777777", "marker": "o", "linestyle": ""},
    "tested": {"color": COLOURS[0], "marker": "s", "linestyle": ""},
    "failed": {"color": COLOURS[1], "marker": "^", "linestyle": ""},
    "void": sheets.ABSENT,
}
WORDS = {"failed": "requests failed", "void": "load generator's limit"}
FIT: Any = {"color": "#333333", "linewidth": 1.0}
LIMIT: Any = {"color": "#000000", "linewidth": 1.3, "linestyle": (0, (4, 1.5))}
HOLDS: Any = {"color": COLOURS[2], "linewidth": 1.6}
FAILS: Any = {"color": COLOURS[1], "linewidth": 1.6, "linestyle": (0, (5, 1.2))}
MEAN: Any = {"color": COLOURS[0], "linewidth": 1.6}
BAND = "#EEEEEE"


class Seen(NamedTuple):
    """A load, and the figure there as a share of the limit: its mean, with a 95 % interval where there are several.

    `kind`: explored, tested, failed (no figure: requests failed, or the engine did) or void (the load generator was the
    limit). The interval is that of these observations by themselves; it certifies nothing.
    """

    load: float
    kind: str
    mean: float = math.nan
    low: float | None = None
    high: float | None = None
    suspect: bool = False


class Curve(NamedTuple):
    """One search, or that of one start: what was seen, and (load, share of the limit) along its monotone fit."""

    seen: tuple[Seen, ...]
    fit: tuple[tuple[float, float], ...]


class Shown(NamedTuple):
    """A panel. `ends`: the load that holds and the load that fails, or the ends of the mean's interval over starts.

    `what`: the figure that is limited, `limit_ms` its limit where there is one alone. `capacity`: of starts, the mean.
    """

    title: str
    axis: str
    what: str
    limit_ms: float | None
    curves: tuple[Curve, ...]
    ends: tuple[float | None, float | None]
    capacity: float | None = None
    over_starts: bool = False


def draw_searches(
    panels: Sequence[Shown], out: Path, title: str, formats: Sequence[str] = ("png", "svg")
) -> list[Path]:
    """Draw `capacity` into `out`, which is made; the files, none without a probe. Raises OSError."""
    return write_figures(search_figures(panels, title), out, formats)


def search_figures(panels: Sequence[Shown], title: str) -> Iterator[tuple[str, Figure]]:
    """The figure with its name, if there is a probe; to be drawn and written in `sheet.STYLE`."""
    if drawn := spread(panels, PANELS):
        cut = f" · {len(drawn)} of {len(panels)} searches" if len(drawn) < len(panels) else ""
        known = (
            PROBES.partition(". ")[0],
            *(f"{panel.title.splitlines()[0]}: " for panel in panels),
        )  # the panels' titles say it
        yield "capacity", _figure(drawn, " · ".join(p for p in title.split(" · ") if not p.startswith(known)) + cut)


def _figure(panels: Sequence[Shown], title: str) -> Figure:
    """Panels that share their scales; in ms where all have the same limit, else in percent of it."""
    limits = {(panel.what, panel.limit_ms) for panel in panels}
    (what, limit_ms), alike = next(iter(limits)), len(limits) == 1
    unit, label = (limit_ms, f"{what} (ms)") if alike and limit_ms else (100.0, f"{what} (% of limit)")
    label = label if alike else "What is limited (% of its limit)"
    columns = min(2 if sheets.is_narrow() or len(panels) in {2, 4} else 3, len(panels))
    rows = math.ceil(len(panels) / columns)
    heading = "Capacity: what is limited, over the load"
    note = " · bars: 95 % of a load's observations by themselves"
    size: Any = {"height": max(3.0, 2.4 * rows), "rows": rows, "columns": columns, "sharex": True, "sharey": True}
    names = [panel.title for panel in panels]
    figure, axes = sheets.make_frame(heading, title + note, _legend(panels), names=names, **size)
    seen = [seen for panel in panels for curve in panel.curves for seen in curve.seen]
    values = [value for point in seen for value in (point.mean, point.high) if value and not math.isnan(value)]
    values = [unit * value for value in (1.0, *values)]
    for unused in axes[len(panels) :]:
        unused.set_visible(False)
    for place, (pane, panel) in enumerate(zip(axes, panels, strict=False)):
        sheets.log2_axis(pane, [point.load for point in seen], "", most=12 if len(panels) == 1 else 7)
        y_label = sheets.value_axis(pane, values, label, LOG_FROM)
        pane.set_ylabel("")
        _panel(pane, panel, unit)
        room = int(13 * sheets.width_in() / columns)
        pane.set_title("\n".join(shortened(line, room) for line in panel.title.splitlines()))
        pane.xaxis.set_tick_params(labelbottom=place + columns >= len(panels))
    x_label = "Batch (requests in flight)" if panels[0].axis == "batch" else "Request rate (req/s)"
    sheets.outer_labels(axes[: len(panels)], x_label, y_label)
    return figure


def _legend(panels: Sequence[Shown]) -> sheets.Legend:
    seen = [seen for panel in panels for curve in panel.curves for seen in curve.seen]
    kinds = {point.kind for point in seen}
    marks = [(WORDS.get(kind, kind), look) for kind, look in LOOKS.items() if kind in kinds]
    marks = [("a load of one start", LOOKS["explored"])] if panels[0].over_starts else marks
    marks += [("monotone fit", FIT), ("limit", LIMIT)]
    if panels[0].over_starts:
        marks += [("capacity, mean over starts", MEAN), ("its 95 % interval", {"color": BAND, "linewidth": 8})]
    else:
        ends = zip(*(panel.ends for panel in panels), strict=True)
        words = zip((("holds (95 %)", HOLDS), ("fails (95 %)", FAILS)), ends, strict=True)
        marks += [mark for mark, known in words if any(end is not None for end in known)]
    return (*marks, *((("hollow: suspect", sheets.SUSPECT),) if any(point.suspect for point in seen) else ()))


def _panel(axes: Axes, panel: Shown, unit: float) -> None:
    axes.axhline(unit, **LIMIT, zorder=2)
    holds, fails = panel.ends
    if holds is not None and fails is not None:
        axes.axvspan(holds, fails, color=BAND, zorder=0)
    lines = [(panel.capacity, MEAN)] if panel.over_starts else [(holds, HOLDS), (fails, FAILS)]
    for at, look in lines:
        if at is not None:
            axes.axvline(at, **look, zorder=1.5)
    for curve in panel.curves:
        _curve(axes, curve, unit, size=3.2 if panel.over_starts else 4.5)


def _curve(axes: Axes, curve: Curve, unit: float, size: float) -> None:
    sheets.draw_curve(axes, [(load, unit * share) for load, share in curve.fit], **FIT, zorder=2.5)
    for point in curve.seen:
        look = {**LOOKS[point.kind], "markersize": size, "markeredgewidth": 1.1, "zorder": 4}
        if math.isnan(point.mean):
            height = 0.97 if point.kind == "failed" else 0.04
            axes.plot([point.load], [height], transform=axes.get_xaxis_transform(), clip_on=False, **look)
            continue
        _interval(axes, point, unit)
        face = "white" if point.suspect else look["color"]
        axes.plot([point.load], [unit * point.mean], **look, markerfacecolor=face)


def _interval(axes: Axes, seen: Seen, unit: float) -> None:
    if seen.low is not None and seen.high is not None:
        colour = LOOKS[seen.kind]["color"]
        axes.vlines([seen.load], [unit * seen.low], [unit * seen.high], color=colour, linewidth=1.0, zorder=3)
