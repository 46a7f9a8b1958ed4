"""The process that decodes a long round when it is over, so that no memory of it is the sending process's.

Run as `python -m benchbench.spool.collector FD FILE PARENT_PID`. While a round runs it sleeps: one that reads the file
holds locks of the file system, for long at a low priority, on which the one who writes would wait. It dies with its
parent: by the kernel's signal, and at the end of file of its pipe.
"""

from __future__ import annotations

import gc
import os
import sys
from collections.abc import Iterator
from itertools import groupby
from multiprocessing.connection import Connection as Pipe
from typing import Any

from benchbench.linux import die_with_parent
from benchbench.spool.flat import say
from benchbench.spool.gathering import Gathering
from benchbench.spool.slices import READS, Slice, ended_in, reads_in, slices

TOGETHER = 1 << 20  # bytes of slices that are decoded at once


def gathered(fd: int, size: int, *, exact: bool, secrets: frozenset[str]) -> dict[str, Any]:
    """The columns of the round whose slices are the file's first `size` bytes."""
    gathering, place = Gathering(exact=exact, secrets=secrets), 0
    while place < size:
        batch = list(_first(slices(fd, place, size)))
        for is_reads, group in groupby(batch, lambda part: part.kind == READS):
            if is_reads:
                gathering.add([reads_in(fd, part) for part in group])
                continue
            for part in group:
                gathering.end(ended_in(fd, part))
        place = batch[-1].end
    return gathering.columns()


def _first(every: Iterator[Slice]) -> Iterator[Slice]:
    """So many that they are TOGETHER, one at least."""
    begin = None
    for part in every:
        begin = part.begin if begin is None else begin
        yield part
        if part.end - begin > TOGETHER:
            return


def main(fd: int, file: int, parent: int) -> None:
    """Round in, columns out, until the pipe ends."""
    die_with_parent(parent)
    os.nice(10)  # other workers may still send
    pipe: Pipe[Any, Any] = Pipe(fd)
    gc.freeze()
    try:
        pipe.send("ready")
        while True:
            size, exact, secrets = pipe.recv()
            try:
                say(pipe, gathered(file, size, exact=exact, secrets=secrets), {})
            except BrokenPipeError:
                return
            except Exception as error:  # noqa: BLE001 - the sender reports it; without a reply it would wait for ever
                pipe.send(RuntimeError(f"{type(error).__name__}: {error}"))
    except (EOFError, OSError):
        return


if __name__ == "__main__":
    main(*map(int, sys.argv[1:4]))
