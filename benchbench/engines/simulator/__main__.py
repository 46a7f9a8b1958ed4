"""The simulator's process, as `SimulatorProcess` starts it: one line of JSON in (profile, models, port, parent_pid),
one line out (its URL, once it listens). It ends with its parent: by the kernel's signal, and when its input ends.
"""

from __future__ import annotations

import json
import os
import sys
import threading

from benchbench import linux
from benchbench.engines.simulator.profiles import SimProfile
from benchbench.engines.simulator.server import Server


def main() -> None:
    config = json.loads(sys.stdin.readline())
    linux.die_with_parent(config["parent_pid"])
    server = Server(SimProfile.model_validate(config["profile"]), config["models"], config["port"])
    threading.Thread(target=_end_with_input, daemon=True).start()
    sys.stdout.write(f"{server.url}\n")
    sys.stdout.flush()
    server.run()


def _end_with_input() -> None:
    os.read(sys.stdin.fileno(), 1)
    os._exit(0)


if __name__ == "__main__":
    main()
