"""What a bench command costs, in a process of its own: for the scripts beside this one."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

CARRIED_OUT = {0, 3}  # 3: no cell is valid, as on a busy machine
CALL = """
import json, resource, sys, time
begun = time.monotonic()
from benchbench.cli.main import main
try:
    main(sys.argv[2:], prog_name="bench")
finally:
    used = resource.getrusage(resource.RUSAGE_SELF)
    most = next(line.split()[1] for line in open("/proc/self/status") if line.startswith("VmHWM"))
    cost = [used.ru_utime + used.ru_stime, time.monotonic() - begun, int(most) / 1024]
    open(sys.argv[1], "w").write(json.dumps(cost))
"""


class Cost(NamedTuple):
    """Of one command: s of CPU and of wall, MB at most."""

    cpu_s: float
    wall_s: float
    peak_mb: float


def call(words: Sequence[str], folder: Path) -> Cost:
    """What a command costs."""
    cost = folder / "cost.json"
    with (folder / "out").open("w") as out:
        done = subprocess.run(
            [sys.executable, "-c", CALL, cost, *words], cwd=folder, stdout=out, stderr=out, check=False
        )
    if done.returncode not in CARRIED_OUT:
        raise SystemExit(f"bench {' '.join(words)}: exit {done.returncode}: {(folder / 'out').read_text()[-500:]}")
    return Cost(*json.loads(cost.read_text()))
