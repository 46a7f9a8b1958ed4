"""SIGINT and SIGTERM as a readable descriptor, so that a sweep ends where nothing is half done."""

from __future__ import annotations

import os
import signal
from types import FrameType
from typing import Any, Self

_CODES = {signal.SIGINT: 130, signal.SIGTERM: 143, signal.SIGHUP: 129}


class Stop:
    """While active, the first signal makes `fd` readable and sets `code`; a second one raises KeyboardInterrupt."""

    def __init__(self) -> None:
        self.fd, self._write = os.pipe()
        self.code = 130
        self._caught_once = False
        self._before: dict[signal.Signals, Any] = {}

    def check(self) -> None:
        """Raise KeyboardInterrupt if the signal has come: for where nothing has begun that `fd` would stop."""
        if self._caught_once:
            raise KeyboardInterrupt

    def __enter__(self) -> Self:
        for number in _CODES:
            self._before[number] = signal.signal(number, self._caught)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        os.close(self.fd)
        os.close(self._write)

    def _caught(self, number: int, _frame: FrameType | None) -> None:
        self.code = _CODES[signal.Signals(number)]
        if self._caught_once:
            raise KeyboardInterrupt
        self._caught_once = True
        os.write(self._write, b"x")
