"""A comparison in words: the table, one sentence, JSON, CSV, and Markdown for a job's summary. Pure."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from typing import Any

from benchbench.comparison.loaded_builds import SAME
from benchbench.comparison.pairs import Pair
from benchbench.comparison.verdicts import MORE_MAX, PRIMARY, TITLES, Comparison, Effect, Noise, Overall
from benchbench.datasets.row_lengths import lengths_shown
from benchbench.report.markdown import escape_markdown, write_table
from benchbench.report.summary_table import Row
from benchbench.safe_text import csv_text
from benchbench.spec.cell import CellInfo

SHOWN = ("sys_tok_s", "ttft", "tpot")
UNITS = {"sys_tok_s": "tok/s", "goodput_req_s": "req/s"}  # of the others: s
NAMES = {**{metric: f"{title} (ms)" for metric, title in TITLES.items()}, "sys_tok_s": "Sys tok/s"}
NAMES["goodput_req_s"] = "Goodput (req/s)"
_TO = "\N{EN DASH}"


def headline(pair: Pair, metric: str = PRIMARY[0]) -> Overall | None:
    """The geometric mean of a metric; None where no cell has it in every start."""
    return next((overall for overall in pair.compared.overall if overall.metric == metric), None)


def cells_of(pair: Pair, metrics: Sequence[str]) -> list[Comparison]:
    """The compared cells, metric by metric, from small shapes to large."""

    def order(comparison: Comparison) -> tuple[Any, ...]:
        cell = pair.cells[comparison.cell]
        return list(TITLES).index(comparison.metric), cell.input, cell.output, cell.batch or cell.rate

    return sorted((comparison for comparison in pair.compared.cells if comparison.metric in metrics), key=order)


# ---- Sentences ------------------------------------------------------------------------------------------


def sentence(pair: Pair) -> str:
    """The result in one sentence."""
    if pair.absent:
        return f"{pair.absent}. There is nothing to compare."
    if not pair.compared.cells:
        return f"No cell has valid numbers of both {pair.base} and {pair.candidate}: there is nothing to compare."
    overall = headline(pair)
    if overall:
        parts = [_overall_text(pair, overall)]
    else:
        parts = [f"no overall verdict on {pair.candidate}: no cell has Sys tok/s in every start"]
    parts += [SAME] if any(note.startswith(SAME) for note in pair.notes) else []
    primary = [comparison for comparison in pair.compared.cells if comparison.metric in PRIMARY]
    faster, slower = (_with_verdict(primary, verdict) for verdict in ("faster", "slower"))
    if faster and (overall is None or overall.verdict == "undecided"):
        parts.append(f"faster in {_named(faster)}")
    parts.append(f"slower in {_named(slower)}" if slower else "no cell slower")
    parts += [_ttft_text(ttft)] if (ttft := headline(pair, "ttft")) else []
    if pair.fidelity == "differs":
        return "; ".join(parts) + ", but outputs differ."
    return "; ".join([*parts, pair.fidelity_note]) + "."


def _overall_text(pair: Pair, overall: Overall) -> str:
    point, low, high = overall.ratio.point, overall.ratio.low, overall.ratio.high
    over = f"over {cell_count(pair, overall)} cell{'s'[: len(pair.planned_cells) > 1]}"
    if overall.verdict == "faster":
        return f"{pair.candidate} is {percent(point - 1)} faster than {pair.base} ({_ci(low, high)}) {over}"
    if overall.verdict == "slower":
        ci = _ci(high and 2 - high, low and 2 - low)
        return f"{pair.candidate} is {percent(1 - point)} slower than {pair.base} ({ci}) {over}"
    verdict = f"equivalent within {100 * pair.margin:g} %" if overall.verdict == "equivalent" else "undecided"
    interval = f" ({_ci(low, high, '+')})" if low else ""
    text = f"{pair.candidate} vs {pair.base}: {verdict}, {percent(point - 1, '+')}{interval} {over}"
    if overall.verdict == "equivalent":
        return text
    if overall.mde_family is None:
        return f"{text}: {overall.warnings[-1]}"
    unit = "blocks" if pair.interleaved else "starts"
    text += f"; MDE of {overall.ratio.n} {unit} {mde_text(overall)}, "
    if overall.more_blocks is None:
        return text + f"{MORE_MAX} more would probably not decide"
    return (
        text + f"about {overall.more_blocks} more would decide with 80 % power (plan a new run, do not resume this one)"
    )


def cell_count(pair: Pair, overall: Overall) -> str:
    """On how many cells a geometric mean rests, and of how many where that is not all."""
    count = len(overall.cells)
    return f"{count}" if count == len(pair.planned_cells) else f"{count} of {len(pair.planned_cells)}"


def _ttft_text(overall: Overall) -> str:
    if overall.verdict in {"equivalent", "undecided"}:
        return f"TTFT {overall.verdict}"
    change = abs(1 / overall.ratio.point - 1)
    return f"TTFT {percent(change)} {'shorter' if overall.verdict == 'faster' else 'longer'}"


def _with_verdict(cells: Sequence[Comparison], verdict: str) -> list[str]:
    return list(dict.fromkeys(comparison.cell for comparison in cells if comparison.verdict == verdict))


def _named(cells: Sequence[str]) -> str:
    return " and ".join(cells) if len(cells) <= 2 else f"{len(cells)} cells"


def percent(share: float, sign: str = "", most: float = 10) -> str:
    """A share as percent; above `most` (intervals and effects of few blocks know no bounds) only that it is above."""
    return f">{100 * most:.0f} %" if share > most else f"{100 * share:{sign}.1f} %"


def _ci(low: float | None, high: float | None, sign: str = "") -> str:
    """The ends of a ratio's interval, as changes."""
    if low is None or high is None:
        return "no interval"
    return f"95 % CI {100 * (low - 1):{sign}.1f} to {percent(high - 1, sign).removesuffix(' %' if sign else '')}"


