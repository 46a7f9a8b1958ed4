"""Main's handle of the load generator's process, which is started, asked and ended here."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
from collections.abc import Iterator
from multiprocessing.connection import Connection as Pipe
from socket import socketpair

from benchbench.linux import may_raise_priority
from benchbench.senders.piped_worker import PipedWorker


class Sender(PipedWorker):
    """One of the workers that share a round, wherever it runs."""

    lead_ns = 20_000_000  # from all being ready to the start: time for each to hear of it

    def ready(self) -> None:
        """Wait until it has imported what it needs, so that no import falls into a round."""
        self._receive()

    def begin(self, start_ns: int) -> None:
        """Name the instant at which its share begins, on our clock."""
        self.send(start_ns)


_ahead: list[HttpWorker] = []


@contextlib.contextmanager
def worker_ahead() -> Iterator[None]:
    """A process is started before anybody knows what for, and imports while we do; the first of `new_worker` is it."""
    _ahead.append(HttpWorker())
    try:
        yield
    finally:
        end_ahead()


def end_ahead() -> None:
    """End the process that was started ahead, if it is not taken yet."""
    while _ahead:
        worker = _ahead.pop()
        worker.kill()
        worker.close()


def new_worker() -> HttpWorker:
    """Another process: that which was started ahead, if it is not taken yet."""
    return _ahead.pop() if _ahead else HttpWorker()


class HttpWorker(Sender):
    """A process of its own for rounds over HTTP."""

    def __init__(self) -> None:
        ours, theirs = socketpair()
        os.set_inheritable(theirs.fileno(), True)  # noqa: FBT003 - the library's signature
        # Ctrl-C is for the sweep, which then tells the worker: hence a process group of its own. Not a session of its
        # own: Linux shares the CPU out by sessions first (autogroup), and a busy server in another would get as much as
        # this whole process. Only a session whose priority may be raised is better than that.
        raised = may_raise_priority()
        words = map(str, (theirs.fileno(), os.getpid(), int(raised)))
        self._process = subprocess.Popen(
            [sys.executable, "-m", "benchbench.senders.sending_process", *words],
            pass_fds=[theirs.fileno()],
            env={"OPENBLAS_NUM_THREADS": "1"} | os.environ,  # numpy starts one a core else, and a round needs none
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            start_new_session=raised,
            process_group=None if raised else 0,
        )
        theirs.close()
        super().__init__(Pipe(ours.detach()))

    @property
    def pid(self) -> int:
        return self._process.pid

    def end(self, error: Exception | None = None) -> str:
        if error:
            return f"the load generator failed: {error!r}"
        text = self._process.stderr.read().decode(errors="replace").strip() if self._process.stderr else ""
        code = self._process.wait()
        last = text.splitlines()[-1] if text else "no message"
        return f"the load generator's process ended (exit {code}): {last}"

    def kill(self) -> None:
        """Do not wait for what it may be importing."""
        self._process.kill()

    def close(self) -> None:
        """End the process and wait for it: it leaves at the end of file of its pipe."""
        self.pipe.close()
        try:
            self._process.wait(5)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        if self._process.stderr:
            self._process.stderr.close()
