"""Two hosts, made of network namespaces, send one load: what their clocks are said to be, and are. Linux, root.

    make hosts                                                      # as root; some three minutes
    .venv/bin/python benchmarks/hosts.py --only near apart          # of: near, far, apart, dies

Host 1 has the head of a Ray cluster, the sweep and a server, host 2 a node and a second server; each server has half of
the requests of each worker. Both hosts have this kernel's clock, so what is true is known:

- near: joined by a veth pair
- far: joined by two TUN devices and a process that keeps each packet for 6 ms on its way there and 2 ms on its way back
- apart: the processes of host 2's node have a clock that is 2.5 s ahead and gains 100 us a second (`shifted_clock.c`)
- dies: the node's processes are killed while a round runs; the sweep is resumed with what is left

Needs gcc or clang, iproute2, /dev/net/tun. All has names of its own and is gone at the end; no other network is
touched.
"""

from __future__ import annotations

import argparse
import contextlib
import ctypes
import fcntl
import heapq
import json
import multiprocessing
import os
import secrets
import select
import signal
import struct
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import psutil
import yaml

from benchbench.store.requests import round_facts
from benchbench.store.run_directory import RunDirectory

NAMES, ADDRESSES, PORT = ("one", "two"), ("10.213.7.1", "10.213.7.2"), 6379
WAYS_S = (0.006, 0.002)  # far: there, back
SHIFT_NS, SHIFT_PPM = 2_500_000_000, 100
CLONE_NEWNET, TUNSETIFF, TUN_NO_INFO = 0x40000000, 0x400454CA, 0x1001
MARK = f"BENCH_HOSTS_{os.getpid()}"
SPACES = [f"bench-{os.getpid()}-{name}" for name in NAMES]  # nobody else's
PYTHON = sys.executable
# The simulator serves 127.0.0.1 alone; here its namespace's address, and nobody else is in there.
SERVE = """
import socket, sys
from benchbench.engines.simulator.profiles import load_profile
from benchbench.engines.simulator.server import Server
listen = socket.create_server
socket.create_server = lambda address, **more: listen((sys.argv[1], address[1]), **more)
law = {"kind": "fixed", "ttft_s": 0.1, "itl_s": 0.02}
Server(load_profile("fixed", {"law": law}), ["sim"], 8000).run()
"""
Row = dict[str, Any]


class Host(NamedTuple):
    """A namespace; what is started there has its name and its clock."""

    place: int
    env: Mapping[str, str]

    def command(self, *words: object) -> list[str]:
        named = ["unshare", "-u", "sh", "-c", f'hostname {NAMES[self.place]}; exec "$@"', "sh"]
        return ["ip", "netns", "exec", SPACES[self.place], *named, *map(str, words)]

    def start(self, *words: object, **more: Any) -> subprocess.Popen[str]:  # noqa: ANN401 - Popen's own
        env = {**os.environ, **self.env, MARK: str(self.place)}
        return subprocess.Popen(self.command(*words), env=env, text=True, start_new_session=True, **more)


def marked(place: int | None = None, *, ray: bool = False) -> list[psutil.Process]:
    """Our processes, those of one host, or of those what belongs to its node."""
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            env = process.environ()
            own = MARK in env and (place is None or env[MARK] == str(place))
            if own and (not ray or "RAY_NODE" in env) and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process)
    return found


def end(processes: Sequence[psutil.Process]) -> None:
    for process in processes:
        with contextlib.suppress(psutil.Error):
            process.kill()
    psutil.wait_procs(processes, 10)


def ip(*words: object) -> None:
    subprocess.run(["ip", *map(str, words)], check=True)  # noqa: S607 - root's PATH


def tun(place: int) -> int:
    """A TUN device in a namespace, as a descriptor. Only a thread of its own enters it."""
    made: list[int] = []

    def inside() -> None:
        libc = ctypes.CDLL(None, use_errno=True)
        own = os.open(f"/run/netns/{SPACES[place]}", os.O_RDONLY)
        if libc.setns(own, CLONE_NEWNET):
            raise OSError(ctypes.get_errno(), "setns")
        os.close(own)
        device = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK)
        fcntl.ioctl(device, TUNSETIFF, struct.pack("16sH22x", b"wire", TUN_NO_INFO))
        made.append(device)

    thread = threading.Thread(target=inside)
    thread.start()
    thread.join()
    return made[0]


def carry(ends: tuple[int, int]) -> None:
    """Hand packets on from each end to the other, each when its way is over; for ever."""
    waiting: list[tuple[float, int, int, bytes]] = []
    number = 0
    while True:
        left = max(0.0, waiting[0][0] - time.monotonic()) if waiting else None
        ready, _, _ = select.select(ends, (), (), left)
        for source in ready:
            with contextlib.suppress(BlockingIOError):
                while True:
                    packet, number = os.read(source, 65_536), number + 1
                    due = time.monotonic() + WAYS_S[ends.index(source)]
                    heapq.heappush(waiting, (due, number, ends[1 - ends.index(source)], packet))
        while waiting and waiting[0][0] <= time.monotonic():
            _, _, target, packet = heapq.heappop(waiting)
            with contextlib.suppress(OSError):
                os.write(target, packet)


