"""Accuracy recovery: a candidate's share of right answers over the baseline's, and whether chance explains it. Pure."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np

from benchbench.accuracy.results import Score
from benchbench.analysis.stats import Estimate
from benchbench.store.arrow import Floats

CONFIDENCE = 0.95
_Z = 1.959963984540054  # of the normal distribution, for 95 %

Verdict = Literal["inside", "above", "below", "unknown"]


@dataclass(frozen=True, slots=True)
class Evaluation:
    """Scores of each model by its name, and which of them is the baseline, if any is."""

    name: str
    sides: Mapping[str, Sequence[Score]]
    base: str | None = None
    notes: tuple[str, ...] = ()

    @property
    def candidates(self) -> list[str]:
        return [side for side in self.sides if side != self.base]


@dataclass(frozen=True, slots=True)
class Recovery:
    """A candidate's score over the baseline's. `difference` is candidate - baseline, as a share of the questions.

    `verdict`: `inside` sampling error, `above` or `below` it, `unknown` where that error is. `only`: of paired
    right-or-wrong answers, how many questions only the baseline and only the candidate got right; `p` is McNemar's
    exact one of these. `assumed_n`: the number of the baseline's questions, where it was unknown.
    """

    base: Score
    candidate: Score
    ratio: Estimate
    difference: Estimate
    verdict: Verdict
    only: tuple[int, int] | None = None
    p: float | None = None
    assumed_n: int | None = None
    warnings: tuple[str, ...] = ()


def accuracy(score: Score) -> Estimate:
    """The share of right answers p with its 95 % interval.

    p +- 1.96 SE with lm-eval's standard error; where that is absent or 0 (all right, all wrong), Wilson's interval of n
    questions: (p + z^2/2n +- z sqrt(p(1-p)/n + z^2/4n^2)) / (1 + z^2/n). No interval without n.
    E. B. Wilson, J. Am. Stat. Assoc. 22 (1927) 209-212.
    """
    p, n = score.point, score.n
    if score.stderr:
        half = _Z * score.stderr
        return Estimate(p, max(p - half, 0.0), min(p + half, 1.0), CONFIDENCE, n or 0, "lm-eval's standard error")
    if not n:
        return Estimate(p, None, None, CONFIDENCE, 0, "no interval: the number of questions is unknown")
    centre, squeeze = p + _Z**2 / (2 * n), 1 + _Z**2 / n
    half = _Z * math.sqrt(p * (1 - p) / n + (_Z / (2 * n)) ** 2)
    low, high = max((centre - half) / squeeze, 0.0), min((centre + half) / squeeze, 1.0)
    return Estimate(p, low, high, CONFIDENCE, n, "Wilson")


def recover(base: Score, candidate: Score) -> Recovery:
    """Recovery c/b of a candidate's score c over the baseline's b, with 95 % intervals.

    By the delta method on the logarithm, c/b exp(+-1.96 s) with s^2 = (SE_c/c)^2 + (SE_b/b)^2 for separate samples of
    questions (D. Katz et al., Biometrics 34 (1978) 469-474). Where both answered the same questions and the answers
    are known, each question is its own pair: s^2 = Var(c_i/c - b_i/b) / n, and n Var(c_i - b_i) / n^2 for the
    difference (H. Nam and W. C. Blackwelder, Stat. Med. 21 (2002) 689-699, by Wald). Parts of a group count as one
    sample, which makes the interval a little too wide.

    A difference is inside sampling error when the interval of the ratio holds 1; of paired right-or-wrong answers,
    when McNemar's exact test has p >= 0.05: of the questions that only one got right, each is as likely either's
    (Q. McNemar, Psychometrika 12 (1947) 153-157). No interval where no two answers differ, or all do alike.
    """
    warnings = _unlike(base, candidate)
    assumed = candidate.n if base.n is None and base.stderr is None else None
    known = replace(base, n=assumed) if assumed else base
    b, c = base.point, candidate.point
    pairs, why = _pairs(base, candidate)
    if pairs is not None:
        n, method = pairs.shape[1], "paired by question"
        spread = [_sd(pairs[1] - pairs[0]) / math.sqrt(n), 0.0]
        spread[1] = _sd(pairs[1] / c - pairs[0] / b) / math.sqrt(n) if b and c else math.nan
    else:
        warnings += why
        n, method = min(known.n or 0, candidate.n or 0), "separate samples"
        errors = [_standard_error(known), _standard_error(candidate)]
        spread = [math.hypot(*errors), math.hypot(errors[0] / b, errors[1] / c) if b and c else math.nan]
    difference = _around(c - b, spread[0], n, method)
    ratio = Estimate(c / b if b else math.nan, None, None, CONFIDENCE, n, method)
    if spread[1] > 1e-9:  # false for NaN
        factor = math.exp(_Z * spread[1])
        ratio = replace(ratio, low=ratio.point / factor, high=ratio.point * factor)
    only, p = _mcnemar(pairs) if pairs is not None else (None, None)
    verdict = _verdict(difference, ratio, p)
    return Recovery(base, candidate, ratio, difference, verdict, only, p, assumed, tuple(warnings))


def match(score: Score, others: Sequence[Score]) -> Score | None:
    """The same benchmark among others: the same name, and the same number of shots where both are known."""
    names = {score.task.casefold(), score.name.casefold()}
    same = [other for other in others if names & {other.task.casefold(), other.name.casefold()}]
    return next((other for other in same if None in (other.shots, score.shots) or other.shots == score.shots), None)


def _around(point: float, error: float, n: int, method: str) -> Estimate:
    if not error > 1e-9:  # NaN, or nothing differs
        return Estimate(point, None, None, CONFIDENCE, n, method)
    return Estimate(point, point - _Z * error, point + _Z * error, CONFIDENCE, n, method)


def _standard_error(score: Score) -> float:
    """lm-eval's, else half of Wilson's interval over 1.96; NaN where it is unknown."""
    estimate = accuracy(score)
    if score.stderr or estimate.low is None or estimate.high is None:
        return score.stderr or math.nan
    return (estimate.high - estimate.low) / (2 * _Z)


def _sd(values: Floats) -> float:
    return float(values.std(ddof=1)) if values.size > 1 else math.nan


def _pairs(base: Score, candidate: Score) -> tuple[Floats | None, list[str]]:
    """Both scores of each question, (2, n); None, and why if that is a surprise, where they are not of one set."""
    if not (base.samples and candidate.samples):
        return None, []
    if base.samples.keys() != candidate.samples.keys():
        return None, ["the questions differ: not paired"]
    pairs = np.array([(base.samples[key], candidate.samples[key]) for key in base.samples]).T
    if not np.allclose(pairs.mean(axis=1), [base.point, candidate.point], atol=1e-6):
        return None, ["the score is not the mean of its questions: not paired"]
    return pairs, []


def _mcnemar(pairs: Floats) -> tuple[tuple[int, int] | None, float | None]:
    if not np.isin(pairs, (0.0, 1.0)).all():
        return None, None
    from scipy.stats import binomtest

    base, candidate = int((pairs[0] > pairs[1]).sum()), int((pairs[1] > pairs[0]).sum())
    p = float(binomtest(base, base + candidate).pvalue) if base + candidate else 1.0
    return (base, candidate), p


def _verdict(difference: Estimate, ratio: Estimate, p: float | None) -> Verdict:
    if p is None and (ratio.low is None or ratio.high is None):
        return "unknown"
    inside = p >= 1 - CONFIDENCE if p is not None else bool((ratio.low or 0) <= 1 <= (ratio.high or 0))
    if inside:
        return "inside"
    return "above" if difference.point > 0 else "below"


def _unlike(base: Score, candidate: Score) -> list[str]:
    """How the two evaluations differ, where both sides are known."""
    facts = {
        "metric": (base.metric, candidate.metric),
        "version of the task": (base.version, candidate.version),
        "lm-eval": (base.lm_eval, candidate.lm_eval),
    }
    differences = [f"{what}: {a} and {b}" for what, (a, b) in facts.items() if a and b and a != b]
    if not base.text and not candidate.text and base.chat != candidate.chat:
        differences.append(f"a chat template for the {'baseline' if base.chat else 'candidate'} only")
    return differences
