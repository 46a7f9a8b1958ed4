"""What one more token costs the load generator, beside loops that only read, in C and in Python; Markdown on stdout.

`wire_server` streams in turn to `wire_floor`, to the smallest loop that Python has for it and to a round of ours, these
two in this process: answers of --short and of --long tokens. The difference, over the tokens that are more, is what a
token costs by itself:

- floor: CPU us of `wire_floor`; Python: of a loop that waits (epoll), reads with the kernel's stamp and appends both
- drive: CPU us of the round, while tokens flow; decode: of what comes after it, to the columns
- times: the Python loop, and drive with decode, by the floor of the same repeat: what can be compared between machines
- bytes: what a token event holds of the round's log until the round is over, by `sys.getsizeof`

Medians of --repeats. Needs a C compiler (CC, else cc).
"""

from __future__ import annotations

import argparse
import contextlib
import gc
import json
import os
import select
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from statistics import median
from typing import NamedTuple

import orjson

from benchbench.linux import ANCILLARY, Poller, enable_stamps
from benchbench.loadgen.columns import collect
from benchbench.loadgen.connection import Pools
from benchbench.loadgen.exchange import Log
from benchbench.loadgen.job import RoundJob
from benchbench.loadgen.round import Round
from benchbench.openai.target import Access, make_target

HERE = Path(__file__).parent
PROMPT = 128


class Cost(NamedTuple):
    """Of one round: CPU us in all of the floors, of driving and of decoding; bytes that its log held."""

    floor_us: float
    python_us: float
    drive_us: float
    decode_us: float
    held: float


@contextlib.contextmanager
def server(folder: Path, itl_ms: float) -> Iterator[int]:
    """A wire_server; yields its port."""
    for name in ("wire_server", "wire_floor"):
        words: list[str | Path] = [
            os.environ.get("CC", "cc"),
            "-std=c11",
            "-O2",
            "-o",
            folder / name,
            HERE / f"{name}.c",
        ]
        subprocess.run(words, check=True)
    words = [folder / "wire_server", "0", "100", str(itl_ms)]
    with subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        try:
            line = process.stdout.readline() if process.stdout else ""
            yield int("".join(filter(str.isdigit, line.rpartition(":")[2])))
        finally:
            process.terminate()


def held_bytes(log: Log) -> int:
    columns = (log.owners, log.reads, log.stamps, log.users)
    return sum(map(sys.getsizeof, columns)) + sum(map(sys.getsizeof, log.reads))


def job(port: int, streams: int, tokens: int) -> RoundJob:
    target = make_target(f"http://127.0.0.1:{port}", "completions", Access())
    fields = {"model": "m", "max_tokens": tokens, "stream": True, "return_token_ids": True, "prompt": [7] * PROMPT}
    return RoundJob(
        payloads=[target.request(orjson.dumps(fields))] * streams,
        due_ns=[0] * streams,
        in_flight=streams,
        asked_input=[PROMPT] * streams,
        asked_output=[tokens] * streams,
        first_token_s=30.0,
        stall_s=30.0,
        targets=(target,),
        connect_s=10.0,
    )


def python_us(asked: RoundJob, port: int) -> float:
    """CPU us of a round that is read and not looked at."""
    with select.epoll() as epoll, contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.create_connection(("127.0.0.1", port))) for _ in asked.payloads]
        for sock in sockets:
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            enable_stamps(sock)
            epoll.register(sock.fileno(), select.EPOLLIN)
        receives = {sock.fileno(): sock.recvmsg for sock in sockets}
        reads, stamps, running = list[bytes](), bytearray(), len(sockets)
        start = time.process_time_ns()
        for sock, payload in zip(sockets, asked.payloads, strict=True):
            sock.sendall(payload)
        while running:
            for fd, _ in epoll.poll():
                data, ancillary, _, _ = receives[fd](65_536, ANCILLARY)
                reads.append(data)
                stamps += ancillary[0][2]
                running -= data.endswith(b"0\r\n\r\n")
        return (time.process_time_ns() - start) / 1e3


def cost(folder: Path, port: int, streams: int, tokens: int) -> Cost:
    words = [str(value) for value in (folder / "wire_floor", port, streams, tokens, PROMPT)]
    line = subprocess.run(words, capture_output=True, text=True, check=True).stdout
    floor_us = json.loads(line)["cpu_us_per_token"] * streams * tokens
    pools = Pools(Poller())
    gc.collect()
    asked = job(port, streams, tokens)
    python = python_us(asked, port)
    driver = Round(asked, pools, lambda _fd: None)
    exchanges = driver.run()
    start = time.process_time_ns()
    columns = collect(exchanges, driver.log, asked)
    decode_us = (time.process_time_ns() - start) / 1e3
    pools.close()
    if len(columns["event_ns"]) != streams * tokens:
        raise SystemExit(f"{len(columns['event_ns'])} events of {streams * tokens}: {columns['error_detail'][:1]}")
    return Cost(floor_us, python, driver.facts.cpu_ns / 1e3, decode_us, held_bytes(driver.log))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--streams", type=int, nargs="+", default=[8, 64, 512])
    parser.add_argument("--short", type=int, default=100)
    parser.add_argument("--long", type=int, default=600)
    parser.add_argument("--itl-ms", type=float, default=10.0)
    parser.add_argument("--repeats", type=int, default=3)
    asked = parser.parse_args()
    gc.disable()
    print(
        "| streams | floor us | Python us | times | drive us | decode us | times | bytes |", "|---" * 8 + "|", sep="\n"
    )
    with tempfile.TemporaryDirectory() as place, server(Path(place), asked.itl_ms) as port:
        for streams in asked.streams:
            more, rows = streams * (asked.long - asked.short), []
            for _ in range(asked.repeats):
                short, long = (cost(Path(place), port, streams, tokens) for tokens in (asked.short, asked.long))
                rows.append(Cost(*[(b - a) / more for a, b in zip(short, long, strict=True)]))
            floor, python, drive, decode, held = map(median, zip(*rows, strict=True))
            least = median(row.python_us / row.floor_us for row in rows)
            times = median((row.drive_us + row.decode_us) / row.floor_us for row in rows)
            print(
                f"| {streams} | {floor:.2f} | {python:.2f} | {least:.2f} | {drive:.2f} | {decode:.2f} | {times:.2f} |",
                f"{held:.0f} |",
                flush=True,
            )


if __name__ == "__main__":
    main()
