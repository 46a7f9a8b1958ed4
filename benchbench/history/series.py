"""Series over stored runs: one a variant, cell and metric, in segments of like conditions, with their steps. Pure."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Literal

from benchbench.comparison.loaded_builds import loaded_notes
from benchbench.comparison.verdicts import BETTER, TITLES
from benchbench.history.conditions import NAMES, definition_of, differences
from benchbench.history.nights import Measured, Night
from benchbench.levels.changes import LEAST, TINY, Changes, Step, Value, changes_of
from benchbench.spec.cell import CellInfo, cell_name

Use = Literal["used", "bad", "invalid"]
Outcome = Literal["passed", "failed", "not judged"]  # of a gate


@dataclass(slots=True)
class Point:
    """A night of a series. `use`: in the levels, or not: a bad night, or one without a valid value; `why` says more."""

    night: Night
    value: Value | None
    use: Use
    why: str


@dataclass(frozen=True, slots=True)
class Segment:
    """Nights under like conditions: `points` (in order), and what the used ones show: `steps` count among `values`.

    `ended`: what is different in the first night after it, empty of the one that goes on.
    """

    points: tuple[Point, ...]
    known: tuple[Point, ...]
    changes: Changes
    ended: str

    @property
    def judged(self) -> str:
        """Why no step can be told here; empty where one can."""
        if (nights := sum(point.use == "used" for point in self.known)) < LEAST:
            return f"{nights} of {LEAST} nights"
        return "" if (self.changes.noise or 0.0) > TINY else "its nights agree to 1e-9: copies, whose noise is unknown"


@dataclass(frozen=True, slots=True)
class Change:
    """A step as it is told: the last night before it and the first one of the new level, and what both loaded."""

    step: Step
    before: Night
    first: Night
    between: tuple[Night, Night]  # the last surely before, the first surely after, with SURE
    seen: Night
    loaded: str
    now: int  # nights of the new level
    undone: bool  # a later level of its segment is back by half or more

    @property
    def ratio(self) -> tuple[float, float, float]:
        """New level over old one with its 95 % interval; above 1 is better, for latencies too."""
        return math.exp(self.step.shift), math.exp(self.step.ends[0]), math.exp(self.step.ends[1])


@dataclass(frozen=True, slots=True)
class Series:
    """A variant's cell and metric. `segments` in the order of their last nights: the last is that of today.

    `going`: whether the latest run of the variant planned this cell.
    """

    variant: str
    cell: CellInfo
    metric: str
    segments: tuple[Segment, ...]
    going: bool
    changes: tuple[tuple[Segment, Change], ...] = field(default=())

    @property
    def name(self) -> str:
        """`Sys tok/s of main, in=128, out=16, batch=4`."""
        return f"{TITLES[self.metric]} of {cell_name(dict(self.cell))}"

    def unit(self, log: float) -> float:
        """A level or value in the metric's unit: s, tok/s or req/s."""
        return math.exp(BETTER[self.metric] * log)


def series_of(nights: Sequence[Night], metrics: Sequence[str], join: Sequence[str] = ()) -> list[Series]:
    """All series, in the order of the cells of the latest runs. `join`: conditions (NAMES) that may differ.

    Raises ValueError for an unknown name in `join`.
    """
    if unknown := [name for name in join if name not in NAMES]:
        raise ValueError(f"--join {unknown[0]}: unknown (allowed: {', '.join(NAMES)})")
    ordered = sorted(nights, key=lambda night: (night.when_ns, night.measured_ns, str(night.run.path)))
    variants = dict.fromkeys(night.variant for night in reversed(ordered))
    result: list[Series] = []
    for variant in sorted(variants):
        own = [night for night in ordered if night.variant == variant]
        shapes = dict.fromkeys(shape for night in reversed(own) for shape in night.cells)
        for metric in metrics:
            result += filter(None, (_series(own, shape, metric, frozenset(join)) for shape in shapes))
    return result


