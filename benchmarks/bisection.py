"""How often `bench bisect` names the right commit, and in how many starts, beside plain bisection. Simulated.

nice .venv/bin/python benchmarks/bisection.py     # ten minutes with --searches 200; 50 for a first look
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from benchbench.stepsearch.next_block import Answer, Question, next_block
from benchbench.stepsearch.step_posterior import Start

SEED = 0


class Machine(NamedTuple):
    """Commits whose step changes ln(figure) by `effect`; `second`: of another step. Noise and drift are sd of ln.

    `walk`: sd of the step of a random walk, `slope` a trend, both a start. `tails`: degrees of freedom of the noise.
    `at`: the step's commit (0: any). `gradual`: commits over which it comes. `uneven`: noise after it, against before.
    """

    name: str
    commits: int = 64
    effect: float = math.log(0.97)
    noise: float = 0.011
    blocks: float = 0.0
    walk: float = 0.0
    slope: float = 0.0
    tails: float = math.inf
    second: float = 0.0
    skips: float = 0.0
    at: int = 0
    gradual: int = 1
    uneven: float = 1.0


class Search(NamedTuple):
    """`right`: the likeliest commit is the right one; `reason` why it ended; `starts` spent; `builds` made."""

    right: bool
    reason: str
    starts: int
    builds: int
    confidence: float


class Starts:
    """Starts of a machine, one after the other."""

    def __init__(self, machine: Machine, rng: np.random.Generator) -> None:
        self.machine, self.rng = machine, rng
        self.step = machine.at or int(rng.integers(1, machine.commits + 1))
        self.other = int(rng.integers(1, machine.commits + 1))
        self.level, self.count = 0.0, 0

    def block(self) -> float:
        return float(self.rng.normal(0, self.machine.blocks)) if self.machine.blocks else 0.0

    def value(self, place: int, block: float = 0.0) -> float:
        machine, rng = self.machine, self.rng
        self.level += machine.slope + (rng.normal(0, machine.walk) if machine.walk else 0.0)
        self.count += 1
        unit = math.sqrt((machine.tails - 2) / machine.tails) if math.isfinite(machine.tails) else 1.0
        noise = rng.standard_t(machine.tails) * unit if math.isfinite(machine.tails) else rng.standard_normal()
        share = min(1.0, max(0.0, (place - self.step + 1) / machine.gradual))
        change = machine.effect * share + machine.second * (place >= self.other)
        scale = machine.noise * (machine.uneven if place >= self.step else 1.0)
        return float(change + block + self.level + scale * noise)


def ours(machine: Machine, rng: np.random.Generator, asked: Mapping[str, Any]) -> Search:
    world = Starts(machine, rng)
    question = Question((1.0,) * machine.commits, **asked)
    fails = {place for place in range(1, machine.commits) if rng.random() < machine.skips}
    starts: list[Start] = []
    tried: list[tuple[int, ...]] = []
    skipped: set[int] = set()
    while not isinstance(step := next_block(question, starts, tried, skipped), Answer):
        if unable := fails.intersection(step.places):
            skipped |= unable
            continue
        number, common = len(tried), world.block()
        order = step.places if number % 2 == 0 else step.places[::-1]
        starts += [Start(number, place, world.value(place, common)) for place in order]
        tried.append(step.places)
    right = step.reason in {"found", "budget"} and step.confidence > 0 and step.first <= world.step <= step.last
    return Search(right, step.reason, len(starts), len({start.place for start in starts}), step.confidence)


def plain(machine: Machine, rng: np.random.Generator, asked: Mapping[str, Any]) -> Search:
    """Bisection: a probe is bad if the median of its starts is nearer to bad's than to good's, measured before."""
    world, each = Starts(machine, rng), asked["each"]

    def measured(place: int) -> float:
        return float(np.median([world.value(place, world.block()) for _ in range(each)]))

    good, bad = measured(0), measured(machine.commits)
    low, high, probes = 0, machine.commits, 0
    while high - low > 1:
        middle = (low + high) // 2
        value = measured(middle)
        probes += 1
        low, high = (low, middle) if abs(value - bad) < abs(value - good) else (middle, high)
    return Search(high == world.step, "found", each * (2 + probes), 2 + probes, math.nan)


def searches(machine: Machine, search: Callable[..., Search], number: int, asked: Mapping[str, Any]) -> list[Search]:
    return [search(machine, np.random.default_rng([SEED, one]), asked) for one in range(number)]


MACHINES = (
    Machine("-3 % at 1.1 %"),
    Machine("-1.5 % at 1.1 %", effect=math.log(0.985)),
    Machine("-2 % at 1.1 %", effect=math.log(0.98)),
    Machine("-5 % at 1.1 %", effect=math.log(0.95)),
    Machine("-38 % at 1.1 %", effect=math.log(0.62)),
    Machine("-3 % at 0.5 %", noise=0.005),
    Machine("-3 % at 2 %", noise=0.02),
    Machine("-3 % at 3 %", noise=0.03),
    Machine("+3 % at 1.1 %", effect=math.log(1.03)),
    Machine("16 commits", commits=16),
    Machine("256 commits", commits=256),
    Machine("one in ten does not build", skips=0.1),
    Machine("at the first commit", at=1),
    Machine("at the last commit", at=64),
    Machine("gradual, over 10 commits", gradual=10),
    Machine("changed builds twice as noisy", uneven=2.0),
    Machine("blocks differ by 0.5 %", blocks=0.005),
    Machine("blocks differ by 1 %", blocks=0.01),
    Machine("blocks differ by 5 %", blocks=0.05),
    Machine("random walk, 0.5 % a start", walk=0.005),
    Machine("trend, -0.1 % a start", slope=-0.001),
    Machine("trend, -0.3 % a start", slope=-0.003),
    Machine("heavy tails, t(3)", tails=3),
    Machine("no change", effect=0.0),
    Machine("no change, blocks differ by 1 %", effect=0.0, blocks=0.01),
    Machine("no change, trend -0.3 % a start", effect=0.0, slope=-0.003),
    Machine("no change, t(3)", effect=0.0, tails=3),
    Machine("two steps, -3 % and -3 %", second=math.log(0.97)),
    Machine("two steps, -5 % and -2 %", effect=math.log(0.95), second=math.log(0.98)),
)


REASONS = ("found", "no_difference", "several", "budget")
SEARCHES: tuple[tuple[str, Callable[..., Search], dict[str, Any]], ...] = (
    ("bench bisect", ours, {}),
    ("--paired", ours, {"paired": True}),
    ("--confidence 90%", ours, {"confidence": 0.9}),
    ("--starts 20", ours, {"starts": 20}),
    ("--starts 24", ours, {"starts": 24}),
    ("plain, one start", plain, {"each": 1}),
    ("plain, median of three", plain, {"each": 3}),
)


def line(results: Sequence[Search]) -> str:
    """A row's figures: see the head."""
    starts, total = [one.starts for one in results], len(results)
    named = [one for one in results if one.reason == "found"]
    right = f"{sum(one.right for one in results) / total:.1%}"
    of_named = f"{sum(one.right for one in named) / len(named):.1%}" if named else "-"
    said = [one.confidence for one in named if not math.isnan(one.confidence)]
    shares = [f"{sum(one.reason == reason for one in results) / total:.1%}" for reason in REASONS]
    spent = [f"{np.mean(starts):.1f}", f"{np.median(starts):.0f}", f"{np.quantile(starts, 0.9):.0f}"]
    builds = f"{np.mean([one.builds for one in results]):.1f}"
    return " | ".join([right, of_named, f"{np.mean(said):.1%}" if said else "-", *spent, builds, *shares])


HEAD = (
    *("commits", "search", "likeliest is right", "right of those named", "their confidence"),
    *("starts, mean", "median", "90 %", "builds", "named", "no difference", "several steps", "budget"),
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--searches", type=int, default=500)
    number = parser.parse_args().searches
    print(f"| {' | '.join(HEAD)} |\n|{'---|' * len(HEAD)}")
    for machine in MACHINES:
        for what, search, asked in SEARCHES if machine is MACHINES[0] else SEARCHES[:1]:
            times = 5 if machine is MACHINES[0] and not asked else 1  # the aim's row
            print(f"| {machine.name} | {what} | {line(searches(machine, search, times * number, asked))} |", flush=True)


if __name__ == "__main__":
    main()
