"""The cell loop: drives one round of requests over one thread, and does nothing else while tokens flow.

A round's requests are known before it starts: whole HTTP requests as bytes, when each is due, and how many may be
in flight. Static: all due at once. Closed: due when a place is free. Open: due by a schedule. One loop serves all.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable
from typing import Any

from benchbench.http1.framing import WireError
from benchbench.linux import ANCILLARY, clock_offset_ns, exact_wait, to_stamp
from benchbench.loadgen.connection import READ_SIZE, Connection, Pools, State
from benchbench.loadgen.exchange import Exchange, Failure, Log
from benchbench.loadgen.job import CLOSE, READY, Commands, RoundFacts, RoundJob
from benchbench.loadgen.liveness import Liveness, Spool
from benchbench.refills.quota import Quota, Tell
from benchbench.replicas.dealing import Places
from benchbench.store.requests import ErrorKind, ErrorPhase

LEAD_NS = 100_000_000  # in an open load a connection is made this long before its request is due
SETTLE_NS = 5_000_000  # after new connections: time for the server to accept them before the round,
SETTLE_EACH_NS = 100_000  # and so much more for each
SEND_SLICE = 32  # sends between two looks at the sockets
ROOM_BYTES = 64 << 20  # a round may receive so much,
TOKEN_BYTES = 8 << 10  # and so much for each token asked for; more is a response that does not end
CR, _now = 13, time.time_ns


class Round:
    """Runs one job: `run()` gives the exchanges in order of index; `facts` says what the instrument saw.

    `commands(fd)` is called when a watched descriptor that is no connection is readable: None cancels the
    round, a reason fails all of it that is not finished; what `tell` says and a number answers: see `Job.together`.
    """

    def __init__(
        self, job: RoundJob, pools: Pools, commands: Commands, tell: Tell = bool, spool: Spool | None = None
    ) -> None:
        self.job, self.pools, self.commands, self.tell, self._spool = job, pools, commands, tell, spool
        self.facts = RoundFacts()
        pools.aim(job.targets)
        self._by_fd: dict[int, Connection] = {conn.fd: conn for pool in pools for conn in pool.idle}
        self._hot: dict[int, tuple[Callable[[int, int], Any], int]] = {}  # (recvmsg, index) of hot connections
        self._next = self._begun_ns = 0
        self._armed: deque[Connection] = deque()  # bound to a request that is not sent yet, in order of due time
        self._busy: dict[Connection, int] = {}  # -> monotonic ns since when it connects or waits for its server
        self._done: list[Exchange] = []  # but for those that are in the spool
        self._ended = 0
        self._quota = Quota(job, tell)
        self._places = Places(job, job.targets)
        self._start_ns = 1 << 62 if job.together else 0  # when it is to begin: not known yet, or at once
        self.log = Log()
        self.liveness = Liveness(self.log, job)
        self._allowed_bytes = ROOM_BYTES + TOKEN_BYTES * sum(job.asked_output)
        self._woke_ns = _now()
        self._offset_ns, self._cancelled = 0, False  # wall clock minus monotonic clock when the round began
        self._gone = ""  # why the server is gone, once that is known
        self._check_ns = int(min(0.25, min(job.connect_s, job.first_token_s, job.stall_s) / 4) * 1e9)

    # -- connections and requests

    def _fresh(self, exchange: Exchange) -> Connection | None:
        """Open a connection for an exchange; None when that failed at once, which fails the exchange."""
        self.facts.connects += 1
        try:
            conn = self.pools[exchange.target].connect()
        except WireError as error:
            self._fail(exchange, ErrorKind.CONNECT, ErrorPhase.CONNECT, str(error))
            return None
        self.facts.kernel_stamps &= conn.kernel_stamps
        self._by_fd[conn.fd] = conn
        return self._bind(conn, exchange)

    def _bind(self, conn: Connection, exchange: Exchange) -> Connection:
        conn.exchange = exchange
        now, place = _now(), len(self._armed)
        if self._begun_ns and exchange.scheduled_ns <= now:  # before what is not due yet
            due = (at for at, other in enumerate(self._armed) if other.exchange and other.exchange.scheduled_ns > now)
            place = next(due, place)
        self._armed.insert(place, conn)
        self._busy[conn] = time.monotonic_ns()
        return conn

    def _arm(self, scheduled_ns: int) -> Connection | None:
        """Give the next request a connection: an idle one that is not stale, else a new one."""
        target, payload = self._places.take(self._next, self._quota.payload(self._next))
        exchange = Exchange(self._next, payload, self.log, scheduled_ns, target=target)
        self._next += 1
        while idle := self.pools[target].idle:
            conn = idle.pop()
            if conn.is_fresh:
                return self._bind(conn, exchange)
            self._drop(conn)
        return self._fresh(exchange)

    def _drop(self, conn: Connection, *, reset: bool = False) -> None:
        self._by_fd.pop(conn.fd, None)
        self._hot.pop(conn.fd, None)
        self._busy.pop(conn, None)
        if conn in self._armed:
            self._armed.remove(conn)
        conn.close(reset=reset)

    def _fail(self, exchange: Exchange, kind: ErrorKind, phase: ErrorPhase, detail: str) -> None:
        exchange.failure = Failure(kind, phase, detail)
        exchange.end_ns = _now()
        self._quota.close()  # such a round has no figures, and its server may be gone
        self._end(exchange)

    def _end(self, exchange: Exchange) -> None:
        self._done.append(exchange)
        self._ended += 1
        self._quota.ended(exchange.index)
        self._places.leave(exchange.target)

    def _give_up(self) -> None:
        """Fail all that is not finished: the server is known to be gone."""
        reason, self._gone = self._gone, ""
        for index in range(self._next, self._quota.planned):
            exchange = Exchange(index, b"", self.log, target=self._places.take(index)[0])
            self._fail(exchange, ErrorKind.CONNECT, ErrorPhase.CONNECT, reason)
        self._next = max(self._next, self._quota.planned)
        for conn in list(self._busy):
            self._fail_on(conn, ErrorKind.STREAM, reason)

    def _fail_on(self, conn: Connection, kind: ErrorKind, detail: str) -> None:
        exchange = conn.exchange
        phase = self._phase(conn)
        self._drop(conn, reset=True)
        if exchange is not None:
            self._fail(exchange, kind, phase, detail)
            self._refill()

    def _broken(self, conn: Connection, error: WireError) -> None:
        """A connection broke: try the next address, send again what a connection closed while idle never took, or fail.

        A request that is sent again keeps the time of its first send.
        """
        exchange, phase = conn.exchange, self._phase(conn)
        if exchange is None:
            self._drop(conn)
            for pool in (pool for pool in self.pools if conn in pool.idle):
                pool.idle.remove(conn)
        elif error.kind is ErrorKind.PROTOCOL:
            self._fail_on(conn, error.kind, str(error))
        elif phase is ErrorPhase.CONNECT and self.pools[exchange.target].other_address(conn):
            self._drop(conn)
            self._fresh(exchange)
        elif phase is ErrorPhase.CONNECT:
            self._fail_on(conn, ErrorKind.CONNECT, str(error))
        elif conn.was_idle and not exchange.resent:
            exchange.resent = 1
            exchange.sent_ns = exchange.sent_ns or _now()
            self.facts.resent += 1
            self._drop(conn)
            self._fresh(exchange)
        else:
            self._fail_on(conn, ErrorKind.SEND if phase is ErrorPhase.SEND else ErrorKind.STREAM, str(error))

    # -- the loop

    def run(self) -> list[Exchange]:
        cpu, wall = time.process_time_ns(), _now()
        self._offset_ns = clock_offset_ns()
        try:
            self._look(0)  # idle connections that the server has closed meanwhile
            self._prepare()
            self._drive()
        finally:
            for conn in list(self._busy):
                self._drop(conn, reset=True)
        self._watch_clock()
        self.facts.cpu_ns, self.facts.wall_ns = time.process_time_ns() - cpu, _now() - wall
        self.facts.cancelled, self.facts.spare_sent = self._cancelled, max(0, self._next - self._quota.planned)
        return sorted(self._done, key=lambda exchange: exchange.index)

    def _prepare(self) -> None:
        """Connect what the start needs and let the server accept it; then the round begins."""
        job = self.job
        if not job.paced:
            for _ in range(self._next, min(job.in_flight, len(job.payloads))):  # none when the server is gone already
                self._arm(0)
            until = _now()
            if self.facts.connects:
                until += SETTLE_NS + SETTLE_EACH_NS * self.facts.connects
            while not self._cancelled and (_now() < until or any(not conn.ready for conn in self._armed)):
                self._look(max(0.001, min(until - _now(), self._check_ns) / 1e9))
                self._check_times()
        if job.together:
            self.tell(READY)
        while not self._cancelled and _now() < self._start_ns:
            self._look(exact_wait(self._start_ns - _now(), self._check_ns))
        # An open load begins after the first request has had its time to connect.
        self.facts.started_ns = self._begun_ns = (self._start_ns or _now()) + (LEAD_NS if job.paced else 0)
        for conn in self._armed:
            if conn.exchange is not None:
                conn.exchange.scheduled_ns = self._begun_ns
        if not job.paced:
            self._refill()  # places of requests that could not connect

    def _drive(self) -> None:
        planned, idle_s = self._quota.planned, self._check_ns / 1e9
        self._woke_ns = checked = _now()
        self.facts.turn_max_ns = 0
        while self._ended < max(planned, self._next) and not self._cancelled:
            wait = self._start_due() if self._armed or self.job.paced else idle_s
            half_ms = int(wait * 500)  # so long it may go on as it does, if no wait in it is longer
            spool = self._spool if self._spool and len(self.log.reads) > self._spool.crowd else None
            patience = spool.patience_s(self.log) if spool else wait
            ready = self._look(min(half_ms / 1000 or wait, patience), half_ms * 1_000_000 if patience else 0)
            if spool:
                spool.move(self.log, self.liveness, self._done, is_idle=not ready)
            if self._woke_ns - checked > self._check_ns:
                checked = self._woke_ns
                self._watch_clock()
                self._check_times()

    def _start_due(self) -> float:
        """Send what is due, connect what soon will be; returns how long the loop may sleep, in seconds."""
        job, now = self.job, _now()
        if job.paced:
            while (
                self._next < len(job.payloads)
                and len(self._busy) < job.in_flight
                and (due := self._begun_ns + job.due_ns[self._next]) - LEAD_NS <= now
            ):
                self._arm(due)
        sent, waiting, armed = 0, list[Connection](), self._armed
        while armed and (conn := armed[0]).exchange is not None and conn.exchange.scheduled_ns <= _now():
            armed.popleft()
            if not conn.ready:
                waiting.append(conn)
                continue
            self._begin(conn)
            sent += 1
            if sent % SEND_SLICE == 0:
                self._look(0)
        armed.extendleft(reversed(waiting))
        return self._may_sleep(len(waiting))

    def _may_sleep(self, waiting: int) -> float:
        now = _now()
        wake = now + self._check_ns
        if len(self._armed) > waiting:
            first = self._armed[waiting].exchange
            wake = min(wake, first.scheduled_ns if first is not None else now)
        if self.job.paced and self._next < len(self.job.payloads) and len(self._busy) < self.job.in_flight:
            wake = min(wake, self._begun_ns + self.job.due_ns[self._next] - LEAD_NS)
        return exact_wait(wake - now, self._check_ns)

    def _begin(self, conn: Connection) -> None:
        if conn.exchange is not None:
            try:
                conn.begin(conn.exchange)
                self._busy[conn] = time.monotonic_ns()
            except WireError as error:
                self._broken(conn, error)

    def _look(self, timeout: float, on_ns: int = 0) -> int:
        """Wait for the sockets and move each that is ready, once, or for `on_ns` while nothing but tokens comes: what a
        turn costs, a token does that comes alone. Returns how many were ready the last time.
        """
        facts, poll, hot, log = self.facts, self.pools.poller.poll, self._hot, self.log
        owners, reads, stamps, users = log.owners.append, log.reads.append, log.stamps.extend, log.users.append
        user = _now()
        facts.turn_max_ns, until, on = max(facts.turn_max_ns, user - self._woke_ns), user + on_ns, True
        while on:
            events = poll(timeout)
            woke = _now()
            on = woke < until and bool(events)
            for fd, mask in events:
                try:  # the hot path: in the middle of a plain chunked body a read is four appends and a look at its end
                    receive, owner = hot[fd]
                    data, ancillary, _, _ = receive(READ_SIZE, ANCILLARY)
                    user = _now()
                    stamp, may_end = ancillary[0][2], data[-4] == CR
                except KeyError:
                    self._move(fd, mask)
                except BlockingIOError:
                    continue
                except OSError as error:
                    self._broken(self._by_fd[fd], WireError(f"connection lost: {error.strerror}"))
                except IndexError:  # the end of the connection, a few bytes alone, or no stamp
                    conn, stamp = self._by_fd[fd], ancillary[0][2] if ancillary else to_stamp(user)
                    self._advance(conn, conn.received, data, stamp, user)
                else:
                    owners(owner)
                    reads(data)
                    stamps(stamp)
                    users(user)
                    if not may_end:
                        continue
                    conn = self._by_fd[fd]
                    self._advance(conn, conn.ends, data)
                on = False
            facts.turn_max_ns = max(facts.turn_max_ns, user - woke)
        self._woke_ns = woke
        if self._gone:  # only now: no event of this turn may meet a connection that was dropped
            self._give_up()
        return len(events)

    def _move(self, fd: int, mask: int) -> None:
        """An event that is not on the hot path."""
        if (conn := self._by_fd.get(fd)) is not None:
            self._advance(conn, conn.on_event, mask)
            return
        command = self.commands(fd)
        self._cancelled |= command is None
        if not isinstance(command, int):
            self._gone = command or ""
        elif command != CLOSE:
            self._start_ns = command
        else:
            self._quota.close()

    def _advance(self, conn: Connection, step: Callable[..., bool], *args: object) -> None:
        """Move a connection on by `step`, which tells whether its response is complete."""
        try:
            complete = step(*args)
        except WireError as error:
            self._broken(conn, error)
            return
        if complete:
            self._finish(conn)
        elif conn.hot:
            self._hot[conn.fd] = (conn.recvmsg, conn.index)
        else:
            self._hot.pop(conn.fd, None)

    def _phase(self, conn: Connection) -> ErrorPhase:
        """How far a connection's request has come."""
        if conn.state in {State.CONNECTING, State.PROXY, State.TLS}:
            return ErrorPhase.CONNECT
        if conn.exchange is None or not conn.exchange.sent_ns:
            return ErrorPhase.SEND
        return ErrorPhase.STREAM if self.liveness.has_data(conn.exchange.index) else ErrorPhase.WAIT

    def _finish(self, conn: Connection) -> None:
        del self._busy[conn]
        self._hot.pop(conn.fd, None)
        exchange = conn.finish()
        self.facts.peers[conn.where] = self.facts.peers.get(conn.where, 0) + 1
        self._end(exchange)
        if conn.state is State.IDLE:
            self.pools[exchange.target].idle.append(conn)
        else:
            self._by_fd.pop(conn.fd, None)
        self._refill()

    def _refill(self) -> None:
        """Closed load: a place is free, so the next request goes out now, before anything else is done."""
        if self.job.paced or not self._begun_ns or self._cancelled:
            return
        while self._next < self._quota.sendable and len(self._busy) < self.job.in_flight:
            conn = self._arm(_now())
            if conn is not None and conn.ready:
                self._armed.remove(conn)
                self._begin(conn)

    # -- rare work

    def _watch_clock(self) -> None:
        self.facts.clock_step_ns = max(self.facts.clock_step_ns, abs(clock_offset_ns() - self._offset_ns))

    def _check_times(self) -> None:
        """Fail what has waited too long."""
        job, now = self.job, time.monotonic_ns()
        self.liveness.update()
        for conn, since in [pair for pair in self._busy.items() if now - pair[1] >= 4 * self._check_ns]:
            exchange = conn.exchange
            if exchange is None or conn.ready:
                self._busy[conn] = now
            elif conn.state is not State.BUSY:
                if now - since > job.connect_s * 1e9:
                    self._fail_on(conn, ErrorKind.TIMEOUT, f"no connection within {job.connect_s:g} s")
            elif kind := self.liveness.overdue(exchange.index, since, now):
                limit = f"within {job.first_token_s:g} s" if kind is ErrorKind.TIMEOUT else f"for {job.stall_s:g} s"
                self._fail_on(conn, kind, f"no token {limit}")
        if self._spool:
            self._spool.check(self.liveness)
            self.facts.spooled_bytes = self._spool.size
        held = self.liveness.received - self.facts.spooled_bytes
        self.facts.held_max_bytes = max(self.facts.held_max_bytes, held)
        if self.liveness.received > self._allowed_bytes:
            self._cut_longest()

    def _cut_longest(self) -> None:
        """The round has received far more than it asked for: end the stream with the most reads."""
        counts = self.log.counts()
        running = [conn for conn in self._busy if conn.exchange is not None]
        if running:
            longest = max(running, key=lambda conn: counts[conn.index])
            detail = "the response does not end: far more bytes than the asked tokens need"
            self._fail_on(longest, ErrorKind.PROTOCOL, detail)
            self._allowed_bytes += self._allowed_bytes // 10
