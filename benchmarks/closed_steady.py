"""Which requests of a closed load show a server's steady state; Markdown on stdout, a minute.

The simulator's engine (continuous batching, chunked prefill) is driven in virtual time. Its steady state is that of a
run of 120 x batch requests without its ends. Runs of 4, 5 and 8 x batch are held against it, by four choices of
requests: all; those sent between the B-th and the (N-B)-th completion; those of them that also ended by then; and the
rule of benchbench.analysis.metrics, through `round_metrics` itself. Batch, prompt and output are those of CASES.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from typing import NamedTuple

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from benchbench.analysis.metrics import RoundMetrics, round_metrics
from benchbench.engines.simulator.model import BatchModel
from benchbench.engines.simulator.profiles import SimProfile
from benchbench.store.arrow import lists, numbers, texts

Floats = NDArray[np.float64]
Lengths = Callable[[random.Random, int], int]

REFILL_NS = 300_000  # from a request's last token to the next one's arrival
LONG, FROM, UNTIL = 120, 20, 4  # x batch: requests of the long run, of which the first and the last are left out
RUNS = 100
SHORT = (4, 5, 8)
LAW = {"kind": "linear", "base_s": 0.01, "per_seq_s": 3e-4, "per_prefill_token_s": 1e-5}
HEAVY = {"kind": "linear", "base_s": 0.005, "per_seq_s": 1e-3, "per_prefill_token_s": 3e-5}
LENGTHS: dict[str, Lengths] = {
    "equal": lambda _, output: output,
    "half to all": lambda rng, output: rng.randint(output // 2, output),
    "exponential": lambda rng, output: max(2, min(4 * output, int(rng.expovariate(1 / output)))),
}
CASES = [(LAW, 8, 256, 64), (HEAVY, 8, 256, 64), (LAW, 32, 512, 128)]
METRICS = ("ttft_s", "tpot_s", "e2el_s")


class Run(NamedTuple):
    """Requests in the order of sending: when each was sent, and the times of its tokens, ns."""

    sent: list[int]
    tokens: list[list[int]]


def closed_run(law: dict[str, object], batch: int, total: int, prompt: int, length: Callable[[], int]) -> Run:
    """`batch` kept in flight until `total` were sent."""
    settings = {"law": law, "max_num_seqs": 256, "max_num_batched_tokens": 2048, "kv_tokens": 10**8}
    engine = BatchModel(SimProfile.model_validate(settings))
    run = Run([], [])

    def send(now: int) -> None:
        if len(run.sent) < total:
            engine.submit(len(run.sent), now, prompt, length())
            run.sent.append(now)
            run.tokens.append([])

    for place in range(batch):
        send(1 + place * 100_000)
    while (due := engine.next_due_ns()) is not None:
        for event in engine.take_due(due):
            run.tokens[event.request_id].append(event.planned_ns)
            if event.finished:
                send(event.planned_ns + REFILL_NS)
    return run


def table_of(run: Run) -> pa.Table:
    """The columns of a stored round that `round_metrics` reads."""
    counts = [len(tokens) for tokens in run.tokens]
    offsets = np.cumsum([0, *counts]).astype(np.int32)
    events = np.array([time for tokens in run.tokens for time in tokens], np.int64)
    lengths, sent = numbers(np.array(counts, np.int32)), numbers(np.array(run.sent, np.int64))
    one_each = lists(offsets, np.ones(len(events), np.int32))
    return pa.table(
        {
            "status": texts(["ok"] * len(counts)),
            "sent_ns": sent,
            "scheduled_ns": sent,
            "end_ns": numbers(np.array([tokens[-1] for tokens in run.tokens], np.int64)),
            "output_tokens": lengths,
            "input_tokens": lengths,
            "asked_input_tokens": lengths,
            "event_ns": lists(offsets, events),
            "event_tokens": one_each,
            "lag_ns": one_each,
        }
    )


def latencies(run: Run, chosen: NDArray[np.bool_]) -> dict[str, Floats]:
    """Of the chosen requests, s."""
    first, last = (np.array([tokens[end] for tokens in run.tokens])[chosen] for end in (0, -1))
    steps = np.array([len(tokens) - 1 for tokens in run.tokens])[chosen]
    sent = np.array(run.sent)[chosen]
    return {"ttft_s": (first - sent) / 1e9, "tpot_s": (last - first) / 1e9 / steps, "e2el_s": (last - sent) / 1e9}


def truth(run: Run, batch: int) -> tuple[dict[str, Floats], float]:
    """Latencies and tok/s of the steady part of a long run."""
    total = len(run.sent)
    place = np.arange(total)
    ends = np.sort([tokens[-1] for tokens in run.tokens])
    begin, end = ends[FROM * batch], ends[total - UNTIL * batch]
    times = np.concatenate([np.array(tokens) for tokens in run.tokens])
    rate = float(((times > begin) & (times <= end)).sum() / (end - begin) * 1e9)
    return latencies(run, (place >= FROM * batch) & (place < total - UNTIL * batch)), rate


def choices(run: Run, batch: int, metrics: RoundMetrics) -> dict[str, dict[str, Floats]]:
    """The latencies that each choice of requests gives for one run."""
    sent, last = np.array(run.sent), np.array([tokens[-1] for tokens in run.tokens])
    ends = np.sort(last)
    begin, end = ends[batch - 1], ends[len(ends) - batch - 1]
    within = (sent > begin) & (sent < end)
    return {
        "all": latencies(run, np.ones(len(sent), np.bool_)),
        "sent in the window": latencies(run, within),
        "sent and ended in it": latencies(run, within & (last <= end)),
        "the rule": {name: getattr(metrics, name) for name in METRICS},
    }


def errors(
    law: dict[str, object], batch: int, prompt: int, output: int, kind: str, runs: int = RUNS
) -> Iterator[tuple[int, str, list[float]]]:
    """(N / batch, choice, errors in %: mean and p99 of TTFT, TPOT, E2EL, then Sys tok/s), pooled over `runs` runs."""
    rng = random.Random(kind)
    length = lambda: LENGTHS[kind](rng, output)  # noqa: E731 - the generator goes on from run to run
    known, rate = truth(closed_run(law, batch, LONG * batch, prompt, length), batch)
    for times in SHORT:
        pools: dict[str, dict[str, list[Floats]]] = {}
        rates = []
        for _ in range(1 if kind == "equal" else runs):
            run = closed_run(law, batch, times * batch, prompt, length)
            metrics = round_metrics(table_of(run), load="closed", in_flight=batch)
            rates.append(metrics.sys_tok_s or 0.0)
            for choice, figures in choices(run, batch, metrics).items():
                for name, values in figures.items():
                    pools.setdefault(choice, {}).setdefault(name, []).append(values)
        for choice, figures in pools.items():
            row = []
            for name in METRICS:
                values = np.concatenate(figures[name])
                row += [values.mean() / known[name].mean(), np.percentile(values, 99) / np.percentile(known[name], 99)]
            yield times, choice, [100 * (float(ratio) - 1) for ratio in [*row, np.mean(rates) / rate]]


def main() -> None:
    for law, batch, prompt, output in CASES:
        for kind in LENGTHS:
            print(f"### batch {batch}, {prompt} in, {output} out ({kind}), {law['per_seq_s']:g} s a sequence\n")
            print("| N / batch | requests | TTFT | p99 | TPOT | p99 | E2EL | p99 | Sys tok/s |")
            print("|---|---|" + "---|" * 7)
            for times, choice, row in errors(law, batch, prompt, output, kind):
                shown = row if choice == "the rule" else row[:-1]
                texts_of = [f"{error:+.1f} %" for error in shown] + [""] * (7 - len(shown))
                print(f"| {times} | {choice} | " + " | ".join(texts_of) + " |", flush=True)
            print()


if __name__ == "__main__":
    main()
