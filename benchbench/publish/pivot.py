"""A table turned by one axis: its values become columns, the other axes stay rows. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from benchbench.report.markdown import escape_markdown, write_table
from benchbench.report.summary_table import (
    AXES,
    Parts,
    Row,
    check_columns,
    column_title,
    in_order,
    markdown_cell,
    table_parts,
)


def parse_pivot(text: str) -> tuple[str, str]:
    """The axis and the column of `batch:sys_tok_s`. Raises ValueError."""
    axis, _, value = (part.strip() for part in text.partition(":"))
    if axis not in AXES or not value or value in AXES:
        raise ValueError(f"{text}: must be AXIS:COLUMN, as batch:sys_tok_s (allowed axes: {', '.join(AXES)})")
    return axis, value


def pivot_parts(
    rows: Sequence[Row], pivot: tuple[str, str], include_invalid: bool = False, closing: Sequence[str] = ()
) -> Parts:
    """As `table.table_parts`, with a column for each value of the axis that holds the column asked for.

    Raises ValueError for an unknown column, and where two cells fall into one place.
    """
    axis, value = pivot
    kept = [row for row in rows if include_invalid or row.get("status") != "invalid"]
    places, others, lines = _placed(kept, axis, value)
    heads = [column_title(name) for name in others]
    heads += [f"{column_title(axis)} {escape_markdown(_short(place))}" for place in places]
    texts = []
    for cells in lines:
        first = next(iter(cells.values()))
        shown = [markdown_cell(first, name) for name in others]
        shown += [markdown_cell(cells.get(place, {}), value) for place in places]
        texts.append(shown)
    parts = table_parts(rows, [*others, axis, value] if rows else None, include_invalid, closing)
    content = f"The columns by {axis} hold {column_title(value)}."
    table = write_table(heads, texts) if texts else parts.table
    return replace(parts, table=table, caption=[content, *parts.caption])


def pivot_rows(rows: Sequence[Row], pivot: tuple[str, str]) -> list[Row]:
    """Flat rows for CSV and JSON, invalid cells left out: the other axes, then `sys_tok_s batch=1` and so on."""
    axis, value = pivot
    places, others, lines = _placed([row for row in rows if row.get("status") != "invalid"], axis, value)
    return [
        {name: next(iter(cells.values())).get(name) for name in others}
        | {f"{value} {axis}={_short(place)}": cells.get(place, {}).get(value) for place in places}
        for cells in lines
    ]


def _placed(rows: Sequence[Row], axis: str, value: str) -> tuple[list[Any], list[str], list[dict[Any, Row]]]:
    """The axis's values, the other axes that tell rows apart, and for each line of the table its cells by place."""
    check_columns(rows, [axis, value])
    others = [name for name in AXES if name != axis and any(row.get(name) not in (None, "") for row in rows)]
    if len({row.get("load") for row in rows}) < 2 and "load" in others:
        others.remove("load")
    lines: dict[tuple[Any, ...], dict[Any, Row]] = {}
    for row in in_order(rows):
        cells = lines.setdefault(tuple(row.get(name) for name in others), {})
        if row.get(axis) in cells:
            raise ValueError(f"{axis}:{value}: two cells have the same {', '.join([*others, axis])}")
        cells[row.get(axis)] = row
    values = {row.get(axis) for row in rows}
    places = sorted(
        values, key=lambda place: (place is None, place if isinstance(place, int | float) else 0, str(place))
    )
    return places, others, list(lines.values())


def _short(place: object) -> str:
    return f"{place:g}" if isinstance(place, float) else "none" if place in (None, "") else str(place)
