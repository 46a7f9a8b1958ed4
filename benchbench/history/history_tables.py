"""A history as texts: the table of its steps, and its nights and steps for programs. Pure."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from typing import Any

from benchbench.comparison.verdicts import TITLES
from benchbench.history.series import Point, Segment, Series
from benchbench.levels.changes import BAD, LEAST, SURE
from benchbench.report.markdown import escape_markdown, write_table
from benchbench.safe_text import csv_text
from benchbench.spec.cell import cell_name
from benchbench.student.t_distribution import t_quantile

UNITS = {"sys_tok_s": "tok/s", "ttft": "s", "tpot": "s", "e2el": "s", "goodput_req_s": "req/s"}
_TO = "\N{EN DASH}"
_AXES = ("variant", "input", "output", "batch", "rate", "load")
NIGHT_COLUMNS = (
    *(*_AXES, "metric", "unit", "segment", "date", "dated", "commit", "run", "value", "low", "high", "starts"),
    *("use", "why", "level", "step", "ended"),
)
STEP_COLUMNS = (
    *(*_AXES, "metric", "unit", "ratio", "ratio_low", "ratio_high", "before", "after", "since", "last_commit"),
    *("last_run", "first_commit", "first_run", "after_commit", "by_commit", "seen", "nights_before", "nights"),
    *("gradual", "undone", "loaded", "segment"),
)


def day(when_ns: int) -> str:
    """2026-01-31, UTC."""
    return f"{datetime.fromtimestamp(when_ns // 10**9, UTC):%Y-%m-%d}"


def _axes(series: Series) -> dict[str, Any]:
    cell = dict(series.cell)
    return {name: cell[name] for name in _AXES} | {"metric": series.metric, "unit": UNITS[series.metric]}


# ---- For programs ---------------------------------------------------------------------------------------


def step_records(series: Sequence[Series]) -> list[dict[str, Any]]:
    """A dict a step, the latest first; keys STEP_COLUMNS. Levels in `unit`; a ratio above 1 is better."""
    listed = [(each, segment, change) for each in series for segment, change in each.changes]
    records = []
    for each, segment, change in sorted(listed, key=lambda entry: -entry[2].first.when_ns):
        record = _axes(each) | dict(zip(("ratio", "ratio_low", "ratio_high"), change.ratio, strict=True))
        record |= {"before": each.unit(change.step.before), "after": each.unit(change.step.after)}
        record |= {"since": day(change.first.when_ns), "seen": day(change.seen.when_ns)}
        nights = {"last": change.before, "first": change.first}
        record |= {f"{name}_commit": night.commit or None for name, night in nights.items()}
        record |= {f"{name}_run": night.name for name, night in nights.items()}
        both = zip(("after", "by"), change.between, strict=True)
        record |= {f"{name}_commit": night.commit or None for name, night in both}
        record |= {"nights_before": change.step.nights[0], "nights": change.now}
        record |= {"gradual": change.step.gradual, "undone": change.undone, "loaded": change.loaded}
        records.append(record | {"segment": each.segments.index(segment)})
    return records


def night_records(series: Sequence[Series]) -> Iterator[dict[str, Any]]:
    """A dict a night of each series, in order; keys NIGHT_COLUMNS. `low`, `high`: 95 % over its starts, where it has
    several; `level` of its regime, which a night that is not used has too; `step`: the ratio, at the first night of a
    level; `ended`: why the segment ends, at its last night.
    """
    for each in series:
        for number, segment in enumerate(each.segments):
            levels = levels_of(segment)
            steps = {id(segment.known[step.at]): math.exp(step.shift) for step in segment.changes.steps}
            for point in segment.points:
                low, high = interval_of(each, point)
                level = levels.get(id(point))
                night, last = point.night, point is segment.points[-1]
                record = _axes(each) | {"segment": number, "date": day(night.when_ns)}
                record |= {"dated": "commit" if night.dated else "run", "commit": night.commit or None}
                record |= {"run": night.name, "value": point.value and each.unit(point.value.log)}
                record |= {"low": low, "high": high, "starts": point.value and point.value.starts}
                record |= {"use": point.use, "why": point.why or None, "step": steps.get(id(point))}
                level = None if level is None else each.unit(level)
                yield record | {"level": level, "ended": (segment.ended or None) if last else None}


def levels_of(segment: Segment) -> dict[int, float]:
    """The level (log) of each night that has a value, by the id of its point."""
    steps, known = segment.changes.steps, segment.known
    firsts = [0, *(step.at for step in steps), len(known)]
    used = [point.value.log for point in known if point.use == "used" and point.value]
    levels = [steps[0].before, *(step.after for step in steps)] if steps else [sum(used) / max(1, len(used))]
    spans = zip(firsts, firsts[1:], levels, strict=False)
    return {id(point): level for low, high, level in spans for point in known[low:high]}


def interval_of(series: Series, point: Point) -> tuple[float | None, float | None]:
    """95 % over the starts of a night, in the metric's unit; None of one start."""
    value = point.value
    if value is None or value.variance is None or value.starts < 2:
        return None, None
    half = t_quantile(0.975, value.starts - 1) * math.sqrt(value.variance / value.starts)
    low, high = sorted((series.unit(value.log - half), series.unit(value.log + half)))
    return low, high


