"""What is known of an engine that runs: of one that ran before us it can be found out while other things begin."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator
from typing import Any

from benchbench.host.engine_provenance import side_of
from benchbench.identity.loaded_code import loaded_code
from benchbench.spec import Engine

Known = tuple[dict[str, Any], dict[str, Any]]  # as `side_of` and `loaded_code` give it


class _Look:
    """A look at an engine, in a thread of its own, from now on; `known` once that has ended, if it went well."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self.known: Known | None = None
        self.thread = threading.Thread(target=self._find_out, daemon=True)
        self.thread.start()

    def _find_out(self) -> None:
        with contextlib.suppress(Exception):  # it comes again, and is told, where there is nobody else to look
            self.known = known_now(self.engine)


_begun: list[_Look] = []


@contextlib.contextmanager
def looking_at(engine: Engine) -> Iterator[None]:
    """Begin to find out what `known_once` will be asked for in the block."""
    _begun.append(_Look(engine))
    try:
        yield
    finally:
        _begun.clear()


def known_once(engine: Engine, pid: int | None) -> Known:
    """The environment of an engine, and the code it has loaded; `pid` is its process, where we have launched one.

    A look that was begun for it counts once, for its start that comes next. Its end is waited for in any case: nothing
    of it is left when rounds begin.
    """
    known = None
    while _begun:
        look = _begun.pop()
        look.thread.join()
        known = look.known if pid is None and look.engine == engine else known
    return known or known_now(engine, pid)


def known_now(engine: Engine, pid: int | None = None) -> Known:
    """The same, found out now."""
    side = side_of(engine, pid)
    return side, loaded_code(side.get("pid"))
