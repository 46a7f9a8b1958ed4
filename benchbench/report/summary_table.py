"""Tables of summary rows: Markdown as published on a model card, CSV and JSON for machines.

A row is a flat dict of JSON-like values, one per cell, under the keys of ``summary.csv``; what is undefined
is None. A machine's table never holds an invalid cell unless it is asked for, and then beside its status.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from benchbench.analysis.runs import OWN
from benchbench.analysis.summary import COLUMNS, like_outputs
from benchbench.datasets.row_lengths import lengths_text
from benchbench.prefixes.words import mixture_lines
from benchbench.report.markdown import escape_markdown, write_table
from benchbench.safe_text import csv_text
from benchbench.slo.attainment import slo_lines
from benchbench.spec.cell import cell_name, output_text
from benchbench.steadiness.steadiness import order_warnings
from benchbench.yamlfile.mistakes import unknown_key

Row = dict[str, Any]

# Axes first: they identify the cell, so they are neither marked nor struck through.
AXES = ("variant", "load", "input", "output", "batch", "rate")
_BATCH_MEANS = {
    "static": "Batch: requests sent at once and all awaited (static load; a round is one batch).",
    "closed": "Batch: requests kept in flight, each refilled as it ends (closed load; a round is one run).",
    "open": "Rate: requests started per second, whatever is in flight (open load; a round is one run).",
}
_SYS_MEANS = {
    "static": "output tokens of the round / (last token - first send)",
    "closed": "output tokens per second while the batch is full",
    "open": "output tokens per second of the whole run",
}
_DASH = "\N{EN DASH}"  # between the ends of a range, and where there is no number
_NAMED_CELLS = 3  # a note names this many cells; it counts more of them
_FOLDED_ROWS = 12  # a job's summary folds a longer table


@dataclass(frozen=True, slots=True)
class Parts:
    """What is published of rows: table and notes as lines of Markdown, the card's three lines and caption as texts."""

    table: Sequence[str]
    headlines: Sequence[str]
    caption: Sequence[str]
    notes: Sequence[str]

    def blocks(self) -> list[Sequence[str]]:
        """Lines of Markdown: table, headlines, caption, notes."""
        texts = [(line.removesuffix("*"), "*" * line.endswith("*")) for line in self.headlines]
        headlines = [f"- {escape_markdown(text)}{star}" for text, star in texts] or ["No cell has a number."]
        return [self.table, headlines, [*map(escape_markdown, self.caption)], self.notes]

    def markdown(self) -> str:
        """All of it, in this order."""
        return "\n\n".join("\n".join(block) for block in self.blocks() if block)

    def github(self, title: str) -> str:
        """For a job's summary: title, the three lines and notes first; a long table folded."""
        rows = len(self.table) - 2
        table = "\n".join(self.table)
        if rows > _FOLDED_ROWS:
            table = f"<details><summary>{rows} rows</summary>\n\n{table}\n\n</details>"
        _, headlines, caption, notes = self.blocks()
        blocks = (headlines, notes, [table], caption)
        return "\n\n".join([f"### {escape_markdown(title)}", *("\n".join(block) for block in blocks if block)])


def markdown_table(
    rows: Sequence[Row],
    columns: Sequence[str] | None = None,
    include_invalid: bool = False,
    closing: Sequence[str] = (),
) -> str:
    """The table as published, as `table_parts` makes it."""
    return table_parts(rows, columns, include_invalid, closing).markdown() + "\n"


def table_parts(
    rows: Sequence[Row],
    columns: Sequence[str] | None = None,
    include_invalid: bool = False,
    closing: Sequence[str] = (),
) -> Parts:
    """The table, the card's three lines (peak, TTFT range, scaling) and those of the SLO, a caption, and notes.

    The default columns are Input, Output, Batch (Rate in req/s for open loads), TTFT in ms (mean) and
    Sys tok/s; Variant and Tool come first when a row has one, and Run tok/s last where another tool's row has
    no Sys tok/s, then Goodput where a row has it. Rows are sorted by variant, input, output, batch,
    rate. The numbers of suspect rows, and lines that rest on one, carry a ``*``; a note has the reasons.
    Invalid rows are left out and counted, or, with ``include_invalid``, struck through; the three lines
    never use them. ``closing`` are further lines of the caption.

    A number that has an interval is rounded by `decimals`. Raises ValueError if a column is not a key of the rows.
    """
    names = check_columns(rows, columns) if columns else _published_columns(rows)
    usable = [row for row in rows if row.get("status") != "invalid"]
    shown = in_order(rows if include_invalid else usable)
    table = write_table([*map(column_title, names)], ([markdown_cell(row, name) for name in names] for row in shown))
    caption = [*_caption(usable, names), *closing]
    headlines = [*_headlines(in_order(usable)), *slo_lines(in_order(rows))]
    return Parts(table, headlines, caption, _notes(rows, include_invalid))