def _series(nights: Sequence[Night], shape: str, metric: str, join: frozenset[str]) -> Series | None:
    measured = [(night, night.cells[shape]) for night in nights if shape in night.cells]
    if not any(metric in cell.values for _, cell in measured):
        return None
    points: dict[tuple[tuple[str, str], ...], list[Point]] = {}
    keys = []
    for night, cell in measured:
        conditions = {**night.conditions, "cell": definition_of(cell.cell, metric)}
        keys.append(tuple((name, text) for name, text in conditions.items() if name not in join))
        points.setdefault(keys[-1], []).append(_point(night, cell, metric))
    last = {key: place for place, key in enumerate(keys)}
    segments = []
    for key in sorted(points, key=lambda key: last[key]):
        ended = ""
        if (after := last[key] + 1) < len(keys):
            night = measured[after][0]
            ended = f"{night.build}: {'; '.join(differences(dict(key), dict(keys[after])))}"
        segments.append(_segment(points[key], ended))
    newest = measured[-1]
    series = Series(nights[-1].variant, newest[1].cell, metric, tuple(segments), newest[0] is nights[-1])
    listed = tuple((segment, change) for segment in segments for change in _changes(segment))
    return Series(series.variant, series.cell, metric, series.segments, series.going, listed)


def _point(night: Night, measured: Measured, metric: str) -> Point:
    value = measured.values.get(metric)
    if value is None:
        return Point(night, None, "invalid", measured.why or f"no {TITLES[metric]}")
    return Point(night, value, "used", measured.suspect)


def _segment(points: Sequence[Point], ended: str) -> Segment:
    known = [point for point in points if point.value is not None]
    changes = changes_of([point.value for point in known if point.value is not None])
    for place in changes.bad:
        known[place].use, known[place].why = "bad", "far off, and the next night was not"
    return Segment(tuple(points), tuple(known), changes, ended)


def _changes(segment: Segment) -> Iterator[Change]:
    known, steps = segment.known, segment.changes.steps
    used = [place for place in range(len(known)) if place not in segment.changes.bad]
    for number, step in enumerate(steps):

        def before(place: int) -> Night:
            return known[max(k for k in used if k < place)].night

        old, new = before(step.at), known[step.at].night
        notes = loaded_notes(*((night.build, night.run.manifest, night.variant) for night in (old, new)))
        between = (before(step.low), known[step.high].night)
        half = (step.before + step.after) / 2
        back = [later.after > half if step.shift < 0 else later.after < half for later in steps[number + 1 :]]
        yield Change(step, old, new, between, known[step.seen].night, "; ".join(notes[:1]), step.nights[1], any(back))


# ---- The gate ---------------------------------------------------------------------------------------------


def judge(series: Sequence[Series], limit: float, since_ns: int = 0) -> list[tuple[str, Outcome, str]]:
    """Each series that goes on as (what, outcome, sentence): failed by a step for the worse that still stands, or stood
    at the end of its segment: nothing has shown since that it is undone.

    `limit`: steps to a ratio of 1 - limit or above pass. `since_ns`: steps whose first night lies before it are known.
    What cannot be judged (too few nights, no valid value in the latest run) does not pass: "not judged".
    """
    judged: list[tuple[str, Outcome, str]] = []
    for each in series:
        if not each.going:
            continue
        segment = each.segments[-1]
        last = segment.points[-1]
        standing = [
            change
            for _, change in each.changes
            if change.step.shift < 0 and not change.undone and change.first.when_ns >= since_ns
        ]
        worst = min(standing, key=lambda change: change.step.shift, default=None)
        if worst and worst.ratio[0] < 1 - limit:
            share = f"{100 * (1 - worst.ratio[0]):.1f} % slower"
            judged.append((each.name, "failed", f"{share} since {worst.first.build}, over {worst.now} nights"))
        elif last.value is None:
            judged.append((each.name, "not judged", f"cannot be judged: {last.night.name} is invalid ({last.why})"))
        elif segment.judged:
            judged.append((each.name, "not judged", f"cannot be judged: {segment.judged}"))
        else:
            judged.append((each.name, "passed", "no step"))
    return judged
