"""How often `bench best` names the truly best setting, and for how many starts; Markdown on stdout.

    python benchmarks/best.py --runs 200

A start of setting v in block b at cell c is drawn as log speed = truth(c, v) + start luck(v, b) + own luck(c, v, b) +
block(b); with a limit its excess is drawn alike. Sets and starts are decided by `benchbench.choice`, as in a sweep.
Beside it the full design (all settings in all blocks, one look), and the same elimination with tests at 5 %, whatever
their number. A run holds if the truly best setting of every cell and the truly best default are in the sets.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable
from dataclasses import dataclass
from statistics import fmean
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from benchbench.choice.elimination import Levels
from benchbench.choice.sets import DEFAULT, CellStarts, Sets, sets_of

Floats = NDArray[np.float64]
Luck = Callable[[np.random.Generator, tuple[int, ...]], Floats]
MARGIN = 0.01
SEED = 20
NEVER = -9.0  # an excess far below any limit


def normal(sd: float) -> Luck:
    return lambda rng, shape: sd * rng.standard_normal(shape)


def heavy(sd: float) -> Luck:
    """t with 3 degrees of freedom, and one start in 20 is 10 % slower."""
    return lambda rng, shape: sd / math.sqrt(3) * rng.standard_t(3, shape) - 0.1 * (rng.random(shape) < 0.05)


def noisy_best(sd: float, times: float) -> Luck:
    def luck(rng: np.random.Generator, shape: tuple[int, ...]) -> Floats:
        values = sd * rng.standard_normal(shape)
        values[:, 0] *= times
        return values

    return luck


@dataclass(frozen=True)
class World:
    """`truth`: cells x settings, logs; `limit`: true excess of each setting, or None."""

    name: str
    truth: Floats
    luck: Luck
    blocks: int = 6
    drift: float = 0.01
    lost: float = 0.0
    limit: Floats | None = None


def product(*settings: tuple[float, ...]) -> Floats:
    """Of every combination the sum of its settings' effects."""
    total = np.zeros(1)
    for effects in settings:
        total = np.add.outer(total, np.array(effects)).ravel()
    return total


TWELVE = product((0.0, -0.03, -0.08), (0.0, -0.02), (0.0, -0.06))
ALIKE = np.tile(TWELVE, (4, 1))
# The best differs from cell to cell, as where large batches want what small ones do not.
CROSSED = np.array([product((0.0, -0.03 + k * 0.03, -0.08 + k * 0.05), (0.0, -0.02), (0.0, -0.06)) for k in range(4)])
CLOSE = np.array([-0.005 * np.arange(12) / 11])
EDGE = np.array([-0.1, -0.3, -0.1, -0.2, 0.2, -0.005, -0.1, 0.3, -0.2, -0.1, -0.3, -0.2])
FASTER = np.array([[0.0, -0.03, -0.05, -0.08, 0.10, 0.05, -0.02, 0.06, -0.10, -0.12, -0.04, -0.15]])

WORLDS = (
    World("a cell, 0.7 % a start", TWELVE[None], normal(0.007)),
    World("four cells, 0.7 %", ALIKE, normal(0.007)),
    World("four cells, another best in each", CROSSED, normal(0.007)),
    World("four cells, 10 blocks", ALIKE, normal(0.007), blocks=10),
    World("four cells, 3 % a start", ALIKE, normal(0.03)),
    World("heavy tails, and stalls of 10 %", ALIKE, heavy(0.005)),
    World("blocks differ by 5 %", ALIKE, normal(0.007), drift=0.05),
    World("the best is 4 times as noisy", ALIKE, noisy_best(0.005, 4)),
    World("5 % of the starts are lost", ALIKE, normal(0.007), lost=0.05),
    World("within 0.5 % of each other", CLOSE, normal(0.007)),
    World("all the same, four cells", np.zeros((4, 12)), normal(0.007)),
    World("SLO: the fastest three miss it or are at its edge", FASTER, normal(0.007), limit=EDGE),
    World("two settings, 2 % apart", np.array([[0.0, -0.02]]), normal(0.007)),
)


class Uncorrected(Levels):
    """Each test at 5 %."""

    @property
    def beaten(self) -> float:
        return 0.05

    @property
    def limit(self) -> float:
        return 0.05