@contextlib.contextmanager
def network(*, far: bool) -> Iterator[None]:
    """The two namespaces, joined, for as long as the block runs; all that was started in them ends with it."""
    carrier = None
    try:
        for name in SPACES:
            ip("netns", "add", name)
        if far:
            ends = (tun(0), tun(1))
            carrier = multiprocessing.get_context("fork").Process(target=carry, args=(ends,), daemon=True)
            carrier.start()
            for fd in ends:
                os.close(fd)
        else:
            ip("-n", SPACES[0], "link", "add", "wire", "type", "veth", "peer", "name", "wire", "netns", SPACES[1])
        for name, address in zip(SPACES, ADDRESSES, strict=True):
            ip("-n", name, "addr", "add", f"{address}/24", "dev", "wire")
            for device in ("lo", "wire"):
                ip("-n", name, "link", "set", device, "up")
        yield
    finally:
        end(marked())
        if carrier:
            carrier.kill()
            carrier.join()
        for name in SPACES:
            with contextlib.suppress(subprocess.CalledProcessError):
                ip("netns", "del", name)


def wait(holds: Callable[[], object], what: str, seconds: float = 90) -> None:
    until = time.monotonic() + seconds
    while not holds():
        if time.monotonic() > until:
            raise TimeoutError(what)
        time.sleep(0.05)


def asked(place: int, path: str) -> str:
    """What a server says, asked from its own host."""
    words = [PYTHON, "-c", "import sys, urllib.request as u; print(u.urlopen(sys.argv[1]).read().decode())"]
    command = Host(place, {}).command(*words, f"http://{ADDRESSES[place]}:8000{path}")
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def answers(place: int) -> bool:
    with contextlib.suppress(subprocess.CalledProcessError):
        return "sim" in asked(place, "/v1/models")
    return False


def cluster(folder: Path, shift: Mapping[str, str]) -> list[Host]:
    """Servers, the head and the node, all up."""
    common = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32), "RAY_USAGE_STATS_ENABLED": "0"}
    hosts = [Host(k, {**common, "RAY_TMPDIR": str(folder / str(k))}) for k in range(2)]
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    for host in hosts:
        host.start(PYTHON, "-c", SERVE, ADDRESSES[host.place], **quiet)
    few = ["--num-cpus=0", "--object-store-memory=80000000", "--disable-usage-stats", "--block"]
    roles = (["--head", f"--port={PORT}", "--include-dashboard=false"], [f"--address={ADDRESSES[0]}:{PORT}"])
    for host, role, clock in zip(hosts, roles, ({}, shift), strict=True):
        node = Host(host.place, {**host.env, **clock, "RAY_NODE": "1"})
        own = f"--node-ip-address={ADDRESSES[host.place]}"
        node.start(PYTHON, "-m", "ray.scripts.scripts", "start", *role, own, *few, **quiet)
        # The raylet listens once it has joined.
        wait(lambda k=host.place: "raylet" in {p.name() for p in marked(k, ray=True)}, "the node did not start")
        time.sleep(8)
    wait(lambda: answers(0) and answers(1), "the servers did not start")
    return hosts


def sweep(host: Host, folder: Path, *more: object, **changes: object) -> subprocess.Popen[str]:
    data = {
        "name": "hosts",
        "model": "sim",
        "engine": {"kind": "endpoint", "url": [f"http://{address}:8000" for address in ADDRESSES]},
        "grid": {"input": 8, "output": 150, "batch": 32},
        "rounds": {"warmup": 1, "min": 3, "max": 3},
        "prompts": {"kind": "token_ids", "vocab": [1000, 30000]},
        **changes,
    }
    (folder / "s.yaml").write_text(yaml.safe_dump(data))
    words = ("-m", "benchbench.cli.main", "sweep", folder / "s.yaml", "--no-plots", *more)
    return host.start(PYTHON, *words, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)


def rounds_of(run: Path) -> list[tuple[list[Row], Row]]:
    """Requests and facts of the measured rounds."""
    directory = RunDirectory(run)
    (entry,) = directory.manifest()["plan"]
    return [(table.to_pylist(), round_facts(table)) for table in directory.read_cell(entry["key"])]


def shown(run: Path) -> Row:
    words = [PYTHON, "-m", "benchbench.cli.main", "table", run, "--format", "json"]
    (row,) = json.loads(subprocess.run(words, capture_output=True, text=True, check=True).stdout)
    return dict(row)


