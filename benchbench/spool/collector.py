"""The process that decodes a round while it runs: it reads the spool's file behind the one who writes it.

Run as `python -m benchbench.spool.collector FD FILE PARENT_PID`. It gets the CPU when nobody else wants it, and nobody
waits for it before the round is over. It dies with its parent: by the kernel's signal, and at the end of file of its
pipe.
"""

from __future__ import annotations

import gc
import os
import sys
from collections.abc import Iterator
from itertools import groupby
from multiprocessing.connection import Connection as Pipe
from typing import Any

from benchbench.linux import die_with_parent, punch, yield_to_others
from benchbench.spool.flat import say
from benchbench.spool.gathering import Gathering
from benchbench.spool.slices import READS, Slice, ended_in, reads_in, slices
from benchbench.spool.spool import FREED

LOOK_S = 0.2  # between two looks at a file that has not grown
TOGETHER = 1 << 20  # bytes of slices that are decoded at once


class Reader:
    """Follows one round's file."""

    def __init__(self, fd: int, gathering: Gathering) -> None:
        self._fd, self._gathering = fd, gathering
        self.place = self._freed = 0

    def read_on(self, size: int) -> None:
        """Take what the file's first `size` bytes hold of whole slices, a part of it at most."""
        batch = list(_first(slices(self._fd, self.place, size)))
        for is_reads, group in groupby(batch, lambda part: part.kind == READS):
            if is_reads:
                self._gathering.add([reads_in(self._fd, part) for part in group])
                continue
            for part in group:
                self._gathering.end(ended_in(self._fd, part))
        if batch:
            self.place = batch[-1].end
            needless = min(self.place, batch[-1].keep_from)
            if needless - self._freed >= FREED:
                punch(self._fd, self._freed, needless)
                self._freed = needless


def _first(every: Iterator[Slice]) -> Iterator[Slice]:
    """So many that they are TOGETHER, one at least."""
    begin = None
    for part in every:
        begin = part.begin if begin is None else begin
        yield part
        if part.end - begin > TOGETHER:
            return


def gathered(pipe: Pipe[Any, Any], fd: int, *, exact: bool, secrets: frozenset[str]) -> dict[str, Any]:
    """The columns of the round whose spool grows until its length comes through the pipe. Raises EOFError."""
    gathering = Gathering(exact=exact, secrets=secrets)
    reader, size = Reader(fd, gathering), None
    while size is None or reader.place < size:
        before = reader.place
        reader.read_on(os.fstat(fd).st_size if size is None else size)
        if size is None and pipe.poll(LOOK_S if reader.place == before else 0):
            size = pipe.recv()
    return gathering.columns()


def main(fd: int, file: int, parent: int) -> None:
    """Round in, columns out, until the pipe ends."""
    die_with_parent(parent)
    yield_to_others(19)
    pipe: Pipe[Any, Any] = Pipe(fd)
    gc.freeze()
    try:
        pipe.send("ready")
        while True:
            exact, secrets = pipe.recv()
            try:
                say(pipe, gathered(pipe, file, exact=exact, secrets=secrets), {})
            except (EOFError, BrokenPipeError):
                return
            except Exception as error:  # noqa: BLE001 - the sender reports it; without a reply it would wait for ever
                pipe.send(RuntimeError(f"{type(error).__name__}: {error}"))
    except (EOFError, OSError):
        return


if __name__ == "__main__":
    main(*map(int, sys.argv[1:4]))
