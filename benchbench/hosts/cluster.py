"""The Ray cluster of a sweep: attached to, never started, and left when the sweep ends."""

from __future__ import annotations

import contextlib
import logging
import os
import signal
from collections.abc import Iterator
from importlib import import_module
from typing import Any

from benchbench.errors import EngineError, WorkerDiedError
from benchbench.hosts.host_group import HostGroup
from benchbench.spec import Plan
from benchbench.version import __version__


@contextlib.contextmanager
def open_hosts(plan: Plan) -> Iterator[tuple[HostGroup, tuple[str, ...]]]:
    """Ready workers on the cluster's nodes for as long as the block runs, as one, and a note. Raises EngineError."""
    loadgen = plan.spec.loadgen
    ray = _attached(str(loadgen.ray))
    try:
        nodes = sorted(node["NodeID"] for node in ray.nodes() if node["Alive"])
        size = len(nodes) if loadgen.workers == "auto" else loadgen.workers
        with HostGroup(size, nodes) as group:
            try:
                versions = group.about()
            except WorkerDiedError as error:
                raise EngineError(str(error), "loadgen.ray") from None
            if other := {host: version for host, version in versions.items() if version != __version__}:
                raise EngineError(f"other versions than {__version__} of this program: {other}", "loadgen.ray")
            yield group, (f"{size} processes send, on {', '.join(versions)} (loadgen.ray)",)
    finally:
        ray.shutdown()


def _attached(address: str) -> Any:  # noqa: ANN401 - a module that may be missing
    # Before the import: nothing is sent home.
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    try:
        ray: Any = import_module("ray")
    except ImportError:
        raise EngineError("Ray is not installed here: pip install 'benchbench-llm[ray]'", "loadgen.ray") from None
    on_term = signal.getsignal(signal.SIGTERM)
    try:
        ray.init(address=address, log_to_driver=False, configure_logging=True, logging_level=logging.ERROR)
    except (OSError, RuntimeError, ValueError) as error:  # ConnectionError is an OSError
        text = str(error).strip().splitlines()
        raise EngineError(
            f"no Ray cluster at {address}: {text[0] if text else error!r} (start one: docs/hosts.md)", "loadgen.ray"
        ) from None
    finally:
        signal.signal(signal.SIGTERM, on_term)  # Ray takes it; a sweep ends by its own
    return ray
