"""Sweeps that launch their engine: it is owned, restarted where it died, and nothing of it is left."""

from __future__ import annotations

import json
import os
import signal
import socket
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
from driving import CARRIED_OUT, Sweeping, bench, records, summary, sweeping, write_sweep

STANDIN = [sys.executable, str(Path(__file__).with_name("standin_vllm.py"))]
SLOW = {"option": "law.itl_s=0.02"}


@pytest.fixture(autouse=True)
def _in_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def engine(**keys: Any) -> dict[str, Any]:
    return {"kind": "vllm_serve", "command": STANDIN, "ready": {"timeout_s": 60}, **keys}


def server_of(sweep: Sweeping, name: str = "standin_vllm") -> psutil.Process:
    """The launched server's first process, once it serves; its ranks by their titles."""
    while sweep.process.poll() is None:
        for process in sweep.descendants():
            try:
                if name in " ".join(process.cmdline()):
                    return process
            except psutil.Error:
                continue
        time.sleep(0.05)
    raise AssertionError(sweep.end())


def wait_for(sweep: Sweeping, event: str) -> None:
    """Until the sweep into the folder run has journalled this; a sweep that has ended before is an error."""
    path = Path("run/journal.jsonl")
    while not path.exists() or f'"event":"{event}"' not in path.read_text():
        assert sweep.process.poll() is None, sweep.end()
        time.sleep(0.02)


@pytest.fixture
def port() -> Iterator[int]:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        number = free.getsockname()[1]
    yield number
    with socket.socket() as again:  # nobody listens there any more
        again.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        again.bind(("127.0.0.1", number))


def test_a_launched_server_is_measured_described_and_gone_afterwards(
    port: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MY_TOKEN", "hf_verysecret")
    sweep = write_sweep(Path("s.yaml"), "", engine=engine(port=port, args={"tensor-parallel-size": 2}))
    with sweeping(sweep, "--out", "run", "--no-plots") as running:
        code, out, err = running.end()
        assert code in CARRIED_OUT, err
        assert running.descendants() == []
    assert "| 8 | 6 | 1 |" in out
    assert {row["status"] for row in records(Path("run"))} == {"ok"}
    manifest = json.loads(Path("run/manifest.json").read_text())
    (start,) = manifest["starts"]
    assert start["argv"][-4:] == ["--host", "127.0.0.1", "--port", str(port)]
    side = manifest["engine_environment"]  # of its process, while it ran
    assert {"sim", str(port)} <= set(side["command"])
    assert side["packages"]["pytest"] == pytest.__version__
    said = Path("run", start["log"]).read_text()
    assert f"standing in for vLLM on 127.0.0.1:{port}; a secret: ***" in said
    assert "hf_verysecret" not in "".join(
        path.read_text() for path in Path("run").rglob("*") if path.suffix != ".parquet" and path.is_file()
    )


@pytest.mark.parametrize("victim", ["standin_vllm", "VLLM::Worker_TP1"])
def test_a_server_that_dies_in_mid_cell_costs_that_cell_and_is_started_again(victim: str) -> None:
    grid = {"input": 8, "output": [100, 6], "batch": 2}
    sweep = write_sweep(Path("s.yaml"), "", engine=engine(args={"tensor-parallel-size": 2, **SLOW}), grid=grid)
    with sweeping(sweep, "--out", "run", "--no-plots") as running:
        wait_for(running, "round_begun")
        time.sleep(0.3)
        server_of(running, victim).kill()
        code, _, err = running.end()
        assert code in CARRIED_OUT, err
        assert running.descendants() == []
    died, whole = summary(Path("run"))
    assert (died["status"], died["failed"]) == ("invalid", 2)
    assert "request_failed" in died["reasons"]
    assert (whole["failed"], whole["rounds"]) == (0, 1)
    failed = [row for row in records(Path("run")) if row["status"] == "failed"]
    assert len(failed) == 2
    assert all(
        str(signal.SIGKILL.value) in row["error_detail"] or "kill" in row["error_detail"].lower() for row in failed
    )
    assert len(json.loads(Path("run/manifest.json").read_text())["starts"]) == 2


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSTOP])
def test_a_rank_of_an_in_process_engine_that_is_lost_costs_its_cell_alone(number: signal.Signals) -> None:
    paths = {"PYTHONPATH": os.pathsep.join([str(Path(__file__).parent / "fake"), str(Path(__file__).parents[1])])}
    keys = {"python": sys.executable, "env": paths, "args": {"hf-overrides": {"ranks": 2}}}
    sweep = write_sweep(
        Path("s.yaml"),
        "",
        engine={"kind": "vllm_inprocess", **keys},
        grid={"input": 8, "output": [4000, 6], "batch": 2},
        timeouts={"stall_s": 0.5},
    )
    with sweeping(sweep, "--out", "run", "--no-plots") as running:
        wait_for(running, "round_begun")
        lost = server_of(running, "VLLM::Worker_TP1")
        segments = [Path("/dev/shm", f"fake_vllm_{process.pid}") for process in running.descendants()]  # noqa: S108
        assert sum(map(Path.exists, segments)) == 2
        time.sleep(0.3)
        os.kill(lost.pid, number)
        code, _, err = running.end()
        assert code in CARRIED_OUT, err
        assert running.descendants() == []
    assert not any(map(Path.exists, segments))
    died, whole = summary(Path("run"))
    assert (died["status"], died["reasons"], died["failed"]) == ("invalid", "request_failed", 2)
    assert (whole["failed"], whole["rounds"]) == (0, 1)
    failed = [row for row in records(Path("run")) if row["status"] == "failed"]
    kind, reason = "stall", "the engine hangs: no token for 0.5 s"
    if number == signal.SIGKILL:
        kind, reason = "stream", f"lost VLLM::Worker_TP1 (pid {lost.pid}), which was killed by SIGKILL"
    assert [(row["error_kind"], reason in row["error_detail"]) for row in failed] == [(kind, True)] * 2
    assert reason in err
    assert "nothing left to do" in bench("sweep", sweep, "--out", "run", "--no-plots", "--resume").stdout


