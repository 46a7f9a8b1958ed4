"""What a long closed load holds in memory, of each process, while it runs and afterwards; Markdown on stdout.

`bench sweep` drives `wire_server`, which is C and knows when it wrote each token, with a round of --seconds at --tok-s
tokens a second over --streams streams, answers of --output tokens. Memory is read from /proc/PID/smaps_rollup (`anon`:
what cannot leave memory; `file`: the page cache's, which the kernel takes back when it needs room) every --every
seconds, of main, of the process that sends and of the one that decodes.

- while it runs: anonymous memory a token event that has come, by a straight line through the sending process's samples
  of the second half of the round
- at most: of each process, and of all together at one time; until `bench table` has been printed
- TTFT and ITL errors: of the stored events against the server's own writes, so that a wrong stamp would show
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import subprocess
import sys
import tempfile
import time
import urllib.request
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import psutil
import pyarrow.parquet as pq
import yaml
from token_cost import server

MB = 1e6
KINDS = {"sending_process": "sends", "loadgen.worker": "sends", "spool.collector": "decodes"}


class Sample(NamedTuple):
    """Bytes of one process at one time."""

    at_s: float
    process: str
    anon: int
    file: int
    cpu_s: float


def samples_of(process: psutil.Process, begun_s: float) -> list[Sample]:
    found = []
    for one in (process, *process.children(recursive=True)):
        try:
            words = " ".join(one.cmdline())
            lines = Path(f"/proc/{one.pid}/smaps_rollup").read_text().splitlines()
            cpu_s = sum(one.cpu_times()[:2])
        except (OSError, psutil.Error):
            continue
        sizes = {line.split(":")[0]: 1024 * int(line.split()[1]) for line in lines[1:]}
        name = next((kind for part, kind in KINDS.items() if part in words), "main" if one == process else "other")
        anon = sizes.get("Anonymous", 0)
        found.append(Sample(time.monotonic() - begun_s, name, anon, sizes["Rss"] - anon, cpu_s))
    return found


def watched(words: list[str], folder: Path, every_s: float) -> list[Sample]:
    begun_s, samples = time.monotonic(), list[Sample]()
    with subprocess.Popen(words, cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as process:
        watch = psutil.Process(process.pid)
        while process.poll() is None:
            samples += samples_of(watch, begun_s)
            time.sleep(every_s)
        text = process.stdout.read() if process.stdout else ""
    if process.returncode not in {0, 3}:
        raise SystemExit(text)
    return samples


def errors_ms(run: Path, port: int) -> tuple[float, float]:
    """99th percentiles of what ITL and the time since a token's write are off by, of the stored events."""
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/truth") as reply:
        truth = {one["id"]: np.array(one["writes_ns"], np.int64) for one in json.load(reply)["requests"]}
    (path,) = (run / "records").glob("*-measured-*.parquet")
    late, gaps = [], []
    with pq.ParquetFile(path) as file:
        for batch in file.iter_batches(columns=["response_id", "event_ns"], batch_size=64):
            for one in batch.to_pylist():
                events, writes = np.array(one["event_ns"], np.int64), truth[one["response_id"]]
                late.append(events - writes)
                gaps.append(np.abs(np.diff(events) - np.diff(writes)))
    all_late = np.concatenate(late)
    if all_late.min() < 0:
        raise SystemExit("an event came before it was written")
    return tuple(float(np.percentile(values, 99)) / 1e6 for values in (np.concatenate(gaps), all_late))


def shared_share(path: Path) -> float:
    """Of the stored gaps those that are 0: two tokens in one read."""
    gaps = np.concatenate([np.diff(events) for events in pq.read_table(path)["event_ns"].to_numpy()])
    return float(np.mean(gaps == 0))


