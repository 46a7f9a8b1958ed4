"""A report of runs: one HTML file that loads nothing and runs nothing. Contents here, looks in `page.html.j2`. Pure.

What tables and comparisons say as Markdown is read back from it, so that the page says the same. The template escapes
every text, after `shown` has written out its control characters.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

from benchbench.analysis.runs import Run, side_by_side
from benchbench.analysis.validity import Reason
from benchbench.comparison.pairs import Pair, pairs_of
from benchbench.comparison.tables import SHOWN, comparison_table, headline, percent, sentence
from benchbench.comparison.verdicts import PRIMARY
from benchbench.figures.timeline import timeline_of
from benchbench.page.page_figures import FEW_PAIRS, Shown, shown_comparisons, shown_figures, style
from benchbench.report.explanation import explain
from benchbench.report.provenance import provenance, setting
from benchbench.report.summary_table import (
    AXES,
    Row,
    cell_name,
    column_title,
    in_order,
    markdown_cell,
    number,
    table_parts,
)

FEW_ROWS = 40  # a longer table of cells is folded
EXPLAINED = 100  # checks of so many cells are listed
NAMED = 6  # cells named with a reason
_COLUMNS = ("ttft_ms", "ttft_ms_p99", "tpot_ms", "e2el_ms", "sys_tok_s", "goodput_req_s", "sol", "mfu", "mbu")
_SPANNED = ("ttft_ms", "sys_tok_s")
_TELEMETRY = {
    "power_w": "Power (W)",
    "energy_j": "Energy (J a round)",
    "tok_per_j": "tok/J",
    "j_per_tok": "J/tok",
    "gpu_temp_c_max": "Hottest (°C)",
    "gpu_clock_mhz": "Clock (MHz)",
    "gpu_clock_mhz_min": "Lowest clock (MHz)",
    "throttle": "Throttled by",
}
_DASH = "\N{EN DASH}"


class Block(NamedTuple):
    """A piece of Markdown of ours, as plain texts: a table (`head`, `rows`), a list or lines (`rows` of one)."""

    kind: str
    head: list[str]
    rows: list[list[str]]


def page(runs: Sequence[Run]) -> str:
    """The report of one run, or of several side by side. Raises RunError for what cannot be read."""
    rows = [_clean(row) for row in (runs[0].rows if len(runs) == 1 else side_by_side(runs))]
    compared = [(run, found) for run in runs if (found := _pairs(run))]
    title = runs[0].title if len(runs) == 1 else ", ".join(dict.fromkeys(run.name for run in runs))
    timeline = timeline_of(runs[0], runs[0].rows) if len(runs) == 1 else None
    with style():
        figures = list(shown_figures(rows, timeline, shown(title)))
        comparisons = [
            _comparison(pairs, [*shown_comparisons(pairs, shown(run.title), f"compare{place}")])
            for place, (run, pairs) in enumerate(compared)
        ]
    said = dict.fromkeys(line for run in runs for line in run.caption)
    parts = table_parts(rows, closing=list(said))
    checks = [one for run in runs for one in _checks(run, len(runs) > 1)]
    text: str = _template().render(
        title=", ".join(dict.fromkeys(run.name for run in runs)),
        settings=[(run.name, run.manifest["spec"]["model"], setting(run)) for run in runs],
        summary=[*(_plain(line.removeprefix("- ")) for line in parts.headlines), _counted(rows)],
        verdicts=[line for _, pairs in compared for line in _verdicts(pairs)],
        figures=figures,
        cells=_cells(rows),
        caption=[_plain(line) for line in parts.caption],
        reasons=list(_reasons(rows)),
        checks=checks[:EXPLAINED],
        unchecked=len(checks[EXPLAINED:]),
        comparisons=comparisons,
        telemetry=_telemetry(rows),
        provenance=_provenance(runs),
    )
    return text


def shown(text: str) -> str:
    """Text without control characters, also those that turn the direction of writing: they are written out."""
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def blocks(markdown: str) -> list[Block]:
    """The tables, lists and lines of Markdown as this package writes it: one line a row, item or line."""
    found = []
    for part in re.split(r"\n{2,}", markdown.strip()):
        lines = part.splitlines()
        if part.startswith("|"):
            head, _, *rows = ([_plain(cell) for cell in re.split(r"(?<!\\)\|", line)[1:-1]] for line in lines)
            found.append(Block("table", head, rows))
        else:
            kind = "list" if part.startswith("- ") else "lines"
            found.append(Block(kind, [], [[_plain(line.removeprefix("- "))] for line in lines]))
    return found


def _plain(markdown: str) -> str:
    """Text as it was before `escape_markdown`."""
    return re.sub(r"\\([\\`*\[\]<>|~#$&_])", r"\1", markdown).strip()


def _clean(row: Row) -> Row:
    return {name: shown(value) if isinstance(value, str) else value for name, value in row.items()}


def _template() -> Any:  # noqa: ANN401 - jinja2's
    import jinja2

    return jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        finalize=lambda value: shown(value) if type(value) is str else value,
        trim_blocks=True,
        lstrip_blocks=True,
    ).get_template("page.html.j2")


# ---- Cells ----------------------------------------------------------------------------------------------


def _counted(rows: Sequence[Row]) -> str:
    counts = {status: sum(row["status"] == status for row in rows) for status in ("valid", "suspect", "invalid")}
    return f"{len(rows)} cells: " + ", ".join(f"{count} {status}" for status, count in counts.items())


def _axes(rows: Sequence[Row]) -> list[str]:
    names = [name for name in ("tool", *AXES) if any(row.get(name) not in (None, "") for row in rows)]
    return [name for name in names if name != "load" or len({row["load"] for row in rows}) > 1]


def _cells(rows: Sequence[Row]) -> dict[str, Any]:
    """`head`, and `groups` of (name, rows of (status, texts)): one group unless there are many rows.

    Of the columns the first `axes` say which cell it is, and of these the first `texts` hold no number.
    """
    columns = [name for name in _COLUMNS if any(number(row, name) is not None for row in rows)]
    spanned = [name for name in _SPANNED if any(_span(row, name) for row in rows)]
    axes = _axes(rows)
    head = [column_title(name) for name in axes]
    for name in columns:
        head += [column_title(name), *(["±"] if name in spanned else [])]
    by = "variant" if "variant" in axes else "input"
    groups: dict[str, list[tuple[str, list[str]]]] = {}
    for row in in_order(rows):
        texts = [_plain(markdown_cell(row, name)) for name in axes]
        for name in columns:
            texts += [_plain(markdown_cell(row, name)).strip("~"), *([_span(row, name)] if name in spanned else [])]
        texts.append((row.get("reasons") or "").replace(";", ", ").replace("_", " "))
        name = f"{column_title(by)} {row[by]}" if len(rows) > FEW_ROWS else ""
        groups.setdefault(name, []).append((row["status"], texts))
    worded = sum(name in {"tool", "variant", "load"} for name in axes)
    return {"head": head, "texts": worded, "axes": len(axes), "groups": list(groups.items())}


def _span(row: Row, name: str) -> str:
    """Half the interval, as a share of the value."""
    value, low, high = (number(row, f"{name}{end}") for end in ("", "_low", "_high"))
    return "" if not value or low is None or high is None else percent((high - low) / 2 / value)


def _reasons(rows: Sequence[Row]) -> Iterator[tuple[Reason, str]]:
    """Each reason that occurs, and where."""
    found: dict[Reason, list[str]] = {}
    for row in in_order(rows):
        for code in (row.get("reasons") or "").split(";"):
            alike = [reason for reason in Reason if reason.code == code]  # of two with one code the milder comes first
            if alike:
                found.setdefault(alike[0 if row["status"] == "suspect" else -1], []).append(cell_name(row))
    for reason in (reason for reason in Reason if reason in found):
        cells = found[reason]
        more = f" and {len(cells) - NAMED} more" if len(cells) > NAMED else ""
        yield reason, "; ".join(cells[:NAMED]) + more


def _checks(run: Run, named: bool) -> Iterator[tuple[str, str, list[str]]]:
    """(cell, status, what was checked) of each cell, of many only of those that are not valid."""
    summaries = run.summaries if run.has_records else []
    for summary in summaries:
        if summary.status != "valid" or len(summaries) <= EXPLAINED:
            head, *lines = explain(summary).splitlines()
            yield (f"{run.name}: " if named else "") + head.rpartition(": ")[0], summary.status, lines


def _telemetry(rows: Sequence[Row]) -> Block | None:
    columns = [name for name in _TELEMETRY if any(row.get(name) is not None for row in rows)]
    told = [row for row in in_order(rows) if any(row.get(name) is not None for name in columns)]
    if not told:
        return None
    axes = _axes(rows)
    lines = [
        [
            *(_plain(markdown_cell(row, name)) for name in axes),
            *(_short(row.get(name)) for name in columns),
        ]
        for row in told
    ]
    return Block("table", [*map(column_title, axes), *(_TELEMETRY[name] for name in columns)], lines)


def _short(value: object) -> str:
    if isinstance(value, int | float):
        return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"
    return _DASH if value is None else str(value).replace(";", ", ") or "none"


def _provenance(runs: Sequence[Run]) -> list[tuple[str, list[str]]]:
    """A line a label, a text a run."""
    found: dict[str, list[list[str]]] = {}
    for place, run in enumerate(runs):
        for label, text in provenance(run):
            found.setdefault(label, [[] for _ in runs])[place].append(text)
    return [(label, ["; ".join(texts) or _DASH for texts in each]) for label, each in found.items()]


# ---- Comparison -----------------------------------------------------------------------------------------


def _pairs(run: Run) -> list[Pair]:
    found = pairs_of(run) if run.has_records else []
    return [replace(one, base=shown(one.base), candidate=shown(one.candidate)) for one in found]


def _verdicts(pairs: Sequence[Pair]) -> list[str]:
    """The sentence of each candidate; of many the count of verdicts, and the fastest's."""
    if len(pairs) <= FEW_PAIRS:
        return [sentence(one) for one in pairs]
    wholes = [(whole, one) for one in pairs if (whole := headline(one))]
    counts: dict[str, int] = {}
    for whole, _ in wholes:
        counts[whole.verdict] = counts.get(whole.verdict, 0) + 1
    told = ", ".join(f"{count} {verdict}" for verdict, count in counts.items()) or "none has numbers"
    lines = [f"{len(pairs)} candidates against {pairs[0].base}: {told}"]
    if wholes:
        best = max(wholes, key=lambda one: one[0].ratio.point)[1]
        lines.append(f"Highest ratio, {best.candidate}: {sentence(best)}")
    return lines


