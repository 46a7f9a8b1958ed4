"""Whether two builds answer alike, against how alike the baseline answers after a restart. Pure.

Of two starts that answered the same questions, with x_i and y_i their tokens at place i of an answer and c the first
place where they part (the shorter length if none): up to and including c both were given the same context, so
probabilities can be compared there; after it they cannot.

    identical        share of answers with the same tokens
    prefix           mean over answers of c / longer length (1 where nothing parts)
    first_divergence smallest c + 1 of all answers: the 1st, 2nd ... token
    dlogp            |log p(x_i) - log q(y_i)| at places i < c: mean and largest over all answers
    kl               mean over places i <= c of (KL(p || q) + KL(q || p)) / 2 = sum over S of (p - q) log(p / q) / 2,
                     S the tokens among the likeliest of both, p and q made to sum to 1 over S; two of them at least
    gap              at c: by how much more likely (log) a start finds its own token than the other's, the smaller of
                     the two, largest over answers. Near 0: a tie, which any rounding decides

Rule. The candidate is what its worst pair (start of the baseline, start of the candidate) is, the band what the worst
pair of two starts of the baseline is. `matches` when no figure is worse than SLACK times the band's, plus a floor:
LOGP_FLOOR for dlogp, KL_FLOOR for kl, none for tokens (of 1 - identical and 1 - prefix). Tokens are not judged where
every parting is a tie: gap no larger than dlogp's limit, for such noise alone makes a start choose either. With one
start of the baseline there is no band, and only the floors remain. Else `differs`. Reasons and how often it errs:
docs/comparing.md.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Literal

from benchbench.fidelity.answers import GreedyAnswer, StartAnswers, Token

Verdict = Literal["matches", "differs", "not_measured"]

SLACK = 2.0
LOGP_FLOOR = 1e-3  # above float32's error in a softmax, far below one step of a bf16 logit (1/16 between 8 and 16)
KL_FLOOR = LOGP_FLOOR**2  # where log-probabilities differ by d, KL is at most about d^2 / 2


@dataclass(frozen=True, slots=True)
class Figures:
    """How two starts' answers differ, or the worst of several pairs, figure by figure; see above.

    None: nothing of the kind. `gap` is also None where an answer parts from another at a token that is not among the
    likeliest of both.
    """

    answers: int
    identical: float
    prefix: float
    first_divergence: int | None
    dlogp_mean: float | None
    dlogp_max: float | None
    kl: float | None
    gap: float | None


@dataclass(frozen=True, slots=True)
class Fidelity:
    """`sentence` goes on from a build's name: "outputs ...". `band` is None without two starts of the baseline.

    `starts`: of baseline and candidate. `outside`: the candidate's starts of which some pair is outside the band.
    `reason`: why nothing was measured, or what was not.
    """

    verdict: Verdict
    sentence: str
    figures: Figures | None = None
    band: Figures | None = None
    starts: tuple[int, int] = (0, 0)
    outside: int = 0
    reason: str = ""


def judge(base: Sequence[StartAnswers], candidate: Sequence[StartAnswers]) -> Fidelity:
    """The starts of both sides, in any order, one at least of each."""
    starts = [*base, *candidate]
    if len({start.questions_hash for start in starts}) > 1:
        return unmeasured("not all starts were asked the same")
    if len({start.unit for start in starts}) > 1:
        return unmeasured("some starts tell token ids, and others only their text")
    pairs = [[difference(ours.answers, theirs.answers) for ours in base] for theirs in candidate]
    figures = worst(pair for of_start in pairs for pair in of_start)
    among = [difference(a.answers, b.answers) for k, a in enumerate(base) for b in base[:k]]
    band = worst(among) if among else None
    outside = sum(not inside(worst(of_start), band) for of_start in pairs)
    reasons = [] if band else ["one start of the baseline: no band"]
    if not all(answer.logprobs for start in starts for answer in start.answers if answer.tokens):
        reasons.append("no log-probabilities: tokens alone")
    return Fidelity(
        verdict="differs" if outside else "matches",
        sentence=_sentence(figures, band, outside, len(candidate)),
        figures=figures,
        band=band,
        starts=(len(base), len(candidate)),
        outside=outside,
        reason="; ".join(reasons),
    )


def inside(figures: Figures, band: Figures | None) -> bool:
    """Whether no figure is worse than the band allows."""

    def deviations(of: Figures) -> list[float]:
        return [of.dlogp_mean or 0.0, of.dlogp_max or 0.0, of.kl or 0.0, 1 - of.identical, 1 - of.prefix]

    floors = (LOGP_FLOOR, LOGP_FLOOR, KL_FLOOR, 0.0, 0.0)
    noise = deviations(band) if band else [0.0] * len(floors)
    limits = [SLACK * value + floor for value, floor in zip(noise, floors, strict=True)]
    judged = 3 if figures.gap is not None and figures.gap <= limits[1] else 5
    return all(value <= limit for value, limit in zip(deviations(figures)[:judged], limits, strict=False))


def difference(base: Sequence[GreedyAnswer], other: Sequence[GreedyAnswer]) -> Figures:
    """The figures of one pair of starts, whose answers are to the same questions in the same order."""
    parted, shares, dlogps, kls, gaps = list[int](), list[float](), list[float](), list[float](), list[float | None]()
    for a, b in zip(base, other, strict=True):
        longest = max(len(a.tokens), len(b.tokens))
        common = next((i for i, (x, y) in enumerate(zip(a.tokens, b.tokens, strict=False)) if x != y), None)
        common = min(len(a.tokens), len(b.tokens)) if common is None else common
        shares.append(common / longest if longest else 1.0)
        dlogps += [abs(x - y) for x, y in zip(a.logprobs[:common], b.logprobs[:common], strict=False)]
        places = zip(a.top[: common + 1], b.top[: common + 1], strict=False)
        kls += [kl for p, q in places if (kl := divergence(p, q)) is not None]
        if a.tokens != b.tokens:
            parted.append(common)
            gaps.append(_gap(a, b, common))
    return Figures(
        answers=len(shares),
        identical=1 - len(parted) / len(shares) if shares else 1.0,
        prefix=fmean(shares) if shares else 1.0,
        first_divergence=min(parted) + 1 if parted else None,
        dlogp_mean=fmean(dlogps) if dlogps else None,
        dlogp_max=max(dlogps, default=None),
        kl=fmean(kls) if kls else None,
        gap=_largest_known(gaps),
    )


def divergence(p: Mapping[Token, float], q: Mapping[Token, float]) -> float | None:
    """Symmetric KL, as above, of log-probabilities by token; None where fewer than two tokens are in both."""
    shared = sorted(p.keys() & q.keys(), key=str)
    if len(shared) < 2:
        return None
    ours, theirs = (_normalised([side[token] for token in shared]) for side in (p, q))
    return max(0.0, sum((math.exp(a) - math.exp(b)) * (a - b) for a, b in zip(ours, theirs, strict=True)) / 2)


def worst(pairs: Iterable[Figures]) -> Figures:
    """The worst of each figure over one pair or more."""
    pairs = list(pairs)
    parted = [pair for pair in pairs if pair.first_divergence is not None]
    return Figures(
        answers=pairs[0].answers,
        identical=min(pair.identical for pair in pairs),
        prefix=min(pair.prefix for pair in pairs),
        first_divergence=min((pair.first_divergence or 0 for pair in parted), default=None),
        dlogp_mean=_largest(pair.dlogp_mean for pair in pairs),
        dlogp_max=_largest(pair.dlogp_max for pair in pairs),
        kl=_largest(pair.kl for pair in pairs),
        gap=_largest_known([pair.gap for pair in parted]),
    )


def _largest(values: Iterable[float | None]) -> float | None:
    return max((value for value in values if value is not None), default=None)


def _largest_known(values: Sequence[float | None]) -> float | None:
    """None where one of them is unknown."""
    return None if None in values else _largest(values)


def _normalised(logs: Sequence[float]) -> list[float]:
    top = max(logs)
    total = top + math.log(math.fsum(math.exp(log - top) for log in logs))
    return [log - total for log in logs]


def _gap(a: GreedyAnswer, b: GreedyAnswer, place: int) -> float | None:
    """By how much each side prefers its own token at `place`, where they part: the smaller; None if one cannot say."""
    preferences = []
    for own, other in ((a, b), (b, a)):
        if place >= min(len(own.tokens), len(other.tokens), len(own.top)):
            return None
        mine, yours = own.top[place].get(own.tokens[place]), own.top[place].get(other.tokens[place])
        if mine is None or yours is None:
            return None
        preferences.append(abs(mine - yours))
    return min(preferences)


def unmeasured(reason: str) -> Fidelity:
    return Fidelity("not_measured", f"outputs were not compared ({reason})", reason=reason)


def _sentence(figures: Figures, band: Figures | None, outside: int, starts: int) -> str:
    if not outside:
        alone = "in every token" if figures.first_divergence is None else "but for tokens that are equally likely"
        return "outputs match " + ("within the noise of a restart" if band else alone)
    ties = "" if figures.gap is None else f" (there the two tokens are at most {figures.gap:.3g} apart)"
    against = f", against {_short(band)} after a restart of the baseline" if band else ""
    where = f"in {outside} of {starts} starts" if starts > 1 else "in the one start"
    return f"outputs differ {where}: {_short(figures)}{ties}{against}"


def _short(figures: Figures) -> str:
    """Other answers, and by how much log-probabilities differ, in words."""
    other = round((1 - figures.identical) * figures.answers)
    first = "" if figures.first_divergence is None else f", the first at token {figures.first_divergence}"
    dlogp = "" if figures.dlogp_max is None else f", log-probabilities by up to {figures.dlogp_max:.3g}"
    return f"{other} of {figures.answers} answers{first}{dlogp}"
