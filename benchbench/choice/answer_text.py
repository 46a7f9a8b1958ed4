"""The answer in words: tables, sentences, CSV and JSON. Pure."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from typing import Any

from benchbench.choice.answer import Answer, CellAnswer, Standing
from benchbench.comparison.tables import percent
from benchbench.datasets.row_lengths import lengths_shown
from benchbench.report.markdown import escape_markdown, write_table
from benchbench.safe_text import csv_text

SHOWN = 30  # settings in the default's table
_DASH = "\N{EN DASH}"
_UNITS = {"sys_tok_s": ("Sys tok/s", 1.0), "ttft": ("TTFT (ms)", 1e3), "tpot": ("TPOT (ms)", 1e3)}
_UNITS |= {"goodput_req_s": ("Goodput (req/s)", 1.0)}
_COLUMNS = ["cell", "input", "output", "batch", "rate", "setting", "place", "figure", "starts", "ratio", "low", "high"]
_COLUMNS += ["met", "text", "blocks", "worst"]


def best_markdown(answer: Answer) -> str:
    """Both tables, with what belongs to them."""
    texts = [write_table(*best_table(answer)), [default_sentence(answer)], write_table(*default_table(answer))]
    return "\n\n".join("\n".join(lines) for lines in (*texts, best_notes(answer))) + "\n"


def best_table(answer: Answer) -> tuple[list[str], list[list[str]]]:
    """A row a cell: its best setting, what cannot be told from it, and what became of the others."""
    title, _ = _UNITS[answer.metric]
    rate = any(cell.info is not None and cell.info.rate is not None for cell in answer.cells)
    rows = []
    for cell in answer.cells:
        assert cell.info is not None  # noqa: S101 - only the default has none
        load = cell.info.rate if rate else cell.info.batch
        texts = [*lengths_shown(cell.info), f"{load:g}" if load is not None else _DASH]
        rows.append([*texts, *_best_texts(answer, cell), _others(cell)])
    return ["Input", "Output", "Rate" if rate else "Batch", "Best", title, "Cannot be told from it", "Others"], rows


def _best_texts(answer: Answer, cell: CellAnswer) -> list[str]:
    if not cell.best:
        return [cell.reason, _DASH, _DASH]
    first, *rest = (s for s in cell.standings if s.place in {"best", "in the set"})
    return [_named(first, answer), _figure(answer, first), ", ".join(_named(s, answer) for s in rest) or _DASH]


def _named(standing: Standing, answer: Answer) -> str:
    """The setting; with a sign where it is not known to meet the SLO."""
    return escape_markdown(standing.setting) + (" (SLO?)" if answer.limited and not standing.met else "")


def _figure(answer: Answer, standing: Standing) -> str:
    if standing.figure is None:
        return _DASH
    value = standing.figure * _UNITS[answer.metric][1]
    return f"{value:,.1f}" if value >= 10 else f"{value:.3g}"


def _others(cell: CellAnswer) -> str:
    """`9 beaten, the nearest by 3.2 %; 1 misses the SLO`."""
    counts = Counter(s.place for s in cell.standings if s.place not in {"best", "in the set"})
    near = max((s.ratio for s in cell.standings if s.place == "beaten" and s.ratio), default=None)
    texts = list[str]()
    for place, count in counts.items():
        words = place if count == 1 or place != "misses the SLO" else "miss the SLO"
        nearest = f", the nearest by {percent(1 - near)}" if place == "beaten" and near else ""
        texts.append(f"{count} {words}{nearest}")
    return "; ".join(texts) or _DASH


def best_sentences(answer: Answer) -> list[str]:
    """One of each cell, and one of the default."""
    return [*(_cell_sentence(answer, cell) for cell in answer.cells), default_sentence(answer)]


def _cell_sentence(answer: Answer, cell: CellAnswer) -> str:
    if not cell.best:
        return f"{cell.label}: {cell.reason}."
    title, _ = _UNITS[answer.metric]
    first = next(s for s in cell.standings if s.place == "best")
    name, _, unit = title.partition(" (")
    figure = f"{_figure(answer, first)} {unit.rstrip(')')}".strip()
    text = f"{cell.label}: {cell.best}, {name} {figure}" + (
        "" if not answer.limited or first.met else ", if it meets the SLO"
    )
    return f"{text}; {_rivals(cell.kept[1:])}."


def default_sentence(answer: Answer) -> str:
    """The default for all cells."""
    default, count = answer.default, len(answer.cells)
    if not default.best:
        return f"Default for all cells: {default.reason}."
    of = f"all {count} cells" if len(default.cells) == count else f"{len(default.cells)} of {count} cells"
    first = next(s for s in default.standings if s.place == "best")
    mean, worst = (percent(math.nan if share is None else share) for share in (first.figure, first.worst))
    shares = f"{mean} of each cell's best in the mean, {worst} at worst"
    text = f"Default for {of}: {default.best}, {shares}"
    text += "" if not answer.limited or first.met else ", if it meets the SLO"
    return f"{text}; {_rivals(default.kept[1:])}."


def _rivals(others: Sequence[str]) -> str:
    return f"cannot be told from it: {', '.join(others)}" if others else "no other setting may be the best"


def default_table(answer: Answer) -> tuple[list[str], list[list[str]]]:
    """Every setting as the default, the best first."""
    rows = []
    for standing in answer.default.standings[:SHOWN]:
        low, high = standing.low, standing.high
        interval = f"{low:.3f}{_DASH}{high:.3f}" if low is not None and high is not None else _DASH
        shares = [percent(share) if share is not None else _DASH for share in (standing.figure, standing.worst)]
        ratio = f"{standing.ratio:.3f}" if standing.ratio is not None else _DASH
        texts = [escape_markdown(standing.setting), f"{standing.starts}", *shares, ratio, interval]
        rows.append([*texts, _verdict(standing, answer.default.best)])
    head = ["Setting", "Starts", "Of each cell's best: mean", "At worst", "Ratio to the default", "95 % CI", "Verdict"]
    return head, rows


def _verdict(standing: Standing, default: str) -> str:
    after = f" after {standing.blocks} blocks" if standing.blocks else ""
    if standing.place == "beaten":
        by = "the default" if standing.text == default else escape_markdown(standing.text)
        return f"beaten by {by}{after}"
    if standing.place == "misses the SLO":
        return f"misses the SLO at {escape_markdown(standing.text)}{after}"
    return f"invalid: {escape_markdown(standing.text)}" if standing.place == "invalid" else standing.place


def best_notes(answer: Answer) -> list[str]:
    """What the tables rest on, and what is left out of them."""
    trial, default = answer.trial, answer.default
    lines = [
        f"{trial.starts} of {len(trial.settings) * trial.blocks} starts "
        f"({len(trial.settings)} settings, {trial.blocks} blocks)"
        + (", left out where they could decide nothing" if len(trial.looks) > 1 else "")
        + ". With 95 % all sets together hold the truly best settings; intervals are simultaneous."
    ]
    kept = [s for cell in (*answer.cells, default) for s in cell.standings if s.setting in cell.kept]
    if answer.limited and not all(s.met for s in kept):
        lines.append("SLO?: not known to meet the SLO. Only what is known to meet it can beat others.")
    if left := [cell.label for cell in answer.cells if cell.label not in default.cells]:
        lines.append(f"The default is without {', '.join(left)}: no setting can be best there.")
    for cell in answer.cells:
        for text, names in _grouped(cell):
            lines.append(f"{cell.label}: {', '.join(map(escape_markdown, names))} invalid ({escape_markdown(text)}).")
    doubts = Counter(code for of in trial.suspect.values() for why in of.values() for code in why.split(", "))
    if doubts:
        of_all = f"{sum(map(len, trial.suspect.values()))} of {len(answer.cells) * len(trial.settings)}"
        codes = ", ".join(f"{code} {count}" for code, count in doubts.most_common())
        lines.append(f"Suspect, but counted: {of_all} cells of settings ({escape_markdown(codes)}).")
    if (more := len(default.standings) - SHOWN) > 0:
        lines.append(f"{more} more settings are in --format csv and json.")
    return lines


def _grouped(cell: CellAnswer) -> Iterator[tuple[str, list[str]]]:
    reasons: dict[str, list[str]] = {}
    for standing in cell.standings:
        if standing.place == "invalid":
            reasons.setdefault(standing.text, []).append(standing.setting)
    yield from reasons.items()


def best_records(answer: Answer) -> list[dict[str, Any]]:
    """One a cell and setting, of the default with the cell "default"; `figure` in s, tok/s or req/s, else a share."""
    records = []
    for cell in (*answer.cells, answer.default):
        axes = {axis: getattr(cell.info, axis, None) for axis in ("input", "output", "batch", "rate")}
        records += [{"cell": cell.label or "default", **axes, **asdict(standing)} for standing in cell.standings]
    return records


def best_json(answer: Answer) -> str:
    """All that is known, as one object."""
    trial = answer.trial
    facts = {"metric": answer.metric, "starts": trial.starts, "full_design": len(trial.settings) * trial.blocks}
    cells = [
        {"cell": cell.label or "default", "best": cell.best or None, "set": cell.kept, "reason": cell.reason or None}
        for cell in (*answer.cells, answer.default)
    ]
    return json.dumps(
        {**facts, "confidence": 0.95, "cells": cells, "settings": best_records(answer), "notes": best_notes(answer)},
        indent=1,
    )


def best_csv(answer: Answer) -> str:
    """`best_records` as CSV."""
    return csv_text(_COLUMNS, best_records(answer))
