"""A report of runs: one HTML file that loads nothing. Contents here, looks in `page.html.j2` and `page.css`. Pure.

Whole without scripts; its own (`drawing.js`, `explorer.js`) adds filters, charts, sorting and a panel of each cell.
Made of the same texts as tables and comparisons in the terminal. The template escapes every text, after `printable` has
written out its control characters.
"""

from __future__ import annotations

import base64
import hashlib
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from benchbench.analysis.reasons import Reason
from benchbench.analysis.runs import Run, side_by_side
from benchbench.comparison.tables import percent
from benchbench.explain.explanation import explain
from benchbench.figures.caption import run_title
from benchbench.figures.timeline import timeline_of
from benchbench.page.comparisons import Table, compared_candidates, printable_pairs, verdict_lines
from benchbench.page.island import RUN, island, ratios_of
from benchbench.page.page_figures import (
    comparison_page_figures,
    drawn_figure,
    page_figures,
    style,
)
from benchbench.provenance.labels import provenance, setting
from benchbench.report.summary_table import (
    AXES,
    Row,
    cell_text,
    column_title,
    in_order,
    number,
    table_parts,
)
from benchbench.safe_text import printable
from benchbench.slo.attainment import slo_lines
from benchbench.spec.cell import cell_name

if TYPE_CHECKING:
    from matplotlib.figure import Figure

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
_NUMBER = re.compile(r"[±+-]?\d")
_HERE = Path(__file__).parent


class Section(NamedTuple):
    """What another room says of a run: sentences, tables, notes, and figures, made in the page's style.

    `kind` is one of the template's, `lead` what the page begins with.
    """

    kind: str
    title: str
    lines: Sequence[str]
    lead: Sequence[str]
    tables: Sequence[tuple[list[str], list[list[str]]]]
    notes: Sequence[str]
    figures: Callable[[], Iterable[tuple[str, Figure]]]


def page(runs: Sequence[Run], extra: Sequence[Section] = ()) -> str:
    """The report of one run, or of several side by side. Raises RunError for what cannot be read.

    `extra`: what other rooms make of them.
    """
    for run in runs:
        if run.has_records and len(run.cells) <= EXPLAINED:
            run.keep_summaries()  # each is shown: so none is computed twice
    compared = [(place, pairs) for place, run in enumerate(runs) if (pairs := printable_pairs(run))]
    labelled = runs[0].rows if len(runs) == 1 else side_by_side(runs)
    origins = [place for place, run in enumerate(runs) for _ in run.rows]
    planned = [_clean(row) | {RUN: place} for row, place in zip(labelled, origins, strict=True)]
    by_run = [[row for row in planned if row[RUN] == place] for place in range(len(runs))]
    rows = in_order(planned)
    places = [row[RUN] for row in rows]
    numbers = {(place, row["key"]): k for k, (place, row) in enumerate(zip(places, rows, strict=True))}
    checks, unchecked = _checks(runs, numbers)
    searched = {section.title or runs[0].name for section in extra if section.kind == "capacity"}
    heads = [_head(run, own, run.name in searched) for run, own in zip(runs, by_run, strict=True)]
    headings = [f"{head['name']}: {head['about']}" for head in heads]
    with style():
        sections = [_section(section, f"{section.kind}{place}") for place, section in enumerate(extra)]
        figures = [_drawn(runs, by_run, group) for group in _models(runs)]
        comparisons = [
            compared_candidates(
                pairs, [*comparison_page_figures(pairs, printable(run_title(runs[place])), f"compare{place}")]
            )
            for place, pairs in compared
        ]
    text: str = _template().render(
        title=", ".join(dict.fromkeys(run.name for run in runs)),
        heads=heads,
        verdicts=[(f"{section.title}: " if section.title else "") + line for section in extra for line in section.lead]
        + [
            (f"{runs[place].name}: " if len(runs) > 1 else "") + line
            for place, pairs in compared
            for line in verdict_lines(pairs)
        ],
        figures=[group for group in figures if group["figures"]],
        cells=_cells(rows),
        caption=table_parts(rows, closing=_closing(runs)).caption,
        reasons=list(_reasons(rows)),
        checks=checks,
        unchecked=unchecked,
        sections=sections,
        comparisons=comparisons,
        telemetry=_telemetry(rows),
        worded_columns=_worded,
        provenance=_provenance(runs),
        **_files(island(planned, runs, headings, ratios_of(runs, compared, numbers))),
    )
    return text


