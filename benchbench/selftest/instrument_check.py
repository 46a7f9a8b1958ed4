"""The instrument measured: our client and an aiohttp client against a server that knows the truth.

The server tells, at GET /truth, the kernel's receive stamp of each request's last byte and the clock just before
each event's write. What remains between its truth and a client's figure is the client's error alone.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping
from functools import partial
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from benchbench.openai.target import Access, Target, address_of, make_target
from benchbench.spec import Cell, make_plan, spec_from_mapping

if TYPE_CHECKING:
    from benchbench.engines.simulator import SimulatorProcess

TTFT_S = 0.1
INPUT_TOKENS = 128
REACHED = 0.95  # of the asked rate: a server that wrote less is the bottleneck
Stamps = Mapping[str, tuple[int, npt.NDArray[np.int64]]]  # by request: received and written there, sent and read here
Errors = dict[str, float | None]


def check_self(streams: int, rate: float, seconds: float, url: str | None = None, workers: int = 1) -> dict[str, Any]:
    """Run `streams` streams of `rate` tok/s for `seconds` with both clients, one after the other; ours by `workers`.

    Against the simulator, or a server at `url` that has GET /truth. Raises SimulatorError, WorkerDiedError, OSError.
    """
    output = max(2, round(rate * seconds))
    about = {"streams": streams, "rate": rate, "seconds": seconds, "workers": workers, "server": url or "the simulator"}
    with _simulator(streams, rate) as simulator:
        ours = partial(_ours, workers=workers)
        clients: dict[str, Callable[[str, int, int], Errors]] = {"benchbench": ours, "aiohttp": _aiohttp}
        errors = {name: client(url or simulator.url, streams, output) for name, client in clients.items()}
    return {**about, "tokens_per_stream": output, **errors}


def measure_instrument(streams: int, rate: float, seconds: float, workers: int = 1) -> dict[str, Any]:
    """Our client alone against the simulator: its errors, and the event rate that they hold at (`tok_s`)."""
    output = min(4096, max(2, round(rate * seconds)))
    with _simulator(streams, rate) as simulator:
        errors = _ours(simulator.url, streams, output, workers)
    return result_of(streams, rate, workers, errors)


def result_of(streams: int, rate: float, workers: int, errors: Errors) -> dict[str, Any]:
    """Our client's errors as they are kept. Where the server did not reach the rate, they hold at what it reached."""
    reached, asked_tok_s = errors["server_tok_s"] or 0.0, streams * rate
    tok_s = asked_tok_s if reached >= REACHED * asked_tok_s else reached
    return {"streams": streams, "rate": rate, "workers": workers, "tok_s": tok_s, **errors}


def _simulator(streams: int, rate: float) -> SimulatorProcess:
    from benchbench.engines.simulator import SimulatorProcess

    law = {"kind": "fixed", "ttft_s": TTFT_S, "itl_s": 1 / rate}
    return SimulatorProcess("fixed", options={"law": law, "max_num_seqs": max(streams, 256)})


def _cell(url: str, streams: int, output: int) -> Cell:
    spec = spec_from_mapping(
        {
            "name": "check",
            "model": "sim",
            "engine": {"kind": "endpoint", "url": url},
            "grid": {"input": INPUT_TOKENS, "output": output, "batch": streams},
            "prompts": {"kind": "token_ids", "vocab": [1000, 30000]},
        }
    )
    return make_plan(spec).cells[0]


def _read_truth(url: str) -> Stamps:
    """Id -> (received ns, write ns), and empty the server's memory."""
    from urllib.request import ProxyHandler, build_opener

    import orjson

    with build_opener(ProxyHandler({})).open(address_of(url, "/truth?clear=1"), timeout=60) as answer:
        rows = orjson.loads(answer.read())["requests"]
    return {row["id"]: (row["received_ns"], np.array(row["writes_ns"], np.int64)) for row in rows}


def _ours(url: str, streams: int, output: int, workers: int = 1) -> Errors:
    import pyarrow as pa
    import pyarrow.parquet as pq

    from benchbench.prompts.round_job import make_job
    from benchbench.senders.group import WorkerGroup
    from benchbench.store.requests import RequestStatus, round_table

    cell, target = _cell(url, streams, output), make_target(url, "completions", Access())
    with WorkerGroup(workers, lambda _job: workers) as worker:
        worker.ready()
        worker.run(make_job(cell, target, (1000, 30000), "warmup", 0, 0, output=2))
        _read_truth(url)
        cpu = time.process_time_ns()
        columns, facts = worker.run(make_job(cell, target, (1000, 30000), "measured", 0, 0))
        pq.write_table(round_table(columns, {}, facts), pa.BufferOutputStream(), compression="zstd")
        cpu = time.process_time_ns() - cpu + facts["worker_cpu_ns"]
    truth = _read_truth(url)
    if columns["status"] != [RequestStatus.OK] * streams:
        raise OSError(f"requests failed: {next(d for d in columns['error_detail'] if d)}")
    ends = columns["event_offsets"].tolist()
    events = [columns["event_ns"][a:b] for a, b in pairwise(ends)]
    stamps = dict(zip(columns["response_id"], zip(columns["sent_ns"].tolist(), events, strict=True), strict=True))
    lag = float(np.percentile(columns["lag_ns"], 99)) / 1e6
    gaps = np.concatenate([np.diff(times) for times in events])
    return _error(stamps, truth, cpu, lag, float((gaps == 0).mean()))