def csv_table(rows: Sequence[Row], columns: Sequence[str] | None = None, include_invalid: bool = False) -> str:
    """CSV with the keys as header, rows and columns in the order given, None as an empty field.

    Floats keep 6 decimals (a nanosecond, of a column in ms). With ``include_invalid`` the column ``status``
    is appended where it is missing. Raises ValueError if a column is not a key of the rows.
    """
    names, records = _records(rows, columns, include_invalid)
    return csv_text(names, records)


def json_table(rows: Sequence[Row], columns: Sequence[str] | None = None, include_invalid: bool = False) -> str:
    """A JSON list of one object per row, with the values and rules of `csv_table`; None is null."""
    _, records = _records(rows, columns, include_invalid)
    return json.dumps(records, indent=1, ensure_ascii=False, allow_nan=False) + "\n"


def column_title(name: str) -> str:
    """A column's heading with its unit: ``ttft_ms_p50`` is "TTFT p50 (ms)", ``sys_tok_s`` "Sys tok/s"."""
    return COLUMNS[name].heading if name in COLUMNS else name.replace("_", " ").capitalize()


def number(row: Row, name: str) -> float | None:
    """The row's finite number under this key, else None."""
    value = row.get(name)
    return float(value) if isinstance(value, int | float) and math.isfinite(value) else None


def valued(rows: Iterable[Row], name: str) -> list[tuple[float, Row]]:
    """(number, row) of the rows that have one under this key."""
    return [(value, row) for row in rows if (value := number(row, name)) is not None]


def decimals(most: int, half_width: float | None) -> int:
    """How many decimals a number has whose 95 % interval is `half_width` to each side: `most`, or fewer.

    The half-width, to two significant digits, decides (JCGM 100:2008, 7.2.6): with h = (high - low) / 2 the last digit
    stands at 10^(floor(log10 h) - 1). So 254.73 +- 3.1 is 254.7, 254.73 +- 31 is 255, and 5038 +- 310 is 5040 (-1
    decimals). Without an interval, or with one of no width, there are `most`.
    """
    if not half_width or not math.isfinite(half_width) or half_width < 0:
        return most
    return min(most, 1 - math.floor(math.log10(half_width)))


def rounded(value: float, places: int) -> str:
    """Text with this many decimals; negative ones are zeros before the point."""
    return f"{round(value, places):.{max(places, 0)}f}"


def _half_width(row: Row, name: str) -> float | None:
    low, high = number(row, f"{name}_low"), number(row, f"{name}_high")
    return None if low is None or high is None else (high - low) / 2


def _text(row: Row, name: str, value: float) -> str:
    """The number of a column, rounded by its interval; the interval's ends as the number itself."""
    base = name.removesuffix("_low").removesuffix("_high")
    most = COLUMNS[name].decimals if name in COLUMNS else None
    return rounded(value, decimals(1 if most is None else most, _half_width(row, base)))


def in_order(rows: Iterable[Row]) -> list[Row]:
    """By variant, as the rows name them first (a sweep's order), then sorted by input, output, batch, rate."""
    rows = list(rows)
    variants = list(dict.fromkeys(row.get("variant") or "" for row in rows))

    def order(row: Row) -> tuple[Any, ...]:
        axes = (number(row, name) for name in ("input", "output", "batch", "rate"))
        place = variants.index(row.get("variant") or "")
        return (place, *(-1.0 if value is None else value for value in axes), row.get("load") or "")

    return sorted(rows, key=order)


def _allowed(rows: Iterable[Row]) -> list[str]:
    return list(dict.fromkeys(name for row in rows for name in row))


def check_columns(rows: Sequence[Row], columns: Sequence[str]) -> list[str]:
    """`columns`. Raises ValueError for one that is no key of the rows."""
    allowed = _allowed(rows)
    if rows and (unknown := next((name for name in columns if name not in allowed), None)) is not None:
        message, names = unknown_key(unknown, allowed, f"column {unknown!r}")
        raise ValueError(f"{message} (allowed: {names})")
    return list(columns)


def _loads(rows: Iterable[Row]) -> list[str]:
    loads = {row.get("load") for row in rows}
    return [load for load in _BATCH_MEANS if load in loads]


