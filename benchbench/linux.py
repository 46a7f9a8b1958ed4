"""What we ask of the operating system: receive stamps, precise timers, children that die with us and orphans that stay.

Everything here is harmless where the platform lacks it (macOS): stamps become the clock at `recv`.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import re
import resource
import select
import signal
import socket
import struct
import sys
import time
from collections.abc import Callable
from pathlib import Path

# <linux/socket.h>; Python's socket module does not name it. The generic number holds on x86-64 and arm64.
SO_TIMESTAMPNS = 35
_TIMESPEC = struct.Struct("qq")
ANCILLARY = socket.CMSG_SPACE(_TIMESPEC.size) if sys.platform == "linux" else 0

RAISED_NICE = -10  # of the load generator's process: about nine times the CPU time of another busy one
_CAP_SYS_NICE = 23  # <linux/capability.h>
_CPU = re.compile(r"cpu\d")  # a line of /proc/stat; "cpu " is the sum of all
_PR_SET_PDEATHSIG = 1
_PR_SET_TIMERSLACK = 29
_PR_SET_CHILD_SUBREAPER = 36


def enable_stamps(sock: socket.socket) -> bool:
    """Ask for the kernel's receive time of each read; False where there is none (then use the clock at `recv`)."""
    if sys.platform != "linux":
        return False
    try:
        sock.setsockopt(socket.SOL_SOCKET, SO_TIMESTAMPNS, 1)
    except OSError:
        return False
    return True


def to_ns(stamp: bytes | bytearray) -> int:
    """The kernel's receive time of a read, ns of CLOCK_REALTIME: a timespec's bytes, as `recvmsg` gives them."""
    seconds, nanoseconds = _TIMESPEC.unpack_from(stamp)
    return int(seconds * 1_000_000_000 + nanoseconds)


def to_stamp(ns: int) -> bytes:
    """Time in ns as a timespec's bytes, for reads that have no kernel stamp."""
    return _TIMESPEC.pack(ns // 1_000_000_000, ns % 1_000_000_000)


def _prctl(option: int, value: int) -> None:
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(option, value, 0, 0, 0)


def die_with_parent(parent_pid: int) -> None:
    """Have the kernel kill this process when its parent dies, also by SIGKILL.

    The parent may have died before the call: then the parent id differs from `parent_pid` and we leave now.
    Callers also watch a pipe for end of file, which serves where there is no such signal.
    """
    _prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent_pid:
        os._exit(1)


def yield_to_others(nice: int) -> None:
    """Give this process and all that it will start the priority `nice`: 0 to 19, where 19 gets the CPU last.

    Linux may schedule whole sessions first (autogroup), and then only the session's own value counts among sessions.
    """
    os.setpriority(os.PRIO_PROCESS, 0, nice)
    with contextlib.suppress(OSError):
        Path("/proc/self/autogroup").write_text(str(nice), encoding="ascii")


def may_raise_priority() -> bool:
    """Whether this user may give processes more than the usual priority (Linux: CAP_SYS_NICE, or RLIMIT_NICE)."""
    if sys.platform != "linux":
        return False
    with contextlib.suppress(OSError, StopIteration, ValueError):
        lines = Path("/proc/self/status").read_text(encoding="ascii", errors="replace").splitlines()
        effective = next(line for line in lines if line.startswith("CapEff:")).split()[1]
        if int(effective, 16) >> _CAP_SYS_NICE & 1:
            return True
    return resource.getrlimit(resource.RLIMIT_NICE)[0] >= 20 - RAISED_NICE


def raise_priority() -> str:
    """Give this process, and its session where Linux schedules by sessions (autogroup), the priority RAISED_NICE.

    Returns what was permitted, empty if nothing was.
    """
    raised = []
    with contextlib.suppress(OSError):
        Path("/proc/self/autogroup").write_text(str(RAISED_NICE), encoding="ascii")
        raised.append("autogroup")
    with contextlib.suppress(OSError):
        os.setpriority(os.PRIO_PROCESS, 0, RAISED_NICE)
        raised.append("nice")
    return f"{' and '.join(raised)} {RAISED_NICE}" if raised else ""


def renice(pid: int, nice: int) -> None:
    """Give the threads of another process, and all that they will start, the priority `nice`. Linux only."""
    for thread in Path(f"/proc/{pid}/task").glob("*"):
        with contextlib.suppress(OSError):
            os.setpriority(os.PRIO_PROCESS, int(thread.name), nice)


def adopt_orphans() -> None:
    """Have this process become the parent of every descendant whose own parent ends, also of daemons."""
    _prctl(_PR_SET_CHILD_SUBREAPER, 1)


def use_timer_slack(ns: int) -> None:
    """Let sleeps of this thread end at most `ns` late for the sake of batching (Linux's default is 50 us)."""
    _prctl(_PR_SET_TIMERSLACK, ns)


def clock_offset_ns() -> int:
    """Wall clock minus monotonic clock; of a few readings the one that was least interrupted."""
    readings = []
    for _ in range(3):
        before, wall, after = time.monotonic_ns(), time.time_ns(), time.monotonic_ns()
        readings.append((after - before, wall - (before + after) // 2))
    return min(readings)[1]


def stolen_ns(path: Path = Path("/proc/stat")) -> list[int]:
    """Of each CPU of this host, how long a hypervisor has let it wait since boot (`steal`); empty where unknown."""
    with contextlib.suppress(OSError, IndexError, ValueError):
        lines = path.read_text(encoding="ascii").splitlines()
        return [int(line.split()[8]) * 1_000_000_000 // os.sysconf("SC_CLK_TCK") for line in lines if _CPU.match(line)]
    return []


def use_all_descriptors() -> None:
    """Take as many file descriptors as we may have: a stream is one."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))


def exact_wait(ns: int, most_ns: int) -> float:
    """Seconds to poll so as to be awake in `ns`: epoll rounds up to whole ms, so the last ms is spent looking."""
    if ns < 1_500_000:
        return 0.0
    return float(min(ns - 1_000_000, most_ns) // 1_000_000) / 1000


class Poller:
    """`select.epoll` where there is one, else `select.poll` in the same words. Timeouts are in seconds."""

    register: Callable[[int, int], None]
    modify: Callable[[int, int], None]
    unregister: Callable[[int], None]
    poll: Callable[[float], list[tuple[int, int]]]
    close: Callable[[], None]

    def __init__(self) -> None:
        if hasattr(select, "epoll"):
            epoll = select.epoll()
            self.register, self.modify, self.unregister = epoll.register, epoll.modify, epoll.unregister
            self.poll, self.close = epoll.poll, epoll.close
        else:  # pragma: no cover
            poller = select.poll()
            self.register, self.modify, self.unregister = poller.register, poller.modify, poller.unregister
            self.poll = lambda timeout: poller.poll(timeout * 1000)
            self.close = lambda: None


READ, WRITE = select.POLLIN, select.POLLOUT
