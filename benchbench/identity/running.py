"""What is known of an engine that runs: of one that ran before us it can be found out while other things begin."""

from __future__ import annotations

import contextlib
import multiprocessing
import signal
import sys
import threading
from collections.abc import Iterator
from multiprocessing.connection import Connection as Pipe
from typing import Any

from benchbench.host.engine_provenance import side_of
from benchbench.identity.loaded_code import loaded_code
from benchbench.spec import Engine

Known = tuple[dict[str, Any], dict[str, Any]]  # as `side_of` and `loaded_code` give it


class _Look:
    """A look at an engine, in a process of its own, from now on.

    A thread would be in our way: it and what we import would wait for each other at every file that is read (0.05 s).
    The process is a fork, which has all that it needs imported; hence only where no other thread may hold a lock.
    """

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        context = multiprocessing.get_context("fork")
        self._pipe, theirs = context.Pipe(duplex=False)
        self._process = context.Process(target=_look, args=(engine, theirs), daemon=True)
        self._process.start()
        theirs.close()

    def known(self) -> Known | None:
        """What was found out, waited for, if that went well."""
        try:
            known: Known | None = self._pipe.recv()
        except (EOFError, OSError):  # it comes again, and is told, where there is nobody else to look
            known = None
        self.end()
        return known

    def end(self) -> None:
        """End the process, whatever it is at."""
        self._process.kill()
        self._process.join()
        self._pipe.close()


def _look(engine: Engine, pipe: Pipe[Known, None]) -> None:
    """The process's life."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the sweep, which ends us
    with contextlib.suppress(Exception):
        pipe.send(known_now(engine))


_begun: list[_Look] = []


@contextlib.contextmanager
def looking_at(engine: Engine) -> Iterator[None]:
    """Begin to find out what `known_once` will be asked for in the block, where a process can be forked for it."""
    if sys.platform == "linux" and threading.active_count() == 1:
        _begun.append(_Look(engine))
    try:
        yield
    finally:
        while _begun:
            _begun.pop().end()


def known_once(engine: Engine, pid: int | None) -> Known:
    """The environment of an engine, and the code it has loaded; `pid` is its process, where we have launched one.

    A look that was begun for it counts once, for its start that comes next. Nothing of it is left when rounds begin.
    """
    known = None
    while _begun:
        look = _begun.pop()
        if pid is None and look.engine == engine:
            known = look.known()
        else:
            look.end()
    return known or known_now(engine, pid)


def known_now(engine: Engine, pid: int | None = None) -> Known:
    """The same, found out now."""
    side = side_of(engine, pid)
    return side, loaded_code(side.get("pid"))
