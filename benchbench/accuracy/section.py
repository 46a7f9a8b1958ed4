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
from benchbench.report.markdown import escape_markdown, write_table

Row = tuple[Score, dict[str, Score], dict[str, Recovery]]  # a benchmark: by side its score, by candidate its recovery

_NONE = "\N{EN DASH}"
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
        has_base = about["base"] in kept or about["published"]  # all of its tasks may have failed
        base = about["base"] if has_base else None
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
    given = [published(text) for text in scores]
    if given and base in read:
        raise ValueError(f"{base} has results of its own: published scores need another --base")
    if not given and base is not None and base not in read:
        raise ValueError(f"no results of {base} (allowed: {', '.join(read)})")
    every = [score for side in read.values() for score in side]
    for score in given:
        if every and match(score, every) is None:
            raise ValueError(f"published {score.label}: no such results (allowed: {', '.join(s.label for s in every)})")
    return Evaluation(name, ({base: given} if given and base else {}) | read, base, tuple(notes))


def recoveries(evaluation: Evaluation) -> Iterator[Row]:
    """Benchmark by benchmark: its first score, each side's, and each candidate's recovery."""
    rows: list[Score] = []
    for side in (*evaluation.candidates, evaluation.base or ""):
        rows += [score for score in evaluation.sides.get(side, ()) if match(score, rows) is None]
    for row in rows:
        scores = {side: score for side, listed in evaluation.sides.items() if (score := match(row, listed))}
        of = scores.get(evaluation.base or "")
        yield row, scores, {name: recover(of, scores[name]) for name in evaluation.candidates if of and name in scores}


def evaluation_section(evaluation: Evaluation) -> str:
    """Markdown: Benchmark, baseline, each candidate with its recovery, then sentences, caption and notes."""
    rows = list(recoveries(evaluation))
    base = evaluation.base if evaluation.base in evaluation.sides else None
    heads = ["Benchmark", *([base] if base else [])]
    for name in evaluation.candidates:
        heads += [name, "Recovery"] if base else [name]
    texts = []
    for row, scores, recovered in rows:
        cells = [escape_markdown(row.label)] + ([_score(scores.get(base))] if base else [])
        for name in evaluation.candidates:
            cells += [_score(scores.get(name)), _recovery(recovered.get(name))] if base else [_score(scores.get(name))]
        texts.append(cells)
    named = [(name, recovery) for _, _, recovered in rows for name, recovery in recovered.items()]
    sentences = [f"- {escape_markdown(sentence(recovery, base or '', name))}" for name, recovery in named]
    notes = [f"- Note: {escape_markdown(note)}." for note in _notes(evaluation, rows)]
    blocks = [write_table([*map(escape_markdown, heads)], texts), sentences, _caption(rows), notes]
    return "\n\n".join("\n".join(block) for block in blocks if block) + "\n"


def sentence(recovery: Recovery, base: str, candidate: str) -> str:
    """The conclusion that a reader may draw, with its evidence."""
    difference = recovery.difference
    points = round(100 * difference.point, 1)
    size = f"{abs(points):.1f} points {'above' if points > 0 else 'below'}" if points else "no different from"
    claim = f"{recovery.candidate.label}: {candidate} is {size} {base}"
    if recovery.verdict == "unknown":
        return f"{claim}; the sampling error is unknown, so it may be chance."
    evidence = [] if difference.low is None else [f"95 % CI {_span(difference, '+')} points"]
    if recovery.only is not None:
        only = f"only {base} got {recovery.only[0]:,} right, only {candidate} {recovery.only[1]:,}"
        evidence.append(f"of {difference.n:,} questions, {only}; exact p = {recovery.p:.2g}")
    if recovery.assumed_n:
        evidence.append(f"{base} assumed to have {recovery.assumed_n:,} questions too")
    if recovery.verdict == "inside":
        return f"{claim}, within sampling error ({'; '.join(evidence)}): no evidence of a change."
    verdict = "better" if recovery.verdict == "above" else "worse"
    return f"{claim}, outside sampling error ({'; '.join(evidence)}): {candidate} is {verdict}."


def evaluation_json(evaluation: Evaluation) -> str:
    """All numbers, shares from 0 to 1; null where there is none."""
    rows = [
        {
            "benchmark": row.label,
            "scores": {
                side: _record(score, "samples") | {"accuracy": asdict(accuracy(score))}
                for side, score in scores.items()
            },
            "recovery": {
                name: _record(recovery, "base", "candidate")
                | {"ratio": asdict(recovery.ratio) if recovery.base.point else None}
                | {"sentence": sentence(recovery, evaluation.base or "", name)}
                for name, recovery in recovered.items()
            },
        }
        for row, scores, recovered in recoveries(evaluation)
    ]
    about = {"name": evaluation.name, "baseline": evaluation.base, "benchmarks": rows, "notes": list(evaluation.notes)}
    return orjson.dumps(about, option=orjson.OPT_INDENT_2 | orjson.OPT_APPEND_NEWLINE).decode()


def _record(values: Score | Recovery, *left_out: str) -> dict[str, Any]:
    return {item.name: getattr(values, item.name) for item in fields(values) if item.name not in left_out}


def _score(score: Score | None) -> str:
    if score is None:
        return _NONE
    if score.text:
        span = accuracy(score)
        return f"{score.text} % (published{'' if span.low is None else f', {_span(span)}'})"
    return f"{100 * score.point:.1f} % ({_span(accuracy(score))})"


def _recovery(recovery: Recovery | None) -> str:
    if recovery is None or not recovery.base.point:
        return _NONE
    span = "" if recovery.ratio.low is None else f" ({_span(recovery.ratio)})"
    return f"{100 * recovery.ratio.point:.1f} %{span}" + ("\\*" if recovery.assumed_n else "")


def _span(estimate: Estimate, sign: str = "") -> str:
    if estimate.low is None or estimate.high is None:
        return "no interval"
    return f"{100 * estimate.low:{sign}.1f} to {100 * estimate.high:{sign}.1f}"


def _caption(rows: list[Row]) -> list[str]:
    scores = [score for _, listed, _ in rows for score in listed.values() if not score.text]
    metrics = [f"{score.label} {score.metric}" + (f", n = {score.n:,}" if score.n else "") for score in scores]
    tools = sorted({f"lm-eval {score.lm_eval}" for score in scores if score.lm_eval})
    recovered = [recovery for _, _, listed in rows for recovery in listed.values()]
    methods = sorted({recovery.ratio.method for recovery in recovered})
    lines = [f"Accuracy ({', '.join(tools) or 'lm-eval'}): {'; '.join(dict.fromkeys(metrics))}."] if scores else []
    if recovered:
        lines.append(f"Recovery: candidate / baseline ({' or '.join(methods)}). In brackets: 95 % intervals.")
    lines = [escape_markdown(line) for line in lines]
    if any(recovery.assumed_n for recovery in recovered):
        lines.append("\\* The published score has no sampling error: as many questions as ours are assumed.")
    return lines


def _notes(evaluation: Evaluation, rows: list[Row]) -> list[str]:
    notes = list(evaluation.notes)
    for row, scores, recovered in rows:
        if evaluation.base and evaluation.candidates and not recovered:
            notes.append(f"{row.label}: only {', '.join(scores)} has it")
        notes += [f"{row.label}: {warning}" for recovery in recovered.values() for warning in recovery.warnings]
        if few := [score.n for score in scores.values() if score.n and score.n < _FEW]:
            notes.append(f"{row.label}: {min(few)} questions are too few for these intervals to be exact")
    return list(dict.fromkeys(notes))
