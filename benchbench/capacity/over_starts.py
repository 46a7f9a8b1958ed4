"""Capacities of several starts: each variant's mean with its interval, and variants or runs against each other. Pure.

A start is one observation, as in `comparison`: the estimate of its own search. Intervals and verdicts are that room's,
on logarithms: paired over blocks within a run, Welch's between two runs.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from benchbench.analysis.stats import two_stage_estimate
from benchbench.boundary.start_estimate import Estimate
from benchbench.capacity.probes import SearchState
from benchbench.comparison.verdicts import Comparison, Comparisons, Sample, compare

METRIC = "goodput_req_s"  # to `compare`: a rate, of which more is better, whose tests are a family of their own
_CENSORED = {
    "always": "every load up to {high} meets the SLO: search up to a larger one",
    "never": "no load from {low} on meets the SLO: search from a smaller one",
    "instrument": "the load generator is the limit",
    "time": "its time was used up (--budget-s)",
    "": "its search is not over",
}


class Starts(NamedTuple):
    """What the starts of a variant say of a shape. `capacities`: block -> load, of the starts that have one.

    `censored`: block -> why it has none. `mean`, `low`, `high`: the geometric mean and its 95 % interval, None where
    a start has no capacity (to leave it out would be selection), the interval also of a single start.
    """

    variant: str
    shape: str
    axis: str
    capacities: Mapping[int, float]
    censored: Mapping[int, str]
    mean: float | None
    low: float | None
    high: float | None


def starts_of(states: Sequence[SearchState]) -> list[Starts]:
    """One a variant and shape, in the order in which they began."""
    groups: dict[tuple[str, str], list[SearchState]] = {}
    for state in states:
        groups.setdefault((state.target.variant, state.target.shape), []).append(state)
    return [_starts(of) for of in groups.values()]


def _starts(states: Sequence[SearchState]) -> Starts:
    target, capacities, censored = states[-1].target, dict[int, float](), dict[int, str]()
    for state in states:
        step = state.step()
        estimate = step if isinstance(step, Estimate) else Estimate(None, "")
        if estimate.capacity is None:
            why = _CENSORED[estimate.reason].format(low=target.at(target.low), high=target.at(target.high))
            censored[state.block or 0] = why
        else:
            capacities[state.block or 0] = estimate.capacity
    known = two_stage_estimate([math.log(x) for x in capacities.values()], len(capacities)) if not censored else None
    ends = [None if known is None or end is None else math.exp(end) for end in _ends(known)]
    return Starts(target.variant, target.shape, target.axis, capacities, censored, *ends)


def _ends(known: Any) -> tuple[float | None, float | None, float | None]:  # noqa: ANN401 - an estimate or None
    return (None, None, None) if known is None else (known.point, known.low, known.high)


class Against(NamedTuple):
    """A candidate against a base: `compared.cells` are shapes; `left_out`: shape -> why it has no ratio."""

    base: str
    candidate: str
    compared: Comparisons
    left_out: Mapping[str, str]

    @property
    def sentences(self) -> list[str]:
        """As `B carries 7.0 % more within the SLO than A (95 % CI 3.1 to 11.0): in=128 out=64`."""
        lines = [f"{_sentence(self.base, self.candidate, effect)}: {effect.cell}" for effect in self.compared.cells]
        return [*lines, *(f"{shape}: no ratio: {why}" for shape, why in self.left_out.items())]


def against(base: Sequence[Starts], candidate: Sequence[Starts], names: tuple[str, str], *, paired: bool) -> Against:
    """Shape by shape, those that both have; `names` are what the two sides are called."""
    samples, left_out = list[Sample](), dict[str, str]()
    others = {starts.shape: starts for starts in candidate}
    for old in base:
        new = others.get(old.shape)
        if new is None or old.axis != new.axis:
            left_out[old.shape] = f"only {names[0]} has it"
        elif old.censored or new.censored:
            side, name = (old, names[0]) if old.censored else (new, names[1])
            left_out[old.shape] = f"{name}, start {next(iter(side.censored))}: {next(iter(side.censored.values()))}"
        else:
            blocks = sorted({*old.capacities, *new.capacities})
            pairs = [(block, old.capacities.get(block), new.capacities.get(block)) for block in blocks]
            samples += [Sample(old.shape, METRIC, *pair) for pair in pairs]
    return Against(*names, compare(samples, paired=paired), left_out)


def _sentence(base: str, candidate: str, effect: Comparison) -> str:
    ratio, low, high = effect.ratio.point, effect.ratio.low, effect.ratio.high
    if low is None or high is None:
        return f"{candidate} carries {ratio:.3f} times what {base} does (no interval: {'; '.join(effect.warnings)})"
    if effect.verdict == "slower":
        ends = f"{100 * (1 - high):.1f} to {100 * (1 - low):.1f}"
        return f"{candidate} carries {100 * (1 - ratio):.1f} % less within the SLO than {base} (95 % CI {ends})"
    ends = f"{100 * (low - 1):.1f} to {100 * (high - 1):.1f}"
    if effect.verdict == "faster":
        return f"{candidate} carries {100 * (ratio - 1):.1f} % more within the SLO than {base} (95 % CI {ends})"
    known = "as much, within 1 %," if effect.verdict == "equivalent" else "perhaps as much"
    return f"{candidate} carries {known} as {base} within the SLO ({100 * (ratio - 1):+.1f} %, 95 % CI {ends})"


def starts_record(starts: Starts) -> dict[str, Any]:
    """As JSON."""
    return {**starts._asdict(), "capacities": list(starts.capacities.values()), "censored": dict(starts.censored)}


def against_record(pair: Against) -> list[dict[str, Any]]:
    """As JSON, one a shape: ratios above 1 say that the candidate carries more."""
    return [
        {
            "base": pair.base,
            "candidate": pair.candidate,
            "shape": effect.cell,
            "base_capacity": effect.base,
            "candidate_capacity": effect.candidate,
            "ratio": {end: getattr(effect.ratio, end) for end in ("point", "low", "high")},
            "starts": effect.ratio.n,
            "verdict": {"faster": "more", "slower": "less"}.get(effect.verdict, effect.verdict),
            "p_adjusted": effect.p_adjusted,
        }
        for effect in pair.compared.cells
    ]