def mde_text(effect: Effect) -> str:
    """The smallest effect that is found with 80 % power, corrected for its family."""
    return _TO if effect.mde_family is None else percent(effect.mde_family, most=1)


def notes(pair: Pair) -> list[str]:
    """What belongs to the result: warnings, failed starts, cells left out, and why."""
    warned: dict[str, list[str]] = {}
    for comparison in pair.compared.cells:
        for warning in comparison.warnings if comparison.metric in SHOWN else ():
            warned.setdefault(warning, []).append(comparison.cell)
    lines = [f"{warning} ({_named(list(dict.fromkeys(cells)))})" for warning, cells in warned.items()]
    partial = {overall.left_out for overall in pair.compared.overall if overall.left_out and overall.metric in PRIMARY}
    lines += [f"geometric mean without {_named(cells)}: not valid in every start" for cells in sorted(partial)]
    for relative in pair.compared.relative:
        if relative.verdict in {"faster", "slower"}:
            (ratio, interval), metric = ratio_text(relative), TITLES[relative.metric]
            lines.append(
                f"{relative.cell} is {relative.verdict} relative to the other cells: "
                f"its {metric} ratio is {ratio} times their mean's (95 % CI {interval})"
            )
    left_out = [cell for cell, metric in pair.compared.left_out if metric == PRIMARY[0]]
    lines += [f"{_named(left_out)}: no block has both sides"] if left_out else []
    lines += [pair.fidelity_note] if pair.fidelity == "differs" else []
    return [*pair.compared.warnings, *pair.notes, *lines]


def caption(pair: Pair) -> str:
    """What the columns mean."""
    counted = max((comparison.ratio.n for comparison in pair.compared.cells if comparison.ratio), default=0)
    blocks = f"{counted} of {pair.blocks}" if counted < pair.blocks else f"{pair.blocks}"
    design = f"paired over {blocks} blocks" if pair.interleaved else "two runs, not interleaved"
    return (
        f"Ratio above 1: {pair.candidate} is better, for latencies too (base / candidate). 95 % CI over server starts "
        f"({design}). Verdict: 5 % level after Holm; equivalent: within {100 * pair.margin:g} %. "
        "MDE: smallest effect found with 80 % power, Holm-corrected."
    )


# ---- Tables ---------------------------------------------------------------------------------------------


