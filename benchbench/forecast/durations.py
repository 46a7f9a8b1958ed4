"""How long a sweep takes, from what is known of its engine's speed. Pure."""

from __future__ import annotations

import math
from bisect import bisect_left
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from benchbench.spec import Cell, Plan
from benchbench.spec.schema import WARMUP_ROUNDS, WARMUP_TOKENS

LEAST_WARMUPS = 2  # of warmup: auto


class Point(NamedTuple):
    """Times of a request among `batch` in flight, s. `variant` "": of any. `input` None: not known beforehand."""

    variant: str
    input: int | None
    batch: int
    ttft_s: float
    tpot_s: float


@dataclass(frozen=True, slots=True)
class Speed:
    """`round_s(cell, output)`: seconds of one round whose requests have that many output tokens; None: unknown.

    `source` says where it is from, in words. `start_s`: one start of the engine, where that is known.
    """

    source: str
    round_s: Callable[[Cell, int], float | None]
    start_s: float | None = None


class Span(NamedTuple):
    """The least and the most seconds that rounds take: `rounds.min` to `rounds.max`, with their warm-up."""

    least_s: float
    most_s: float


def sweep_span(plan: Plan, speed: Speed) -> Span | None:
    """Seconds of all rounds of a plan, in all its starts; None where the speed of some cell is not known.

    The time between rounds, some 10 ms each, and the engine's start are not in it.
    """
    starts = Counter(cell.key for session in plan.sessions for cell in session.cells)
    spans = [(cell_span(cell, speed, open_ended=not plan.spec.block_count), starts[cell.key]) for cell in plan.cells]
    known = [(span, count) for span, count in spans if span]
    if len(known) < len(spans):
        return None
    return Span(sum(span.least_s * count for span, count in known), sum(span.most_s * count for span, count in known))


def cell_span(cell: Cell, speed: Speed, *, open_ended: bool = True) -> Span | None:
    """Seconds of one cell's rounds in one start. With blocks (not `open_ended`) a cell has `rounds.min` in each.

    `warmup: auto` is two rounds of at most 32 output tokens, and eight at most. `budget_s` ends the measured rounds
    with the one that exceeds it, after the least.
    """
    rounds, auto = cell.rounds, cell.rounds.warmup == "auto"
    round_s = speed.round_s(cell, cell.output)
    warmup_s = speed.round_s(cell, min(cell.output, WARMUP_TOKENS) if auto else cell.output)
    if round_s is None or warmup_s is None:
        return None
    least, most = (LEAST_WARMUPS, WARMUP_ROUNDS) if auto else (int(rounds.warmup), int(rounds.warmup))
    more = rounds.max if open_ended else rounds.min
    if rounds.budget_s is not None and round_s > 0:
        more = max(rounds.min, min(more, math.ceil(rounds.budget_s / round_s)))
    return Span(least * warmup_s + rounds.min * round_s, most * warmup_s + more * round_s)


def by_points(points: Sequence[Point]) -> Callable[[Cell, int], float | None]:
    """`Speed.round_s` from measured points: those of the cell's variant, of the nearest input, over the batch.

    TTFT and TPOT are interpolated between the two nearest batches over its logarithm (the nearest alone outside). A
    TTFT of another input grows as the input does; cells and points without one belong to each other.
    """
    every = _by_input(points)
    variants = {name: _by_input([p for p in points if p.variant == name]) for name in {p.variant for p in points}}

    def round_s(cell: Cell, output: int) -> float | None:
        inputs, own = variants.get(cell.variant, every)
        near = _nearest(inputs, cell.input) if cell.input and inputs else None
        if near not in own or (near is None and cell.input):
            return None
        batch = in_flight(cell)
        ttft_s, tpot_s = _between(own[near], batch)
        wave_s = ttft_s * (cell.input or 1) / (near or 1) + (output - 1) * tpot_s
        if cell.rate is not None:
            return cell.requests / cell.rate + wave_s
        return math.ceil(cell.requests / batch) * wave_s

    return round_s


def by_one_stream(decode_tok_s: float, prefill_tok_s: float | None = None) -> Callable[[Cell, int], float | None]:
    """`Speed.round_s` where each stream has `decode_tok_s` at every batch, and all share `prefill_tok_s`, if given."""

    def round_s(cell: Cell, output: int) -> float | None:
        if cell.input is None:
            return None
        batch = in_flight(cell)
        ttft_s = cell.input * batch / prefill_tok_s if prefill_tok_s else 0.0
        return by_points([Point("", cell.input, batch, ttft_s, 1 / decode_tok_s)])(cell, output)

    return round_s


def in_flight(cell: Cell) -> int:
    """Requests in flight: the batch, or one where a rate leaves it open."""
    return cell.batch or 1


def _by_input(points: Sequence[Point]) -> tuple[list[int], dict[int | None, list[Point]]]:
    """The known inputs, ascending, and the points of each, and of none."""
    by_input: dict[int | None, list[Point]] = {}
    for point in points:
        by_input.setdefault(point.input, []).append(point)
    return sorted(length for length in by_input if length), by_input


def _nearest(lengths: Sequence[int], length: int) -> int:
    """By ratio; `lengths` ascending."""
    place = bisect_left(lengths, length)
    return min(lengths[max(0, place - 1) : place + 1], key=lambda near: abs(math.log(near / length)))


def _between(points: Sequence[Point], batch: int) -> tuple[float, float]:
    at = math.log(batch)
    below = max((point for point in points if point.batch <= batch), key=lambda p: p.batch, default=None)
    above = min((point for point in points if point.batch >= batch), key=lambda p: p.batch, default=None)
    low, high = below or above, above or below
    assert low is not None  # noqa: S101 - there are points
    assert high is not None  # noqa: S101
    wide = math.log(high.batch) - math.log(low.batch)
    share = (at - math.log(low.batch)) / wide if wide else 0.0
    return low.ttft_s + share * (high.ttft_s - low.ttft_s), low.tpot_s + share * (high.tpot_s - low.tpot_s)
