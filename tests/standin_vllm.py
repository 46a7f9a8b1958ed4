"""Stands in for `python -m vllm.entrypoints.openai.api_server`: takes its flags, forks ranks, serves the simulator."""

from __future__ import annotations

import argparse
import os
import subprocess
import sys

RANK = "import time; time.sleep(600)"


def main() -> None:
    parser = argparse.ArgumentParser(allow_abbrev=False)
    parser.add_argument("--model", required=True)
    parser.add_argument("--served-model-name")
    parser.add_argument("--host", required=True)
    parser.add_argument("--port", required=True)
    parser.add_argument("--tensor-parallel-size", type=int, default=0)
    parser.add_argument("--option", action="append", default=[])
    parser.add_argument("--broken", help="say this and exit")
    given = parser.parse_args()
    print(  # noqa: T201
        f"standing in for vLLM on {given.host}:{given.port}; a secret: {os.environ.get('MY_TOKEN', '')}",
        flush=True,
    )
    if given.broken:
        sys.exit(given.broken)
    for rank in range(given.tensor_parallel_size):
        subprocess.Popen([f"VLLM::Worker_TP{rank}", "-c", RANK], executable=sys.executable)
    words = ["sim", "--port", given.port, "--model", given.served_model_name or given.model]
    options = [word for option in given.option for word in ("--option", option)]
    os.execv(sys.executable, [sys.executable, "-m", "benchbench.cli.main", *words, *options])  # noqa: S606 - no shell is meant


if __name__ == "__main__":
    main()
