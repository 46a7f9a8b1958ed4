"""The simulator's process, as `SimulatorProcess` starts it: one line of JSON in (profile, models, port, parent_pid),
one line out (its URL, once it listens). It ends with its parent: by the kernel's signal, and when its input ends.
The profile is valid, as the parent has dumped it, and is read by its names alone: a start imports no pydantic.
"""

from __future__ import annotations

import json
import os
import sys
import threading
from types import SimpleNamespace

from benchbench import linux
from benchbench.engines.simulator.server import Server


def main() -> None:
    config = json.loads(sys.stdin.readline(), object_hook=lambda part: SimpleNamespace(**part))
    linux.die_with_parent(config.parent_pid)
    server = Server(config.profile, config.models, config.port)
    threading.Thread(target=_end_with_input, daemon=True).start()
    sys.stdout.write(f"{server.url}\n")
    sys.stdout.flush()
    server.run()


def _end_with_input() -> None:
    os.read(sys.stdin.fileno(), 1)
    os._exit(0)


if __name__ == "__main__":
    main()
