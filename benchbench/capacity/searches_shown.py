"""What a picture of searches shows: each load's figure, the monotone fit, and the answer. Pure."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from itertools import pairwise

from benchbench.analysis.stats import two_stage_estimate
from benchbench.boundary.boundary_search import fitted
from benchbench.boundary.certify import FAILED
from benchbench.boundary.isotonic import rising, score
from benchbench.capacity.answer_texts import answer_record
from benchbench.capacity.over_starts import starts_of
from benchbench.capacity.probes import VOID, Made, SearchState, mean_of
from benchbench.figures.searches import Curve, Seen, Shown
from benchbench.slo.attainment import limits_of
from benchbench.spec.cell import CellInfo

_STEPS = 12  # of the fit between two loads: it is straight in logarithms


def shown(states: Sequence[SearchState], cells: Mapping[str, CellInfo]) -> list[Shown]:
    """A panel a search, or with blocks a variant and shape; `cells` of the run, by key. None without a probe."""
    groups: dict[tuple[str, str], list[SearchState]] = {}
    for state in (state for state in states if any(made.ended for made in state.made)):
        groups.setdefault((state.target.variant, state.target.shape), []).append(state)
    return [_panel(of, cells[of[0].made[0].cell]) for of in groups.values()]


def _panel(states: Sequence[SearchState], cell: CellInfo) -> Shown:
    target, curves = states[0].target, tuple(map(_curve, states))
    what, limit_ms = limits_of(cell.slo)
    if states[0].block is not None:
        (starts,) = starts_of(states)
        text = "no capacity" if starts.mean is None else _load(starts.mean)
        if starts.low is not None and starts.high is not None:
            text += f" ({_load(starts.low)}\N{EN DASH}{_load(starts.high)})"
        ends, title = (starts.low, starts.high), f"{target.label}\n{text}, {len(states)} starts"
        return Shown(title, target.axis, what, limit_ms, curves, ends, starts.mean, over_starts=True)
    record = answer_record(states[0])
    holds, fails = record["holds_at"], record["fails_at"]
    parts = [f"{word} at {_load(end)}" for word, end in (("holds", holds), ("fails", fails)) if end is not None]
    title = f"{target.label}\n{', '.join(parts) or 'nothing is certain'}"
    return Shown(title, target.axis, what, limit_ms, curves, (holds, fails))


def _load(load: float) -> str:
    return f"{load:.3g}" if load < 1000 else f"{load:,.0f}"


def _curve(state: SearchState) -> Curve:
    groups: dict[tuple[float, int | None], list[Made]] = {}
    for made in (made for made in state.made if made.ended):
        groups.setdefault((made.load, made.test), []).append(made)
    if state.block is None:
        nodes = zip(*fitted(state.probes), strict=True)
    else:
        figures = {made.load: score(mean_of(made.observed)) for made in state.counted}
        loads = sorted(figures)
        nodes = zip(loads, rising([figures[load] for load in loads], [1.0] * len(loads)), strict=True)
    seen = tuple(_seen(*at, of) for at, of in groups.items())
    failed = {point.load for point in seen if point.kind == "failed"}  # has no figure
    return Curve(seen, tuple(_between([node for node in nodes if node[0] not in failed])))


def _seen(load: float, test: int | None, probes: Sequence[Made]) -> Seen:
    """What the probes of one test, or the explorations, of a load come to."""
    excess = [value for made in probes if made.ended != VOID for value in made.observed.excess]
    if FAILED in excess or not excess:
        return Seen(load, "failed" if excess else "void")
    figures = [1 + value for value in excess]
    known = two_stage_estimate(figures, len(figures))
    low, high = (known.low, known.high) if known else (None, None)
    suspect = any(made.observed.suspect for made in probes)
    kind = "explored" if test is None else "tested"
    return Seen(load, kind, math.fsum(figures) / len(figures), low, high, suspect)


def _between(nodes: Sequence[tuple[float, float]]) -> Iterable[tuple[float, float]]:
    """Points along straight lines over ln(load) through scores, as shares of the limit."""
    for (load, value), (further, higher) in pairwise(nodes):
        for step in range(_STEPS):
            share = step / _STEPS
            yield load * (further / load) ** share, math.exp(value + share * (higher - value))
    for load, value in nodes[-1:]:
        yield load, math.exp(value)
