"""What an engine's log says about why it ended. Pure."""

from __future__ import annotations

import re
from dataclasses import dataclass

_ANSI = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")
_PREFIX = re.compile(r"^\((?P<who>\w[\w-]*) pid=\d+\) ?")
_LOGGER = re.compile(r"^[A-Z]+ \d\d-\d\d \d\d:\d\d:\d\d \[[^\]]*\] ?")
_EXCEPTION = re.compile(r"^(?:\w+\.)*\w*(?:Error|Exception)\b(?:: .*)?$")


@dataclass(frozen=True, slots=True)
class Diagnosis:
    """`reason`: one line, empty if none was found; `key` of the sweep that may help; `lines`: the log's last words."""

    reason: str
    key: str
    lines: tuple[str, ...]


def diagnose(log: str, code: int | None) -> Diagnosis:  # noqa: ARG001
    """Find the likely reason."""
    plain = [_LOGGER.sub("", _PREFIX.sub("", _ANSI.sub("", line))).rstrip() for line in log.splitlines()]
    found = [line for line in plain if _EXCEPTION.match(line)]
    return Diagnosis(found[0] if found else "", "engine.args", tuple(line for line in plain if line)[-5:])