def _section(section: Section, prefix: str) -> dict[str, Any]:
    lines = [*map(printable, section.lines)]
    description = lines[-1] if section.kind == "best" else "; ".join(lines)
    drawn = [
        drawn_figure(name, figure, description, f"{prefix}-{name.replace('_', '-')}")
        for name, figure in section.figures()
    ]
    tables = [Table(*table) for table in section.tables]
    return {**section._asdict(), "lines": lines, "tables": tables, "figures": drawn}


def _head(run: Run, rows: Sequence[Row], searched: bool) -> dict[str, Any]:
    """What the top of the page says of one run alone: other models' numbers are not to be mixed with its own.

    `slo`: a line a shape, which is folded where they are many, under `met`; none where a search has the answer.
    """
    slo = slo_lines(in_order(rows))
    return {
        "name": run.name,
        "about": f"{run.manifest['spec']['model']} on {setting(run)}",
        "lines": [*(line for line in table_parts(rows).headlines if line not in slo), _counted(rows)],
        "slo": [] if searched else slo,
        "met": f"{sum(' up to ' in line for line in slo)} of {len(slo)} meet the SLO at a measured load",
    }


def _closing(runs: Sequence[Run]) -> list[str]:
    """The lines that close the tables of runs; what does not hold of all begins with the names of its runs."""
    of_line: dict[str, list[int]] = {}
    for place, run in enumerate(runs):
        for line in dict.fromkeys(run.caption):
            of_line.setdefault(line, []).append(place)
    names = {line: ", ".join(dict.fromkeys(runs[place].name for place in places)) for line, places in of_line.items()}
    return [line if len(of_line[line]) == len(runs) else f"{names[line]}: {line}" for line in of_line]


def _models(runs: Sequence[Run]) -> list[list[int]]:
    """The places of the runs of each model."""
    groups: dict[str, list[int]] = {}
    for place, run in enumerate(runs):
        groups.setdefault(str(run.manifest["spec"]["model"]), []).append(place)
    return list(groups.values())


def _drawn(runs: Sequence[Run], by_run: Sequence[Sequence[Row]], group: Sequence[int]) -> dict[str, Any]:
    """`figures` of one model's runs; `name` of the model where the page has several."""
    rows = [row for place in group for row in by_run[place]]  # as planned: the first variant is the baseline
    alone = runs[group[0]] if len(runs) == 1 else None
    times = timeline_of(alone, alone.rows) if alone else None
    title = run_title(alone) if alone else ", ".join(dict.fromkeys(runs[place].name for place in group))
    prefix = "" if len(group) == len(runs) else f"model{group[0]}-"
    model = str(runs[group[0]].manifest["spec"]["model"]) if prefix else ""
    return {"name": model, "figures": list(page_figures(rows, times, printable(title), prefix))}


def _clean(row: Row) -> Row:
    return {name: printable(value) if isinstance(value, str) else value for name, value in row.items()}


def _files(data: str) -> dict[str, Any]:
    """What the template holds as it is: style, script, the policy that lets this script alone run, the data."""
    names = ("page.css", "drawing.js", "explorer.js")
    style_sheet, *scripts = ((_HERE / name).read_text(encoding="utf-8") for name in names)
    script = "".join(scripts)
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    policy = f"default-src 'none'; style-src 'unsafe-inline'; img-src data:; script-src 'sha256-{digest}'"
    return {
        "style_sheet": style_sheet,
        "script": script,
        "policy": f"{policy}; base-uri 'none'; form-action 'none'",
        "data": data,
    }


def _template() -> Any:  # noqa: ANN401 - jinja2's
    import jinja2

    return jinja2.Environment(
        loader=jinja2.FileSystemLoader(_HERE),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        finalize=lambda value: printable(value) if type(value) is str else value,
        trim_blocks=True,
        lstrip_blocks=True,
    ).get_template("page.html.j2")


# ---- Cells ----------------------------------------------------------------------------------------------


def _counted(rows: Sequence[Row]) -> str:
    counts = {status: sum(row["status"] == status for row in rows) for status in ("valid", "suspect", "invalid")}
    return f"{len(rows)} cell{'s'[: len(rows) > 1]}: " + ", ".join(
        f"{count} {status}" for status, count in counts.items()
    )


def _axes(rows: Sequence[Row]) -> list[str]:
    names = [name for name in ("tool", *AXES) if any(row.get(name) not in (None, "") for row in rows)]
    return [name for name in names if name != "load" or len({row["load"] for row in rows}) > 1]