def _comparison(pairs: Sequence[Pair], figures: list[Shown]) -> dict[str, Any]:
    """`overview` of many candidates, best first, and each candidate's own tables and notes."""
    head = ["Candidate"]
    for name in ("Sys tok/s", "TTFT"):
        head += [f"{name} ratio", "95 % interval", "Verdict"]
    ranked = sorted(pairs, key=lambda one: -(whole.ratio.point if (whole := headline(one)) else 0.0))
    overview = Block("table", [*head, "Outputs"], [_line(one) for one in ranked])
    return {
        "base": pairs[0].base,
        "overview": overview if len(pairs) > FEW_PAIRS else None,
        "pairs": [(one.candidate, ", ".join(_line(one)[1:4]), _said(one)) for one in ranked],
        "figures": figures,
    }


def _said(one: Pair) -> list[Block]:
    """What `bench compare` says, the table last but for its caption."""
    parts = blocks(comparison_table([one], SHOWN))
    return [*parts[1:-1], parts[0], parts[-1]] if parts[0].kind == "table" else parts


def _line(one: Pair) -> list[str]:
    texts = [one.candidate]
    for metric in PRIMARY:
        whole = headline(one, metric)
        if whole is None or whole.ratio.low is None or whole.ratio.high is None:
            texts += [f"{whole.ratio.point:.3f}" if whole else _DASH, _DASH, whole.verdict if whole else "no numbers"]
            continue
        span = f"{whole.ratio.low:.3f}{_DASH}{min(whole.ratio.high, 999):.3f}"
        texts += [f"{whole.ratio.point:.3f}", span, whole.verdict]
    return [*texts, one.fidelity.replace("_", " ")]
