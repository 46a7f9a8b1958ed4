"""A comparison in words: the table, one sentence, JSON, CSV, and Markdown for a job's summary. Pure."""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Sequence
from typing import Any

from benchbench.comparison.pairs import Pair
from benchbench.comparison.verdicts import MORE_MAX, PRIMARY, Comparison, Judgement, Noise, Overall
from benchbench.report.markdown import escape_markdown
from benchbench.report.summary_table import Row

SHOWN = ("sys_tok_s", "ttft", "tpot")
NAMES = {"sys_tok_s": "Sys tok/s", "ttft": "TTFT (ms)", "tpot": "TPOT (ms)", "e2el": "E2EL (ms)"}
_TO = "\N{EN DASH}"


def headline(pair: Pair, metric: str = PRIMARY[0]) -> Overall | None:
    """The geometric mean of a metric; None where no cell has it in every start."""
    return next((one for one in pair.compared.overall if one.metric == metric), None)


def cells_of(pair: Pair, metrics: Sequence[str]) -> list[Comparison]:
    """The compared cells, metric by metric, from small shapes to large."""
    return sorted((one for one in pair.compared.cells if one.metric in metrics), key=lambda one: _order(pair, one))


def _order(pair: Pair, one: Comparison) -> tuple[Any, ...]:
    cell = pair.cells[one.cell]
    return SHOWN.index(one.metric) if one.metric in SHOWN else 9, cell.input, cell.output, cell.batch or cell.rate


def sentence(pair: Pair) -> str:
    """What a person would say of it."""
    if pair.absent:
        return f"{pair.absent}. There is nothing to compare."
    if not pair.compared.cells:
        return f"No cell has valid numbers of both {pair.base} and {pair.candidate}: there is nothing to compare."
    whole = headline(pair)
    if whole:
        parts = [_headline(pair, whole)]
    else:
        parts = [f"no verdict on {pair.candidate} as a whole, since no cell has Sys tok/s in every start"]
    primary = [one for one in pair.compared.cells if one.metric in PRIMARY]
    if whole is None or whole.verdict == "undecided":
        parts += [f"faster on {_named(fast)}"] if (fast := _called(primary, "faster")) else []
    parts.append(f"slower on {_named(_called(primary, 'slower'))}")
    parts += [_wait(ttft)] if (ttft := headline(pair, "ttft")) else []
    if pair.fidelity == "differs":
        return "; ".join(parts) + ", but outputs differ."
    return "; ".join([*parts, pair.fidelity_note]) + "."


def _headline(pair: Pair, one: Overall) -> str:
    count = f"{len(one.cells)} cell{'s'[: len(one.cells) > 1]}"
    point, low, high = one.ratio.point, one.ratio.low, one.ratio.high
    if one.verdict == "faster":
        return f"{pair.candidate} is {percent(point - 1)} faster than {pair.base} ({_span(low, high)}) over {count}"
    if one.verdict == "slower":
        span = _span(high and 2 - high, low and 2 - low)
        return f"{pair.candidate} is {percent(1 - point)} slower than {pair.base} ({span}) over {count}"
    about = f"{percent(point - 1, '+')}, {_span(low, high, '+')}" if low else percent(point - 1, "+")
    if one.verdict == "equivalent":
        margin = f"{100 * pair.margin:g} %"
        return f"{pair.candidate} is as fast as {pair.base} within {margin} ({about}) over {count}"
    told = f"whether {pair.candidate} is faster than {pair.base} is undecided ({about}) over {count}: "
    if one.mde_family is None:
        return told + one.warnings[-1]
    told += f"{one.ratio.n} blocks find {detectable(one)} four times in five, and "
    if one.more_blocks is None:
        return told + f"{MORE_MAX} more would probably not decide"
    return told + f"about {one.more_blocks} more would probably decide (for planning a new run, not for resuming this)"


def _wait(one: Overall) -> str:
    if one.verdict == "equivalent":
        return "TTFT the same"
    if one.verdict == "undecided":
        return "TTFT undecided"
    change = abs(1 / one.ratio.point - 1)
    return f"TTFT {percent(change)} {'shorter' if one.verdict == 'faster' else 'longer'}"


def _called(cells: Sequence[Comparison], verdict: str) -> list[str]:
    return list(dict.fromkeys(one.cell for one in cells if one.verdict == verdict))


def _named(cells: Sequence[str]) -> str:
    if not cells:
        return "none"
    return " and ".join(cells) if len(cells) <= 2 else f"{len(cells)} cells"


def percent(share: float, sign: str = "", most: float = 10) -> str:
    """A share as percent; above `most` (intervals and effects of few blocks know no bounds) only that it is above."""
    return f">{100 * most:.0f} %" if share > most else f"{100 * share:{sign}.1f} %"


def _span(low: float | None, high: float | None, sign: str = "") -> str:
    if low is None or high is None:
        return "no interval"
    return f"{100 * (low - 1):{sign}.1f} to {percent(high - 1, sign)}"


