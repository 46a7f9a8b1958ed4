"""How often `bench history` calls a step where there is none, and how soon it finds one; Markdown on stdout.

Series of nights are made from normal noise (or what a row says) and read night by night, as a job that runs every night
reads them. *False*: steps called in 365 nights without any, taken back later or not. *Found*: a step of the last
nights that is called at the latest so many nights after the first slow one. Beside it, where they are installed,
ruptures (PELT) and apache-otava, which are asked every night for the change points of all nights so far: what they call
away from all that they called before is a call.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from benchbench.levels.changes import Search, Value, changes_of

Floats = NDArray[np.float64]
Make = Callable[[np.random.Generator, int], Floats]
NOISE, STEP = 0.011, math.log(0.98)
ORACLE = 2.47


def ours(logs: Floats, starts: int = 1, noise: float = 0.0) -> list[tuple[int, int]]:
    """Each call, taken back or not: the night at which it was made, and the first night of the level."""
    search = Search([Value(float(log), starts, noise**2 if starts > 1 else None) for log in logs])
    calls = []
    for night in range(len(logs)):
        search.add(night)
        if search.seen and search.seen[-1] == night:
            calls.append((night, search.firsts[-1]))
    return calls


def nightly(points_of: Callable[[Floats], Sequence[int]], apart: int = 6) -> Callable[[Floats], list[tuple[int, int]]]:
    """A library's change points, asked for every night."""

    def calls(logs: Floats) -> list[tuple[int, int]]:
        known: list[tuple[int, int]] = []
        for night in range(8, len(logs)):
            for at in points_of(logs[: night + 1]):
                if all(abs(at - before) >= apart for _, before in known):
                    known.append((night, at))
        return known

    return calls


def otava(largest_p: float) -> Callable[[Floats], Sequence[int]]:
    from otava.analysis import compute_change_points

    return lambda logs: [int(point.index) for point in compute_change_points(list(logs), 30, largest_p, 0.0)[0]]


def pelt(penalty: float) -> Callable[[Floats], Sequence[int]]:
    import ruptures

    def points(logs: Floats) -> Sequence[int]:
        moves = np.abs(np.diff(logs))
        spread = 1.4826 * float(np.median(moves)) / math.sqrt(2)
        search = ruptures.KernelCPD(kernel="linear", min_size=3).fit(logs.reshape(-1, 1) / spread)
        return [int(end) for end in search.predict(pen=penalty)[:-1]]

    return points


def oracle(logs: Floats) -> list[tuple[int, int]]:
    """A bound: CUSUM for the worse that knows level, noise and step, at one false call in 400 nights."""
    calls, height = [], 0.0
    for night, log in enumerate(logs):
        height = max(0.0, height - log / NOISE + STEP / NOISE / 2)
        if height > ORACLE:
            calls.append((night, night))
            height = 0.0
    return calls


class Case(NamedTuple):
    name: str
    make: Make


def normal(sd: float) -> Make:
    return lambda rng, nights: sd * rng.standard_normal(nights)


def heavy(rng: np.random.Generator, nights: int) -> Floats:
    return NOISE / math.sqrt(2) * rng.standard_t(4, nights)


def related(rng: np.random.Generator, nights: int) -> Floats:
    noise = rng.standard_normal(nights)
    for night in range(1, nights):
        noise[night] = 0.3 * noise[night - 1] + math.sqrt(1 - 0.3**2) * noise[night]
    return NOISE * noise


def directory(rng: np.random.Generator, runs: int, shared: float, nights: int = 365) -> tuple[float, float]:
    """Of directories of 60 series without a step, whose nights share so much of their variance: steps called in 365
    nights, and the nights that called any.
    """
    calls, called = 0, 0
    for _ in range(runs):
        logs = math.sqrt(shared) * rng.standard_normal(nights)
        own = math.sqrt(1 - shared) * rng.standard_normal((60, nights))
        at = [night for series in NOISE * (logs + own) for night, _ in ours(series)]
        calls, called = calls + len(at), called + len(set(at))
    return calls / runs, called / runs


def one_bad(rng: np.random.Generator, nights: int) -> Floats:
    logs = normal(NOISE)(rng, nights)
    logs[rng.integers(nights)] += math.log(0.8)
    return logs


def some_bad(rng: np.random.Generator, nights: int) -> Floats:
    logs = normal(NOISE)(rng, nights)
    return logs + np.where(rng.random(nights) < 0.03, math.log(0.9), 0.0)


def drift(share: float) -> Make:
    return lambda rng, nights: normal(NOISE)(rng, nights) + math.log1p(share) * np.arange(nights) / nights


def false_calls(case: Case, runs: int, nights: int = 365) -> tuple[float, float]:
    """Calls in 365 nights: their mean over series, and its standard error."""
    rng = np.random.default_rng(1)
    counts = [len(ours(case.make(rng, nights))) * 365 / nights for _ in range(runs)]
    return float(np.mean(counts)), float(np.std(counts) / math.sqrt(runs))