def history_json(series: Sequence[Series], notes: Sequence[str]) -> str:
    """`steps`, `series` (each with its noise of a night, and its nights), `notes`."""
    data = {
        "steps": step_records(series),
        "series": [
            _axes(each)
            | {"noise": each.segments[-1].changes.noise, "judged": each.segments[-1].judged or None}
            | {"segments": [_segment_record(segment) for segment in each.segments]}
            | {"nights": [{k: v for k, v in night.items() if k not in _axes(each)} for night in night_records([each])]}
            for each in series
        ],
        "notes": [*notes, *remarks(series)],
    }
    return json.dumps(data, indent=1, ensure_ascii=False) + "\n"


def _segment_record(segment: Segment) -> dict[str, Any]:
    first, last = segment.points[0].night, segment.points[-1].night
    ends = {"first": day(first.when_ns), "last": day(last.when_ns), "nights": len(segment.points)}
    return ends | {"noise": segment.changes.noise, "ended": segment.ended or None}


def history_csv(series: Sequence[Series]) -> str:
    """A line a night of each series."""
    return csv_text(NIGHT_COLUMNS, night_records(series))


# ---- For readers ----------------------------------------------------------------------------------------


def history_table(series: Sequence[Series], notes: Sequence[str] = ()) -> str:
    """Markdown: the steps, the segments where conditions changed, what was not used, and what the table rests on."""
    blocks = [_steps_table(series), _segments_table(series)]
    blocks += [[f"- {escape_markdown(text)}" for text in (*remarks(series), *notes)], [caption(series)]]
    return "\n\n".join("\n".join(block) for block in blocks if block) + "\n"


def headline(series: Sequence[Series]) -> str:
    """`2 steps in 12 series, 1 for the worse that still stands; 60 nights from 2026-01-01 to 2026-03-01`."""
    nights = [point.night for each in series for segment in each.segments for point in segment.points]
    if not nights:
        return "No cell has a number: there is no history."
    days = sorted(day(night.when_ns) for night in nights)
    runs = len({night.run.path for night in nights})  # one of several variants is one night
    steps = [change for each in series for _, change in each.changes]
    standing = sum(change.step.shift < 0 and not change.undone for change in steps)
    worse = f", {standing} for the worse that still stand{'s'[: standing == 1]}" if standing else ""
    count = f"{len(steps)} step{'s'[: len(steps) != 1]}" if steps else "No step"
    span = f"{runs} night{'s'[: runs != 1]} from {days[0]} to {days[-1]}"
    return f"{count} in {len(series)} series{worse}; {span}."


