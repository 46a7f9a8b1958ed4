"""Workers as actors of a Ray cluster of two nodes on this host, one clock; what deaths cost.

One cluster, few sweeps: a node or an actor costs seconds of CPU. Two hosts are in `benchmarks/hosts.py`.
"""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from importlib.util import find_spec
from itertools import accumulate
from pathlib import Path
from secrets import token_hex
from tempfile import TemporaryDirectory
from types import ModuleType, SimpleNamespace
from typing import Any, NamedTuple
from urllib.request import urlopen

import psutil
import pytest
from driving import CARRIED_OUT, Sweeping, bench, records, sweeping, write_sweep

from benchbench.engines.simulator import SimulatorProcess
from benchbench.store.requests import round_facts
from benchbench.store.run_directory import RunDirectory

if find_spec("ray") is None:  # looked for, not imported: that alone is a second of CPU
    pytest.skip("Ray has no wheel for this platform or Python", allow_module_level=True)

# Neither what rescales clusters nor what shows logs: each is a process of its own that only costs.
CLUSTER = """
from ray.cluster_utils import Cluster
few = {"num_cpus": 0, "object_store_memory": 80_000_000, "node_ip_address": "127.0.0.1", "include_log_monitor": False}
cluster = Cluster(initialize_head=True, head_node_args={**few, "include_dashboard": False, "no_monitor": True})
cluster.add_node(**few)
print("ADDRESS", cluster.address, flush=True)
input()
"""
MODEL = {"law": {"kind": "fixed", "ttft_s": 0.2, "itl_s": 0.02}}


class RayCluster(NamedTuple):
    """A node is its raylet, the second one ours to kill."""

    address: str
    process: subprocess.Popen[str]

    @property
    def nodes(self) -> list[psutil.Process]:
        children = psutil.Process(self.process.pid).children()
        return sorted((child for child in children if child.name() == "raylet"), key=psutil.Process.create_time)

    def actors(self) -> list[list[psutil.Process]]:
        """Of each node the processes that have a worker of ours."""
        return [[worker.parent() for worker in workers] for workers in self.workers()]

    def workers(self) -> list[list[psutil.Process]]:
        found: list[list[psutil.Process]] = []
        for node in self.nodes:
            found.append([])
            for child in node.children(recursive=True):
                try:
                    if "benchbench.senders.sending_process" in child.cmdline():
                        found[-1].append(child)
                except psutil.Error:
                    continue
        return found


@pytest.fixture(scope="module")
def cluster() -> Iterator[RayCluster]:
    """Who reaches Ray runs code: it listens on the loopback interface, asks for a token, and is gone with its files."""
    with pytest.MonkeyPatch.context() as patch, ExitStack() as stack:
        patch.setenv("RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER", "0")  # says of any system: 127.0.0.1 is the host's address
        patch.setenv("RAY_AUTH_MODE", "token")
        patch.setenv("RAY_AUTH_TOKEN", token_hex(32))
        patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
        patch.setenv("RAY_TMPDIR", stack.enter_context(TemporaryDirectory()))
        words, pipe = [sys.executable, "-c", CLUSTER], subprocess.PIPE
        process = subprocess.Popen(words, stdin=pipe, stdout=pipe, stderr=subprocess.DEVNULL, text=True)
        stack.callback(process.communicate, "\n", timeout=60)
        assert process.stdout is not None
        yield RayCluster(next(line.split()[1] for line in process.stdout if line.startswith("ADDRESS")), process)


@pytest.fixture(scope="module")
def urls() -> Iterator[list[str]]:
    with SimulatorProcess(options=MODEL) as a, SimulatorProcess(options=MODEL) as b:
        yield [a.url, b.url]


@pytest.fixture(autouse=True)
def _in_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def until(holds: Callable[[], object], sweep: Sweeping | None = None) -> None:
    while not holds():
        assert sweep is None or sweep.process.poll() is None, sweep.end()
        time.sleep(0.02)


def begun() -> int:
    """Rounds that have begun, failed ones too."""
    journal = Path("run/journal.jsonl")
    return journal.read_text().count('"round_begun"') if journal.exists() else 0


def running(urls: list[str]) -> int:
    """Requests that the servers are at."""
    texts = [urlopen(f"{url}/metrics").read().decode() for url in urls]  # noqa: S310 - our own servers
    return sum(int(float(text.partition("num_requests_running{")[2].split()[1])) for text in texts)


def most_at_once(rows: list[dict[str, Any]], server: int) -> int:
    steps = [step for row in rows if row["target"] == server for step in ((row["sent_ns"], 1), (row["end_ns"], -1))]
    return max(accumulate(step for _, step in sorted(steps)))


