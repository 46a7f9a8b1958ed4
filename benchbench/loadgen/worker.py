"""What drives rounds, as main holds it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Self

from benchbench.loadgen.job import Job
from benchbench.store.requests import RoundColumns

Watch = tuple[int, Callable[[], str | None]]


class Worker:
    """Main's handle of what drives rounds, over HTTP or of its own engine: a process or several. A context manager.

    `watch`: a descriptor that is readable when something happened to the engine, and the question why it is gone (None
    while it lives): then what is not finished of a round fails for that reason.
    """

    watch: Watch | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """End the process and wait for it."""
        raise NotImplementedError

    def run(self, job: Job, stop: int | None = None) -> tuple[RoundColumns, dict[str, Any]]:
        """Drive one round. When `stop` (a descriptor) becomes readable, the round is cancelled (`facts.cancelled`).

        Raises WorkerDiedError when the process is gone, failed or does not answer.
        """
        raise NotImplementedError
