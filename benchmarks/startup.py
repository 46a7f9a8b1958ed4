"""What `bench sweep` costs besides its load: one cell against a server that runs already; Markdown on stdout.

The server is the simulator in a process of its own. Of each sweep:

- to the table: from the start of the process until the table is on stdout, less the time its rounds ran
- to the end: until the process has ended, less the same
- CPU: user and system time of the process and all it has waited for: load generator, pictures; less what the load
  generator used in rounds

Medians of --repeats, with and without plots taken in turns. A Python that imports numpy alone is measured beside them:
the ratios to it are what can be compared between machines.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from math import isnan
from pathlib import Path
from statistics import median
from typing import NamedTuple

from benchbench.engines.simulator import SimulatorProcess
from benchbench.store.requests import round_facts
from benchbench.store.run_directory import RunDirectory

INVALID = 3  # a busy machine spoils rounds, not what is measured here
BENCH = (sys.executable, "-c", "from benchbench.cli.entry import run; run()")
SWEEP = """
name: startup
model: sim
engine: {{kind: endpoint, url: "{url}"}}
grid: {{input: 128, output: 32, batch: 4}}
rounds: {{warmup: auto, min: 3, max: 3}}
prompts: {{kind: token_ids, vocab: [1000, 60000]}}
"""


class Cost(NamedTuple):
    """Seconds: of wall until the table (NaN where none is printed) and the end, and of CPU in all processes."""

    table_s: float
    wall_s: float
    cpu_s: float


def process(words: Sequence[str], folder: Path, shown: str = "") -> Cost:
    """What a command costs, the load included. `shown`: how the line begins that is waited for."""
    start, table_s = time.monotonic(), float("nan")
    with subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, cwd=folder, text=True) as child:
        for line in child.stdout or ():
            if shown and line.startswith(shown):
                table_s = time.monotonic() - start
        _, status, used = os.wait4(child.pid, 0)
        child.returncode = os.waitstatus_to_exitcode(status)
    if child.returncode not in {0, INVALID}:
        raise SystemExit(f"{' '.join(words)}: exit {child.returncode}")
    return Cost(table_s, time.monotonic() - start, used.ru_utime + used.ru_stime)


def sweep(url: str, *options: str) -> Cost:
    """What a sweep of one cell costs beyond its rounds."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "sweep.yaml").write_text(SWEEP.format(url=url))
        words = (*BENCH, "sweep", "sweep.yaml", "--out", "run", *options)
        cost = process(words, folder, "| Input")
        run, wall_ns, cpu_ns = RunDirectory(folder / "run"), 0, 0
        (key,) = [entry["key"] for entry in run.manifest()["plan"]]
        for phase in ("warmup", "measured"):
            for number in run.finished_rounds(key, phase):
                facts = round_facts(run.read_round(key, phase, number))
                wall_ns, cpu_ns = wall_ns + facts["wall_ns"], cpu_ns + facts["cpu_ns"]
    return Cost(cost.table_s - wall_ns / 1e9, cost.wall_s - wall_ns / 1e9, cost.cpu_s - cpu_ns / 1e9)


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=5)
    repeats = parser.parse_args().repeats
    kinds = {"python, numpy": (), "sweep --no-plots": ("--no-plots",), "sweep": ("--plots",)}
    costs: dict[str, list[Cost]] = {name: [] for name in kinds}
    with SimulatorProcess("fixed") as server:
        for repeat in range(repeats + 1):
            for name, options in kinds.items():
                bare = (sys.executable, "-c", "import numpy")
                cost = sweep(server.url, *options) if options else process(bare, Path.cwd())
                if repeat:  # the first fills the page cache
                    costs[name].append(cost)
    base = median(cost.cpu_s for cost in costs["python, numpy"])
    print("| | to the table, s | to the end, s | CPU, s | CPU, times python + numpy |\n|---|---|---|---|---|")
    for name, measured in costs.items():
        table_s, wall_s, cpu_s = (median(column) for column in zip(*measured, strict=True))
        table = "-" if isnan(table_s) else f"{table_s:.2f}"
        print(f"| {name} | {table} | {wall_s:.2f} | {cpu_s:.2f} | {cpu_s / base:.1f} |")


if __name__ == "__main__":
    main()
