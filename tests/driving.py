"""Drives `bench` as its user does, in this process where that is enough: its output, exit code and run directory."""

from __future__ import annotations

import os
import subprocess
import sys
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil
import pyarrow.parquet as pq
import yaml
from click.testing import CliRunner, Result
from servers import ScriptedServer

from benchbench.cli.main import main
from benchbench.engines.simulator import load_profile

BENCH = [sys.executable, "-m", "benchbench.cli.main"]
os.environ["STANDIN_PROFILE"] = load_profile("fixed").model_dump_json()  # for standin_vllm.py
CARRIED_OUT = (0, 3)  # 3: on a machine so busy that no cell is valid


def bench(*arguments: object) -> Result:
    """`bench ARGUMENTS` in this process: `exit_code`, `stdout`, `stderr`. Only SystemExit may leave it."""
    result = CliRunner().invoke(main, [str(one) for one in arguments], prog_name="bench")
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result


def read_terminal(ours: int) -> str:
    """What was drawn on a pseudo-terminal until nobody had its other side open; closes this one."""
    pieces = []
    while True:
        try:
            pieces.append(os.read(ours, 65_536))
        except OSError:  # the other side is closed
            break
    os.close(ours)
    return b"".join(pieces).decode().replace("\r\n", "\n")


def write_sweep(path: Path, url: str, **changes: Any) -> Path:
    """A sweep of one cell, one request and one round of an endpoint; `changes` replace whole sections."""
    data = {
        "name": "t",
        "model": "sim",
        "engine": {"kind": "endpoint", "url": url},
        "grid": {"input": 8, "output": 6, "batch": 1},
        "rounds": {"warmup": 0, "min": 1, "max": 1},
        "prompts": {"kind": "token_ids", "vocab": [1000, 30000]},
        "order": "as_written",
        **changes,
    }
    path.write_text(yaml.safe_dump(data, sort_keys=False))
    return path


def records(run: Path) -> list[dict[str, Any]]:
    """Every request on disk, in order of file and row."""
    return [row for path in sorted((run / "records").glob("*.parquet")) for row in pq.read_table(path).to_pylist()]


def summary(run: Path) -> list[dict[str, Any]]:
    """The rows of summary.parquet."""
    return list(pq.read_table(run / "summary.parquet").to_pylist())


class Sweeping:
    """`bench sweep` in a process of its own, marked in its environment so that its descendants can be found."""

    def __init__(
        self, *arguments: object, env: Mapping[str, str] | None = None, command: str = "sweep", **more: Any
    ) -> None:
        self.mark = uuid.uuid4().hex
        self.process = subprocess.Popen(
            [*BENCH, command, *map(str, arguments)],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env={**os.environ, **(env or {}), "BENCH_TEST_MARK": self.mark},
            **more,
        )

    def end(self, timeout: float = 60) -> tuple[int, str, str]:
        """Wait: exit code, stdout, stderr."""
        out, err = self.process.communicate(timeout=timeout)
        return self.process.returncode, out, err

    def descendants(self) -> list[psutil.Process]:
        """Living processes of this sweep except itself, also those that it has lost."""
        found = []
        for process in psutil.process_iter():
            try:
                marked = process.environ().get("BENCH_TEST_MARK") == self.mark
            except (psutil.Error, OSError):
                continue
            if marked and process.pid != self.process.pid:
                found.append(process)
        return found


@contextmanager
def sweeping(*arguments: object, **more: Any) -> Iterator[Sweeping]:
    """A sweep that is killed, if it still runs, when the block ends."""
    sweep = Sweeping(*arguments, **more)
    try:
        yield sweep
    finally:
        sweep.process.kill()
        sweep.process.communicate()


PATIENCE = {"connect_s": 1, "first_token_s": 0.3, "stall_s": 0.3}
LABEL = "in=8 out=6 batch=1"  # of write_sweep's cell


def run_impatiently(server: ScriptedServer, *arguments: object, **changes: Any) -> Any:
    """Sweep s.yaml against the server into the folder run."""
    write_sweep(Path("s.yaml"), server.url, **{"timeouts": PATIENCE, **changes})
    return bench("sweep", "s.yaml", "--out", "run", "--no-plots", *arguments)


def run_well(url: str, *arguments: object, out: str = "run", **changes: Any) -> Any:
    """Sweep s.yaml against `url` into `out`, which must be carried out."""
    write_sweep(Path("s.yaml"), url, **changes)
    result = bench("sweep", "s.yaml", "--out", out, "--no-plots", *arguments)
    assert result.exit_code in CARRIED_OUT, result.stderr
    return result
