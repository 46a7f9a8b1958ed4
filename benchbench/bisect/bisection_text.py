"""What a bisection says: the commit, how sure that is, what it changed, and what was measured. Pure."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable
from typing import Any

from benchbench.bisect.line_of_builds import Line
from benchbench.bisect.search import Bisection
from benchbench.comparison.tables import percent
from benchbench.comparison.verdicts import TITLES
from benchbench.engines.git_checkout import Commit
from benchbench.report.markdown import escape_markdown, write_table
from benchbench.stepsearch.next_block import Answer
from benchbench.stepsearch.step_posterior import Effect, effect_of, posterior, several_steps

_LISTED = 10  # skipped commits, and those that share a verdict
_DASH = "\N{EN DASH}"


def bisection_markdown(bisection: Bisection) -> str:
    """The answer in sentences, then what was measured."""
    lines = [*bisection_sentences(bisection), "", *write_table(*builds_table(bisection)), "", *notes(bisection)]
    return "\n".join(lines).rstrip() + "\n"


def bisection_sentences(bisection: Bisection) -> list[str]:
    """The answer: which commit it was, how sure that is, the effect with its interval; else why there is none."""
    answer, line, spent = bisection.answer, bisection.line, _spent(bisection)
    if answer is None:
        return [f"Not ended ({bisection.outcome.message}): {spent}."]
    if answer.reason == "no_difference":
        return [f"Good and bad are not shown to differ: {_effect(bisection)}.", f"No commit is looked for: {spent}."]
    if answer.reason == "several":
        (probability, (first, second)) = several_steps(bisection.starts, line.prior)
        between = " and ".join(_range(bisection, place) for place in (first, second))
        return [
            f"The data do not fit one step ({percent(probability)} for two or more): likeliest {between}.",
            f"Good to bad: {_effect(bisection)}. Look for each by itself, with an end between them: {spent}.",
        ]
    if answer.confidence == 0.0:
        return [f"The budget was spent before good and bad were shown to differ: {_effect(bisection)}.", f"{spent}."]
    named = _named(line, answer)
    sure = "more than 99.9 %" if answer.confidence > 0.999 else percent(answer.confidence)
    if answer.reason == "budget":
        return [f"The budget was spent. Likeliest ({sure}): {named}", f"Good to bad: {_effect(bisection)}; {spent}."]
    return [f"With {sure} it is {named}", f"It changed {_effect(bisection)}; {spent}."]


def builds_table(bisection: Bisection) -> tuple[list[str], list[list[str]]]:
    """A row a build that was measured or skipped, in order: its figure against good, and how likely it is the first."""
    if not bisection.starts:
        return ["Build"], []
    weights = posterior(bisection.starts, bisection.line.prior).weights
    level = _mean(start.value for start in bisection.starts if start.place == 0)
    rows, before = [], 0
    for place in sorted({start.place for start in bisection.starts} | bisection.skipped.keys()):
        own = [start.value for start in bisection.starts if start.place == place]
        share = math.fsum(weights[before:place]) if place and place not in bisection.skipped else math.nan
        commit = bisection.line.built(place)
        texts = [bisection.line.name(place), commit.sha[:12], commit.date, escape_markdown(commit.subject[:60])]
        ratio = f"{math.exp(_mean(own) - level):.3f}" if own else _DASH
        status = bisection.skipped.get(place, "")
        rows.append([*texts, f"{len(own)}" if own else "skipped" if status else "0", ratio, _share(share)])
        before = before if status else place
    head = ["Build", "Commit", "Date", "Subject", "Starts", f"{TITLES[bisection.terms.metric]}, ratio to good"]
    return [*head, "First changed here or since the row before"], rows


def notes(bisection: Bisection) -> list[str]:
    """What the answer rests on, and what was skipped."""
    cells = ", ".join(bisection.cells) or "no cell"
    lines = [f"Of {cells}; ratios above 1 are better. Those of the table are raw means over starts."]
    if bisection.starts:
        state = posterior(bisection.starts, bisection.line.prior)
        lines.append(f"Noise of a start {percent(state.noise)}, of a block {percent(state.drift)}, as estimated.")
    for place, reason in list(bisection.skipped.items())[:_LISTED]:
        lines.append(f"Skipped: {bisection.line.name(place)}: {reason}.")
    if (more := len(bisection.skipped) - _LISTED) > 0:
        lines.append(f"Skipped: {more} more.")
    return lines


def bisection_record(bisection: Bisection) -> dict[str, Any]:
    """All that is known; effects as ratios, above 1 is better."""
    answer, line = bisection.answer, bisection.line
    effect = effect_of(bisection.starts, line.prior) if bisection.starts else None
    weights = list(posterior(bisection.starts, line.prior).weights) if bisection.starts else []
    named = answer is not None and answer.reason in {"found", "budget"} and answer.confidence > 0
    return {
        "reason": answer.reason if answer else bisection.outcome.state,
        "confidence": answer.confidence if answer else None,
        "commits": [_commit(commit) for commit in _candidates(line, answer)] if answer and named else [],
        "good": _commit(line.base),
        "bad": _commit(line.built(line.bad)),
        "metric": bisection.terms.metric,
        "cells": bisection.cells,
        "ratio": dict(zip(("point", "low", "high"), map(math.exp, effect), strict=True)) if effect else None,
        "starts": len(bisection.starts),
        "blocks": [[line.name(place) for place in places] for places in bisection.tried],
        "skipped": [{**_commit(line.built(place)), "reason": why} for place, why in bisection.skipped.items()],
        "places": [
            {**_commit(line.built(place)), "place": place, "probability": float(weight)}
            for place, weight in enumerate(weights, 1)
        ],
        "sentences": bisection_sentences(bisection),
    }


def bisection_json(bisection: Bisection) -> str:
    """`bisection_record` as text."""
    return json.dumps(bisection_record(bisection), indent=1)


def _commit(commit: Commit) -> dict[str, str]:
    return {"commit": commit.sha, "date": commit.date, "subject": commit.subject}


def commit_text(commit: Commit) -> str:
    """`3fa9c1e2b7aa, 2026-03-04, "Use the new reduction"`."""
    return f'{commit.sha[:12]}, {commit.date}, "{commit.subject}"'


def _candidates(line: Line, answer: Answer) -> list[Commit]:
    """The commits that share the verdict; those that touch the paths, if any does."""
    commits = [commit for place in range(answer.first, answer.last + 1) for commit in line.places[place - 1]]
    return [commit for commit in commits if commit.within] or commits


def _named(line: Line, answer: Answer) -> str:
    commits = _candidates(line, answer)
    left = sum(len(line.places[place - 1]) for place in range(answer.first, answer.last + 1)) - len(commits)
    beside = f", or one of the {left} before it that touch no --path" if left else ""
    if len(commits) == 1:
        return f"{commit_text(commits[0])}{beside}."
    texts = [f"- {commit_text(commit)}" for commit in commits[:_LISTED]]
    more = [f"- and {len(commits) - _LISTED} more"] if len(commits) > _LISTED else []
    why = "between them nothing could be measured" if answer.last > answer.first else "none touches a --path"
    return "\n".join([f"one of {len(commits)} commits ({why}{beside}):", *texts, *more])


def _range(bisection: Bisection, place: int) -> str:
    before = max((start.place for start in bisection.starts if start.place < place), default=0)
    line = bisection.line
    if place - before == 1:
        return f"at {line.built(place).sha[:12]}"
    return f"after {line.built(before).sha[:12]} up to {line.built(place).sha[:12]}"


def _effect(bisection: Bisection) -> str:
    """`Sys tok/s by -3.1 % (95 % CI -3.9 to -2.2 %)`."""
    title = TITLES[bisection.terms.metric]
    if not bisection.starts:
        return f"{title}: nothing measured"
    effect: Effect = effect_of(bisection.starts, bisection.line.prior)
    sign = 1 if bisection.terms.metric == "sys_tok_s" else -1  # of a time, longer is worse
    ends = sorted(math.expm1(sign * value) for value in (effect.low, effect.high))
    mean = math.expm1(sign * effect.mean)
    return f"{title} by {100 * mean:+.1f} % (95 % CI {100 * ends[0]:+.1f} to {100 * ends[1]:+.1f} %)"


def _spent(bisection: Bisection) -> str:
    made = sum(map(len, bisection.tried))
    builds = len({place for places in bisection.tried for place in places})
    return f"{made} starts of {builds} builds in {len(bisection.tried)} blocks, {len(bisection.line.places)} places"


def _mean(values: Iterable[float]) -> float:
    kept = list(values)
    return math.fsum(kept) / len(kept) if kept else math.nan


def _share(share: float) -> str:
    return _DASH if math.isnan(share) else percent(share)
