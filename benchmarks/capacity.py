"""How often `bench capacity` holds the truth and what it costs, beside AIPerf's smooth-isotonic search; Markdown.

    python benchmarks/capacity.py --searches 500

Servers are numbers: the mean latency of a round at load x is limit x ((x / c)^steepness, or (1 - c/m) / (1 - x/m) of a
queue that saturates at m), times the round's luck (log-normal), plus the mean of its requests' noise. AIPerf's rule is
rewritten from reading aiperf 0.13 (orchestrator/search_planner): loads double from the smallest until one misses; three
evenly spaced probes inside; monotone regression and a monotone cubic through all; a probe at its root until the
bracket is narrower than 5 % of its upper end, or the root was probed before; where few levels are distinct, probes at
1/8 and 5/8 of the bracket, at most three times. One run a probe (its default, `sla_replicates` 0), of 1,000 requests
(`normal`) or 300 (`coarse`). Its detector of cliffs, which bisects, is left out. Warm-up is in neither's requests.

Three tables: limits of a mean; limits that 99 % of the requests must meet (a request's time is the round's luck times a
log-normal of 0.5, and the capacity is where 1 % of *all* requests are beyond); and two builds of which one carries 7 %
more, by six starts of each that differ by 2 %.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from scipy.interpolate import PchipInterpolator
from scipy.optimize import isotonic_regression
from scipy.special import ndtri

from benchbench.boundary.boundary_search import Answer, Probe, Question, next_probe
from benchbench.boundary.isotonic import score
from benchbench.boundary.start_estimate import Estimate, next_load
from benchbench.capacity.observations import of_share
from benchbench.capacity.over_starts import Starts, against

LOW, HIGH = 1, 1024
SEED = 7


class Server(NamedTuple):
    """`capacity`: the load at which the mean is the limit; `steep` 0: a queue that saturates at 1.3 x capacity."""

    name: str
    capacity: float
    steep: float
    luck: float
    noise: float = 0.5
    varied: bool = True  # the capacity differs from search to search, by up to 30 %
    share: float = 0.0  # of the requests, that must be within the limit; 0: the mean must be

    def latency(self, load: float) -> float:
        """The mean at a load, as a share of what it is at the capacity."""
        if self.steep:
            return float((load / self.capacity) ** self.steep)
        most = 1.3 * self.capacity
        return (1 - self.capacity / most) / max(1 - load / most, 0.005)

    def rounds(self, rng: np.random.Generator, load: float, rounds: int, requests: int) -> tuple[float, ...]:
        """figure / limit - 1 of each round."""
        luck = np.exp(self.luck * rng.standard_normal(rounds) - self.luck**2 / 2)
        if self.share:
            limit = math.exp(ndtri(self.share) * math.hypot(self.noise, self.luck))
            single = np.exp(self.noise * rng.standard_normal((rounds, requests))) / limit
            return tuple(
                of_share(self.latency(load) * one * of, self.share) for one, of in zip(luck, single, strict=True)
            )
        noise = 1 + self.noise / math.sqrt(requests) * rng.standard_normal(rounds)
        return tuple((self.latency(load) * luck * noise - 1).tolist())


SERVERS = (
    *(Server(f"(x/c)^{steep:g}, luck {luck:.0%}", 237.4, steep, luck) for steep in (1, 2, 4) for luck in (0.01, 0.03)),
    Server("queue, luck 3%", 237.4, 0, 0.03),
    Server("queue, luck 10%", 237.4, 0, 0.1),
    Server("queue, luck 30%", 237.4, 0, 0.3),
    Server("small batches, luck 3%", 6.4, 1, 0.03),
    Server("just met at a whole batch", 100.001, 2, 0.03, varied=False),
    Server("always meets", 5000, 2, 0.03),
    Server("never meets", 0.5, 2, 0.03),
)
SHARES = tuple(
    Server(f"{name}, luck {luck:.0%}", 237.4, steep, luck, share=0.99)
    for name, steep in (("(x/c)^1", 1), ("(x/c)^2", 2), ("(x/c)^4", 4), ("queue", 0))
    for luck in (0.03, 0.1, 0.3)
)
MORE, BLOCKS, START_NOISE = 1.07, 6, 0.02  # of the comparison


class Found(NamedTuple):
    """`holds_at`, `fails_at`, why it ended, rounds, requests, loads that were probed (each has a warm-up)."""

    holds_at: float | None
    fails_at: float | None
    reason: str
    requests: int
    loads: int


def ours(server: Server, rng: np.random.Generator, requests: int, question: Question) -> Found:
    probes: list[Probe] = []
    while not isinstance(step := next_probe(question, probes), Answer):
        probes.append(Probe(step.load, step.test, server.rounds(rng, step.load, step.rounds, requests)))
    rounds = sum(len(probe.excess) for probe in probes)
    return Found(*step, rounds * requests, len({probe.load for probe in probes}))


def aiperf(server: Server, rng: np.random.Generator, requests: int, question: Question) -> Found:
    seen: dict[int, float] = {}
    good, bad = 0, 0

    def probe(load: int) -> bool:
        nonlocal good, bad
        seen[load] = server.rounds(rng, load, 1, requests)[0]
        if met := seen[load] <= 0:
            good = max(good, load) if not bad or load < bad else good
        elif not good or load > good:
            bad = min(bad or load, load)
        return met

    load, high = int(question.low), int(question.high)
    while probe(load) and load < high:
        load = min(high, 2 * load)
    refits = 0
    queue = _inside(good, bad, (0.25, 0.5, 0.75)) if good and bad else []
    while good and bad:
        for load in queue:
            probe(load)
        if bad - good <= 1 or (bad - good) / bad < question.width:
            break
        loads = sorted(seen)
        level = isotonic_regression([seen[x] for x in loads]).x
        refits += 1
        if len(set(level.round(9))) < 3 and refits < 3:
            queue = [x for x in _inside(good, bad, (0.125, 0.625)) if x not in seen]
            continue
        span = max(float(level[-1] - level[0]), 1e-9)
        roots = PchipInterpolator(loads, level + np.arange(len(loads)) * 1e-9 * span).solve(0.0, extrapolate=False)
        inside = [x for x in roots if good <= x <= bad]
        root = min(max(round(inside[0]) if inside else (good + bad) // 2, good + 1), bad - 1)
        if root in seen:
            break
        queue = [root]
    reason = "width" if good and bad and (bad - good <= 1 or (bad - good) / bad < question.width) else "stopped"
    return Found(good or None, bad or None, reason, len(seen) * requests, len(seen))


def _inside(good: int, bad: int, shares: tuple[float, ...]) -> list[int]:
    gap = bad - good
    return (
        sorted({min(max(good + max(1, round(gap * share)), good + 1), bad - 1) for share in shares}) if gap > 1 else []
    )


def holds_truth(server: Server, found: Found) -> bool:
    """Whether both ends are right: the SLO is met at one (or nothing is said), and missed at the other."""
    return (found.holds_at or 0) <= server.capacity and (found.fails_at or math.inf) > server.capacity


Search = Callable[[Server, np.random.Generator, int, Question], Found]


def row(server: Server, search: Search, requests: int, searches: int) -> tuple[float, float, float, float, float]:
    """Shares that hold the truth and that reached the width (or an edge), mean requests, loads, and width in %."""
    rng = np.random.default_rng(SEED)
    spread = 0.3 * server.varied
    servers = [server._replace(capacity=server.capacity * math.exp(u)) for u in rng.uniform(-spread, spread, searches)]
    found = [search(one, rng, requests, Question(LOW, HIGH)) for one in servers]
    right = sum(map(holds_truth, servers, found)) / searches
    done = sum(one.reason in {"width", "always", "never"} for one in found) / searches
    widths = [1 - one.holds_at / one.fails_at for one in found if one.holds_at and one.fails_at]
    return (
        right,
        done,
        float(np.mean([one.requests for one in found])),
        float(np.mean([one.loads for one in found])),
        100 * float(np.median(widths)) if widths else math.nan,
    )


def start_capacity(server: Server, rng: np.random.Generator, guess: float | None) -> float:
    """What a start's search of 3 rounds of 100 a load comes to."""
    figures: dict[float, float] = {}
    while not isinstance(step := next_load(Question(LOW, HIGH), figures, guess), Estimate):
        figures[step] = score(float(np.mean(server.rounds(rng, step, 3, 100))))
    return float(step.capacity or math.nan)


