"""Workers as actors of a Ray cluster on this host: records as of a group, and clocks whose true offset is zero."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from driving import bench, records, write_sweep

from benchbench.engines.simulator import SimulatorProcess
from benchbench.store.requests import round_facts
from benchbench.store.run_directory import RunDirectory

pytest.importorskip("ray", reason="Ray is no part of the tools of the check: pip install '.[ray]'")

CLUSTER = """
import ray
print("ADDRESS", ray.init(num_cpus=2, include_dashboard=False).address_info["gcs_address"], flush=True)
input()
"""


@pytest.fixture
def cluster(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
    words = [sys.executable, "-c", CLUSTER]
    with subprocess.Popen(
        words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    ) as process:
        assert process.stdout is not None
        yield next(line.split()[1] for line in process.stdout if line.startswith("ADDRESS"))
        process.communicate("\n", timeout=60)


def test_a_sweep_over_actors(cluster: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    before = {child.pid for child in psutil.Process().children(recursive=True)}  # the cluster's among them
    grid, rounds = {"input": 8, "output": 50, "batch": 5}, {"warmup": 0, "min": 2, "max": 2}
    with SimulatorProcess("fixed") as server:
        write_sweep(Path("s.yaml"), server.url, grid=grid, rounds=rounds, loadgen={"ray": cluster, "workers": 2})
        done = bench("sweep", "s.yaml", "--no-plots", "--out", "run")
    assert done.exit_code in {0, 3}, done.output
    assert "2 processes send" in done.output
    rows = records(Path("run"))
    assert [row["status"] for row in rows] == ["ok"] * 10
    assert {len(row["event_ns"]) for row in rows} == {50}
    run = RunDirectory(Path("run"))
    (key,) = [entry["key"] for entry in run.manifest()["plan"]]
    for number in range(2):
        facts = round_facts(run.read_round(key, "measured", number))
        assert len(facts["clocks"]) == 2
        assert facts["clock_uncertainty_ns"] > 0
        for clock in facts["clocks"]:
            assert abs(clock["offset_ns"]) <= clock["uncertainty_ns"]  # one host, one clock
    assert {child.pid for child in psutil.Process().children(recursive=True)} <= before


def test_the_environment_names_no_cluster(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:1")
    write_sweep(Path("s.yaml"), "http://127.0.0.1:1", loadgen={"ray": "auto", "workers": 2})
    done = bench("sweep", "s.yaml", "--no-plots", "--out", "run")
    assert done.exit_code != 0
    assert "127.0.0.1:1 (start" not in done.output
    assert "no Ray cluster at auto" in done.output or "Connection refused" in done.output


def test_no_cluster_is_one_clear_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    write_sweep(Path("s.yaml"), "http://127.0.0.1:1", loadgen={"ray": "127.0.0.1:1", "workers": 2})
    done = bench("sweep", "s.yaml", "--no-plots", "--out", "run")
    assert done.exit_code == 2
    assert "s.yaml:21: loadgen.ray: no Ray cluster at 127.0.0.1:1" in done.output