def detectable(one: Judgement) -> str:
    """The effect that is found 80 times in 100, as one of its family."""
    return _TO if one.mde_family is None else percent(one.mde_family, most=1)


def notes(pair: Pair) -> list[str]:
    """What belongs to the result: warnings, failed starts, cells left out, and why."""
    found: dict[str, list[str]] = {}
    for one in pair.compared.cells:
        for warning in one.warnings if one.metric in SHOWN else ():
            found.setdefault(warning, []).append(one.cell)
    told = [f"{warning} ({_named(list(dict.fromkeys(who)))})" for warning, who in found.items()]
    partial = {whole.left_out for whole in pair.compared.overall if whole.left_out and whole.metric in PRIMARY}
    told += [f"the mean is without {_named(cells)}: not in every start" for cells in sorted(partial)]
    left_out = [cell for cell, metric in pair.compared.left_out if metric == PRIMARY[0]]
    told += [f"{_named(left_out)}: no block has both sides"] if left_out else []
    told += [pair.fidelity_note] if pair.fidelity == "differs" else []
    return [*pair.compared.warnings, *pair.notes, *told]


# ---- Tables ---------------------------------------------------------------------------------------------


def comparison_table(pairs: Sequence[Pair], metrics: Sequence[str] = SHOWN) -> str:
    """Markdown: for each pair the table, the sentence, and what must be known with it."""
    return "\n".join(_markdown(pair, metrics) for pair in pairs)


def _markdown(pair: Pair, metrics: Sequence[str]) -> str:
    lines = _rows(pair, metrics) if pair.compared.cells and not pair.absent else []
    how = f"{pair.blocks} blocks" if pair.interleaved else "two runs, not interleaved"
    caption = (
        f"Ratio: above 1 {pair.candidate} is better, also in latencies; 95 % interval over starts ({how}). Verdict "
        f"at 5 % after Holm, equivalent within {100 * pair.margin:g} %. Detectable: found 4 times in 5, as one of all."
    )
    blocks = [lines, [escape_markdown(sentence(pair))], [f"- {escape_markdown(note)}" for note in notes(pair)]]
    blocks += [[escape_markdown(caption)]] if lines else []
    return "\n\n".join("\n".join(block) for block in blocks if block) + "\n"


def _rows(pair: Pair, metrics: Sequence[str], *, wholes_only: bool = False) -> list[str]:
    rated = any(cell.batch is None for cell in pair.cells.values())
    names = [*map(escape_markdown, (pair.base, pair.candidate)), "Ratio", "95 % interval", "Verdict", "Detectable"]
    head = ["Metric", "Input", "Output", "Rate (req/s)" if rated else "Batch", *names]
    lines = [_row(*head), "|" + "---|" * len(head)]
    for metric in metrics:
        for one in [] if wholes_only else cells_of(pair, [metric]):
            cell = pair.cells[one.cell]
            values = (f"{value:.1f}" if metric.endswith("tok_s") else f"{1e3 * value:.2f}" for value in _sides(one))
            shape = (cell.input, cell.output, f"{cell.rate:g}" if cell.batch is None else cell.batch)
            lines.append(_line(metric, (*shape, *values), one))
        if whole := headline(pair, metric):
            mean = f"mean of {len(whole.cells)}"
            lines.append(_line(metric, (mean, _TO, _TO, _TO, _TO), whole))
    return lines


def _sides(one: Comparison) -> tuple[float, float]:
    return one.base, one.candidate


def _line(metric: str, values: Sequence[object], one: Judgement) -> str:
    low, high = one.ratio.low, one.ratio.high
    span = _TO if low is None or high is None else f"{low:.3f}{_TO}{min(high, 999):.3f}"
    cells = (NAMES[metric], *values, f"{one.ratio.point:.3f}", span, one.verdict, detectable(one))
    return _row(*cells)


def _row(*cells: object) -> str:
    return "| " + " | ".join(map(str, cells)) + " |"


def comparison_github(pairs: Sequence[Pair], metrics: Sequence[str] = SHOWN) -> str:
    """Markdown for a job's summary: sentence and means first, the cells folded."""
    parts = []
    for pair in pairs:
        parts.append(f"### {escape_markdown(pair.candidate)} against {escape_markdown(pair.base)}")
        parts.append(f"**{escape_markdown(sentence(pair))}**")
        if pair.compared.cells and not pair.absent:
            parts.append("\n".join(_rows(pair, metrics, wholes_only=True)))
            table = "\n".join(_rows(pair, metrics))
            parts.append(
                f"<details><summary>{len(pair.cells)} cells, {pair.blocks} blocks</summary>\n\n{table}\n\n</details>"
            )
        if told := notes(pair):
            parts.append("\n".join(f"- {escape_markdown(note)}" for note in told))
    return "\n\n".join(parts) + "\n"