def test_what_a_dead_actor_and_a_dead_driver_cost_and_that_the_run_is_whole_in_the_end(
    cluster: RayCluster, urls: list[str]
) -> None:
    spec = {
        "engine": {"kind": "endpoint", "url": urls, "routing": "pinned"},
        "grid": {"input": 8, "output": 20, "batch": 8},
        "load": {"kind": "closed", "requests": 16},
        "rounds": {"warmup": 0, "min": 3, "max": 3},
        "loadgen": {"ray": cluster.address, "workers": 2},
    }
    write_sweep(Path("s.yaml"), "", **spec)
    with sweeping("s.yaml", "--out", "run", "--no-plots") as sweep:
        until(lambda: begun() == 1 and running(urls) == 8, sweep)
        ((first,), (second,)) = cluster.actors()  # one a node
        second.kill()
        until(lambda: begun() == 3 and running(urls) == 8, sweep)
        ((same,), (other,)) = cluster.actors()
        assert same == first
        assert other != second
        sweep.process.kill()
        assert sweep.end()[0] == -signal.SIGKILL
        until(lambda: not sweep.descendants() and not any(cluster.workers()))
    rows = records(Path("run"))
    assert len(rows) == 32, "two rounds were over"
    failed = [row for row in rows if row["status"] != "ok"]
    first_of = min(row["index"] for row in failed)  # Ray's ids say which node's worker is the first
    assert first_of in {0, 2}
    assert [row["index"] - first_of for row in failed] == [0, 1, 4, 5, 8, 9, 12, 13], "one worker's"
    assert {(row["round"], row["error_kind"]) for row in failed} == {(0, "client")}
    assert all("the load generator on" in row["error_detail"] for row in failed)

    resumed = bench("sweep", "s.yaml", "--out", "run", "--no-plots", "--resume", "--retry", "request_failed")
    assert resumed.exit_code in CARRIED_OUT, resumed.output
    assert "2 processes send" in resumed.output
    until(lambda: not any(cluster.workers()))
    run = RunDirectory(Path("run"))
    (entry,) = run.manifest()["plan"]
    tables = list(run.read_cell(entry["key"]))
    assert len(tables) == 3
    for table in tables:
        rows, facts = table.to_pylist(), round_facts(table)
        made = [(row["index"], row["status"], len(row["event_ns"])) for row in rows]
        assert made == [(index, "ok", 20) for index in range(16)]
        assert [most_at_once(rows, server) for server in range(2)] == [4, 4]
        assert [clock["host"] for clock in facts["clocks"]] == [socket.gethostname()] * 2
        assert facts["clock_uncertainty_ns"] > 0
        for clock in facts["clocks"]:
            assert abs(clock["offset_ns"]) <= clock["uncertainty_ns"]  # one host, one clock


def test_the_environment_names_no_cluster(monkeypatch: pytest.MonkeyPatch) -> None:
    class Ray(ModuleType):
        def init(self, address: str, **_: object) -> None:
            raise ConnectionError(f"not {address} but {os.environ.get('RAY_ADDRESS')}")

    monkeypatch.setitem(sys.modules, "ray", Ray("ray"))  # the real one would find whatever cluster runs here
    monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:1")
    write_sweep(Path("s.yaml"), "http://127.0.0.1:1", loadgen={"ray": "auto", "workers": 2})
    done = bench("sweep", "s.yaml", "--no-plots", "--out", "run")
    assert done.exit_code == 2
    assert "s.yaml:21: loadgen.ray: no Ray cluster at auto: not auto but None (start one" in done.output


def test_no_cluster_is_one_clear_error() -> None:
    write_sweep(Path("s.yaml"), "http://127.0.0.1:1", loadgen={"ray": "127.0.0.1:1", "workers": 2})
    done = bench("sweep", "s.yaml", "--no-plots", "--out", "run")
    assert done.exit_code == 2
    assert "s.yaml:21: loadgen.ray: no Ray cluster at 127.0.0.1:1" in done.output


def test_rays_own_reading_of_a_loopback_address_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    """It looks at the host's address instead, and would do so for minutes."""
    ray: Any = ModuleType("ray")
    ray.util = SimpleNamespace(get_node_ip_address=lambda: "127.0.0.3")
    monkeypatch.setitem(sys.modules, "ray", ray)
    with socket.create_server(("127.0.0.1", 0)) as cluster:
        port = cluster.getsockname()[1]
        write_sweep(Path("s.yaml"), "http://127.0.0.1:1", loadgen={"ray": f"127.0.0.1:{port}", "workers": 2})
        done = bench("sweep", "s.yaml", "--no-plots", "--out", "run")
    assert done.exit_code == 2
    told = (
        f"no Ray cluster at 127.0.0.1:{port}: 127.0.0.3, where Ray looks instead, does not answer: Connection refused"
    )
    assert told in done.output
