"""`python -m benchbench.engines.simulator [CONFIG]`: serve until told to stop.

CONFIG is JSON, as the argument or else the first line of standard input: profile (name or path), scale, port,
options, models, and parent_pid. One line of JSON on standard output says {"url", "pid"} once it listens. With
parent_pid the process ends when that parent does, or when standard input ends.
"""

from __future__ import annotations

import json
import signal
import sys
from types import FrameType
from typing import Any

from benchbench import kernel

KEYS = {"profile", "scale", "host", "port", "options", "models", "parent_pid"}


def main(arguments: list[str]) -> int:
    """Exit status: 0 when stopped, 2 for a configuration that cannot be used."""
    config = json.loads(arguments[0] if arguments else sys.stdin.readline() or "{}")
    parent_pid = config.get("parent_pid")
    if parent_pid is not None:
        kernel.die_with_parent(parent_pid)
    for signum in (signal.SIGTERM, signal.SIGINT):
        signal.signal(signum, _stop)
    return serve(config, lifeline=sys.stdin.fileno() if parent_pid is not None else None)


def serve(config: dict[str, Any], lifeline: int | None = None) -> int:
    import os
    import resource

    from benchbench.engines.simulator.profiles import ProfileError, load_profile, scaled
    from benchbench.engines.simulator.server import Server

    # One descriptor per stream: take all that we may have.
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    if unknown := sorted(config.keys() - KEYS):
        sys.stderr.write(f"unknown key {unknown[0]!r} (allowed: {', '.join(sorted(KEYS))})\n")
        return 2
    try:
        profile = scaled(load_profile(config.get("profile", "fixed"), config.get("options")), config.get("scale", 1.0))
        host, port = config.get("host", "127.0.0.1"), config.get("port", 0)
        server = Server(profile, config.get("models") or ["sim"], host, port)
    except (ProfileError, OSError) as error:
        sys.stderr.write(f"{error}\n")
        return 2
    sys.stdout.write(json.dumps({"url": server.url, "pid": os.getpid()}) + "\n")
    sys.stdout.flush()
    try:
        server.run(lifeline)
    finally:
        server.close()
    return 0


def _stop(_signum: int, _frame: FrameType | None) -> None:
    raise SystemExit(0)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