def clocks(name: str, folder: Path, library: Path) -> Row:
    """A sweep by both hosts, and the same by one; what the records say against what is true."""
    apart, from_ns = name == "apart", time.monotonic_ns()
    shift = {"LD_PRELOAD": str(library), "SHIFT_NS": str(SHIFT_NS), "SHIFT_PPM": str(SHIFT_PPM)} if apart else {}
    wall_ns = time.time_ns() - time.monotonic_ns()

    def true_ns(at_ns: int) -> int:
        return SHIFT_NS + (at_ns - wall_ns - from_ns) // 1_000_000 * SHIFT_PPM if apart else 0

    hosts = cluster(folder, {**shift, "SHIFT_FROM_NS": str(from_ns)} if apart else {})
    for out, loadgen in (("two", {"ray": f"{ADDRESSES[0]}:{PORT}", "workers": 2}), ("one", {"workers": 1})):
        text, _ = (process := sweep(hosts[0], folder, "--out", folder / out, loadgen=loadgen)).communicate(timeout=120)
        if process.returncode not in {0, 3}:
            raise RuntimeError(text)
    truth = {row["id"]: row for k in range(2) for row in json.loads(asked(k, "/truth"))["requests"]}
    errors, stated, sent, read, covered = [], [], [], [], True
    for rows, facts in rounds_of(folder / "two"):
        begin, finish = min(row["sent_ns"] for row in rows), max(row["end_ns"] for row in rows)
        for clock in facts["clocks"]:
            for at_ns in (begin, finish):
                true = true_ns(at_ns) if clock["host"] == NAMES[1] else 0
                errors.append(clock["offset_ns"] - true)
                covered &= abs(errors[-1]) <= clock["uncertainty_ns"]
            stated.append(clock["uncertainty_ns"])
        for row in rows:
            told = truth[row["response_id"]]
            sent.append(told["received_ns"] - row["sent_ns"])
            read += [ours - theirs for ours, theirs in zip(row["event_ns"], told["writes_ns"], strict=True)]
    two, one = shown(folder / "two"), shown(folder / "one")
    return {
        "hosts": name,
        "offset, true (ms)": true_ns(time.time_ns()) / 1e6,
        "furthest estimate from it (ms)": max(map(abs, errors)) / 1e6,
        "stated +- (ms)": max(stated) / 1e6,
        "covers": "yes" if covered else "NO",
        "arrived after sent, least (ms)": min(sent) / 1e6,
        "read after written, least (ms)": min(read) / 1e6,
        "Sys tok/s, of one host's": two["sys_tok_s"] / one["sys_tok_s"],
        "TPOT, of one host's": two["tpot_ms"] / one["tpot_ms"],
        "requests": sum(len(rows) for rows, _ in rounds_of(folder / "two")),
        "status": f"{two['status']} {two['reasons']}".strip(),
    }


def dies(folder: Path) -> None:
    """Kill the node in a round: what the sweep says, what is stored, and the end of its resumption."""
    hosts, run = cluster(folder, {}), folder / "run"
    loadgen = {"loadgen": {"ray": f"{ADDRESSES[0]}:{PORT}", "workers": 2}}
    process = sweep(hosts[0], folder, "--out", run, **loadgen)
    journal = run / "journal.jsonl"
    wait(lambda: journal.exists() and journal.read_text().count("round_begun") == 3, "no round began")
    time.sleep(1.5)  # a round takes 3 s
    end(marked(1, ray=True))
    begun = time.monotonic()
    text, _ = process.communicate(timeout=120)
    stored = [row for rows, _ in rounds_of(run) for row in rows]
    failed = [row for row in stored if row["status"] != "ok"]
    print(
        f"\nThe node was killed in the second of three rounds. {time.monotonic() - begun:.0f} s later exit code",
        end=" ",
    )
    print(f"{process.returncode}:\n\n    {text.strip().splitlines()[-1]}\n")
    print(
        f"Stored: {len(stored)} requests, {len(failed)} of them failed ({ {row['error_kind'] for row in failed} }),",
        end=" ",
    )
    print(f"in rounds { {row['round'] for row in failed} }.", end=" ")
    process = sweep(hosts[0], folder, "--out", run, "--resume", "--retry", "request_failed", **loadgen)
    process.communicate(timeout=120)
    rows = [row for rows, _ in rounds_of(run) for row in rows]
    good = sum(row["status"] == "ok" for row in rows)
    left = [p for p in marked() if "benchbench.senders.sending_process" in p.cmdline()]
    print(f"Resumed on what was left: exit code {process.returncode}, {good} of {len(rows)} requests good, ", end="")
    print(f"{len(left)} workers left.")


def main() -> None:
    """Print the table."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=("near", "far", "apart", "dies"))
    chosen = parser.parse_args().only or ("near", "far", "apart", "dies")
    printed = False
    with tempfile.TemporaryDirectory() as made:
        library, source = Path(made) / "shifted_clock.so", Path(__file__).with_name("shifted_clock.c")
        subprocess.run(["cc", "-std=c11", "-O2", "-shared", "-fPIC", "-o", library, source], check=True)  # noqa: S607
        for name in chosen:
            folder = Path(made) / name[0]  # short: Ray's sockets lie below it
            for place in ("0", "1"):
                (folder / place).mkdir(parents=True)
            with network(far=name == "far"):
                if name == "dies":
                    dies(folder)
                    continue
                row = clocks(name, folder, library)
            if not printed:
                print(f"| {' | '.join(row)} |\n|{'---|' * len(row)}")
                printed = True
            print(f"| {' | '.join(f'{v:.4g}' if isinstance(v, float) else str(v) for v in row.values())} |", flush=True)


if __name__ == "__main__":
    main()
