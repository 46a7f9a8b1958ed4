"""Whether a comparison, or a run's rows, pass their gates. What cannot be judged does not pass. Pure.

A change fails a gate if it is significant (5 % after Holm's correction, and outside of the noise floor where one is
given), for the worse, and larger than the gate allows. The verdict `equivalent` and its margin play no part: a certain
-0.7 % fails `slower`. Of unchanged builds a family (cells, geometric means) fails `slower` 2.5 times in 100, so a gate
at most 5 times (benchmarks/gates.py); with a limit less often. A test without power (two blocks, many cells) that finds
nothing judges nothing: one that would not find half the speed with a chance of 80 %.

`ratio<R` looks at the points alone, for runs of one start. It can be judged where R lies outside of the noise:

    1 / R > exp(t(1 - 0.05 / m; df) sd sqrt(2 / n))      sd, df: noise of a start, from A/A; m tests; n starts a side

so that of unchanged builds at most 5 in 100 have any ratio below R.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, Literal, NamedTuple

from benchbench.comparison.pairs import Pair
from benchbench.comparison.verdicts import ALPHA, BETTER, TITLES, Comparison, Effect, Overall
from benchbench.gates.rules import Rule, Threshold, worse_by
from benchbench.spec.cell import cell_name
from benchbench.student.t_distribution import t_quantile

Outcome = Literal["passed", "failed", "not judged"]
Judgement = tuple[Outcome, str]  # and the sentence
NoiseOf = Mapping[frozenset[str], tuple[float, int]]  # cells -> sd of one start (logs), degrees of freedom
MEAN = "geometric mean"
UNLIMITED = 0.05  # what `slower` alone should find
HALF = 1.0  # a ratio of 2: a test that does not find it says nothing
MORE_STARTS = "measure both with blocks: 6, or gate points with 'ratio<0.95'"


class Check(NamedTuple):
    """One thing that was judged. `gate`: its text; `what`: metric and cell; `sentence`: what was found."""

    gate: str
    what: str
    outcome: Outcome
    sentence: str


def judge_pair(pair: Pair, rules: Sequence[Rule], noise: NoiseOf | None = None, among: int = 1) -> list[Check]:
    """Each gate on a comparison, in the order of `rules`. `noise`: of Sys tok/s, from an A/A run; None: unknown.

    `among`: how many candidates are judged at once, this one too.
    """
    return [check for rule in rules for check in _judge(pair, rule, noise, among)]


def _judge(pair: Pair, rule: Rule, noise: NoiseOf | None, among: int) -> Iterator[Check]:
    between = f"{pair.candidate} against {pair.base}"
    if pair.absent or not pair.planned_cells:
        yield Check(rule.text, between, "not judged", pair.absent or "there is nothing to compare")
    elif rule.kind == "fidelity":
        yield Check(rule.text, between, *_fidelity(pair))
    else:
        for metric in rule.metrics:
            for label, why in _lacking(pair, metric):
                what = f"{between}: {TITLES[metric]} of {label}"
                yield Check(rule.text, what, "not judged", f"cannot be judged: {why}")
        effects = _effects(pair, rule.metrics)
        for of, effect in effects:
            point = rule.kind == "ratio"
            judged = _point(rule, effect, noise, among * len(effects)) if point else _change(pair, rule, effect)
            yield Check(rule.text, f"{between}: {of}", *judged)


def _effects(pair: Pair, metrics: Sequence[str]) -> list[tuple[str, Comparison | Overall]]:
    """The geometric means first, each with what it is of."""
    effects: list[tuple[str, Comparison | Overall]] = [(MEAN, overall) for overall in pair.compared.overall]
    effects += [(comparison.cell, comparison) for comparison in pair.compared.cells]
    return [(f"{TITLES[effect.metric]} of {of}", effect) for of, effect in effects if effect.metric in metrics]


def _lacking(pair: Pair, metric: str) -> list[tuple[str, str]]:
    """The cells that were planned and have no ratio of this metric, with the reason."""
    compared = {comparison.cell for comparison in pair.compared.cells if comparison.metric == metric}
    valueless = {label: f"a build has no {TITLES[metric]}" for label in pair.cells if label not in compared}
    return [*pair.missing.items(), *valueless.items()]


def _fidelity(pair: Pair) -> Judgement:
    if pair.fidelity == "not_measured":
        unasked = pair.fidelity_mode == "off"
        why = "outputs were not compared (fidelity: strict or report in the sweep)" if unasked else pair.fidelity_note
        return "not judged", why
    differs = pair.fidelity == "differs" and pair.fidelity_mode == "strict"
    return "failed" if differs else "passed", f"outputs {'differ' if differs else pair.fidelity}"


def _change(pair: Pair, rule: Rule, effect: Effect) -> Judgement:
    if effect.p_value is None:
        why = f"cannot be judged: {effect.warnings[-1]}"
        return "not judged", why + (f" ({MORE_STARTS})" if pair.blocks < 2 else "")
    as_latency = rule.kind == "metric"
    worse = worse_by(effect, as_latency=as_latency)
    longer = as_latency and BETTER[effect.metric] < 0
    sentence = (
        f"{100 * abs(worse):.1f} % {('longer', 'shorter')[worse < 0] if longer else ('slower', 'faster')[worse < 0]}"
    )
    if effect.significant:
        return "failed" if worse > 0 and rule.exceeded(effect) else "passed", sentence
    if (effect.mde_family or 0.0) > HALF:
        return "not judged", "cannot be judged: so few starts would miss even a build of half the speed"
    return "passed", f"no significant change ({sentence})"


def _point(rule: Rule, effect: Comparison | Overall, noise: NoiseOf | None, tests: int) -> Judgement:
    """A point against a limit that must lie outside of the noise."""
    cells = frozenset(effect.cells if isinstance(effect, Overall) else (effect.cell,))
    if noise is None or cells not in noise:
        why = "cannot be judged: the noise between starts is unknown (bench noise measures it, --noise names its run)"
        return "not judged", why
    sd, degrees = noise[cells]
    bound = math.exp(-t_quantile(1 - ALPHA / tests, degrees) * sd * math.sqrt(2 / effect.ratio.n))
    if rule.limit >= bound:
        why = f"cannot be judged: {rule.limit:g} lies inside the noise (below {bound:.3f} is outside); more starts help"
        return "not judged", why
    return "failed" if effect.ratio.point < rule.limit else "passed", f"ratio {effect.ratio.point:.3f}"


def blind_spots(pair: Pair, rules: Iterable[Rule]) -> list[str]:
    """Gates that would miss what they are there for, a sentence each: X, or UNLIMITED for `slower` alone."""
    sentences = []
    for rule in (rule for rule in rules if rule.kind in {"slower", "metric"}):
        mdes = [effect.mde_family for _, effect in _effects(pair, rule.metrics) if effect.mde_family is not None]
        limit = rule.limit or UNLIMITED
        if blind := sorted(mde for mde in mdes if mde > limit):
            low, high = (f"{100 * mde:.1f}" if mde < 10 else ">1000" for mde in (blind[0], blind[-1]))
            span = f"{low} %" if low == high else f"{low} to {high} %"
            missed = f"{len(blind)} of {len(mdes)} tests would probably miss a change of {100 * limit:g} %"
            sentences.append(f"{rule.text}: {missed} (found with 80 % power: {span}); more starts lower that")
    return sentences


def judge_rows(rows: Sequence[Mapping[str, Any]], thresholds: Sequence[Threshold]) -> list[Check]:
    """Each limit on each row of a run; an invalid cell, or one without the number, is not judged."""
    checks = []
    for threshold in thresholds:
        if not rows:
            checks.append(Check(threshold.text, threshold.column, "not judged", "the run has no cells"))
        for row in rows:
            judged = _limited(row, threshold)
            checks.append(Check(threshold.text, f"{threshold.column} of {cell_name(row, ' ')}", *judged))
    return checks


def _limited(row: Mapping[str, Any], threshold: Threshold) -> Judgement:
    value = row[threshold.column]
    if row["status"] == "invalid":
        return "not judged", f"cannot be judged: invalid ({row['reasons']})"
    if not isinstance(value, int | float) or not math.isfinite(value):
        return "not judged", "cannot be judged: there is no number"
    return "failed" if threshold.broken(value) else "passed", f"is {value:.6g}"
