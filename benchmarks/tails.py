"""How often the upper bound of a percentile holds where a round's requests share its luck; Markdown on stdout.

Requests are round effect + own effect, of which the rounds' part of the variance is `share`. The rules of
benchbench.tails are rewritten here for whole arrays of cells; tests/test_tails.py shows that both give the same.
A bound that is left blank is no mistake; how often there is one is in the table.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray
from scipy.special import betainc

from benchbench.tails.tail_bound import CONFIDENCE, DOUBT, LEVELS, allowed_beyond, chi2_low

Floats = NDArray[np.float64]
Draw = Callable[[np.random.Generator, tuple[int, ...]], Floats]

DESIGNS = ((3, 128), (5, 32), (5, 128), (10, 1), (10, 32), (10, 128), (20, 32), (30, 1), (30, 8), (30, 32), (30, 128))
SHARES = (0.0, 0.05, 0.2, 0.5, 0.8)
TAIL_OF = 4_000_000  # draws that give the true percentile


def _normal(rng: np.random.Generator, shape: tuple[int, ...]) -> Floats:
    return rng.standard_normal(shape)


def _exponential(rng: np.random.Generator, shape: tuple[int, ...]) -> Floats:
    return rng.standard_exponential(shape)


def _heavy(rng: np.random.Generator, shape: tuple[int, ...]) -> Floats:
    return rng.standard_t(4, shape) / math.sqrt(2)


LAWS: dict[str, tuple[Draw, Draw]] = {
    "rounds normal, requests normal": (_normal, _normal),
    "rounds t(4), requests normal": (_heavy, _normal),
    "rounds normal, requests exponential": (_normal, _exponential),
    "rounds exponential, requests exponential": (_exponential, _exponential),
    "rounds exponential, requests normal": (_exponential, _normal),
}


def draw(rng: np.random.Generator, law: str, share: float, cells: int, rounds: int, batch: int) -> Floats:
    """Cells x rounds x requests."""
    of_rounds, of_requests = LAWS[law]
    common, own = of_rounds(rng, (cells, rounds, 1)), of_requests(rng, (cells, rounds, batch))
    mixed: Floats = math.sqrt(share) * common + math.sqrt(1 - share) * own
    return mixed


def bounds(values: Floats, percent: float) -> Floats:
    """tail_bound for each cell, nan for none."""
    cells, rounds, batch = values.shape
    count, tail = rounds * batch, 1 - percent / 100
    ranked = np.sort(values.reshape(cells, -1), axis=1)
    deff = np.ones(cells)
    for level in (*LEVELS, percent / 100):
        threshold = ranked[:, min(count, math.ceil(level * count)) - 1]
        shares = (values > threshold[:, None, None]).mean(axis=2)
        share = shares.mean(axis=1)
        alone = share * (1 - share) / batch
        ratio = np.divide(shares.var(axis=1, ddof=1), alone, out=np.ones(cells), where=alone > 0)
        deff = np.maximum(deff, ratio)
    effective = np.maximum(rounds, count / (deff * (rounds - 1) / chi2_low(DOUBT, rounds - 1)))
    low, high = np.zeros(cells), tail * effective
    for _ in range(60):  # allowed_beyond
        middle = (low + high) / 2
        fits = betainc(middle + 1, effective - middle, tail) >= CONFIDENCE
        low, high = np.where(fits, middle, low), np.where(fits, high, middle)
    place = count - 1 - np.floor(low / effective * count).astype(np.int64)
    known = (1 - tail) ** effective <= 1 - CONFIDENCE
    return np.where(known, ranked[np.arange(cells), place], np.nan)


def alone(values: Floats, percent: float) -> Floats:
    """The bound as for independent requests: an order statistic."""
    cells, count = len(values), values[0].size
    beyond = allowed_beyond(count, 1 - percent / 100)
    ranked = np.sort(values.reshape(cells, -1), axis=1)
    return np.full(cells, np.nan) if beyond is None else ranked[:, count - 1 - math.floor(beyond)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cells", type=int, default=2000)
    cells = parser.parse_args().cells
    rng = np.random.default_rng(0)
    print("| law | share of rounds | percentile | " + " | ".join(f"{k} x {m}" for k, m in DESIGNS) + " |")
    print("|---|---|---|" + "---|" * len(DESIGNS))
    worst, worst_alone, wide = 0.0, 0.0, []
    for law in LAWS:
        for share in SHARES:
            many = draw(rng, law, share, TAIL_OF, 1, 1).ravel()
            for percent in (90, 99):
                truth, texts = float(np.percentile(many, percent)), []
                for rounds, batch in DESIGNS:
                    values = draw(rng, law, share, cells, rounds, batch)
                    ours, usual = bounds(values, percent), alone(values, percent)
                    there = ~np.isnan(ours)
                    wrong = float((ours < truth).mean())
                    worst, worst_alone = max(worst, wrong), max(worst_alone, float((usual < truth).mean()))
                    if share == 0 and there.all() and law == next(iter(LAWS)):
                        wide.append((percent, rounds, batch, (ours.mean() - truth) / (usual.mean() - truth)))
                    texts.append(f"{100 * (1 - wrong):.1f} ({100 * there.mean():.0f})" if there.any() else "-")
                print(f"| {law} | {share:g} | p{percent} | " + " | ".join(texts) + " |", flush=True)
    print(
        f"\nLeast coverage {100 * (1 - worst):.1f} %; of independent requests' bound {100 * (1 - worst_alone):.1f} %."
    )
    print("\nDistance from the truth beside that bound's, where requests are independent: ", end="")
    print(", ".join(f"p{q} {k} x {m}: {ratio:.1f}" for q, k, m, ratio in wide))


if __name__ == "__main__":
    main()
