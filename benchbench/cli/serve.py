"""`bench sim`: the simulator by hand, in the foreground."""

from __future__ import annotations

import signal
from collections.abc import Sequence
from types import FrameType
from typing import Any

import click
import yaml


def serve_simulator(profile: str, port: int, scale: float, models: Sequence[str], options: Sequence[str]) -> None:
    """Serve until SIGINT or SIGTERM. Raises ValueError (bad profile or option) and OSError (port)."""
    from benchbench.engines.simulator.profiles import load_profile, scaled
    from benchbench.engines.simulator.server import Server

    changes: dict[str, Any] = {}
    for option in options:
        key, equals, value = option.partition("=")
        if not equals:
            raise ValueError(f"--option {option}: is not KEY=VALUE")
        *parents, last = key.split(".")
        place = changes
        for parent in parents:
            place = place.setdefault(parent, {})
        try:
            place[last] = yaml.safe_load(value)
        except yaml.YAMLError:
            raise ValueError(f"--option {option}: the value is not YAML") from None
    server = Server(scaled(load_profile(profile, changes), scale), models, "127.0.0.1", port)

    def stop(_number: int, _frame: FrameType | None) -> None:
        raise SystemExit(0)

    signal.signal(signal.SIGTERM, stop)
    signal.signal(signal.SIGINT, stop)
    click.echo(f"simulator, profile {profile}, at {server.url} serving {', '.join(models)}; Ctrl-C ends it")
    try:
        server.run()
    finally:
        server.close()
