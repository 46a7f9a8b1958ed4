"""Accuracy recovery as published: the table, and for each benchmark a sentence that says what it shows."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

import orjson

from benchbench.accuracy.recovery import Evaluation, Recovery, accuracy, match, recover
from benchbench.accuracy.results import MANIFEST, Score, published, read_scores
from benchbench.analysis.stats import Estimate
from benchbench.report.summary_table import escape_markdown

Row = tuple[Score, dict[str, Score], dict[str, Recovery]]  # a benchmark: by side its score, by candidate its recovery

_TO = "\N{EN DASH}"
_FEW = 30  # questions: below, the normal distribution is no good approximation


def read_evaluation(path: Path) -> Evaluation:
    """What `bench eval` left in a folder, or results of lm-eval (a file or a folder) as one side alone.

    Raises ValueError for anything else.
    """
    manifest = path / MANIFEST
    if not manifest.is_file():
        return Evaluation(path.stem, {path.stem: read_scores(path)})
    try:
        about = orjson.loads(manifest.read_bytes())
        sides = {name: path / folder for name, folder in about["sides"].items()}
        kept = {name: folder for name, folder in sides.items() if folder.exists()}
        runs = about["runs"].items()
        notes = [f"{what}: {note}" for what, run in runs for note in [*run.get("notes", ()), run.get("failed")] if note]
        notes += [f"only {about['limit']:g} of each task's questions (--limit)"] if about["limit"] else []
        base = (
            about["base"] if about["base"] in kept or about["published"] else None
        )  # all of its tasks may have failed
        return evaluation_of(about["name"], kept, base, about["published"], about["metrics"], notes)
    except (orjson.JSONDecodeError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{manifest}: not what bench eval writes ({type(error).__name__}: {error})") from None


def evaluation_of(
    name: str,
    sides: Mapping[str, Path],
    base: str | None,
    scores: Sequence[str] = (),
    metrics: Mapping[str, str] | None = None,
    notes: Sequence[str] = (),
) -> Evaluation:
    """Results of lm-eval by their side's name; `scores` are published ones ("MMLU (5-shot)=86.2") of `base`.

    Raises ValueError for unreadable results, an unknown `base`, and a published score that nothing is to be
    compared with.
    """
    read = {side: read_scores(path, metrics) for side, path in sides.items()}
    given = [published(one) for one in scores]
    if given and base in read:
        raise ValueError(f"{base} has results of its own: published scores need another --base")
    if not given and base is not None and base not in read:
        raise ValueError(f"no results of {base} (allowed: {', '.join(read)})")
    every = [score for side in read.values() for score in side]
    for score in given:
        if every and match(score, every) is None:
            raise ValueError(f"published {score.label}: no such results (allowed: {', '.join(s.label for s in every)})")
    return Evaluation(name, ({base: given} if given and base else {}) | read, base, tuple(notes))


def recoveries(found: Evaluation) -> Iterator[Row]:
    """Benchmark by benchmark: its first score, each side's, and each candidate's recovery."""
    base = found.sides.get(found.base or "", ())
    rows: list[Score] = []
    for side in (*found.candidates, found.base or ""):
        rows += [score for score in found.sides.get(side, ()) if match(score, rows) is None]
    for row in rows:
        scores = {side: one for side, listed in found.sides.items() if (one := match(row, listed))}
        of = match(row, base)
        yield row, scores, {name: recover(of, scores[name]) for name in found.candidates if of and name in scores}


def evaluation_section(found: Evaluation) -> str:
    """Markdown: Benchmark, baseline, each candidate with its recovery, then sentences, caption and notes."""
    rows = list(recoveries(found))
    base = found.base if found.base in found.sides else None
    heads = ["Benchmark", *([base] if base else [])]
    for name in found.candidates:
        heads += [name, "Recovery"] if base else [name]
    lines = [_row(*map(escape_markdown, heads)), _row(*["---"] * len(heads))]
    for row, scores, recovered in rows:
        cells = [escape_markdown(row.label)] + ([_score(scores.get(base))] if base else [])
        for name in found.candidates:
            cells += [_score(scores.get(name)), _recovery(recovered.get(name))] if base else [_score(scores.get(name))]
        lines.append(_row(*cells))
    said = [
        f"- {escape_markdown(sentence(one, base or '', name))}" for _, _, all_ in rows for name, one in all_.items()
    ]
    notes = [f"- Note: {escape_markdown(note)}." for note in _notes(found, rows)]
    return (
        "\n".join([*lines, "", *said, *([""] if said else []), *_caption(rows), *([""] if notes else []), *notes])
        + "\n"
    )


def sentence(one: Recovery, base: str, candidate: str) -> str:
    """What a sceptical reader may conclude."""
    points = 100 * one.difference.point
    what = f"{abs(points):.1f} points {'above' if points > 0 else 'below'}" if round(points, 1) else "no different from"
    told = f"{one.candidate.label}: {candidate} is {what} {base}"
    if one.verdict == "unknown":
        return f"{told}; no sampling error is known, so nothing says whether that is chance."
    why = [] if one.difference.low is None else [f"95 %: {_span(one.difference, '+')} points"]
    if one.only is not None:
        only = f"only {base} got {one.only[0]:,} right, only {candidate} {one.only[1]:,}"
        why.append(f"of {one.difference.n:,} questions, {only}; exact p = {one.p:.2g}")
    if one.assumed_n:
        why.append(f"{base} as if of {one.assumed_n:,} questions too")
    if one.verdict == "inside":
        return f"{told}, inside sampling error ({'; '.join(why)}): no evidence of a change."
    verb = "better" if one.verdict == "above" else "worse"
    return f"{told}, outside sampling error ({'; '.join(why)}): {candidate} is {verb} on it."


def evaluation_json(found: Evaluation) -> str:
    """All numbers, shares from 0 to 1; null where there is none."""
    rows = [
        {
            "benchmark": row.label,
            "scores": {
                side: _record(one, "samples") | {"accuracy": asdict(accuracy(one))} for side, one in all_.items()
            },
            "recovery": {
                name: _record(one, "base", "candidate")
                | {"ratio": asdict(one.ratio) if one.base.point else None}
                | {"sentence": sentence(one, found.base or "", name)}
                for name, one in recovered.items()
            },
        }
        for row, all_, recovered in recoveries(found)
    ]
    about = {"name": found.name, "baseline": found.base, "benchmarks": rows, "notes": list(found.notes)}
    return orjson.dumps(about, option=orjson.OPT_INDENT_2 | orjson.OPT_APPEND_NEWLINE).decode()


def _record(one: Score | Recovery, *left_out: str) -> dict[str, Any]:
    return {item.name: getattr(one, item.name) for item in fields(one) if item.name not in left_out}


def _row(*cells: str) -> str:
    return "| " + " | ".join(cells) + " |"


def _score(score: Score | None) -> str:
    if score is None:
        return _TO
    if score.text:
        span = accuracy(score)
        return f"{score.text} % (published{'' if span.low is None else f', {_span(span)}'})"
    return f"{100 * score.point:.1f} % ({_span(accuracy(score))})"


def _recovery(one: Recovery | None) -> str:
    if one is None or not one.base.point:
        return _TO
    span = "" if one.ratio.low is None else f" ({_span(one.ratio)})"
    return f"{100 * one.ratio.point:.1f} %{span}" + ("\\*" if one.assumed_n else "")


def _span(one: Estimate, sign: str = "") -> str:
    if one.low is None or one.high is None:
        return "no interval"
    return f"{100 * one.low:{sign}.1f} to {100 * one.high:{sign}.1f}"


def _caption(rows: list[Row]) -> list[str]:
    ran = [score for _, scores, _ in rows for score in scores.values() if not score.text]
    of = [f"{one.label} {one.metric}" + (f", n = {one.n:,}" if one.n else "") for one in ran]
    tools = sorted({f"lm-eval {one.lm_eval}" for one in ran if one.lm_eval})
    found = [one for _, _, recovered in rows for one in recovered.values()]
    methods = [
        method for method in ("paired by question", "separate samples") if method in {o.ratio.method for o in found}
    ]
    lines = [f"Accuracy ({', '.join(tools) or 'lm-eval'}): {'; '.join(dict.fromkeys(of))}." if ran else ""]
    if found:
        lines.append(f"Recovery: candidate / baseline ({' or '.join(methods)}). In brackets: 95 % intervals.")
    if any(one.assumed_n for one in found):
        lines.append("\\* The published score comes without its sampling error: as many questions as ours are assumed.")
    return [escape_markdown(line) if not line.startswith("\\") else line for line in lines if line]


def _notes(found: Evaluation, rows: list[Row]) -> list[str]:
    notes = list(found.notes)
    for row, scores, recovered in rows:
        notes += [
            f"{row.label}: only {', '.join(scores)} has it"
            for _ in [0]
            if found.base and found.candidates and not recovered
        ]
        for one in recovered.values():
            notes += [f"{row.label}: {warning}" for warning in one.warnings]
        if few := [score.n for score in scores.values() if score.n and score.n < _FEW]:
            notes.append(f"{row.label}: {min(few)} questions are too few for these intervals to be exact")
    return list(dict.fromkeys(notes))
