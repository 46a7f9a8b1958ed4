"""What `--fail-on` may ask: a change between two builds, outputs that differ, or a limit on a run's own rows."""

from __future__ import annotations

import math
import re
from collections.abc import Collection
from dataclasses import dataclass

from benchbench.comparison.verdicts import BETTER, PRIMARY, Effect
from benchbench.yamlfile.mistakes import unknown_key

FORMS = "'slower>1%', slower, 'ttft>5%', 'ratio<0.95', fidelity"
SIGNED = {"lag1", "trend", "outside_ttft_ms"}  # columns that may be below 0
METRICS = {metric.removesuffix("_req_s"): metric for metric in BETTER}  # name in a gate -> metric
_LIMIT = re.compile(r"\s*([\w.]+?)\s*(<=|>=|<|>)\s*(-?(?:\d+\.?\d*|\.\d+)(?:e-?\d+)?)\s*")


@dataclass(frozen=True, slots=True)
class Rule:
    """One gate on a comparison. `limit` is a share: 0.05 of `ttft>5%`, 0 of `slower`, 0.95 of `ratio<0.95`.

    `kind`: slower (all of PRIMARY, below 1 - limit), metric (one of them: a rate lower, or a latency longer, by more
    than `limit`), ratio (points of Sys tok/s below `limit`), fidelity.
    """

    text: str
    kind: str
    metrics: tuple[str, ...] = ()
    limit: float = 0.0

    def exceeded(self, effect: Effect) -> bool:
        """Whether the change for the worse is larger than what the gate allows; `slower` alone allows none."""
        return worse_by(effect, as_latency=self.kind == "metric") > self.limit


@dataclass(frozen=True, slots=True)
class Threshold:
    """A gate on one run: `column` must not be `sign` (<, <=, >, >=) `limit`."""

    text: str
    column: str
    sign: str
    limit: float

    def broken(self, value: float) -> bool:
        """Whether a value is on the wrong side."""
        above, at = value > self.limit, value == self.limit
        return (at and "=" in self.sign) or (above if ">" in self.sign else not above and not at)


def worse_by(effect: Effect, *, as_latency: bool) -> float:
    """By what share the candidate is worse: 1 - ratio, or for a latency (`as_latency`) candidate / base - 1."""
    if as_latency and BETTER[effect.metric] < 0:
        return 1 / effect.ratio.point - 1
    return 1 - effect.ratio.point


def rule_of(text: str) -> Rule:
    """A gate of `bench compare`. Raises ValueError."""
    match = re.fullmatch(r"\s*(\w+)\s*(?:([<>])\s*(.+?)\s*)?", text)
    name, sign, limit = match.groups(default="") if match else ("", "", "")
    if (name, sign) == ("fidelity", ""):
        return Rule(text, "fidelity")
    if (name, sign) == ("slower", ""):
        return Rule(text, "slower", PRIMARY)
    if name == "ratio" and sign == "<" and re.fullmatch(r"\d*\.?\d+", limit) and 0 < float(limit) < 1:
        return Rule(text, "ratio", PRIMARY[:1], float(limit))
    if sign == ">" and name in {"slower", *METRICS}:
        share = percent_of(limit, f"--fail-on {name}>")
        if share >= 1 and (name == "slower" or BETTER[METRICS[name]] > 0):
            raise ValueError(f"--fail-on {text}: no rate falls by that, so it could not fail (allowed: below 100%)")
        return (
            Rule(text, "slower", PRIMARY, share) if name == "slower" else Rule(text, "metric", (METRICS[name],), share)
        )
    raise ValueError(f"--fail-on {text}: unknown (allowed: {FORMS}; >X% of slower, {', '.join(METRICS)})")


def threshold_of(text: str, columns: Collection[str]) -> Threshold:
    """A gate of `bench table`, on one of these columns. Raises ValueError."""
    match = _LIMIT.fullmatch(text)
    if not match:
        raise ValueError(f"--fail-on {text}: must be a column and its limit (allowed: as 'ttft_ms_p99>500')")
    if match[1] not in columns:
        message, names = unknown_key(match[1], columns, "column")
        raise ValueError(f"--fail-on {text}: {message} (allowed: {names})")
    limit = float(match[3])
    if not math.isfinite(limit):
        raise ValueError(f"--fail-on {text}: must be a finite number")
    if "<" in match[2] and match[1] not in SIGNED and (limit < 0 or (limit == 0 and match[2] == "<")):
        raise ValueError(f"--fail-on {text}: {match[1]} is never below 0, so it could not fail (allowed: above 0)")
    return Threshold(text, match[1], match[2], limit)


def percent_of(text: str, option: str) -> float:
    """The share that `1%` or `0.5 %` is. Raises ValueError, which names the option."""
    percent = re.fullmatch(r"\s*(\d+(?:\.\d+)?|\.\d+)\s*%\s*", text)
    if not percent or not float(percent[1]):
        raise ValueError(f"{option} {text}: must be percent above 0 (allowed: as 1% or 0.5%)")
    return float(percent[1]) / 100
