"""Stands in for `python -m vllm.entrypoints.openai.api_server`: takes its flags, forks ranks, serves the simulator."""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
from types import FrameType, SimpleNamespace

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
    serve(int(given.port), given.served_model_name or given.model, given.option)


def serve(port: int, model: str, options: list[str]) -> None:
    """`bench sim`, but for what validates a profile: that takes longer than all else of a start."""
    from benchbench.engines.simulator.server import Server

    profile = json.loads(os.environ["STANDIN_PROFILE"])  # by `driving`
    for option in options:
        names, _, value = option.partition("=")
        *parts, last = names.split(".")
        part = profile
        for name in parts:
            part = part[name]
        part[last] = json.loads(value)
    valid = json.loads(json.dumps(profile), object_hook=lambda found: SimpleNamespace(**found))

    def stop(_number: int, _frame: FrameType | None) -> None:
        raise SystemExit(0)

    signal.signal(signal.SIGTERM, stop)
    signal.signal(signal.SIGINT, stop)
    Server(valid, [model], port).run()


if __name__ == "__main__":
    main()