def _published_columns(rows: Sequence[Row]) -> list[str]:
    loads = _loads(rows)
    names = ["variant"] if any(row.get("variant") for row in rows) else []
    names += ["tool"] if any((row.get("tool") or "") not in (row.get("variant") or "") for row in rows) else []
    names += ["load"] if len(loads) > 1 else []
    names += ["prompts"] if any((row.get("prompts") or "text") not in {"text", "token_ids"} for row in rows) else []
    names += ["input", "output"]
    names += ["batch"] if loads != ["open"] else []
    names += ["rate"] if "open" in loads else []
    # Few tools tell the tokens/s of a full batch, all those of their whole run.
    whole = any(row.get("tool") and number(row, "sys_tok_s") is None for row in rows)
    goodput = ["goodput_req_s"] if valued(rows, "goodput_req_s") else []
    hits = [name for name in ("ttft_hit_ms", "ttft_miss_ms") if valued(rows, name)]
    return [*names, "ttft_ms", *hits, "sys_tok_s", *(["run_tok_s"] if whole else []), *goodput]


def _records(rows: Sequence[Row], columns: Sequence[str] | None, include_invalid: bool) -> tuple[list[str], list[Row]]:
    names = check_columns(rows, columns) if columns else _allowed(rows)
    if include_invalid and names and "status" not in names:
        names.append("status")
    kept = [row for row in rows if include_invalid or row.get("status") != "invalid"]
    return names, [{name: _plain(row.get(name)) for name in names} for row in kept]


def _plain(value: object) -> object:
    if isinstance(value, float):
        return round(value, 6) if math.isfinite(value) else None
    return value


def cell_text(row: Row, name: str) -> str:
    """A row's value as a table shows it: rounded, and starred where suspect."""
    value = row.get(name)
    if name in {"input", "output"} and (spread := lengths_text(row, name)):
        return spread
    if name == "output":
        return output_text(row)
    if value is None or value == "" or (isinstance(value, float) and math.isnan(value)):
        return _DASH
    if not _is_measured(row, name):
        return f"{value:g}" if isinstance(value, float) else str(value)
    return _text(row, name, value) + _star(row)


def markdown_cell(row: Row, name: str) -> str:
    """`cell_text` as Markdown, struck through where invalid."""
    text = cell_text(row, name)
    if text == _DASH or not _is_measured(row, name):
        return escape_markdown(text)
    return f"~~{text}~~" if row.get("status") == "invalid" else text


def _is_measured(row: Row, name: str) -> bool:
    """Whether it is a number with decimals, not an axis, a count or a word."""
    return isinstance(row.get(name), int | float) and not (name in COLUMNS and COLUMNS[name].decimals is None)


def _headlines(rows: Sequence[Row]) -> list[str]:
    lines = []
    rated = valued(rows, "sys_tok_s")
    if rated:
        peak, row = max(rated, key=lambda pair: pair[0])
        text = _text(row, "sys_tok_s", peak)
        lines.append(f"Peak throughput: {text} tok/s ({cell_name(row)}){_star(row)}")
    if waits := valued(rows, "ttft_ms"):
        ends = [end(waits, key=lambda pair: pair[0]) for end in (min, max)]
        texts = dict.fromkeys(_text(row, "ttft_ms", wait) for wait, row in ends)
        name = "TTFT range" if len(texts) > 1 else "TTFT"
        lines.append(f"{name}: {_DASH.join(texts)} ms{_star(*(row for _, row in ends))}")
    return lines + _scaling(rated)


def _star(*rows: Row) -> str:
    return "*" if any(row.get("status") == "suspect" for row in rows) else ""


def _scaling(rated: Sequence[tuple[float, Row]]) -> list[str]:
    """The shape that gains most between the table's smallest and largest batch, of those that have both."""
    batched = [(value, row) for value, row in rated if row.get("batch") is not None and value > 0]
    batches = {row["batch"] for _, row in batched}
    if len(batches) < 2:
        return []
    small, large = min(batches), max(batches)
    ends: dict[tuple[Any, ...], dict[int, tuple[float, Row]]] = {}
    for value, row in batched:
        shape = (row.get("variant"), row.get("load"), row.get("input"), row.get("output"))
        ends.setdefault(shape, {})[row["batch"]] = (value, row)
    both = [(by[small], by[large]) for by in ends.values() if small in by and large in by]
    both = [pair for pair in both if like_outputs(*(number(row, "output_tokens") for _, row in pair))]
    if not both:
        return []
    (slow, first), (fast, last) = max(both, key=lambda pair: pair[1][0] / pair[0][0])
    where = cell_name(last).rpartition(", ")[0]
    widths = [(_half_width(row, "sys_tok_s") or 0.0) / value for value, row in ((slow, first), (fast, last))]
    ratio = rounded(fast / slow, decimals(1, fast / slow * math.hypot(*widths)))  # both errors, independent
    change = f"{ratio}x throughput {'increase' if fast >= slow else 'change'}"
    return [f"Scaling: {change} from batch={small} to batch={large} ({where}){_star(first, last)}"]


