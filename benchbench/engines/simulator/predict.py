"""The engine model in virtual time: what a round would take, and the fit of a lookup to published rates."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

from benchbench.engines.simulator.laws import FixedLaw, Pace, TableLaw
from benchbench.engines.simulator.model import BatchModel, FixedModel, Model
from benchbench.engines.simulator.profiles import SimProfile

SEND_GAP_NS = 100_000  # between two requests of a batch sent at once


class Predicted(NamedTuple):
    first_ns: int
    last_ns: int


def build_model(profile: SimProfile) -> Model:
    """A fresh engine of this profile, its pace faults included."""
    faults = profile.faults
    pace = Pace(
        drift=faults.drift,
        slow_count=faults.slow_first.count if faults.slow_first else 0,
        slow_factor=faults.slow_first.factor if faults.slow_first else 1.0,
        stall_every=faults.stall.every if faults.stall else 0,
        stall_ns=round(faults.stall.for_s * 1e9) if faults.stall else 0,
        noise=faults.noise,
        seed=profile.seed,
    )
    if isinstance(profile.law, FixedLaw):
        return FixedModel(profile.law, tokens_per_event=profile.tokens_per_event, pace=pace)
    return BatchModel(
        profile.law,
        max_num_seqs=profile.max_num_seqs,
        max_num_batched_tokens=profile.max_num_batched_tokens,
        kv_tokens=profile.kv_tokens,
        prefix_cache=profile.prefix_cache,
        tokens_per_event=profile.tokens_per_event,
        pace=pace,
    )


def predict_round(profile: SimProfile, arrivals: Iterable[tuple[int, int, int]]) -> list[Predicted]:
    """First and last token (ns) of each request (arrival ns, prompt tokens, output tokens), in the order given.

    Runs the model on an idle engine with fresh prompts; what a client or network adds is not in it.
    Raises ValueError for a request that does not fit the KV budget.
    """
    requests = list(arrivals)
    model = build_model(profile)
    for i in sorted(range(len(requests)), key=lambda i: requests[i][0]):
        arrival_ns, prompt, output = requests[i]
        model.submit(i, arrival_ns, prompt, output)
    first: dict[int, int] = {}
    last: dict[int, int] = {}
    while (due := model.next_due_ns()) is not None:
        for event in model.take_due(due):
            first.setdefault(event.request_id, event.planned_ns)
            last[event.request_id] = event.planned_ns
    return [Predicted(first[i], last[i]) for i in range(len(requests))]


def static_rate(profile: SimProfile, prompt: int, output: int, batch: int) -> float:
    """Sys tok/s of one static round, batch * output / (last token - first send), in virtual time."""
    round_ = predict_round(profile, [(i * SEND_GAP_NS, prompt, output) for i in range(batch)])
    return batch * output * 1e9 / max(request.last_ns for request in round_)


def fit_decode_step_s(profile: SimProfile, rows: Sequence[tuple[int, int, int, float]], steps: int = 40) -> float:
    """The table entry (s) at which rows (input, output, batch, Sys tok/s) of one input and batch come out.

    With several rows the geometric mean of modelled over published is 1. All else, the other entries
    included, is the profile's. Bisection between 0.1 ms and 10 s.
    """
    law = profile.law
    if not isinstance(law, TableLaw):
        raise TypeError("only a table law can be fitted")
    i, b = law.inputs.index(rows[0][0]), law.batches.index(rows[0][2])

    def excess(decode_s: float) -> float:
        table = [list(row) for row in law.decode_s]
        table[i][b] = decode_s
        trial = dataclasses.replace(profile, law=dataclasses.replace(law, decode_s=tuple(map(tuple, table))))
        ratios: list[float] = [static_rate(trial, prompt, output, batch) / rate for prompt, output, batch, rate in rows]
        return math.prod(ratios) - 1.0

    return _bisect(excess, 1e-4, 10.0, steps)


def _bisect(falling: Callable[[float], float], low: float, high: float, steps: int) -> float:
    for _ in range(steps):
        middle = math.sqrt(low * high)
        low, high = (middle, high) if falling(middle) > 0 else (low, middle)
    return math.sqrt(low * high)