def _cells(rows: Sequence[Row]) -> dict[str, Any]:
    """`axes` (titles) that say which cell it is, the first `texts` of them no numbers; `head` of the numbers; `groups`.

    A group is (name, rows of (cell, axes' texts, status, reasons, numbers' texts)); one unless there are many rows.
    """
    columns = [name for name in _COLUMNS if any(number(row, name) is not None for row in rows)]
    spanned = [name for name in _SPANNED if any(_span(row, name) for row in rows)]
    axes = _axes(rows)
    head = []
    for name in columns:
        head += [column_title(name), *(["±"] if name in spanned else [])]
    by = "variant" if "variant" in axes else "input"
    groups: dict[str, list[tuple[int, list[str], str, str, list[str]]]] = {}
    for cell, row in enumerate(rows):
        texts: list[str] = []
        for name in columns:
            texts += [cell_text(row, name), *([_span(row, name)] if name in spanned else [])]
        reasons = (row.get("reasons") or "").replace(";", ", ").replace("_", " ")
        name = f"{column_title(by)} {row[by]}" if len(rows) > FEW_ROWS else ""
        line = (cell, [cell_text(row, name) for name in axes], row["status"], reasons, texts)
        groups.setdefault(name, []).append(line)
    worded = sum(name in {"tool", "variant", "load"} for name in axes)
    return {"axes": [*map(column_title, axes)], "texts": worded, "head": head, "groups": list(groups.items())}


def _span(row: Row, name: str) -> str:
    """Half the interval, as a share of the value."""
    value, low, high = (number(row, f"{name}{end}") for end in ("", "_low", "_high"))
    return "" if not value or low is None or high is None else percent((high - low) / 2 / value)


def _reasons(rows: Sequence[Row]) -> Iterator[tuple[Reason, str]]:
    """Each reason that occurs, and where."""
    places: dict[Reason, list[str]] = {}
    for row in in_order(rows):
        for code in (row.get("reasons") or "").split(";"):
            alike = [reason for reason in Reason if reason.code == code]  # of two with one code the milder comes first
            if alike:
                places.setdefault(alike[0 if row["status"] == "suspect" else -1], []).append(cell_name(row))
    for reason in (reason for reason in Reason if reason in places):
        cells = places[reason]
        more = f" and {len(cells) - NAMED} more" if len(cells) > NAMED else ""
        yield reason, "; ".join(cells[:NAMED]) + more


def _checks(
    runs: Sequence[Run], cells: Mapping[tuple[int, str], int]
) -> tuple[list[tuple[int, str, str, list[str]]], int]:
    """(cell, name, status, what was checked) of the first cells, of many only of those that are not valid; how many
    more there are.
    """
    due = [
        (place, cell)
        for place, run in enumerate(runs)
        for cell, row in (zip(run.cells, run.rows, strict=True) if run.has_records else ())
        if row["status"] != "valid" or len(run.cells) <= EXPLAINED
    ]
    checks: list[tuple[int, str, str, list[str]]] = []
    for place, cell in due[:EXPLAINED]:
        summary = runs[place].summary_of(cell)
        head, *lines = explain(summary).splitlines()
        name = (f"{runs[place].name}: " if len(runs) > 1 else "") + head.rpartition(": ")[0]
        checks.append((cells[place, cell.key], name, summary.status, lines))
    return checks, len(due) - len(checks)


def _telemetry(rows: Sequence[Row]) -> Table | None:
    columns = [name for name in _TELEMETRY if any(row.get(name) is not None for row in rows)]
    sampled = [row for row in in_order(rows) if any(row.get(name) is not None for name in columns)]
    if not sampled:
        return None
    axes = _axes(rows)
    lines = [
        [*(cell_text(row, name) for name in axes), *(_short(row.get(name)) for name in columns)] for row in sampled
    ]
    return Table([*map(column_title, axes), *(_TELEMETRY[name] for name in columns)], lines)


def _worded(rows: Sequence[Sequence[str]], texts: int) -> set[int]:
    """The columns of a table that are read as texts: the first `texts`, and those in which no cell is a number."""
    columns = [[text for text in column if text not in {"", _DASH}] for column in zip(*rows, strict=True)]
    words = {place for place, column in enumerate(columns) if column and not any(map(_NUMBER.match, column))}
    return words | {*range(texts)}


def _short(value: object) -> str:
    if isinstance(value, int | float):
        return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"
    return _DASH if value is None else str(value).replace(";", ", ") or "none"


def _provenance(runs: Sequence[Run]) -> list[tuple[str, list[str]]]:
    """A line a label, a text a run."""
    lines: dict[str, list[list[str]]] = {}
    for place, run in enumerate(runs):
        for label, text in provenance(run):
            lines.setdefault(label, [[] for _ in runs])[place].append(text)
    return [(label, ["; ".join(texts) or _DASH for texts in each]) for label, each in lines.items()]