def noise_table(found: Sequence[Noise], both: Pair) -> str:
    """The noise per start of an A/A run, what effects it lets find, and whether A differs from itself."""
    head = ["Metric", "Input", "Output", "Batch", "Noise per start", "Detectable alone", "Detectable as one of all"]
    lines = [_row(*head), "|" + "---|" * len(head)]
    for one in (one for one in found if one.metric in SHOWN):
        cell = both.cells[one.cells[0]]
        where = (cell.input, cell.output, cell.batch if cell.batch is not None else f"{cell.rate:g}")
        shape = where if len(one.cells) == 1 else (f"mean of {len(one.cells)}", _TO, _TO)
        known = (f"{100 * one.sd:.2f} %", percent(one.mde, most=1), percent(one.mde_family, most=1))
        lines.append(_row(NAMES[one.metric].partition(" (")[0], *shape, *known))
    called = [one for one in (*both.compared.cells, *both.compared.overall) if one.verdict in {"faster", "slower"}]
    told = f"{both.base} against {both.candidate}, over {both.blocks} blocks: "
    if called:
        told += f"{len(called)} differences are called, of builds that are the same. In a family of cells or of means "
        told += "chance does so 5 times in 100; oftener, something is wrong with the machine."
    else:
        told += "nothing is called, as it must be."
    return "\n".join([*lines, "", told, *(f"- {note}" for note in notes(both))]) + "\n"


# ---- For programs ---------------------------------------------------------------------------------------


def comparison_record(pairs: Sequence[Pair], metrics: Sequence[str] = SHOWN) -> dict[str, Any]:
    """`cells` (all pairs), `overall` (the first pair's), `pairs` (each pair's overall and means, with notes).

    Ratios and effects are shares (1.02 and 0.02 are 2 %), values in tok/s and s.
    """
    overalls = [_overall(pair, metrics) for pair in pairs]
    return {
        "cells": [_cell_record(pair, one) for pair in pairs for one in cells_of(pair, metrics)],
        "overall": {key: overalls[0][key] for key in ("base", "candidate", "ratio", "verdict", "sentence", "fidelity")},
        "pairs": overalls,
    }


def comparison_json(pairs: Sequence[Pair], metrics: Sequence[str] = SHOWN) -> str:
    return json.dumps(_plain(comparison_record(pairs, metrics)), indent=1, ensure_ascii=False, allow_nan=False) + "\n"


def comparison_csv(pairs: Sequence[Pair], metrics: Sequence[str] = SHOWN) -> str:
    """One line a cell and metric: the JSON's `cells`, ratios as three columns."""
    rows = []
    for record in _plain(comparison_record(pairs, metrics)["cells"]):
        ratio = {f"ratio_{name}": value for name, value in record.pop("ratio").items()}
        rows.append(record | ratio | {"warnings": "; ".join(record["warnings"])})
    text = io.StringIO()
    writer = csv.DictWriter(text, list(rows[0]) if rows else ["base", "candidate"], lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


def _cell_record(pair: Pair, one: Comparison) -> Row:
    cell = pair.cells[one.cell]
    shape = {name: getattr(cell, name) for name in ("input", "output", "batch", "rate", "load")}
    values = {"base_value": one.base, "candidate_value": one.candidate}
    unit = "tok/s" if one.metric.endswith("tok_s") else "s"
    return {"base": pair.base, "candidate": pair.candidate, **shape, **_judged(pair, one), **values, "unit": unit}


def _judged(pair: Pair, one: Judgement) -> Row:
    names = ("p_adjusted", "mde", "verdict")
    more = ("p_value", "mde_family", "noise", "more_blocks")
    return {
        "metric": one.metric,
        "ratio": {end: getattr(one.ratio, end) for end in ("point", "low", "high")},
        **{name: getattr(one, name) for name in names},
        "fidelity": pair.fidelity,
        "starts": one.ratio.n,
        **{name: getattr(one, name) for name in more},
        "warnings": list(one.warnings),
    }


def _overall(pair: Pair, metrics: Sequence[str]) -> Row:
    whole = headline(pair)
    empty = {"ratio": None, "verdict": "undecided"}
    return {
        "base": pair.base,
        "candidate": pair.candidate,
        **({name: _judged(pair, whole)[name] for name in empty} if whole and not pair.absent else empty),
        "sentence": sentence(pair),
        "fidelity": pair.fidelity,
        "means": [_judged(pair, one) for one in pair.compared.overall if one.metric in metrics],
        "blocks": pair.blocks,
        "interleaved": pair.interleaved,
        "margin": pair.margin,
        "notes": notes(pair),
    }


def _plain(value: Any) -> Any:  # noqa: ANN401 - anything that JSON holds
    """Floats with 6 digits behind the point, those beyond all use as null."""
    if isinstance(value, dict):
        return {key: _plain(one) for key, one in value.items()}
    if isinstance(value, list):
        return [_plain(one) for one in value]
    if isinstance(value, float):
        return float(f"{value:.7g}") if math.isfinite(value) else None
    return value
