"""What a figure shows of a run: which panels, which lines, and which cells are left out, said in words. Pure.

A line stands for something that really differs: output lengths whose points agree are one line. With variants the
shapes are panels and the variants lines; without, the inputs are panels where their lines are too many for one.
What would not fit is chosen evenly, with both ends, and a note says of how many: 4,000 cells draw like 40.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from statistics import fmean, median
from typing import Any, NamedTuple, TypeVar

from benchbench.datasets.row_lengths import tokens_text
from benchbench.figures.lettering import short_names
from benchbench.products.product import initials_in
from benchbench.report.summary_table import Row, number

Dashes = str | tuple[float, tuple[float, ...]]  # matplotlib's
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "<", ">", "h")
DASHES: tuple[Dashes, ...] = (  # of the lines, for colours are alike in a grey print; bounds are thin dots, ideals grey
    *("-", (0, (5, 1.2)), (0, (7, 1.2, 1, 1.2)), (0, (1.6, 0.9)), (0, (12, 1.2)), (0, (7, 1.2, 1, 1.2, 1, 1.2)), "-"),
)
GREY = "#BBBBBB"
CHOSEN = 4  # of more variants only so many are told apart
TOGETHER = 4  # so many lines of different shapes are one panel
LINES = 6  # of a panel
PANELS = 9
POINTS = 4  # fewer are no curve
OTHERS = 40  # lines in grey
OUTPUTS = 24  # of one input are looked at
SAME, NEAR = 0.03, 0.15  # points apart by at most SAME agree; by at most NEAR where their intervals overlap
SHOWN_DOTS = 40
SHARE = "ideal_share"  # a column that `with_shares` adds

Shape = tuple[int, tuple[int, ...]]  # an input and the outputs that stand together
T = TypeVar("T")


class Point(NamedTuple):
    """A cell on a curve."""

    x: float
    y: float
    row: Row


@dataclass(frozen=True)
class Line:
    """Cells that are one line, and how it looks; `name` is what tells it apart in its panel.

    `absent`: cells that belong to it and have no valid number.
    """

    name: str
    rows: tuple[Row, ...]
    colour: str = GREY
    marker: str = ""
    dashes: Dashes = "-"
    absent: tuple[Row, ...] = ()

    def points(self, axis: str, name: str) -> list[Point]:
        """Of each row that has the column, ascending."""
        points = [Point(row[axis], value, row) for row in self.rows if (value := number(row, name)) is not None]
        return sorted(points, key=lambda point: point[:2])

    def means(self, axis: str, name: str) -> list[tuple[float, float]]:
        """One point a place on the axis, the mean of the cells there."""
        at: dict[float, list[float]] = {}
        for x, y, _ in self.points(axis, name):
            at.setdefault(x, []).append(y)
        return [(x, fmean(ys)) for x, ys in at.items()]

    def curve(self, axis: str, name: str) -> list[tuple[float, float]]:
        """The means, and NaN where a cell has no number: there a drawn line breaks, for others alone are no mean."""
        return with_gaps(self.means(axis, name), (row[axis] for row in self.absent))


def with_gaps(curve: Iterable[tuple[float, float]], places: Iterable[float]) -> list[tuple[float, float]]:
    """Points of a curve, ascending, and NaN at these places instead."""
    return sorted({**dict(curve), **dict.fromkeys(places, math.nan)}.items())


@dataclass(frozen=True)
class Panel:
    """Lines on the same axes; `others` are of variants that are too many to be told apart."""

    title: str
    lines: tuple[Line, ...]
    others: tuple[Line, ...] = ()


@dataclass(frozen=True)
class Sheet:
    """The usable rows of a run; `axis` is the one of load: batch, or rate where no row has a batch."""

    title: str
    axis: str
    rows: tuple[Row, ...]
    variants: tuple[str, ...]  # those told apart
    crowd: tuple[str, ...] = ()  # and the others
    names: dict[str, str] = field(default_factory=dict)  # of variants, as they are written in all figures
    left_out: tuple[Row, ...] = ()  # invalid, at a load

    @property
    def named(self) -> bool:
        """Whether there are variants."""
        return self.variants not in {(), ("",)}

    @property
    def axis_label(self) -> str:
        return "Batch (requests in flight)" if self.axis == "batch" else "Request rate (req/s)"

    def has(self, name: str) -> bool:
        """Whether any row has a number in this column."""
        return any(number(row, name) is not None for row in self.rows)

    def look(self, variant: str) -> tuple[str, str, Dashes]:
        """Colour, marker and dashes of a variant; of one in the crowd grey, and none."""
        if variant not in self.variants:
            return GREY, "", "-"
        return looks(self.variants.index(variant))


def looks(place: int) -> tuple[str, str, Dashes]:
    """Colour, marker and dashes of the n-th line."""
    return COLOURS[place], MARKERS[place], DASHES[place]


def make_sheet(rows: Sequence[Row], title: str) -> Sheet:
    """Leave out what is invalid or has no load, and say in the title how many.

    Of more than CHOSEN variants the first (a sweep's baseline, as a rule) and those of most Sys tok/s are told apart.
    """
    usable = [row for row in rows if row.get("status") != "invalid"]
    if left_out := len(rows) - len(usable):
        title += f" · {left_out} invalid cell{'s'[: left_out > 1]} left out"
    axis = "rate" if all(row.get("batch") is None for row in usable) else "batch"
    usable = [row for row in usable if number(row, axis)]
    invalid = tuple(row for row in rows if row.get("status") == "invalid" and number(row, axis))
    variants = list(dict.fromkeys(variant_of(row) for row in usable))
    chosen = variants if len(variants) <= CHOSEN else _fastest(variants, usable, axis)
    if chosen != variants:
        title += f" · {chosen[0]} and the {CHOSEN - 1} fastest of {len(variants)} variants"
    crowd, names = tuple(variant for variant in variants if variant not in chosen), short_names(variants)
    title += f" · {meaning}" if (meaning := initials_in(names)) else ""
    return Sheet(title, axis, tuple(usable), tuple(chosen), crowd, names, invalid)


def variant_of(row: Row) -> str:
    return row.get("variant") or ""


def _fastest(variants: Sequence[str], rows: Sequence[Row], axis: str) -> list[str]:
    """The first, and CHOSEN - 1 others by their mean log Sys tok/s against the median variant, cell by cell."""
    cells: dict[tuple[Any, ...], dict[str, float]] = {}
    for row in rows:
        if (value := number(row, "sys_tok_s")) and value > 0:
            cells.setdefault((row["input"], row["output"], row[axis]), {})[variant_of(row)] = math.log(value)
    scores: dict[str, list[float]] = {variant: [] for variant in variants}
    for speeds in cells.values():
        middle = median(speeds.values())
        for variant, value in speeds.items():
            scores[variant].append(value - middle)
    ranked = sorted(variants[1:], key=lambda variant: -fmean(scores[variant] or [-math.inf]))
    return [variants[0], *ranked[: CHOSEN - 1]]


# ---- Panels and lines -----------------------------------------------------------------------------------


def panels_of(sheet: Sheet, name: str) -> tuple[list[Panel], str]:
    """The panels of a column over the axis of load, and what is not shown or stands together, in words."""
    rows = [row for row in sheet.rows if number(row, name) is not None]
    shapes, notes = _shapes(sheet, rows, name)
    by_shape: dict[tuple[int, int], list[Row]] = {}
    for row in rows:
        by_shape.setdefault((row["input"], row["output"]), []).append(row)
    cells = {shape: [row for output in shape[1] for row in by_shape.get((shape[0], output), ())] for shape in shapes}
    make = _variant_panels if sheet.named else _shape_panels
    panels, more = make(sheet, cells)
    panels = with_absent(sheet, panels, name, ("input", "output", "variant"))
    return panels, "".join(f" · {note}" for note in [*notes, *more])


def with_absent(sheet: Sheet, panels: Sequence[Panel], name: str, key: Sequence[str]) -> list[Panel]:
    """The panels, whose lines know their cells without a number in a column: those alike in `key` to one that has."""

    def key_of(row: Row) -> tuple[Any, ...]:
        return tuple(row.get(part) or "" for part in key)

    absent: dict[tuple[Any, ...], list[Row]] = {}
    for row in (*sheet.left_out, *(row for row in sheet.rows if number(row, name) is None)):
        absent.setdefault(key_of(row), []).append(row)

    def whole(line: Line) -> Line:
        keys = dict.fromkeys(map(key_of, line.rows))
        return replace(line, absent=tuple(row for key in keys for row in absent.get(key, ())))

    return [replace(p, lines=tuple(map(whole, p.lines)), others=tuple(map(whole, p.others))) for p in panels]


def _shapes(sheet: Sheet, rows: Sequence[Row], name: str) -> tuple[list[Shape], list[str]]:
    """Inputs with the outputs that agree, from small to large. Outputs stand together at all inputs or at none."""
    curves: dict[int, dict[tuple[Any, ...], Row]] = {}
    for row in rows:
        if variant_of(row) in sheet.variants:
            curves.setdefault(row["output"], {})[row["input"], variant_of(row), row[sheet.axis]] = row
    groups: list[list[int]] = []
    for output in spread(sorted(curves), OUTPUTS):
        alike = (group for group in groups if all(agree(curves[first], curves[output], name) for first in group))
        if group := next(alike, None):
            group.append(output)
        else:
            groups.append([output])
    there = {(length, output) for output, cells in curves.items() for length, _, _ in cells}
    lengths = sorted({length for length, _ in there})
    standing = [(length, tuple(o for o in group if (length, o) in there)) for length in lengths for group in groups]
    notes = ["outputs that agree are one line"] if any(len(group) > 1 for group in groups) else []
    notes += [f"{OUTPUTS} of {len(curves):,} outputs"] if len(curves) > OUTPUTS else []
    return [shape for shape in standing if shape[1]], notes


def agree(first: Mapping[Any, Row], other: Mapping[Any, Row], name: str) -> bool:
    """Whether a column's curves, by input, variant and load, cannot be told apart wherever both inputs were measured.

    There they have the same cells. In 19 of 20 of these the points differ by at most SAME of the larger, or by at most
    NEAR with intervals that overlap, as 95 % intervals do; in none by more than NEAR.
    """
    both = {key[0] for key in first} & {key[0] for key in other}
    keys = {key for key in first if key[0] in both}
    if not keys or keys != {key for key in other if key[0] in both}:
        return False
    apart = [_apart(first[key], other[key], name) for key in keys]
    near = all(far <= NEAR for far, _ in apart)
    return near and sum(far > SAME and not overlap for far, overlap in apart) <= len(apart) // 20


def _apart(first: Row, other: Row, name: str) -> tuple[float, bool]:
    """How far apart two cells are, as a share of the larger, and whether their intervals overlap."""
    a, b = number(first, name) or 0.0, number(other, name) or 0.0
    ends = [number(row, f"{name}_{end}") for row in (first, other) for end in ("low", "high")]
    low, high, other_low, other_high = (math.nan if end is None else end for end in ends)
    return abs(a - b) / (max(abs(a), abs(b)) or 1.0), low <= other_high and other_low <= high


def _variant_panels(sheet: Sheet, cells: dict[Shape, list[Row]]) -> tuple[list[Panel], list[str]]:
    """A panel a shape, a line a variant."""
    shapes, notes = _some(list(cells), PANELS, "shapes")
    panels = []
    for shape in shapes:
        of: dict[str, list[Row]] = {}
        for row in cells[shape]:
            of.setdefault(variant_of(row), []).append(row)
        lines = [Line(sheet.names[v], tuple(of[v]), *sheet.look(v)) for v in sheet.variants if v in of]
        others = [Line(sheet.names[v], tuple(of[v])) for v in spread(sheet.crowd, OTHERS) if v in of]
        panels.append(Panel(f"{tokens_text(shape[0])} → {_outputs(shape[1])}", tuple(lines), tuple(others)))
    return panels, notes


def _shape_panels(_: Sheet, cells: dict[Shape, list[Row]]) -> tuple[list[Panel], list[str]]:
    """One panel, a line a shape, while they are few; else a panel an input, a line an output."""
    inputs = list(dict.fromkeys(length for length, _ in cells))
    if len(cells) <= TOGETHER or len(cells) == len(inputs) or len(inputs) == 1:
        shapes, notes = _some(list(cells), LINES, "inputs" if len(inputs) > 1 else "outputs")
        lines = [Line(_line_name(shape, list(cells)), tuple(cells[shape])) for shape in shapes]
        return [Panel(_common(list(cells)), _coloured(lines))], notes
    drawn, notes = _some(inputs, PANELS, "inputs")
    own = [shape for shape in cells if shape[0] in drawn]
    kinds, more = _some(sorted({outputs for _, outputs in own}), LINES, "outputs")
    styles = {outputs: (f"out {_outputs(outputs)}", looks(n)) for n, outputs in enumerate(kinds)}
    panels = []
    for length in drawn:
        named = [(styles[shape[1]], shape) for shape in own if shape[0] == length and shape[1] in styles]
        lines = [Line(name, tuple(cells[shape]), *look) for (name, look), shape in named]
        panels.append(Panel(f"input {tokens_text(length)}", tuple(lines)))
    return [panel for panel in panels if panel.lines], [*notes, *more]


def _coloured(lines: Sequence[Line]) -> tuple[Line, ...]:
    return tuple(Line(line.name, line.rows, *looks(n)) for n, line in enumerate(lines))


def _line_name(shape: Shape, shapes: Sequence[Shape]) -> str:
    """What tells a shape from the others."""
    length, outputs = shape
    parts = [f"in {tokens_text(length)}"] if len({i for i, _ in shapes}) > 1 else []
    return ", ".join([*parts, *([f"out {_outputs(outputs)}"] if len({o for _, o in shapes}) > 1 else [])])


def _common(shapes: Sequence[Shape]) -> str:
    """What all shapes share."""
    inputs, outputs = {i for i, _ in shapes}, {o for _, o in shapes}
    parts = [f"input {tokens_text(next(iter(inputs)))}"] if len(inputs) == 1 else []
    return ", ".join([*parts, *([f"output {_outputs(next(iter(outputs)))}"] if len(outputs) == 1 else [])])


def _outputs(outputs: Sequence[int]) -> str:
    """One, or those that stand together."""
    if len(outputs) > 3:
        return f"{outputs[0]:,} to {outputs[-1]:,}"
    return " and ".join(", ".join(f"{output:,}" for output in part) for part in (outputs[:-1], outputs[-1:]) if part)


def _some(items: Sequence[T], most: int, what: str) -> tuple[list[T], list[str]]:
    chosen = spread(items, most)
    return chosen, [f"{most} of {len(items):,} {what}"] if len(chosen) < len(items) else []


def spread(items: Sequence[T], most: int) -> list[T]:
    """At most so many, evenly, with both ends."""
    if len(items) <= most:
        return list(items)
    return [items[round(n * (len(items) - 1) / (most - 1))] for n in range(most)]


def with_shares(sheet: Sheet) -> Sheet:
    """Rows with SHARE: Sys tok/s in percent of what the smallest batch of all gave its shape and variant, times n.

    Its interval is that of the cell; how well the smallest batch is known is left out. Rows without it have none.
    """
    batched = sheet.rows if sheet.axis == "batch" else ()
    smallest = min((row["batch"] for row in batched), default=0)
    bases: dict[tuple[Any, ...], float] = {}
    for row in batched:
        if row["batch"] == smallest and (speed := number(row, "sys_tok_s")):
            bases[variant_of(row), row["input"], row["output"]] = speed / row["batch"]
    rows = []
    for row in batched:
        if base := bases.get((variant_of(row), row["input"], row["output"])):
            values = {end: number(row, f"sys_tok_s{end}") for end in ("", "_low", "_high")}
            known = {f"{SHARE}{end}": 100 * v / (base * row["batch"]) for end, v in values.items() if v is not None}
            rows.append({**row, **known})
    return replace(sheet, rows=tuple(rows))


def loads_of(sheet: Sheet, name: str) -> int:
    """How many cells have the column and are on a curve, which has two loads or more; 0 where they are the fewer.

    Where it is 0 the cells are dots beside each other.
    """
    curves: dict[tuple[Any, ...], int] = {}
    for row in sheet.rows:
        if number(row, name) is not None:
            key = (variant_of(row), row["input"], row["output"])
            curves[key] = curves.get(key, 0) + 1
    on_curves, cells = sum(count for count in curves.values() if count > 1), sum(curves.values())
    return on_curves if on_curves >= POINTS and 2 * on_curves >= cells else 0


def dots_of(sheet: Sheet, name: str) -> tuple[list[Line], str]:
    """Cells as lines of one dot each, by shape, load and variant; and how many are not shown, in words."""
    order = {variant: place for place, variant in enumerate([*sheet.variants, *sheet.crowd])}
    rows = [row for row in sheet.rows if number(row, name) is not None]
    rows.sort(key=lambda row: (row["input"], row["output"], row[sheet.axis], order[variant_of(row)]))
    chosen, notes = _some(rows, SHOWN_DOTS, "cells")
    several = len({row[sheet.axis] for row in rows}) > 1
    lines = []
    for row in chosen:
        name = f"{tokens_text(row['input'])} → {row['output']:,}" + (f" at {row[sheet.axis]:,g}" if several else "")
        name += f", {sheet.names[variant_of(row)]}" if sheet.named else ""
        colour, marker, _ = sheet.look(variant_of(row))
        lines.append(Line(name, (row,), colour, marker or "o"))
    return lines, "".join(f" · {note}" for note in notes)