def found(
    sd: float,
    runs: int,
    call: Callable[[Floats], list[tuple[int, int]]],
    step: float = STEP,
    places: tuple[int, int] = (10, 55),
) -> list[float]:
    """Of series of 60 nights with a step at one of `places`: called by the 5th slow night, by five nights after the
    first slow one, by ten; and at the end placed within five nights.
    """
    rng, counts = np.random.default_rng(2), np.zeros(4)
    for _ in range(runs):
        at = int(rng.integers(*places))
        logs = sd * rng.standard_normal(60)
        logs[at:] += step
        nights = [night for night, place in call(logs) if night >= at and abs(place - at) <= 10]
        first = min(nights, default=60)
        placed = call is not ours or any(abs(s.at - at) <= 5 for s in changes_of([Value(float(x)) for x in logs]).steps)
        counts += [first <= at + 4, first <= at + 5, first <= at + 10, placed]
    return [float(count) / runs for count in counts]


def called_for_one(runs: int, call: Callable[[Floats], list[tuple[int, int]]]) -> float:
    """Of series of 42 nights whose 31st is 20 % slow, and no other: a step is called from that night on."""
    rng, count = np.random.default_rng(4), 0
    for _ in range(runs):
        logs = NOISE * rng.standard_normal(42)
        logs[30] += math.log(0.8)
        count += any(night >= 30 for night, _ in call(logs))
    return count / runs


def row(*texts: object) -> None:
    print("| " + " | ".join(map(str, texts)) + " |", flush=True)


def percent(share: float) -> str:
    return f"{100 * share:.1f} %"


def libraries(runs: int) -> None:
    """Beside others: each at its own default, and at the setting that is nearest to one false call in 365 nights."""
    row("method", "false in 365 nights", "found by the 5th slow night", "5 nights after", "10 nights after",
        "called for one bad night")  # fmt: skip
    row(*["---"] * 6)
    methods: list[tuple[str, Callable[[Floats], list[tuple[int, int]]]]] = [("this one", ours)]
    methods.append(("CUSUM that knows level, noise and step", oracle))
    for name, settings, make in (
        ("ruptures PELT, penalty", (7, 10, 13, 16), pelt),
        ("otava, p", (1e-2, 1e-3, 1e-4), otava),
    ):
        try:
            methods += [(f"{name} {setting:g}", nightly(make(setting))) for setting in settings]
        except ImportError:
            print(f"({name.partition(' ')[0].rstrip(',')} is not installed)")
    for name, call in methods:
        rng = np.random.default_rng(3)
        alarms = sum(len(call(normal(NOISE)(rng, 365))) for _ in range(runs)) / runs
        row(
            name,
            f"{alarms:.2f}",
            *map(percent, found(NOISE, 5 * runs, call, places=(20, 51))[:3]),
            percent(called_for_one(5 * runs, call)),
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=400, help="series of 365 nights a row")
    parser.add_argument("--directories", type=int, default=4, help="directories of 60 series of 365 nights a row")
    parser.add_argument("--libraries", type=int, default=0, metavar="RUNS", help="series of each library")
    options = parser.parse_args()
    row("series without a step", "false in 365 nights", "standard error")
    row(*["---"] * 3)
    cases = [
        *(Case(f"noise {100 * sd:g} %", normal(sd)) for sd in (0.011, 0.03)),
        *(Case("one bad night (-20 %)", one_bad), Case("3 % of nights bad (-10 %)", some_bad)),
        *(Case("heavy tails (t, 4 degrees)", heavy), Case("nights related (0.3)", related)),
        *(Case("drift of -1 % a year", drift(-0.01)), Case("drift of -4 % a year", drift(-0.04))),
    ]
    for case in cases:
        mean, error = false_calls(case, options.runs)
        row(case.name, f"{mean:.2f}", f"{error:.2f}")
    print()
    row("step of 60 nights", "by the 5th slow night", "5 nights after the first", "10 nights after", "placed within 5")
    row(*["---"] * 5)
    for name, sd, step in (
        *(("-2 %, noise 1.1 %", NOISE, STEP), ("+2 %, noise 1.1 %", NOISE, -STEP)),
        *(
            ("-2 %, 2 starts of 1.1 %", NOISE / math.sqrt(2), STEP),
            ("-2 %, 3 starts of 1.1 %", NOISE / math.sqrt(3), STEP),
        ),
        *(("-5 %, noise 3 %", 0.03, math.log(0.95)), ("-10 %, noise 3 %", 0.03, math.log(0.9))),
    ):
        row(name, *map(percent, found(sd, 10 * options.runs, ours, step)))
    for first, last in ((10, 18), (19, 27), (28, 36), (37, 45), (46, 54)):
        places = (first, last + 1)
        name = f"-2 %, noise 1.1 %, after {first} to {last} nights"
        row(name, *map(percent, found(NOISE, 10 * options.runs, ours, places=places)))
    print()
    row("60 series (20 cells x 3 metrics), of which so much is shared", "steps in 365 nights", "nights that call any")
    row(*["---"] * 3)
    for shared in (0.0, 0.5, 0.9):
        row(shared, *(f"{count:.0f}" for count in directory(np.random.default_rng(5), options.directories, shared)))
    if options.libraries:
        print()
        libraries(options.libraries)


if __name__ == "__main__":
    main()