def test_without_restarts_left_the_sweep_stops_and_can_be_resumed() -> None:
    grid = {"input": 8, "output": [100, 6], "batch": 2}
    sweep = write_sweep(Path("s.yaml"), "", engine=engine(args=SLOW, restarts=0), grid=grid)
    with sweeping(sweep, "--out", "run", "--no-plots") as running:
        wait_for(running, "round_begun")
        server_of(running).kill()
        code, _, err = running.end()
        assert code == 1
        assert "engine.restarts" in err
        assert "--resume" in err
    again = bench("sweep", "s.yaml", "--out", "run", "--no-plots", "--resume")
    assert again.exit_code in CARRIED_OUT, again.stderr
    assert [row["failed"] for row in summary(Path("run"))] == [2, 0]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
@pytest.mark.parametrize("when", ["starting", "measuring"])
def test_nothing_is_left_when_the_sweep_is_ended(number: signal.Signals, when: str, port: int) -> None:
    ready = {"timeout_s": 60, "path": "/health" if when == "measuring" else "/never"}
    grid = {"input": 8, "output": 200, "batch": 2}
    options = {"tensor-parallel-size": 3, **SLOW}
    sweep = write_sweep(Path("s.yaml"), "", engine=engine(args=options, ready=ready, port=port), grid=grid)
    with sweeping(sweep, "--out", "run", "--no-plots") as running:
        if when == "measuring":
            wait_for(running, "round_begun")
        server_of(running)
        os.kill(running.process.pid, number)
        code, _, _ = running.end()
        assert code == {signal.SIGINT: 130, signal.SIGTERM: 143, signal.SIGKILL: -9}[number]
        while running.descendants():
            time.sleep(0.05)


def test_a_server_that_cannot_start_says_why() -> None:
    sweep = write_sweep(Path("s.yaml"), "", engine=engine(args={"broken": "RuntimeError: the frobnicator is missing"}))
    result = bench("sweep", sweep, "--out", "run", "--no-plots")
    assert result.exit_code in {1, 2}
    assert "the frobnicator is missing" in result.stderr
    assert "Traceback" not in result.stderr


def test_one_file_on_two_kinds_of_engine_gives_runs_that_table_side_by_side() -> None:
    sweep = write_sweep(Path("s.yaml"), "", engine=engine(profile="fixed"))
    for kind in ("vllm_serve", "simulator"):
        result = bench("sweep", sweep, "--out", kind, "--no-plots", "--set", f"engine.kind={kind}")
        assert result.exit_code in CARRIED_OUT, result.stderr
    table = bench("table", "vllm_serve", "simulator", "--include-invalid").stdout
    assert [line.split("|")[1].strip() for line in table.splitlines() if line.startswith("| ")] == [
        "Variant",
        "vllm_serve",
        "simulator",
    ]
