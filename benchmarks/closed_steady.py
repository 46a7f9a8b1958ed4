"""What a closed load shows of a server's steady state; Markdown on stdout, a quarter of an hour.

The simulator's engine (continuous batching, chunked prefill) is driven in virtual time, by the rules of the load
generator itself: `first_outputs`, which spreads the lengths of the first wave, and `Quota`, which keeps the batch full.
Its steady state is that of a run of LONG requests without its ends. Runs of 4, 5 and 8 x batch are held against it:

- all: every request, of a load as most tools make it: a first wave of full length, and N requests in all
- sent and ended in the window: of the same load, between the B-th and the (N-B)-th completion
- the rule: `round_metrics` of a load as ours

Batch, prompt and output are those of CASES.
"""

from __future__ import annotations

import argparse
import json
import random
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from benchbench.analysis.metrics import round_metrics
from benchbench.engines.simulator.model import BatchModel
from benchbench.engines.simulator.profiles import SimProfile
from benchbench.loadgen.job import Job
from benchbench.prompts.round_job import SPARE_BATCHES, first_outputs
from benchbench.refills.quota import Quota
from benchbench.senders.shares import split
from benchbench.store.arrow import lists, numbers, texts

Floats = NDArray[np.float64]
Lengths = Callable[[random.Random, int], int]

