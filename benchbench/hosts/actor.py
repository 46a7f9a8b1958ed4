"""What runs on each host: a Ray actor that has a worker of its own, the same process as on one host.

The actor only hands on messages. That sending and receiving stay in a process without Ray keeps its threads out of it.
"""

from __future__ import annotations

import socket
import time
from dataclasses import replace
from typing import Any

from benchbench.errors import WorkerDiedError
from benchbench.loadgen.job import RoundJob
from benchbench.openai.target import Target
from benchbench.senders.http_worker import HttpWorker
from benchbench.spool.flat import hear
from benchbench.version import __version__

# Ray keeps large arguments in shared memory, and on disk when that is full; small ones go from process to process only.
# So a job leaves without its secrets, which go beside it. What stands for them is no UTF-8, so no request holds it.


def _mark(number: int) -> bytes:
    return bytes((0xFF, 0x80 + number, 0xFF))


def parted(job: RoundJob) -> tuple[RoundJob, tuple[Target, ...], list[str]]:
    """A job without its targets and its secrets, and both."""
    secrets = sorted(filter(None, job.secrets), key=len, reverse=True)
    payloads = job.payloads
    for number, secret in enumerate(secrets):
        payloads = [payload.replace(secret.encode(), _mark(number)) for payload in payloads]
    return replace(job, payloads=payloads, targets=()), job.targets, secrets


def joined(job: RoundJob, targets: tuple[Target, ...], secrets: list[str]) -> RoundJob:
    """The job as it was before `parted`."""
    payloads = job.payloads
    for number, secret in enumerate(secrets):
        payloads = [payload.replace(_mark(number), secret.encode()) for payload in payloads]
    return replace(job, payloads=payloads, targets=targets)


class HostActor:
    """Methods are called through Ray: `send` and `drive` in order, `receive` beside them."""

    def __init__(self) -> None:
        self._worker = HttpWorker()

    def about(self) -> tuple[str, str]:
        """The host's name and our version there."""
        return socket.gethostname(), __version__

    def clock(self) -> int:
        """The clock that kernel stamps are of."""
        return time.time_ns()

    def drive(self, job: RoundJob, targets: tuple[Target, ...], secrets: list[str]) -> None:
        self._worker.send(joined(job, targets, secrets))

    def send(self, message: object) -> None:
        self._worker.send(message)

    def receive(self) -> Any:  # noqa: ANN401 - whatever the worker sends
        """The worker's next message. Raises WorkerDiedError."""
        try:
            return hear(self._worker.pipe)
        except (EOFError, OSError):
            raise WorkerDiedError(self._worker.end()) from None