def compared(server: Server, comparisons: int) -> tuple[float, float, float]:
    """Shares of comparisons whose interval holds the true ratio, and that call it; median half-width in %."""
    rng, held, called, widths = np.random.default_rng(SEED), 0, 0, []
    for _ in range(comparisons):
        sides = []
        for name, times in (("A", 1.0), ("B", MORE)):
            each: dict[int, float] = {}
            for block in range(BLOCKS):
                luck = math.exp(START_NOISE * rng.standard_normal())
                one = server._replace(capacity=server.capacity * times * luck)
                each[block] = start_capacity(one, rng, each.get(block - 1))
            sides.append([Starts(name, "shape", "batch", each, {}, None, None, None)])
        (effect,) = against(*sides, ("A", "B"), paired=True).compared.cells
        low, high = effect.ratio.low or 0.0, effect.ratio.high or math.inf
        held += low <= MORE <= high
        called += effect.verdict == "faster"
        widths.append(50 * (high - low))
    return held / comparisons, called / comparisons, float(np.median(widths))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--searches", type=int, default=500)
    searches = parser.parse_args().searches
    kinds: list[tuple[str, Search, int]] = [
        ("ours, rounds of 100", ours, 100),
        ("AIPerf normal, 1,000 a probe", aiperf, 1000),
        ("AIPerf coarse, 300 a probe", aiperf, 300),
    ]
    for title, servers in (("server (mean)", SERVERS), ("server (99 % of requests)", SHARES)):
        print(f"| {title} | search | holds the truth | ended at the width | requests | loads | median width |")
        print("|---|---|---|---|---|---|---|")
        for server in servers:
            for name, search, requests in kinds:
                right, done, cost, loads, width = row(server, search, requests, searches)
                cells = f"{right:.1%} | {done:.1%} | {cost:,.0f} | {loads:.1f} | {width:.1f} %"
                print(f"| {server.name} | {name} | {cells} |", flush=True)
        print()
    print("| server | interval holds 1.07 | called more | median half-width |\n|---|---|---|---|")
    for server in SERVERS[:9]:
        held, called, width = compared(server, searches)
        print(f"| {server.name} | {held:.1%} | {called:.1%} | {width:.1f} % |", flush=True)


if __name__ == "__main__":
    main()
