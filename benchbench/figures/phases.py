"""One round as bars: what each request waited for."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from benchbench.figures import sheet as sheets

if TYPE_CHECKING:
    from matplotlib.figure import Figure

WAITING = ("waiting (to be sent)", "#BBBBBB")
QUEUED = ("queue (as the server reports it)", "#CC79A7")
PREFILL = ("prefill (sent to first token)", "#E69F00")
DECODE = ("decode (to last token)", "#0072B2")
SHOWN = 512  # more bars would be thinner than a pixel


@dataclass(frozen=True)
class Timeline:
    """The requests of one round of one cell: lists of one length, in seconds from the round's start.

    Scheduled, sent, first token, last token; NaN where a request did not get that far. `queued_s`: how long the server
    says that a request was queued, a duration; empty where it does not say.
    """

    label: str
    starts_s: Sequence[float]
    sent_s: Sequence[float]
    first_s: Sequence[float]
    last_s: Sequence[float]
    queued_s: Sequence[float] = ()


def draw_timeline(timeline: Timeline, title: str) -> Figure | None:
    """Bars of waiting, queue, prefill and decode for each request, by schedule; of one request None."""
    from matplotlib.collections import PolyCollection
    from matplotlib.ticker import MaxNLocator

    phases = [WAITING, *([QUEUED] if timeline.queued_s else []), PREFILL, DECODE]
    requests = _stamps(timeline)
    bars = requests[:SHOWN]
    end = max((stamp for request in bars for stamp in request if math.isfinite(stamp)), default=0.0)
    if end <= 0 or len(bars) < 2:
        return None
    cut = f" · the first {len(bars)} of {len(requests):,} requests" if len(bars) < len(requests) else ""
    if timeline.queued_s:
        phases[2] = ("prefill (from there to first token)", PREFILL[1])
    seen = [any(request[n + 1] > request[n] for request in bars) for n in range(len(phases))]
    legend = tuple(
        (name, {"color": colour, "linewidth": 6}) for there, (name, colour) in zip(seen, phases, strict=True) if there
    )
    height = max(1.2, min(sheets.width_in() * 5 / 7.2, 0.13 * len(bars)))
    heading = f"Timeline of one round: {timeline.label}"
    figure, (axes,) = sheets.make_frame(heading, title + cut, legend, height=height)
    few = len(bars) <= 64
    half = 0.42 if few else 0.5
    for phase, (_, colour) in enumerate(phases):
        spans = [(y, request[phase], request[phase + 1]) for y, request in enumerate(bars, start=1)]
        boxes = [((a, y - half), (b, y - half), (b, y + half), (a, y + half)) for y, a, b in spans if b > a]
        axes.add_collection(PolyCollection(boxes, facecolors=colour, linewidths=0, antialiaseds=few), autolim=False)
    axes.set_xlim(0, 1.02 * end)
    axes.set_ylim(len(bars) + 0.7, 0.3)
    axes.grid(visible=False, axis="y")
    axes.yaxis.set_major_locator(MaxNLocator("auto", integer=True, min_n_ticks=1))
    axes.yaxis.set_major_formatter(lambda value, _: f"{value:,.0f}" if value >= 1 else "")
    axes.set_xlabel("Time since the round began (s)")
    axes.set_ylabel("Request")
    return figure


def _stamps(timeline: Timeline) -> list[tuple[float, ...]]:
    """The ends of the phases of each request, by schedule; a queue ends at the first token at the latest."""
    columns = [timeline.starts_s, timeline.sent_s, timeline.first_s, timeline.last_s]
    if timeline.queued_s:
        queued = zip(timeline.sent_s, timeline.queued_s, timeline.first_s, strict=True)
        ends = [min(sent + (0.0 if math.isnan(wait) else wait), first) for sent, wait, first in queued]
        columns.insert(2, ends)
    return sorted(zip(*columns, strict=True))
