"""`python -m benchbench.engines.supervisor`: starts an engine's processes and ends them all, on every way out.

The first line of standard input is JSON: argv, env, cwd, pass_fds, grace_s, nice, and known (segments of shared memory
that were there before). After "started", anything more has it watch the engine's ranks. The
end of input, which comes also when whoever started it was killed, or SIGTERM or SIGINT has it stop everything.

Standard output has one line of JSON for each event:

- `started` (pid), or `failed` (errno, error, file) and the end;
- `ranks` (a list of pid and name): what is watched since "ready";
- `lost` (pid, name, signal): a rank has ended though the first process lives. signal 0: not known;
- `exited` (code): the first process has ended before our SIGTERM, code as subprocess has it;
- `stopping` (log_bytes): what the log says beyond this follows from our SIGTERM;
- `stopped`: nothing is left but what even SIGKILL did not end.

Standard error is the log: the engine's output by whole lines, values of secret variables replaced.
"""

from __future__ import annotations

import contextlib
import json
import os
import selectors
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import psutil

from benchbench.engines.process_tree import in_session, is_tracker, living, segments, unlink_unheld, words
from benchbench.linux import adopt_orphans, die_with_parent, yield_to_others
from benchbench.secrets import mask_text, secrets_of

REASON_S = 3.0  # a tree that lost a rank may end by itself within this, having logged why
SETTLE_S = 1.0  # the others see that the first process has ended, and end
TERM_S = 3.0  # from SIGTERM to SIGKILL
KILL_S = 20.0  # a process in an uninterruptible call cannot be killed: give up after this
TRACKER_S = 3.0  # a resource tracker unlinks what the others left
TURN_S = 0.05  # between two looks at the processes while they end

LINE_BYTES = 1 << 16  # what is longer of an unfinished line is not logged
LOG_BYTES = 64 << 20  # a log that has grown to this begins again: no server fills a disk


class Log:
    """Bytes in, whole lines out to a descriptor, without `secrets` and what looks like one; bounded memory."""

    def __init__(self, fd: int, secrets: Iterable[str]) -> None:
        self._fd, self._rest, self._bytes = fd, b"", 0
        self._secrets = {line for secret in secrets for line in secret.splitlines()}

    def write(self, data: bytes, *, last: bool = False) -> None:
        """Take what was read; `last`: no more comes, so an unfinished line is one."""
        rest = self._rest + data
        end = len(rest) if last else max(rest.rfind(b"\n"), rest.rfind(b"\r")) + 1
        text, self._rest = rest[:end], rest[end : end + LINE_BYTES]
        done = mask_text(text.decode(errors="surrogateescape"), self._secrets).encode(errors="surrogateescape")
        self._bytes += len(done)
        with contextlib.suppress(OSError):  # a full disk must not hold up the engine
            if self._bytes > LOG_BYTES:
                os.ftruncate(self._fd, 0)
                self._bytes = len(done)
            while done:
                done = done[os.write(self._fd, done) :]


def emit(event: str, **facts: object) -> None:
    """One event to whoever started us; they may be dead."""
    with contextlib.suppress(OSError):
        os.write(1, json.dumps({"event": event, **facts}).encode() + b"\n")