def ratio_table(
    pair: Pair, metrics: Sequence[str] = SHOWN, *, overall_only: bool = False
) -> tuple[list[str], list[list[str]]]:
    """Head and rows, as plain texts; no rows where there is nothing to compare."""
    rated = any(cell.batch is None for cell in pair.cells.values())
    head = ["Metric", "Input", "Output", "Rate (req/s)" if rated else "Batch", pair.base, pair.candidate]
    rows: list[list[str]] = []
    for metric in metrics if not pair.absent else ():
        for comparison in [] if overall_only else cells_of(pair, [metric]):
            values = (comparison.base, comparison.candidate)
            texts = [f"{value:.1f}" if metric in UNITS else f"{1e3 * value:.2f}" for value in values]
            rows.append([NAMES[metric], *_axes(pair.cells[comparison.cell]), *texts, *_ratio_texts(comparison)])
        if overall := headline(pair, metric):
            rows.append([NAMES[metric], f"mean of {cell_count(pair, overall)}", *4 * [_TO], *_ratio_texts(overall)])
    return [*head, "Ratio", "95 % CI", "Verdict", "MDE"], rows


def _axes(cell: CellInfo) -> list[str]:
    return [*lengths_shown(cell), f"{cell.rate:g}" if cell.batch is None else str(cell.batch)]


def ratio_text(effect: Effect) -> tuple[str, str]:
    """The ratio and its interval."""
    low, high = effect.ratio.low, effect.ratio.high
    interval = _TO if low is None or high is None else f"{low:.3f}{_TO}{min(high, 999):.3f}"
    return f"{effect.ratio.point:.3f}", interval


def _ratio_texts(effect: Effect) -> tuple[str, ...]:
    return (*ratio_text(effect), effect.verdict, mde_text(effect))


def comparison_table(pairs: Sequence[Pair], metrics: Sequence[str] = SHOWN) -> str:
    """Markdown: for each pair the table, the sentence, and what must be known with it."""
    texts = []
    for pair in pairs:
        table = _markdown_table(*ratio_table(pair, metrics))
        blocks = [table, [escape_markdown(sentence(pair))], [f"- {escape_markdown(note)}" for note in notes(pair)]]
        blocks += [[escape_markdown(caption(pair))]] if table else []
        texts.append("\n\n".join("\n".join(block) for block in blocks if block) + "\n")
    return "\n".join(texts)


def comparison_github(pairs: Sequence[Pair], metrics: Sequence[str] = SHOWN) -> str:
    """Markdown for a job's summary: sentence and means first, the cells folded."""
    parts = []
    for pair in pairs:
        parts.append(f"### {escape_markdown(pair.candidate)} against {escape_markdown(pair.base)}")
        parts.append(f"**{escape_markdown(sentence(pair))}**")
        if table := _markdown_table(*ratio_table(pair, metrics)):
            parts.append("\n".join(_markdown_table(*ratio_table(pair, metrics, overall_only=True))))
            heading = f"{len(pair.cells)} cells, {pair.blocks} blocks"
            parts.append("\n\n".join([f"<details><summary>{heading}</summary>", "\n".join(table), "</details>"]))
        if lines := notes(pair):
            parts.append("\n".join(f"- {escape_markdown(note)}" for note in lines))
    return "\n\n".join(filter(None, parts)) + "\n"


def _markdown_table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    lines = [[escape_markdown(text) for text in row] for row in (head, *rows)]
    return write_table(lines[0], lines[1:]) if rows else []


def noise_table(noises: Sequence[Noise], pair: Pair) -> str:
    """The noise per start of an A/A run, what effects it lets find, and whether A differs from itself."""
    head = ["Metric", "Input", "Output", "Batch", "Noise per start", "MDE of one test", "MDE, Holm-corrected"]
    rows = []
    for noise in (noise for noise in noises if noise.metric in SHOWN):
        count = len(noise.cells)
        shape = _axes(pair.cells[noise.cells[0]]) if count == 1 else [f"mean of {count}", _TO, _TO]
        shares = f"{100 * noise.sd:.2f} %", percent(noise.mde, most=1), percent(noise.mde_family, most=1)
        rows.append([TITLES[noise.metric], *shape, *shares])
    effects = [*pair.compared.cells, *pair.compared.overall]
    detected = sum(effect.verdict in {"faster", "slower"} for effect in effects)
    result = f"{pair.base} against {pair.candidate}, over {pair.blocks} block{'s'[: pair.blocks != 1]}: "
    result += (
        f"{detected} difference{'s'[: detected > 1]} detected between equal builds. By chance 5 % of A/A runs have one "
        "in a family (cells, means); more often, the machine is not in a steady state."
        if detected
        else "no difference detected, as expected."
        if noises
        else "too few starts count: neither noise nor a difference can be told."
    )
    table = [*write_table(head, rows), ""] if rows else []
    return "\n".join([*table, result, *(f"- {note}" for note in notes(pair))]) + "\n"


