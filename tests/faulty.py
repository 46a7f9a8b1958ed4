"""A server that misbehaves, a sweep of it, and whether what the sweep prints of it is true."""

from __future__ import annotations

import contextlib
import itertools
import json
import re
import socket
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from statistics import fmean
from typing import Any, Self
from urllib.parse import urlsplit

import benchbench
from benchbench.engines.simulator import SimulatorProcess
from benchbench.measure.observer import Observer
from benchbench.report.summary_table import csv_table, markdown_table
from benchbench.spec import spec_from_mapping

# What a busy machine may do to a client of 20 ms gaps whatever its budgets; then the sweep is made again.
MACHINE = {"first_token_shared", "shared_reads", "send_skew", "late_sends", "client_lag"}
LAW = {"kind": "fixed", "ttft_s": 0.05, "itl_s": 0.02}
STEPS = {"kind": "linear", "base_s": 0.015}  # an engine that serves its requests together, one step after the other
# Budgets as loose as they get: the machine that runs the tests may be busy, and that is not what is tested.
LOOSE = {"shared_suspect": 1.0, "shared_invalid": 1.0, "send_skew": 1.0, "late_send": 1.0, "client_lag": 1.0}
SWEEP: dict[str, Any] = {
    "name": "faulty",
    "model": "sim",
    "grid": {"input": 16, "output": 6, "batch": 2},
    "rounds": {"warmup": 0, "min": 1, "max": 1},
    "prompts": {"kind": "token_ids", "vocab": [1000, 30000]},
    "validity": LOOSE,
}


@dataclass
class Carried:
    """A sweep carried out: the row of its cell, its measured requests, and the server's truth by response id."""

    row: dict[str, Any]
    records: list[dict[str, Any]]
    truth: dict[str, dict[str, Any]]
    posts: int | None


Carry = Callable[["Servers"], contextlib.AbstractContextManager[str]]


@dataclass(frozen=True)
class Fault:
    """`options` make the simulator misbehave, `through` puts something before it, and `changes` ask for what shows it.

    The sweep is made `runs` times and the last one counts. `tamper` changes its records; `also` asserts more.
    """

    status: str
    reasons: str
    options: Mapping[str, Any] = field(default_factory=dict)
    changes: Mapping[str, Any] = field(default_factory=dict)
    through: Carry | None = None
    runs: int = 1
    tamper: Callable[[Path], None] | None = None
    also: Callable[[Carried], None] | None = None


def open_url(url: str, body: Mapping[str, Any] | None = None) -> Any:
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(url, data, {"content-type": "application/json"})  # noqa: S310 - our own server
    with urllib.request.build_opener(urllib.request.ProxyHandler({})).open(request, timeout=20) as answer:
        return json.load(answer)


class Servers(Observer):
    """The simulators of one fault, started as asked for, and who to tell what is measured when."""

    def __init__(self, options: Mapping[str, Any]) -> None:
        self.options = {"law": LAW, **options}
        self.all: list[SimulatorProcess] = []
        self.truth: dict[str, dict[str, Any]] = {}
        self.posts: int | None = None
        self.restarts = False

    def start(self, port: int = 0) -> str:
        self.all.append(SimulatorProcess("fixed", options=self.options, port=port))
        return self.all[-1].url

    def stop(self) -> None:
        """Ask each for its truth and end it."""
        while self.all:
            server = self.all.pop()
            self.truth |= {entry["id"]: entry for entry in open_url(f"{server.url}/truth")["requests"]}
            server.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for server in self.all:
            server.close()

    def round(self, cell: object, phase: str, number: int, left_s: float | None) -> None:  # noqa: ARG002 - an observer
        if self.restarts and number == 1:
            port = urlsplit(self.all[0].url).port
            self.stop()
            self.start(port or 0)


@contextlib.contextmanager
def straight(servers: Servers) -> Iterator[str]:
    yield servers.start()


@contextlib.contextmanager
def restarted(servers: Servers) -> Iterator[str]:
    """The server is started anew before the second round."""
    servers.restarts = True
    yield servers.start()


@contextlib.contextmanager
def shared_with_another(servers: Servers) -> Iterator[str]:
    """A second client asks for two tokens again and again."""
    url, over = servers.start(), threading.Event()

    def ask() -> None:
        while not over.is_set():
            open_url(f"{url}/v1/completions", {"prompt": [5] * 4, "max_tokens": 2, "ignore_eos": True})

    other = threading.Thread(target=ask)
    other.start()
    try:
        yield url
    finally:
        over.set()
        other.join()


@contextlib.contextmanager
def behind_a_relay(servers: Servers) -> Iterator[str]:
    with Relay([servers.start()]) as relay:
        yield relay.url
    servers.posts = relay.posts


@contextlib.contextmanager
def behind_a_buffer(servers: Servers) -> Iterator[str]:
    with Relay([servers.start()], buffering=True) as relay:
        yield relay.url


@contextlib.contextmanager
def as_one_of_two(servers: Servers) -> Iterator[str]:
    with Relay([servers.start(), servers.start()]) as relay:
        yield relay.url