def _caption(rows: Sequence[Row], names: Sequence[str]) -> list[str]:
    loads = _loads(rows)
    lines = [_BATCH_MEANS[load] for load in loads if ("rate" if load == "open" else "batch") in names]
    if any(" of " in output_text(row) for row in rows):
        lines.append(
            "Output: mean tokens received, of the limit asked: answers ended by themselves (output: as_served)."
        )
    meanings = []
    own = _loads(row for row in rows if row.get("tool") in {None, OWN})  # other tools' definitions are not these
    if "ttft_ms" in names and own:
        meanings.append("TTFT: from sending the request to receiving its first token, mean over requests.")
    if "sys_tok_s" in names and own:
        each = "; ".join(_SYS_MEANS[load] + (f" ({load})" if len(own) > 1 else "") for load in own)
        meanings.append(f"Sys tok/s: {each}, mean over rounds.")
    if "run_tok_s" in names and own:
        meanings.append("Run tok/s: output tokens of the round / (last token - first send), ramps included.")
    if "goodput_req_s" in names and own:
        meanings.append("Goodput: req/s times the share of requests that met every limit of the SLO.")
    lines += [*([" ".join(meanings)] if meanings else []), *mixture_lines(rows)]
    rounds = [int(value) for value, _ in valued(rows, "rounds")]
    return [*lines, _rounds_line(rows, rounds)] if rounds else lines


def _rounds_line(rows: Sequence[Row], rounds: Sequence[int]) -> str:
    line, over = f"{_counted(rounds, 'round')} per cell", "rounds"
    if starts := [int(value) for value, _ in valued(rows, "starts")]:
        line += f", in {_counted(starts, 'start')} of the engine"
        over = "starts" if len(starts) == len(rounds) else "rounds or starts"
    if again := sum(int(value) for value, _ in valued(rows, "spoiled")):
        line += f", {_counted([again], 'spoiled round')} set aside and measured again"
    spans = {"TTFT": _widest(rows, "ttft_ms"), "Sys tok/s": _widest(rows, "sys_tok_s")}
    shown = ((name, max(width, 0.001)) for name, width in spans.items() if width is not None)  # never "±0.0 %"
    widths = [f"{name} ±{width:.1%}".replace("%", " %") for name, width in shown]
    if not widths:
        return f"{line}; no interval."
    return f"{line}; 95 % confidence intervals of the mean, over {over}, are at widest {' and '.join(widths)}."


def _counted(numbers: Sequence[int], of: str) -> str:
    """`5 rounds`, `1 to 3 starts`."""
    few, many = min(numbers), max(numbers)
    return f"{few} {'' if few == many else f'to {many} '}{of}{'s'[: many > 1]}"


def _widest(rows: Sequence[Row], name: str) -> float | None:
    """The largest of max(high - mean, mean - low) / mean over rows that have an interval."""
    widths = []
    for row in rows:
        mean, low, high = number(row, name), number(row, f"{name}_low"), number(row, f"{name}_high")
        if mean and low is not None and high is not None:
            widths.append(max(high - mean, mean - low) / mean)
    return max(widths, default=None)


def _notes(rows: Sequence[Row], include_invalid: bool) -> list[str]:
    suspect = in_order(row for row in rows if row.get("status") == "suspect")
    invalid = in_order(row for row in rows if row.get("status") == "invalid")
    blocks = ["\n".join(order_warnings(rows))]
    if suspect:
        blocks.append(f"Numbers marked * are suspect: {_by_reason(suspect)}.")
    if invalid:
        cells = f"{len(invalid)} cell{'s'[: len(invalid) > 1]}"
        done = "struck through as invalid, not to be used" if include_invalid else "left out as invalid"
        blocks.append(f"{cells} {done}: {_by_reason(invalid)}.")
    return "\n\n".join(filter(None, blocks)).splitlines()


def _by_reason(rows: Sequence[Row]) -> str:
    groups: dict[str, list[str]] = {}
    for row in rows:
        reasons = (row.get("reasons") or "no reason recorded").replace(";", ", ")
        groups.setdefault(reasons, []).append(cell_name(row))
    return "; ".join(
        escape_markdown(f"{reasons} ({' / '.join(cells) if len(cells) <= _NAMED_CELLS else f'{len(cells)} cells'})")
        for reasons, cells in groups.items()
    )
