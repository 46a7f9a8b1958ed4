"""`bench sim`: the simulator by hand, in the foreground."""

from __future__ import annotations

import signal
from collections.abc import Sequence
from types import FrameType

from benchbench.cli.console import show


def serve_simulator(profile: str, port: int, scale: float, models: Sequence[str], options: Sequence[str]) -> None:
    """Serve until SIGINT or SIGTERM. Raises ProfileError, SpecError (options) and OSError (port)."""
    from benchbench.engines.simulator.profiles import load_profile, scaled
    from benchbench.engines.simulator.server import Server
    from benchbench.spec import SpecError
    from benchbench.yamlfile.yaml_document import Document

    changes = Document("--set", {})
    for option in options:
        changes.put(option)
    if changes.problems:
        raise SpecError(changes.problems)
    server = Server(scaled(load_profile(profile, changes.data), scale), models, port)

    def stop(_number: int, _frame: FrameType | None) -> None:
        raise SystemExit(0)

    signal.signal(signal.SIGTERM, stop)
    signal.signal(signal.SIGINT, stop)
    show(f"simulator, profile {profile}, at {server.url} serving {', '.join(models)}; Ctrl-C ends it")
    server.run()