# ---- For programs ---------------------------------------------------------------------------------------


def comparison_record(pairs: Sequence[Pair], metrics: Sequence[str] = SHOWN) -> dict[str, Any]:
    """`cells` (all pairs), `overall` (the first pair's), `pairs` (each pair's overall, means and notes, and each cell
    `relative` to the rest of the grid).

    Ratios and effects are shares (1.02 and 0.02 are 2 %), values in tok/s and s.
    """
    records = [_pair_record(pair, metrics) for pair in pairs]
    return {
        "cells": [_cell_record(pair, comparison) for pair in pairs for comparison in cells_of(pair, metrics)],
        "overall": {key: records[0][key] for key in ("base", "candidate", "ratio", "verdict", "sentence", "fidelity")},
        "pairs": records,
    }


def comparison_json(pairs: Sequence[Pair], metrics: Sequence[str] = SHOWN) -> str:
    return json.dumps(_plain(comparison_record(pairs, metrics)), indent=1, ensure_ascii=False, allow_nan=False) + "\n"


def comparison_csv(pairs: Sequence[Pair], metrics: Sequence[str] = SHOWN) -> str:
    """One line a cell and metric: the JSON's `cells`, ratios as three columns."""
    rows = []
    for record in _plain(comparison_record(pairs, metrics)["cells"]):
        ratio = {f"ratio_{name}": value for name, value in record.pop("ratio").items()}
        rows.append(record | ratio | {"warnings": "; ".join(record["warnings"])})
    return csv_text(list(rows[0]) if rows else ["base", "candidate"], rows)


def _cell_record(pair: Pair, comparison: Comparison) -> Row:
    cell = pair.cells[comparison.cell]
    shape = {name: getattr(cell, name) for name in ("input", "output", "batch", "rate", "load")}
    values: Row = {"base_value": comparison.base, "candidate_value": comparison.candidate}
    values["unit"] = UNITS.get(comparison.metric, "s")
    return {"base": pair.base, "candidate": pair.candidate, **shape, **_effect_record(pair, comparison), **values}


def _effect_record(pair: Pair, effect: Effect) -> Row:
    return {
        "metric": effect.metric,
        "ratio": {end: getattr(effect.ratio, end) for end in ("point", "low", "high")},
        **{name: getattr(effect, name) for name in ("p_adjusted", "mde", "verdict")},
        "fidelity": pair.fidelity,
        "starts": effect.ratio.n,
        **{name: getattr(effect, name) for name in ("p_value", "mde_family", "noise", "more_blocks")},
        "warnings": list(effect.warnings),
    }


def _pair_record(pair: Pair, metrics: Sequence[str]) -> Row:
    overall = None if pair.absent else headline(pair)
    effect = _effect_record(pair, overall) if overall else {"ratio": None, "verdict": "undecided"}
    relative = [relative for relative in pair.compared.relative if relative.metric in metrics]
    return {
        "base": pair.base,
        "candidate": pair.candidate,
        "ratio": effect["ratio"],
        "verdict": effect["verdict"],
        "sentence": sentence(pair),
        "fidelity": pair.fidelity,
        "relative": [{"cell": contrast.cell, **_effect_record(pair, contrast)} for contrast in relative],
        "means": [_effect_record(pair, overall) for overall in pair.compared.overall if overall.metric in metrics],
        "blocks": pair.blocks,
        "interleaved": pair.interleaved,
        "margin": pair.margin,
        "notes": notes(pair),
    }


def _plain(value: Any) -> Any:  # noqa: ANN401 - anything that JSON holds
    """Floats with 7 significant digits, those that are not finite as null."""
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_plain(item) for item in value]
    if isinstance(value, float):
        return float(f"{value:.7g}") if math.isfinite(value) else None
    return value