def step_rows(series: Sequence[Series]) -> tuple[list[str], list[list[str]]]:
    """Head and rows of the table of steps, the latest first, as plain texts."""
    variants = any(each.variant for each in series)
    rated = any(each.cell.batch is None for each in series)
    head = ["Metric", *["Variant"] * variants, "Input", "Output", "Rate (req/s)" if rated else "Batch", "Ratio"]
    head += ["95 % CI", "Since", "Last before", "First with it", f"Between ({100 * SURE:.0f} %)", "Nights", "Remark"]
    listed = [(change, each) for each in series for _, change in each.changes]
    rows = []
    for change, each in sorted(listed, key=lambda both: -both[0].first.when_ns):
        cell, (ratio, low, high) = each.cell, change.ratio
        load = cell.batch if cell.batch is not None else f"{cell.rate:g}"
        row = [TITLES[each.metric], *[each.variant] * variants, cell.input, cell.output, load]
        row += [f"{ratio:.3f}", f"{low:.3f}{_TO}{high:.3f}", day(change.first.when_ns), change.before.build]
        row += [change.first.build, " and ".join(night.build for night in change.between), change.now]
        row.append(", ".join(["gradual"] * change.step.gradual + ["undone since"] * change.undone))
        rows.append([str(text) for text in row])
    return head, rows


def _steps_table(series: Sequence[Series]) -> list[str]:
    head, rows = step_rows(series)
    table = write_table(head, [[escape_markdown(text) for text in row] for row in rows])
    return [escape_markdown(headline(series)), *(["", *table] if rows else [])]


def _segments_table(series: Sequence[Series]) -> list[str]:
    """Where conditions changed: the nights of each segment that ended, and why; the same of several series once."""
    ended: dict[tuple[str, ...], int] = {}
    for each in series:
        for segment in each.segments:
            if segment.ended:
                days = (day(point.night.when_ns) for point in (segment.points[0], segment.points[-1]))
                key = (each.variant, *days, str(len(segment.points)), segment.ended)
                ended[key] = ended.get(key, 0) + 1
    if not ended:
        return []
    variants = any(key[0] for key in ended)
    head = ["Series", *["Variant"] * variants, "From", "To", "Nights", "Segment ends at"]
    rows = [[str(count), *key[not variants :]] for key, count in sorted(ended.items(), key=lambda item: item[0][2])]
    return write_table(head, [[escape_markdown(text) for text in row] for row in rows])


def remarks(series: Sequence[Series]) -> list[str]:
    """What was not used and why, what cannot be judged, and what the builds of a step loaded, in sentences."""
    unused: dict[tuple[str, str, str], list[str]] = {}
    unjudged: dict[str, int] = {}
    loaded: dict[str, None] = {}
    for each in series:
        for segment in each.segments:
            for point in segment.points:
                if point.use != "used":
                    unused.setdefault((point.night.name, point.use, point.why), []).append(_of(each))
        if why := each.segments[-1].judged:
            unjudged[why] = unjudged.get(why, 0) + 1
        for _, change in each.changes:
            if change.loaded:
                loaded[f"from {change.before.build} to {change.first.build}: {change.loaded}"] = None
    lines = [
        f"not used: {name}, {'a bad night' if use == 'bad' else 'invalid'} ({why}): {_named(names)}"
        for (name, use, why), names in unused.items()
    ]
    lines += [f"no step can be told in {count} of {len(series)} series: {why}" for why, count in unjudged.items()]
    return [*lines, *loaded]


def _of(series: Series) -> str:
    return f"{TITLES[series.metric]} of {cell_name(dict(series.cell), ' ')}"


def _named(names: Sequence[str]) -> str:
    return names[0] + (f" and {len(names) - 1} more" if len(names) > 1 else "")


def caption(series: Sequence[Series]) -> str:
    """What a ratio is, what is one night, and how often a step is none."""
    dated = {point.night.dated for each in series for segment in each.segments for point in segment.points}
    known = "the dates of their commits" + ", or their own where these are not known" * (False in dated)
    order = known if True in dated else "their own dates"
    return (
        f"Ratios above 1 are better, for latencies too; intervals are of two levels. Nights are ordered by {order}. "
        f"By chance a series has at most one step in 365 nights, so these {len(series)} up to {len(series)} a year. "
        f"A single bad night (1 in {1 / BAD:,.0f} of its level) is no step, and in no level; "
        f"the first {LEAST} nights tell none."
    )