class Supervisor:
    """One engine, from its start to its end; single-threaded, asleep unless something happens."""

    def __init__(self, config: Mapping[str, Any]) -> None:
        self._config = config
        self._known = set(config["known"])
        self._segments: set[str] = set()
        self._seen: set[psutil.Process] = set()
        self._ranks: dict[int, str] = {}  # pid -> name
        self._lost_at: float | None = None
        self._stopping = self._terminating = False
        self._me = psutil.Process()
        self._log = Log(2, secrets_of(config["env"]))
        self._selector = selectors.DefaultSelector()

    def run(self) -> None:
        """Start the engine, watch it, and when asked stop it."""
        adopt_orphans()
        self._listen()
        if not self._start():
            return
        while not self._stopping:
            self._turn(None)
        self._stop()

    def _listen(self) -> None:
        self._woken, wake = socket.socketpair()
        self._wake = wake  # keeps it open
        for sock in (wake, self._woken):
            sock.setblocking(False)  # noqa: FBT003 - the library's signature
        signal.set_wakeup_fd(wake.fileno(), warn_on_full_buffer=False)
        for number in (signal.SIGCHLD, signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda *_: None)  # the number arrives at `_woken`
        self._selector.register(self._woken, selectors.EVENT_READ, self._signalled)
        self._selector.register(0, selectors.EVENT_READ, self._read_commands)

    def _start(self) -> bool:
        config = self._config
        self._output, theirs = os.pipe()
        os.set_blocking(self._output, False)
        try:
            self._main = subprocess.Popen(
                config["argv"],
                env=config["env"],
                cwd=config["cwd"],
                stdin=subprocess.DEVNULL,
                stdout=theirs,
                stderr=theirs,
                pass_fds=config["pass_fds"],
                start_new_session=True,
                preexec_fn=partial(_begin, os.getpid(), config["nice"]),  # noqa: PLW1509 - there is one thread
            )
        except OSError as error:
            emit("failed", errno=error.errno, error=error.strerror, file=error.filename)
            return False
        finally:
            for fd in (theirs, *config["pass_fds"]):
                os.close(fd)  # so that their other ends see the engine's end
        self._selector.register(self._output, selectors.EVENT_READ, self._pump)
        emit("started", pid=self._main.pid)
        return True

    # ---- Events -------------------------------------------------------------------------------------------

    def _turn(self, timeout: float | None) -> None:
        for key, _ in self._selector.select(timeout):
            key.data()

    def _read_commands(self) -> None:
        if os.read(0, 4096):
            self._watch_ranks()
        else:
            self._selector.unregister(0)
            self._stopping = True

    def _signalled(self) -> None:
        numbers = self._woken.recv(4096)
        self._stopping |= signal.SIGTERM in numbers or signal.SIGINT in numbers
        with contextlib.suppress(ChildProcessError):
            while (ended := os.waitpid(-1, os.WNOHANG))[0]:
                if ended[0] == self._main.pid:
                    self._main.returncode = os.waitstatus_to_exitcode(ended[1])
                    self._note_segments()
                    self._drain()  # whoever hears of the end finds its reason in the log
                    if not self._terminating:
                        emit("exited", code=self._main.returncode)

    def _pump(self) -> bool:
        """Log what the engine has written; False when there is nothing now."""
        if self._output < 0:
            return False
        try:
            data = os.read(self._output, LINE_BYTES)
        except BlockingIOError:
            return False
        if not data:
            self._selector.unregister(self._output)
            os.close(self._output)
            self._output = -1
        self._log.write(data, last=not data)
        return bool(data)

    def _drain(self) -> None:
        for _ in range(64):  # not for ever: others may go on writing
            if not self._pump():
                return

    # ---- Ranks --------------------------------------------------------------------------------------------

    def _watch_ranks(self) -> None:
        """Watch the processes without which the engine cannot work.

        vLLM titles them (VLLM::Worker_TP0). In other engines: those of the same interpreter. Compilers come and go.
        """
        self._note_segments()
        prefix = self._config["env"].get("VLLM_PROCESS_NAME_PREFIX", "VLLM") + "::"
        commands = {process.pid: words(process) for process in self._others() if process.pid != self._main.pid}
        ranks = {pid: name for pid, command in commands.items() for name in command if name.startswith(prefix)}
        if not ranks:
            ours = _executable(self._main.pid)
            ranks = {
                pid: command[-1]
                for pid, command in commands.items()
                if ours and _executable(pid) == ours
                if not any("compile_worker" in word for word in command)
            }
        for pid in ranks.keys() - self._ranks.keys():  # each once, however often we are told
            self._ranks[pid] = ranks[pid]
            if sys.platform == "linux":
                try:
                    fd = os.pidfd_open(pid)
                except ProcessLookupError:  # it has just ended
                    self._lose(pid)
                else:
                    self._selector.register(fd, selectors.EVENT_READ, partial(self._lose, pid, fd))
        emit("ranks", ranks=[{"pid": pid, "name": name} for pid, name in ranks.items()])

    def _lose(self, pid: int, fd: int | None = None) -> None:
        by = _end_signal(pid)
        if fd is not None:
            self._selector.unregister(fd)
            os.close(fd)
        if self._main.returncode is None and not self._stopping:
            self._lost_at = self._lost_at or time.monotonic()
            emit("lost", pid=pid, name=self._ranks[pid], signal=by)
            self._note_segments()

    # ---- The end ------------------------------------------------------------------------------------------

    def _tree(self) -> list[psutil.Process]:
        self._seen.update(self._me.children(recursive=True))
        if sys.platform != "linux":  # where orphans are nobody's
            self._seen.update(process for process in psutil.process_iter() if in_session(process, self._main.pid))
        self._seen = {process for process in self._seen if process.is_running()}
        return list(self._seen)

    def _others(self) -> list[psutil.Process]:
        return [process for process in living(self._tree()) if not is_tracker(process)]

    def _note_segments(self) -> None:
        self._segments |= segments(self._tree()) - self._known

    def _until(self, done: Callable[[], bool], seconds: float) -> None:
        deadline = time.monotonic() + seconds
        while not done() and time.monotonic() < deadline:
            self._turn(TURN_S)

    def _stop(self) -> None:
        """SIGTERM to the first process, which ends its ranks; then to all; then SIGKILL until none is left."""
        grace_s = self._config["grace_s"]
        self._note_segments()
        if self._lost_at is not None:
            left_s = self._lost_at + min(REASON_S, grace_s) - time.monotonic()
            self._until(lambda: self._main.returncode is not None, left_s)
        self._drain()
        emit("stopping", log_bytes=os.fstat(2).st_size)
        if self._main.returncode is None:
            self._terminating = True
            os.kill(self._main.pid, signal.SIGTERM)  # not Popen's: that would reap it unseen
            self._until(lambda: self._main.returncode is not None, grace_s)
        self._until(lambda: not self._others(), min(SETTLE_S, grace_s))
        self._note_segments()
        for process in self._others():
            with contextlib.suppress(psutil.Error):
                process.terminate()
        self._until(lambda: not self._others(), min(TERM_S, grace_s))
        deadline = time.monotonic() + KILL_S
        while (rest := self._others()) and time.monotonic() < deadline:
            self._note_segments()
            _kill(rest)
            self._turn(TURN_S)
        self._until(lambda: not living(self._tree()), TRACKER_S)
        _kill(living(self._tree()))
        self._until(lambda: not self._tree(), TERM_S)  # reaped, too
        unlink_unheld(self._segments)
        self._drain()
        self._log.write(b"", last=True)
        emit("stopped")


def _begin(parent_pid: int, nice: int) -> None:
    """In the engine's first process, before it is one: its session is its own already."""
    die_with_parent(parent_pid)
    if nice:
        yield_to_others(nice)


def _kill(processes: Iterable[psutil.Process]) -> None:
    for process in processes:
        with contextlib.suppress(psutil.Error):
            process.kill()


def _executable(pid: int) -> str:
    try:
        return psutil.Process(pid).exe()
    except psutil.Error:
        return ""


def _end_signal(pid: int) -> int:
    """The signal that ended a process which nobody has reaped yet, as /proc tells it; 0 if none or not known."""
    try:
        return int(Path(f"/proc/{pid}/stat").read_bytes().split()[-1]) & 0x7F
    except (OSError, ValueError, IndexError):
        return 0


def main() -> None:
    """Read the configuration, supervise, end."""
    line = sys.stdin.buffer.readline()
    if line.endswith(b"\n"):  # else whoever started us died before saying what to start
        Supervisor(json.loads(line)).run()


if __name__ == "__main__":
    main()