REFILL_NS = 300_000  # from a request's last token to the next one's arrival
LONG, ENDS = 40_000, 10  # requests of the long run; x batch: those left out at either end
POOL = 40_000  # requests that the runs of a row have in all
SHORT = (4, 5, 8)
LAW = {"kind": "linear", "base_s": 0.01, "per_seq_s": 3e-4, "per_prefill_token_s": 1e-5}
HEAVY = {"kind": "linear", "base_s": 0.005, "per_seq_s": 1e-3, "per_prefill_token_s": 3e-5}
LENGTHS: dict[str, Lengths] = {
    "equal": lambda _, output: output,
    "half to all": lambda rng, output: rng.randint(output // 2, output),
    "exponential": lambda rng, output: max(2, min(4 * output, int(rng.expovariate(1 / output)))),
}
LIMIT = {"equal": 1, "half to all": 1, "exponential": 4}  # tokens asked for at most, x output
CASES = [(LAW, 8, 256, 64), (HEAVY, 8, 256, 64), (LAW, 32, 512, 128)]
METRICS = ("ttft_s", "tpot_s", "e2el_s")
KNOWN: dict[tuple[object, ...], tuple[tuple[dict[str, Floats], float], Any]] = {}  # of `errors`: its long runs


class Run(NamedTuple):
    """Requests in the order of sending: when each was sent, and the times of its tokens, ns. `spare`: beyond N.

    `full_until`: of several workers, when the first of them left a place empty; 0 of one.
    """

    sent: list[int]
    tokens: list[list[int]]
    spare: int
    full_until: int = 0


def closed_run(
    law: dict[str, object],
    batch: int,
    total: int,
    prompt: int,
    length: Callable[[], int],
    first: Sequence[int] = (),
    spare: int = 0,
    workers: int = 1,
) -> Run:
    """`batch` kept in flight until `total` and as many of the `spare` ones as it takes were sent, by so many `workers`.

    `first`: the most tokens of each request of the first wave.
    """
    settings = {"law": law, "max_num_seqs": 256, "max_num_batched_tokens": 2048, "kv_tokens": 10**8}
    engine = BatchModel(SimProfile.model_validate(settings))
    sent, received, owners, empty = list[int](), list[list[int]](), list[tuple[int, int]](), list[int]()
    shares = split(_job(total + spare, batch, spare), workers)
    served = list[str]()  # a message of each share that needs no spare request any more
    quotas, following = [Quota(share.job, served.append) for share in shares], [0] * len(shares)

    def send(now: int, worker: int) -> bool:
        place = following[worker]
        if place >= min(quotas[worker].sendable, len(shares[worker].indices)):
            return False
        number, tokens, index = len(sent), length(), int(shares[worker].indices[place])
        engine.submit(number, now, prompt, min([tokens, *first[index : index + 1]]))
        following[worker] += 1
        owners.append((worker, place))
        sent.append(now)
        received.append([])
        return True

    for place in range(batch):
        send(1 + place * 100_000, place % len(shares))
    while (due := engine.next_due_ns()) is not None:
        for event in engine.take_due(due):
            received[event.request_id].append(event.planned_ns)
            if event.finished:
                worker, place = owners[event.request_id]
                quotas[worker].ended(place)
                for quota in quotas if len(served) == len(shares) else ():
                    quota.close()
                if not send(event.planned_ns + REFILL_NS, worker):
                    empty.append(event.planned_ns)
    return Run(sent, received, max(0, len(sent) - total), empty[0] if workers > 1 else 0)


def _job(count: int, batch: int, spare: int) -> Job:
    lengths = [1] * count
    return Job(
        payloads=[b""] * count,
        due_ns=lengths,
        in_flight=batch,
        asked_input=lengths,
        asked_output=lengths,
        spare=spare,
        first_token_s=1.0,
        stall_s=1.0,
    )


def table_of(run: Run) -> pa.Table:
    """The columns of a stored round that `round_metrics` reads."""
    counts = [len(tokens) for tokens in run.tokens]
    offsets = np.cumsum([0, *counts]).astype(np.int32)
    events = np.array([time for tokens in run.tokens for time in tokens], np.int64)
    lengths, sent = numbers(np.array(counts, np.int32)), numbers(np.array(run.sent, np.int64))
    one_each = lists(offsets, np.ones(len(events), np.int32))
    table = pa.table(
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
    facts = {"spare_sent": run.spare} | ({"full_until_ns": run.full_until} if run.full_until else {})
    return table.replace_schema_metadata({"benchbench": json.dumps(facts)})


def latencies(run: Run, chosen: NDArray[np.bool_]) -> dict[str, Floats]:
    """Of the chosen requests, s."""
    first, last = (np.array([tokens[end] for tokens in run.tokens])[chosen] for end in (0, -1))
    steps = np.array([len(tokens) - 1 for tokens in run.tokens])[chosen]
    sent = np.array(run.sent)[chosen]
    many = steps > 0
    return {
        "ttft_s": (first - sent) / 1e9,
        "tpot_s": (last - first)[many] / 1e9 / steps[many],
        "e2el_s": (last - sent) / 1e9,
    }


def truth(run: Run, batch: int) -> tuple[dict[str, Floats], float]:
    """Latencies and tok/s of the steady part of a long run."""
    total, left = len(run.sent), ENDS * batch
    place = np.arange(total)
    ends = np.sort([tokens[-1] for tokens in run.tokens])
    begin, end = ends[left], ends[total - left]
    times = np.concatenate([np.array(tokens) for tokens in run.tokens])
    rate = float(((times > begin) & (times <= end)).sum() / (end - begin) * 1e9)
    return latencies(run, (place >= left) & (place < total - left)), rate


def usual(run: Run, batch: int) -> dict[str, dict[str, Floats]]:
    """The latencies that other choices of requests give for one run of the usual load."""
    sent, last = np.array(run.sent), np.array([tokens[-1] for tokens in run.tokens])
    ends = np.sort(last)
    begin, end = ends[batch - 1], ends[len(ends) - batch - 1]
    return {
        "all": latencies(run, np.ones(len(sent), np.bool_)),
        "sent and ended in the window": latencies(run, (sent > begin) & (last <= end)),
    }


def errors(
    law: dict[str, object], batch: int, prompt: int, output: int, kind: str, pool: int = POOL, workers: int = 1
) -> Iterator[tuple[int, str, list[float]]]:
    """(N / batch, choice, errors in %: mean and p99 of TTFT, TPOT, E2EL, then Sys tok/s), pooled over the runs."""
    rng = random.Random(kind)
    first = first_outputs([LIMIT[kind] * output] * batch)
    spare = 0 if kind == "equal" else SPARE_BATCHES * batch
    length = lambda: LENGTHS[kind](rng, output)  # noqa: E731 - the generator goes on from run to run
    # The long run is the same however many workers the short ones have; the luck goes on where it ended.
    key = (json.dumps(law), batch, prompt, output, kind)
    if key not in KNOWN:
        total = LONG // 10 if kind == "equal" else LONG
        KNOWN[key] = truth(closed_run(law, batch, total, prompt, length, first, spare), batch), rng.getstate()
    (known, rate), luck = KNOWN[key]
    rng.setstate(luck)
    for times in SHORT:
        pools: dict[str, dict[str, list[Floats]]] = {}
        rates = []
        for _ in range(1 if kind == "equal" else pool // (times * batch)):
            run = closed_run(law, batch, times * batch, prompt, length, first, spare, workers)
            metrics = round_metrics(table_of(run), load="closed", in_flight=batch)
            rates.append(metrics.sys_tok_s or 0.0)
            shown = usual(closed_run(law, batch, times * batch, prompt, length), batch)
            shown["the rule"] = {name: getattr(metrics, name) for name in METRICS}
            for choice, figures in shown.items():
                for name, values in figures.items():
                    pools.setdefault(choice, {}).setdefault(name, []).append(values)
        for choice, figures in pools.items():
            row = []
            for name in METRICS:
                values = np.concatenate(figures[name])
                row += [values.mean() / known[name].mean(), np.percentile(values, 99) / np.percentile(known[name], 99)]
            yield times, choice, [100 * (float(ratio) - 1) for ratio in [*row, np.mean(rates) / rate]]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workers", type=int, default=1, help="that share the batch (senders.shares)")
    workers = parser.parse_args().workers
    for law, batch, prompt, output in CASES:
        for kind in LENGTHS:
            print(f"### batch {batch}, {prompt} in, {output} out ({kind}), {law['per_seq_s']:g} s a sequence\n")
            print("| N / batch | requests | TTFT | p99 | TPOT | p99 | E2EL | p99 | Sys tok/s |")
            print("|---|---|" + "---|" * 7)
            for times, choice, row in errors(law, batch, prompt, output, kind, workers=workers):
                shown = row if choice == "the rule" else row[:-1]
                texts_of = [f"{error:+.1f} %" for error in shown] + [""] * (7 - len(shown))
                print(f"| {times} | {choice} | " + " | ".join(texts_of) + " |", flush=True)
            print()


if __name__ == "__main__":
    main()