class Relay:
    """Connections go to one server after the other; `buffering` holds a streamed answer back until it is whole."""

    def __init__(self, urls: list[str], *, buffering: bool = False) -> None:
        self._ports = itertools.cycle(urlsplit(url).port for url in urls)
        self._buffering = buffering
        self.posts = 0
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self._listener.getsockname()[1]}"
        self._sockets: list[socket.socket] = [self._listener]
        self._threads = [threading.Thread(target=self._accept)]

    def __enter__(self) -> Self:
        self._threads[0].start()
        return self

    def __exit__(self, *_: object) -> None:
        for sock in self._sockets:
            with contextlib.suppress(OSError):
                sock.shutdown(socket.SHUT_RDWR)  # wakes the thread that waits in it
        for thread in self._threads:
            thread.join()
        for sock in self._sockets:
            sock.close()

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            server = socket.create_connection(("127.0.0.1", next(self._ports)))
            self._sockets += [client, server]
            for ends in ((client, server, False), (server, client, self._buffering)):
                self._threads.append(threading.Thread(target=self._pump, args=ends))
                self._threads[-1].start()

    def _pump(self, source: socket.socket, sink: socket.socket, hold: bool) -> None:
        for sock in (source, sink):
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        held = b""
        with contextlib.suppress(OSError):
            while data := source.recv(1 << 20):
                self.posts += data.count(b"POST /v1/")
                held += data
                if not hold or b"transfer-encoding: chunked" not in held or held.endswith(b"\r\n0\r\n\r\n"):
                    sink.sendall(held)
                    held = b""
        with contextlib.suppress(OSError):
            sink.shutdown(socket.SHUT_WR)


def carry_out(fault: Fault, folder: Path) -> Carried:
    """Sweep the faulty server; again, twice at most, where the machine that runs the test was at fault too."""
    for attempt in range(3):
        carried = _once(fault, folder / str(attempt))
        found, expected = ({*text.split(";")} - {""} for text in (carried.row["reasons"], fault.reasons))
        if not found - expected or not found - expected <= MACHINE:
            break
        time.sleep(0.5)
    return carried


def _once(fault: Fault, folder: Path) -> Carried:
    changes = dict(fault.changes)
    engine = {"kind": "endpoint", **changes.pop("engine", {})}
    merged = {
        key: {**SWEEP.get(key, {}), **value} if isinstance(value, dict) else value for key, value in changes.items()
    }
    with Servers(fault.options) as servers:
        with (fault.through or straight)(servers) as url:
            spec = spec_from_mapping({**SWEEP, **merged, "engine": {**engine, "url": url}})
            for number in range(fault.runs):
                path = folder / str(number)
                outcome = benchbench.sweep(spec, out=path, plots=False, observer=servers)
                assert (outcome.state, outcome.message) == ("complete", "")
        servers.stop()
        run = benchbench.open_run(path)
        if fault.tamper is None:
            assert run.rows == outcome.rows, "the records give another row than the sweep"
        else:
            fault.tamper(path)
            run = benchbench.open_run(path)
        records = [record for table in run.directory.read_cell(run.cells[0].key) for record in table.to_pylist()]
        return Carried(run.rows[0], records, servers.truth, servers.posts)


# ---- Whether the numbers are true -----------------------------------------------------------------------


def assert_honest(carried: Carried) -> None:
    """No wrong number is in a table: an invalid cell is in none, a suspect one is marked, and both others are true."""
    row = carried.row
    text = markdown_table([row])
    lines = [line for line in text.splitlines() if re.match(r"\| \d", line)]
    if row["status"] == "invalid":
        assert lines == []
        assert "No cell has a number." in text
        assert csv_table([row]).splitlines()[1:] == []
        struck = markdown_table([row], include_invalid=True)
        (line,) = (line for line in struck.splitlines() if re.match(r"\| \d", line))
        assert all(re.fullmatch(r"~~.*~~|\N{EN DASH}", cell.strip()) for cell in line.split("|")[4:-1])
        return
    (line,) = lines
    marks = [cell.strip().endswith("*") for cell in line.split("|")[4:-1]]
    assert marks == [row["status"] == "suspect"] * 2
    _assert_true(carried)


def _assert_true(carried: Carried) -> None:
    """Tokens as the server wrote them, exactly; times within 5 ms of its own, none of them before its cause.

    Beyond that a request may have been late on its way to the server, and a token on its way to us: the machine may be
    busy. How late, the two sides' own stamps say.
    """
    row, rounds = carried.row, dict[int, list[tuple[float, float, int]]]()
    ttfts, e2els, tpots = [], [], []
    late_ms = 5.0
    for record in carried.records:
        true = carried.truth[record["response_id"]]
        assert record["status"] == "ok"
        assert sum(record["event_tokens"]) == sum(true["tokens"])
        assert record["output_tokens"] in (sum(true["tokens"]), None)
        assert record["asked_input_tokens"] == true["prompt_tokens"]
        writes, received = true["writes_ns"], true["received_ns"]
        assert len(record["event_ns"]) == len(writes)
        assert all(stamp >= write for stamp, write in zip(record["event_ns"], writes, strict=True))
        behind = max(stamp - write for stamp, write in zip(record["event_ns"], writes, strict=True))
        late_ms = max(late_ms, 5 + (received - record["sent_ns"] + behind) / 1e6)
        ttfts.append((writes[0] - received) / 1e6)
        e2els.append((writes[-1] - received) / 1e6)
        tpots.append((writes[-1] - writes[0]) / 1e6 / (sum(true["tokens"]) - true["tokens"][0]))
        rounds.setdefault(record["round"], []).append((received, writes[-1], sum(true["tokens"])))
    assert len(rounds) == row["rounds"]
    for name, values in (("ttft_ms", ttfts), ("e2el_ms", e2els), ("tpot_ms", tpots)):
        assert abs(row[name] - fmean(values)) < late_ms, name
    spans = [max(last for _, last, _ in one) - min(first for first, _, _ in one) for one in rounds.values()]
    rates = [sum(n for _, _, n in one) / span * 1e9 for one, span in zip(rounds.values(), spans, strict=True)]
    assert abs(row["sys_tok_s"] / fmean(rates) - 1) < late_ms * 1e6 / min(spans)
