"""The sending process's side: slices of a long round go to a file without a name; another process decodes it later.

While a round runs nobody else touches the file, so that a slice is a copy into the kernel's memory and waits for none.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
from array import array
from bisect import bisect_left, bisect_right
from collections import Counter
from collections.abc import Sequence
from multiprocessing.connection import Connection as Pipe
from socket import socketpair
from typing import IO, Any

import numpy as np

from benchbench.loadgen.columns import all_ended
from benchbench.loadgen.exchange import Ended, Exchange, Log
from benchbench.loadgen.job import Job
from benchbench.loadgen.liveness import Liveness
from benchbench.spool.flat import hear, nameless_file
from benchbench.spool.slices import Slice, reads_in, slice_of, slice_of_ended, slices

SLICE, SLICE_ENDED = 128, 8  # reads and ended requests that are moved at once while a round runs,
LAST, LAST_ENDED = 4096, 512  # and after it,
SLICE_BYTES = 256 << 10  # and bytes at most
HELD_BYTES = 512 << 20  # a round that holds more is long, however few tokens it asked for
CROWD = 4096  # reads that stay, since checks look at the latest
PAUSE_S = 0.001  # an idle moment, as long as few more wait


class Collector:
    """The process that decodes what is in the file. Raises OSError when it cannot be started."""

    def __init__(self, file: IO[bytes]) -> None:
        ours, theirs = socketpair()
        words = map(str, (theirs.fileno(), file.fileno(), os.getpid()))
        self._process = subprocess.Popen(
            [sys.executable, "-m", "benchbench.spool.collector", *words],
            pass_fds=[theirs.fileno(), file.fileno()],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            process_group=0,
        )
        theirs.close()
        self.pipe: Pipe[Any, Any] = Pipe(ours.detach())
        with contextlib.suppress(AttributeError, OSError):  # CPUs that this process was kept from are the better ones
            if spare := os.sched_getaffinity(os.getppid()) - os.sched_getaffinity(0):
                os.sched_setaffinity(self._process.pid, spare)
        try:
            self.pipe.recv()  # it has imported what it needs
        except EOFError:
            raise OSError(f"the process that decodes did not start (exit {self.end()})") from None

    def end(self) -> int:
        """End it; returns its exit code."""
        self.pipe.close()
        self._process.kill()
        return self._process.wait()


class Spool:
    """`begin` a round, `move` and `check` while it runs, `finish` or `cancel` it (`loadgen.liveness.Spool`)."""

    def __init__(self) -> None:
        self._file: IO[bytes] | None = None
        self._collector: Collector | None = None
        self.size, self.crowd = 0, sys.maxsize

    def begin(self, job: Job) -> None:
        """A round that will be long has its file before it starts. Raises OSError."""
        self._job, self.size, self.crowd = job, 0, CROWD if job.is_long else sys.maxsize
        self._secrets = tuple(sorted(filter(None, (secret.encode() for secret in job.secrets)), key=len, reverse=True))
        self._place = 0  # in the file, where the next slice goes
        self._firsts, self._places = array("q"), array("q")  # of each slice of reads: its first one, where it begins
        self._ending: tuple[int, int] | None = None  # at that length of the log so many had ended
        if job.is_long:
            self._opened()

    def _opened(self) -> IO[bytes]:
        self._file = self._file or nameless_file()
        return self._file

    # -- while it runs

    def patience_s(self, log: Log) -> float:
        """How long nothing must come before a slice is moved: a ms is no pause between two tokens of a batch."""
        return PAUSE_S if len(log.reads) < 2 * self.crowd else 0.0

    def move(self, log: Log, liveness: Liveness, done: list[Exchange], *, is_idle: bool) -> None:
        """Move a slice of the log's first reads (some tens of us), and some of `done` whose reads are all moved.

        In an idle moment; is there never one, all the same, and the lag shows it. Raises OSError without room on disk.
        """
        if is_idle or len(log.reads) > 4 * self.crowd:
            if liveness.seen == log.base:
                liveness.update()
            self._move(log, min(SLICE, liveness.seen - log.base))
            for index in self._end(log, done):
                liveness.forget(index)

    def _end(self, log: Log, done: list[Exchange]) -> list[int]:
        if done and self._ending is None:
            self._ending = len(log), len(done)
        if self._ending is None or self._ending[0] > log.base:
            return []
        length, left = self._ending
        ended = done[: min(left, SLICE_ENDED)]
        del done[: len(ended)]
        self._ending = (length, left - len(ended)) if left > len(ended) else None
        self._write(slice_of_ended(self._records(ended)))
        return [exchange.index for exchange in ended]

    def check(self, liveness: Liveness) -> None:
        """Look whether this process holds too many bytes."""
        if liveness.received - self.size > HELD_BYTES:
            self.crowd = CROWD

    def _records(self, ended: Sequence[Exchange]) -> list[Ended]:
        return all_ended(ended, self._job)

    def _move(self, log: Log, count: int) -> None:
        while count > 1 and sum(map(len, log.reads[:count])) > SLICE_BYTES:
            count //= 2
        pieces = slice_of(log, count, self._secrets)
        place = self._place
        self._write(pieces)
        self._firsts.append(log.base)
        self._places.append(place)
        self.size += len(pieces[-1])
        log.drop(count, self)

    def _write(self, pieces: list[bytes]) -> None:
        size = sum(map(len, pieces))
        try:
            written, why = os.pwritev(self._opened().fileno(), pieces, self._place), "no room"
        except OSError as error:
            written, why = 0, str(error.strerror)
        if written != size:
            raise OSError(f"what the round receives cannot be written ({why}): TMPDIR says to which disk")
        self._place += size

    # -- what was moved, where it is needed again

    def reads_of(self, owner: int, start: int, end: int) -> list[bytes]:
        """An exchange's reads among those from place `start` to `end` of the log."""
        fd, reads = self._opened().fileno(), list[bytes]()
        for at in range(max(0, bisect_right(self._firsts, start) - 1), bisect_left(self._firsts, end)):
            own, first = reads_in(fd, self._slice(at)), self._firsts[at]
            reads += [own.reads[k] for k in np.flatnonzero(own.owners == owner).tolist() if start <= first + k < end]
        return reads

    def counts(self) -> Counter[int]:
        """How many reads each exchange has."""
        counts = Counter[int]()
        for at in range(len(self._places)):
            counts.update(reads_in(self._opened().fileno(), self._slice(at)).owners.tolist())
        return counts

    def _slice(self, at: int) -> Slice:
        return next(slices(self._opened().fileno(), self._places[at], self._place))

    # -- afterwards

    def finish(self, log: Log, exchanges: Sequence[Exchange]) -> dict[str, Any]:
        """The columns of the round: `log` and `exchanges` have what was not taken. Raises OSError and RuntimeError."""
        while log.reads:
            self._move(log, min(LAST, len(log.reads)))
        for first in range(0, len(exchanges), LAST_ENDED):
            self._write(slice_of_ended(self._records(exchanges[first : first + LAST_ENDED])))
        try:
            columns = self._gathered()
        except (EOFError, OSError):  # somebody has killed it; all is still in the file
            self._dismiss()
            columns = self._gathered()
        self.cancel()
        return columns

    def _gathered(self) -> dict[str, Any]:
        self._collector = self._collector or Collector(self._opened())
        self._collector.pipe.send((self._place, self._job.exact, self._job.secrets))
        reply = hear(self._collector.pipe)
        if isinstance(reply, Exception):
            raise RuntimeError(f"the process that decodes failed: {reply}")  # noqa: TRY004 - it is no mistake of ours
        columns: dict[str, Any] = reply[0]
        return columns

    def cancel(self) -> None:
        """Forget the round."""
        if self._file:
            os.ftruncate(self._file.fileno(), 0)

    def close(self) -> None:
        """End the other process, and drop the file."""
        self._dismiss()
        if self._file:
            self._file.close()

    def _dismiss(self) -> None:
        """End the other process."""
        if self._collector:
            self._collector.end()
            self._collector = None
