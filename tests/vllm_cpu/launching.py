"""Sweeps of a real vLLM, and what they leave behind: every process, port and shared memory segment is noted."""

from __future__ import annotations

import contextlib
import json
import os
import re
import socket
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from itertools import product
from pathlib import Path
from typing import Any

import psutil
import yaml
from driving import Sweeping, records, sweeping

ROOT = Path(__file__).resolve().parents[2]
VENV = ROOT / ".venv-vllm"
PYTHON = VENV / "bin" / "python"
ENVIRONMENT = {"VLLM_CPU_KVCACHE_SPACE": 1, "VLLM_NO_USAGE_STATS": 1, "HF_HUB_OFFLINE": 1}
# vLLM names its processes by setproctitle, which writes over the environment that /proc shows, unless told not to.
KEEP_MARK = {"SPT_NOENV": "1"}
FLAGS = {
    "load-format": "dummy",
    "max-model-len": 4096,
    "enforce-eager": True,
    "enable-prompt-tokens-details": True,
    "enable-per-request-metrics": True,
}
GRID = {"input": [32, 256], "output": [8, 32], "batch": [1, 4]}
ROUNDS = {"warmup": 1, "min": 2, "max": 2}
PATIENCE_S = 900


def write_sweep(path: Path, model: Path, *, flags: dict[str, Any] | None = None, **changes: Any) -> Path:
    """A sweep of `model` by vllm_serve over GRID; `flags` are added to the server's, `changes` replace sections."""
    engine = {
        "kind": "vllm_serve",
        "venv": str(VENV),
        "args": {"model": str(model), **FLAGS, **(flags or {})},
        "env": ENVIRONMENT,
        **changes.pop("engine", {}),
    }
    data = {"name": "real", "model": "tiny", "engine": engine, "grid": GRID, "rounds": ROUNDS, **changes}
    path.write_text(yaml.safe_dump(data, sort_keys=False))
    return path


@dataclass
class Traces:
    """What a sweep's processes have been seen with."""

    processes: set[psutil.Process] = field(default_factory=set)
    ports: set[int] = field(default_factory=set)
    segments: set[Path] = field(default_factory=set)

    def look(self, sweep: Sweeping) -> None:
        """Note what there is at this moment."""
        self.processes |= {psutil.Process(sweep.process.pid), *sweep.descendants()}
        for process in self.processes:
            with contextlib.suppress(psutil.Error, OSError):
                held = Path(f"/proc/{process.pid}/maps").read_text()
                self.segments |= {Path(name) for name in re.findall(r" (/dev/shm/\S+)$", held, re.MULTILINE)}
                found = process.net_connections("tcp")
                self.ports |= {one.laddr.port for one in found if one.status == psutil.CONN_LISTEN}

    def left(self) -> list[str]:
        """Of all that was seen, what is there still."""
        return [
            *(str(process) for process in self.processes if process.is_running()),
            *(f"port {port}" for port in self.ports if _answers(port)),
            *(str(path) for path in self.segments if path.exists()),
        ]


def _answers(port: int) -> bool:
    with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=5):
        return True
    return False


@dataclass(frozen=True)
class Swept:
    """A sweep that has ended."""

    code: int
    out: str
    err: str
    run: Path
    traces: Traces

    @property
    def said(self) -> str:
        return f"exit {self.code}\n{self.out}\n{self.err}"

    def journal(self, event: str) -> list[dict[str, Any]]:
        return [line for line in read_journal(self.run) if line["event"] == event]


def read_journal(run: Path) -> list[dict[str, Any]]:
    """The journal so far; a line that is being written is left out."""
    path = run / "journal.jsonl"
    lines = path.read_text().splitlines(keepends=True) if path.exists() else []
    return [json.loads(line) for line in lines if line.endswith("\n")]


def carry_out(spec: Path, run: Path, *options: str, during: Callable[[Sweeping], bool] | None = None) -> Swept:
    """Sweep `spec` into `run` to its end, after which nothing of it may be left.

    `during` is called about twice a second until it says True.
    """
    traces, until = Traces(), time.monotonic() + PATIENCE_S
    with sweeping(spec, "--out", run, "--no-plots", *options, env=KEEP_MARK) as sweep:
        while sweep.process.poll() is None and time.monotonic() < until:
            traces.look(sweep)
            if during is not None and during(sweep):
                during = None
            time.sleep(0.5)
        assert sweep.process.poll() is not None, f"still running after {PATIENCE_S} s"
        swept = Swept(*sweep.end(), run, traces)
        traces.processes |= set(sweep.descendants())
    assert traces.left() == [], swept.said
    return swept


def measured(run: Path) -> list[dict[str, Any]]:
    """The records of the measured rounds."""
    return [row for row in records(run) if row["phase"] == "measured"]


def assert_exact(run: Path, grid: dict[str, list[int]] = GRID, rounds: int = ROUNDS["max"]) -> None:
    """Each cell of `grid` has its requests, none failed, with just the tokens asked for and each token's arrival."""
    rows = measured(run)
    counted = dict.fromkeys(product(grid["input"], grid["output"], grid["batch"]), 0)
    for row in rows:
        assert row["status"] == "ok", row
        assert (row["input_tokens"], row["output_tokens"]) == (row["input"], row["output"]), row
        assert sum(row["event_tokens"]) == row["output"], row
        assert len(row["event_ns"]) == len(row["event_tokens"]), row
        assert row["sent_ns"] <= row["event_ns"][0], row
        assert row["event_ns"] == sorted(row["event_ns"]), row
        counted[row["input"], row["output"], row["batch"]] += 1
    assert counted == {cell: rounds * cell[2] for cell in counted}


@contextlib.contextmanager
def serving(model: Path, log: Path) -> Iterator[str]:
    """The URL of a vLLM server that no sweep owns, ready to answer."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    flags = {"model": model, "served-model-name": "tiny", "host": "127.0.0.1", "port": port, **FLAGS}
    words = [word for name, value in flags.items() for word in (f"--{name}", value) if word is not True]
    command = map(str, [PYTHON, "-m", "vllm.entrypoints.openai.api_server", *words])
    environment = {**os.environ, **{name: str(value) for name, value in ENVIRONMENT.items()}}
    with log.open("wb") as file:
        process = psutil.Popen(list(command), stdout=file, stderr=file, env=environment, start_new_session=True)
    # Its engine spins on every core, which starves a client of a small machine unless it yields to others.
    with contextlib.suppress(OSError):
        Path(f"/proc/{process.pid}/autogroup").write_text("10")
    try:
        until = time.monotonic() + PATIENCE_S
        while not _answers(port):
            assert process.poll() is None, log.read_text()[-4000:]
            assert time.monotonic() < until, log.read_text()[-4000:]
            time.sleep(0.5)
        yield f"http://127.0.0.1:{port}"
    finally:
        family = [process, *process.children(recursive=True)]
        process.terminate()
        for one in psutil.wait_procs(family, timeout=60)[1]:
            one.kill()


def show(text: str) -> None:
    """Print beneath the test's name, as `make test-vllm` shows it."""
    sys.stdout.write(f"\n    {text}")
    sys.stdout.flush()