def _error(
    stamps: Stamps, truth: Stamps, cpu_ns: int, lag_ms: float | None = None, shared: float | None = None
) -> Errors:
    """A client's error against the truth, ms; CPU in us a token, prompts to records all counted."""
    ttft, itl, tokens, sends = [], [], 0, [sent for sent, _ in stamps.values()]
    for key, (sent, events) in stamps.items():
        received, writes = truth[key]
        count = min(len(events), len(writes))
        ttft.append((int(events[0]) - sent) - (int(writes[0]) - received))
        itl.append(np.abs(np.diff(events[:count]) - np.diff(writes[:count])))
        tokens += len(events)
    return {
        "ttft_error_ms_mean": float(np.mean(ttft)) / 1e6,
        "ttft_error_ms_p99": float(np.percentile(ttft, 99)) / 1e6,
        "itl_error_ms_p99": float(np.percentile(np.concatenate(itl), 99)) / 1e6,
        "send_skew_ms": float(max(sends) - min(sends)) / 1e6,
        "lag_ms_p99": lag_ms,
        "cpu_us_per_token": cpu_ns / 1e3 / tokens,
        "tokens": tokens,
        "shared_share": shared,
        "server_tok_s": sum(1e9 * (len(w) - 1) / float(w[-1] - w[0]) for _, w in truth.values() if len(w) > 1),
    }


def _aiohttp(url: str, streams: int, output: int) -> Errors:
    """The same load by the common way: aiohttp, lines iterated, JSON parsed, the clock read at each line."""
    from benchbench.prompts.round_job import bodies
    from benchbench.prompts.seeds import round_generator

    cell, target = _cell(url, streams, output), make_target(url, "completions", Access())
    inputs = [INPUT_TOKENS] * streams
    asyncio.run(
        _gather(target, bodies(cell, round_generator(cell, "warmup", 1, 0), inputs, [2] * streams, (1000, 30000)))
    )
    _read_truth(url)
    cpu = time.process_time_ns()
    requests = bodies(cell, round_generator(cell, "measured", 1, 0), inputs, [output] * streams, (1000, 30000))
    stamps = asyncio.run(_gather(target, requests))
    cpu = time.process_time_ns() - cpu
    return _error(stamps, _read_truth(url), cpu)


async def _gather(target: Target, requests: list[bytes]) -> Stamps:
    import aiohttp

    connector = aiohttp.TCPConnector(limit=0)
    async with aiohttp.ClientSession(connector=connector, timeout=aiohttp.ClientTimeout(total=600)) as session:
        done = await asyncio.gather(*(_one(session, target, body) for body in requests))
    return dict(done)


async def _one(session: Any, target: Target, body: bytes) -> tuple[str, tuple[int, npt.NDArray[np.int64]]]:  # noqa: ANN401
    import json

    key, stamps = "", []
    sent = time.time_ns()
    url = f"http://{target.host}:{target.port}{target.path}"
    async with session.post(url, data=body, headers={"Content-Type": "application/json"}) as answer:
        async for line in answer.content:
            now = time.time_ns()
            if line.startswith(b"data: {"):
                event = json.loads(line[6:])
                if event["choices"]:
                    stamps.append(now)
                    key = event["id"]
    return key, (sent, np.array(stamps, np.int64))


def check_text(errors: Mapping[str, Any]) -> str:
    """What `bench check --self` prints."""
    names = {
        "ttft_error_ms_mean": "TTFT error, mean (ms)",
        "ttft_error_ms_p99": "TTFT error, p99 (ms)",
        "itl_error_ms_p99": "ITL error, p99 (ms)",
        "send_skew_ms": "send skew (ms)",
        "lag_ms_p99": "client lag, p99 (ms)",
        "cpu_us_per_token": "CPU per token (us)",
    }
    ours, theirs = errors["benchbench"], errors["aiohttp"]
    head = (
        f"{errors['streams']} streams x {errors['rate']:g} tok/s, {errors['tokens_per_stream']} tokens each, "
        f"against {errors['server']}'s own truth" + (f", {errors['workers']} workers" if errors["workers"] > 1 else "")
    )
    lines = [head, "", f"| {'':22} | {'benchbench':>10} | {'aiohttp':>10} |", f"|{'-' * 24}|{'-' * 11}:|{'-' * 11}:|"]
    for name, title in names.items():
        cells = ["-" if side[name] is None else f"{side[name]:.3f}" for side in (ours, theirs)]
        lines.append(f"| {title:22} | {cells[0]:>10} | {cells[1]:>10} |")
    ratio = ours["cpu_us_per_token"] / theirs["cpu_us_per_token"]
    times = theirs["ttft_error_ms_mean"] / max(abs(ours["ttft_error_ms_mean"]), 1e-6)
    lines += ["", f"CPU {ratio:.0%} of aiohttp's; mean TTFT error {times:.0f} times smaller."]
    if (reached := ours["server_tok_s"]) < REACHED * errors["streams"] * errors["rate"]:
        whole = errors["streams"] * errors["rate"] / 1e3
        lines.append(f"The server wrote {reached / 1e3:.1f}k of the {whole:.1f}k tok/s asked: it is the bottleneck.")
    return "\n".join(lines)