def measured(folder: Path, port: int, given: argparse.Namespace) -> dict[str, Any]:
    requests = round(given.tok_s * given.seconds / given.output)
    sweep = {
        "name": "records",
        "model": "sim",
        "engine": {"kind": "endpoint", "url": f"http://127.0.0.1:{port}"},
        "grid": {"input": 8, "output": given.output, "batch": given.streams},
        "load": {"kind": "closed", "requests": requests},
        "rounds": {"warmup": 0, "min": 1, "max": 1},
        "prompts": {"kind": "token_ids", "vocab": [1000, 30000]},
    }
    (folder / "sweep.yaml").write_text(yaml.safe_dump(sweep))
    bench = [sys.executable, "-m", "benchbench.cli.main"]
    samples = watched([*bench, "sweep", "sweep.yaml", "--out", "run", "--no-plots"], folder, given.every)
    (path,) = (folder / "run" / "records").glob("*-measured-*.parquet")
    facts = json.loads(pq.read_metadata(path).metadata[b"benchbench"])
    begun, wall = time.monotonic(), facts["wall_ns"] / 1e9
    table = watched([*bench, "table", "run"], folder, given.every / 5)
    table_s = time.monotonic() - begun
    events = sum(map(len, pq.read_table(path, columns=["event_tokens"])["event_tokens"].to_numpy()))
    sends = [one for one in samples if one.process == "sends"]
    first = next((one.at_s for one in sends if one.cpu_s > 0.5), 0.0)  # of a short round there may be no sample
    half = [one for one in sends if first + wall / 2 < one.at_s < first + 0.95 * wall]
    slope = np.polyfit([one.at_s for one in half], [one.anon for one in half], 1)[0] if len(half) > 2 else np.nan
    most = {
        name: max((s.anon for s in samples if s.process == name), default=0) for name in ("main", "sends", "decodes")
    }
    moments: dict[float, int] = {}
    for one in samples:
        moments[round(one.at_s / given.every)] = moments.get(round(one.at_s / given.every), 0) + one.anon
    gap_ms, late_ms = errors_ms(folder / "run", port)
    return {
        "events": events,
        "tok/s": events / wall,
        "sends, bytes an event": slope / (events / wall),
        **{f"{name}, MB at most": value / MB for name, value in most.items()},
        "all, MB at most": max(moments.values()) / MB,
        "table, MB": max(one.anon for one in table) / MB,
        "table, s": table_s,
        "sending CPU, us a token": facts["cpu_ns"] / 1e3 / events,
        "with decoding there": facts["worker_cpu_ns"] / 1e3 / events,
        "decoding elsewhere": max((s.cpu_s for s in samples if s.process == "decodes"), default=0) * 1e6 / events,
        "lag p99, ms": float(np.percentile(np.concatenate(pq.read_table(path)["lag_ns"].to_numpy()), 99)) / 1e6,
        "lag p99.9, ms": float(np.percentile(np.concatenate(pq.read_table(path)["lag_ns"].to_numpy()), 99.9)) / 1e6,
        "shared reads, %": 100 * shared_share(path),
        "late p99, ms": late_ms,
        "ITL error p99, ms": gap_ms,
        "record, bytes an event": path.stat().st_size / events,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tok-s", type=float, default=20_000.0)
    parser.add_argument("--streams", type=int, default=256)
    parser.add_argument("--output", type=int, default=1000)
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--every", type=float, default=0.5)
    parser.add_argument("--keep", type=Path, help="a new folder, in which the run stays")
    given = parser.parse_args()
    itl_ms = 1e3 * given.streams / given.tok_s
    if given.keep:
        given.keep.mkdir(parents=True)
    place = (
        contextlib.nullcontext(given.keep) if given.keep else tempfile.TemporaryDirectory(dir=os.environ.get("TMPDIR"))
    )
    with place as folder, server(Path(folder).resolve(), itl_ms) as port:
        row = measured(Path(folder), port, given)
    print("| figure | |\n|---|---|")
    for name, value in row.items():
        print(f"| {name} | {value:,.3g} |" if isinstance(value, float) else f"| {name} | {value:,} |")


if __name__ == "__main__":
    main()