class Result(NamedTuple):
    holds: bool
    starts: float  # share of the full design
    size: float  # settings in a set, mean over the sets


def drawn(rng: np.random.Generator, world: World) -> tuple[Floats, Floats]:
    """y and x, blocks x cells x settings; nan where a start is lost."""
    cells, settings = world.truth.shape
    shape = (world.blocks, settings)
    y = world.truth + world.luck(rng, shape)[:, None, :] + 0.003 * rng.standard_normal((world.blocks, cells, settings))
    y += world.drift * rng.standard_normal((world.blocks, 1, 1))
    y[np.broadcast_to((rng.random(shape) < world.lost)[:, None, :], y.shape)] = np.nan
    limit = world.limit if world.limit is not None else np.full(settings, NEVER)
    x = limit + 0.02 * rng.standard_normal(y.shape) + world.drift * rng.standard_normal((world.blocks, 1, 1))
    return y, x


def stored(world: World, y: Floats, x: Floats, have: dict[str, list[int]]) -> dict[str, CellStarts]:
    cells: dict[str, CellStarts] = {}
    for c in range(world.truth.shape[0]):
        both = [
            {v: {b: float(of[b, c, k]) for b in have[v] if not math.isnan(y[b, c, k])} for k, v in enumerate(have)}
            for of in (y, x)
        ]
        cells[f"cell {c}"] = CellStarts(both[0], both[1] if world.limit is not None else None)
    return cells


def carried_out(rng: np.random.Generator, world: World, kind: type[Levels], *, full: bool) -> Result:
    cells, count = world.truth.shape
    names = [f"s{k}" for k in range(count)]
    y, x = drawn(rng, world)
    have: dict[str, list[int]] = {name: [] for name in names}
    levels = kind(count, cells, 1 if full else world.blocks - 1, world.limit is not None)
    wanted, looks = set(names), [world.blocks] if full else list(range(2, world.blocks + 1))
    for block in range(world.blocks):
        if block >= 2 and not full:
            sets = sets_of(stored(world, y, x, have), names, levels, range(2, block + 1))
            wanted = sets.needed(levels, MARGIN)
        for name in wanted:
            have[name].append(block)
    sets = sets_of(stored(world, y, x, have), names, levels, looks)
    starts = sum(map(len, have.values())) / (count * world.blocks)
    return Result(holds(world, sets), starts, fmean(map(len, sets.kept.values())))


def holds(world: World, sets: Sets) -> bool:
    able = np.flatnonzero(world.limit < 0) if world.limit is not None else np.arange(world.truth.shape[1])
    best = {f"cell {c}": able[int(of[able].argmax())] for c, of in enumerate(world.truth)}
    best[DEFAULT] = able[int(world.truth.mean(axis=0)[able].argmax())]
    return all(f"s{k}" in sets.kept[label] for label, k in best.items())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=200)
    runs = parser.parse_args().runs
    head = ("world", "holds", "starts", "at most", "in a set", "full: holds", "in a set")
    print("|", " | ".join((*head, "uncorrected: holds", "starts", "in a set")), "|")
    print("|---" * 10 + "|")
    for number, world in enumerate(WORLDS):
        rng = np.random.default_rng([SEED, number])
        ways = ((Levels, False), (Levels, True), (Uncorrected, False))
        ours, whole, bold = ([carried_out(rng, world, kind, full=full) for _ in range(runs)] for kind, full in ways)
        texts = [f"{fmean(r.holds for r in ours):.1%}", f"{fmean(r.starts for r in ours):.0%}"]
        texts += [f"{max(r.starts for r in ours):.0%}", f"{fmean(r.size for r in ours):.1f}"]
        texts += [f"{fmean(r.holds for r in whole):.1%}", f"{fmean(r.size for r in whole):.1f}"]
        texts += [f"{fmean(r.holds for r in bold):.1%}", f"{fmean(r.starts for r in bold):.0%}"]
        texts += [f"{fmean(r.size for r in bold):.1f}"]
        print(f"| {world.name} | " + " | ".join(text.replace("%", " %") for text in texts) + " |", flush=True)


if __name__ == "__main__":
    main()
