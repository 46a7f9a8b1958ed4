"""What an engine's processes hold, and whether they are gone: process trees, and shared memory under /dev/shm."""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Iterable
from pathlib import Path

import psutil

SHARED_MEMORY = "/dev/shm"  # noqa: S108 - where Linux keeps POSIX shared memory; elsewhere there is no such folder

_TRACKER = re.compile(r"from \S*resource_tracker import main")


def living(processes: Iterable[psutil.Process]) -> list[psutil.Process]:
    """Those that still run: not ended, not waiting to be reaped."""
    members = []
    for process in processes:
        with contextlib.suppress(psutil.Error):
            if process.is_running() and process.status() != psutil.STATUS_ZOMBIE:
                members.append(process)
    return members


def words(process: psutil.Process) -> list[str]:
    """Its command line, after which its name; what cannot be read is left out."""
    command: list[str] = []
    with contextlib.suppress(psutil.Error):
        command += process.cmdline()
    with contextlib.suppress(psutil.Error):
        command.append(process.name())
    return command


def in_session(process: psutil.Process, leader: int) -> bool:
    """Whether it is in the session that the process `leader` began; children are, unless they began their own."""
    try:
        return os.getsid(process.pid) == leader
    except OSError:
        return False


def is_tracker(process: psutil.Process) -> bool:
    """Whether it is Python's resource tracker: it unlinks shared memory when all others of its tree are gone."""
    return any(_TRACKER.match(word) for word in words(process))


def shared_memory() -> set[str]:
    """The segments that there are: files directly in /dev/shm."""
    try:
        return {entry.path for entry in os.scandir(SHARED_MEMORY) if entry.is_file(follow_symlinks=False)}
    except OSError:
        return set()


def segments(processes: Iterable[psutil.Process]) -> set[str]:
    """Of the segments that there are, those that these processes have mapped or open."""
    there, held = shared_memory(), set[str]()
    for process in processes if there else ():
        folder = Path("/proc", str(process.pid))
        with contextlib.suppress(OSError), (folder / "maps").open(encoding="utf-8", errors="replace") as lines:
            held.update(line[line.index("/") :].rstrip("\n") for line in lines if SHARED_MEMORY in line)
        with contextlib.suppress(OSError):
            for descriptor in (folder / "fd").iterdir():
                with contextlib.suppress(OSError):
                    held.add(str(descriptor.readlink()))
    return there & held


def unlink_unheld(paths: Iterable[str]) -> None:
    """Unlink these segments, but none that some process still has."""
    left = shared_memory() & set(paths)
    for path in left - segments(psutil.process_iter()) if left else ():
        with contextlib.suppress(OSError):
            Path(path).unlink()
