"""The Ray cluster of a sweep: attached to, never started, and left when the sweep ends."""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import socket
from collections.abc import Callable, Iterator
from importlib import import_module
from typing import Any

from benchbench.errors import EngineError, WorkerDiedError
from benchbench.host.engine_provenance import is_loopback
from benchbench.hosts.host_group import HostGroup
from benchbench.spec import Plan
from benchbench.version import __version__

REACH_S = 5.0


@contextlib.contextmanager
def open_hosts(plan: Plan) -> Iterator[tuple[HostGroup, tuple[str, ...]]]:
    """Ready workers on the cluster's nodes for as long as the block runs, as one, and a note. Raises EngineError."""
    loadgen = plan.spec.loadgen
    ray = _attached(str(loadgen.ray))
    try:
        nodes = sorted((node["NodeManagerHostname"], node["NodeID"]) for node in ray.nodes() if node["Alive"])
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
    # Before the import: nothing is sent home, and "auto" is this host's cluster, not one that the environment names.
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    os.environ.pop("RAY_ADDRESS", None)
    try:
        ray: Any = import_module("ray")
    except ImportError:
        raise EngineError("Ray is not installed here: pip install ray", "loadgen.ray") from None
    on_term = signal.getsignal(signal.SIGTERM)
    try:
        _reach(address, lambda: str(ray.util.get_node_ip_address()))
        ray.init(address=address, log_to_driver=False, configure_logging=True, logging_level=logging.ERROR)
    except (OSError, RuntimeError, ValueError) as error:  # ConnectionError is an OSError
        text = (str(error).strip() or repr(error)).splitlines()[0]
        raise EngineError(f"no Ray cluster at {address}: {text} (start one: docs/hosts.md)", "loadgen.ray") from None
    finally:
        signal.signal(signal.SIGTERM, on_term)  # Ray takes it; a sweep ends by its own
    return ray


def _reach(address: str, own: Callable[[], str]) -> None:
    """Raises OSError or ValueError where nobody listens: Ray itself tries for minutes, and then exits.

    At HOST:PORT, and for a host of the loopback at this host's `own` address, which Ray takes for it.
    """
    if address == "auto":
        return
    host, _, port = address.rpartition(":")
    socket.create_connection((host, int(port)), REACH_S).close()
    if is_loopback(host) and (instead := own()) != host:
        try:
            socket.create_connection((instead, int(port)), REACH_S).close()
        except OSError as error:
            text = error.strerror or error
            raise OSError(f"{instead}, where Ray looks instead, does not answer: {text}") from None
