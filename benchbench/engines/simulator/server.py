"""The simulator's server: one thread, non-blocking sockets, and an engine model that says what is due when.

The loop reads requests before it asks the model what is due, so that the model always knows who had come by
then. It waits for the last millisecond by sleeping, because the poll's own timeout is no finer.
"""

from __future__ import annotations

import gc
import os
import socket
import time
from collections.abc import Callable, Sequence
from urllib.parse import parse_qs

import orjson

from benchbench import kernel
from benchbench.engines.simulator import render
from benchbench.engines.simulator.api import ApiError, check_model, parse_json, parse_prompt
from benchbench.engines.simulator.http import Connection, HttpRequest
from benchbench.engines.simulator.profiles import SimProfile
from benchbench.engines.simulator.streams import GENERATION_PATHS, Streams

_POLL_NS = 1_000_000  # the poll's resolution
_COLLECT_EVERY = 512  # connections between two collections of garbage, which happen only when idle
_TEXT = {"content-type": "text/plain; version=0.0.4; charset=utf-8"}


class Server:
    """Serves a profile under the names `models`; the metrics carry the first. `url` is known at once."""

    def __init__(
        self, profile: SimProfile, models: Sequence[str] = ("sim",), host: str = "127.0.0.1", port: int = 0
    ) -> None:
        self.profile, self.models = profile, tuple(models)
        self.streams = Streams(profile, self.models, self)
        self._listener = socket.create_server((host, port), backlog=4096)
        self._listener.setblocking(False)  # noqa: FBT003 - the standard library's signature
        kernel.enable_stamps(self._listener)  # inherited by what it accepts, which may hold a request already
        self.url = f"http://{host}:{self._listener.getsockname()[1]}"
        self._poller = kernel.Poller()
        self._poller.register(self._listener.fileno(), kernel.READ)
        self._connections: dict[int, Connection] = {}
        self._arrived: list[tuple[Connection, HttpRequest]] = []
        self._accepted = 0
        self._created = int(time.time())
        self._routes: dict[tuple[str, str], Callable[[HttpRequest], bytes]] = {
            ("GET", "/health"): lambda _: b"",
            ("GET", "/version"): lambda _: orjson.dumps({"version": profile.version}),
            ("GET", "/v1/models"): self._list_models,
            ("GET", "/metrics"): lambda _: self.streams.ledger.metrics(self.streams.model),
            ("GET", "/truth"): self._tell_truth,
            ("POST", "/tokenize"): self._tokenize,
            ("POST", "/detokenize"): self._detokenize,
            ("POST", "/reset_prefix_cache"): self._reset_prefix_cache,
        }

    def run(self, lifeline: int | None = None) -> None:
        """Serve until `lifeline` (a file descriptor that can be read) ends, or a signal handler raises."""
        if lifeline is not None:
            self._poller.register(lifeline, kernel.READ)
        kernel.use_timer_slack(1)
        gc.collect()
        gc.freeze()
        gc.disable()
        while True:
            for fd, events in self._wait():
                if fd in self._connections:
                    self._serve(self._connections[fd], events)
                elif fd == self._listener.fileno():
                    self._accept()
                elif fd == lifeline and not os.read(fd, 4096):
                    return
            # In the order in which the kernel received them: who is read first need not have come first.
            arrived, self._arrived = sorted(self._arrived, key=lambda a: a[1].received_ns), []
            for connection, request in arrived:
                if not connection.closed:
                    self.streams.admit(connection, request)
            self.streams.work(time.time_ns())

    def close(self) -> None:
        self._listener.close()
        for connection in self._connections.values():
            connection.close()
        self._poller.close()

    def _wait(self) -> list[tuple[int, int]]:
        """What is ready; comes back when the next event is due, or at once if something is ready before."""
        if self._arrived:
            return []
        # Before the next step begins, in the question for its end, the engine must know all who have come.
        ready = self._poller.poll(0)
        if ready:
            return ready
        due = self.streams.next_due_ns()
        if due is None:
            if self._accepted > _COLLECT_EVERY:
                self._accepted = 0
                gc.collect()
            return self._poller.poll(-1)
        if due - time.time_ns() > _POLL_NS:
            self.streams.prepare()
        left = due - time.time_ns()
        if left > _POLL_NS:
            ready = self._poller.poll((left - _POLL_NS) / 1e9)
            if ready:
                return ready
            left = due - time.time_ns()
        if left > 0:
            time.sleep(left / 1e9)
        return []

    # Connections. The three without underscore are the streams' `Wire`.

    def _accept(self) -> None:
        while True:
            try:
                sock, _ = self._listener.accept()
            except OSError:  # none waits, or the client has left again
                return
            connection = Connection(sock)
            self._accepted += 1
            self._connections[connection.fd] = connection
            self._poller.register(connection.fd, kernel.READ)

    def _serve(self, connection: Connection, events: int) -> None:
        alive = True
        if events & kernel.WRITE:
            alive = connection.flush()
            if alive and not connection.pending:
                self._poller.modify(connection.fd, kernel.READ)
                alive = not connection.closing
        if alive and events & ~kernel.WRITE:
            alive = connection.read()
        if not alive:
            self.leave(connection)
        elif connection.inbox and not connection.busy:
            self._next_request(connection)

    def send(self, connection: Connection, data: bytes) -> None:
        if connection.closed:
            return
        if not connection.send(data):
            self.leave(connection)
        elif connection.pending:
            self._poller.modify(connection.fd, kernel.READ | kernel.WRITE)

    def answered(self, connection: Connection, *, keep_alive: bool) -> None:
        if connection.closed:
            return
        if not keep_alive:
            connection.closing = True
            if not connection.pending:
                self.leave(connection)
            return
        connection.busy = False
        if connection.inbox:
            self._next_request(connection)

    def leave(self, connection: Connection, *, reset: bool = False) -> None:
        if connection.closed:
            return
        if connection.request_number is not None:
            self.streams.abort(connection.request_number)
        del self._connections[connection.fd]
        self._poller.unregister(connection.fd)
        connection.close(reset=reset)

    # Requests.

    def _next_request(self, connection: Connection) -> None:
        connection.busy = True
        request = connection.inbox.popleft()
        keep_alive = request.keep_alive and not self.profile.close_after_response
        key = self.profile.api_key
        if key and request.path.startswith("/v1") and request.headers.get(b"authorization") != f"Bearer {key}".encode():
            status, body = 401, b'{"error":"Unauthorized"}'
        elif request.method == "POST" and request.path in GENERATION_PATHS:
            self._arrived.append((connection, request))
            return
        else:
            status, body = self._answer(request)
        headers = _TEXT if request.path == "/metrics" else None
        self.send(connection, render.whole(status, body, keep_alive=keep_alive, headers=headers))
        self.answered(connection, keep_alive=keep_alive)

    def _answer(self, request: HttpRequest) -> tuple[int, bytes]:
        """Status and body of all that is not a generation."""
        route = self._routes.get((request.method, request.path))
        if route is None:
            if request.path in GENERATION_PATHS or any(path == request.path for _, path in self._routes):
                return 405, b'{"detail":"Method Not Allowed"}'
            return 404, b'{"detail":"Not Found"}'
        try:
            return 200, route(request)
        except ApiError as error:
            return error.status, error.body()

    def _list_models(self, _: HttpRequest) -> bytes:
        root, created = self.models[0], self._created
        about = {"object": "model", "created": created, "owned_by": self.profile.owned_by, "root": root}
        about |= {"parent": None, "max_model_len": self.profile.max_model_len}
        return orjson.dumps({"object": "list", "data": [{"id": name, **about} for name in self.models]})

    def _tell_truth(self, request: HttpRequest) -> bytes:
        """Every request since the last clearing, those in the engine last; `?clear=1` forgets the finished ones."""
        ledger = self.streams.ledger
        known = [*ledger.finished, *self.streams.unfinished()]
        body = orjson.dumps({"requests": [truth.as_dict() for truth in known], "dropped": ledger.dropped})
        if parse_qs(request.query).get("clear", ["0"])[-1] not in ("0", "false"):
            ledger.clear()
        return body

    def _tokenize(self, request: HttpRequest) -> bytes:
        data = parse_json(request.body)
        check_model(data, self.models)
        if data.get("prompt") == "":
            tokens: list[int] = []
        else:
            tokens = parse_prompt(data, self.streams.vocabulary, chat="messages" in data)
        answer = {"count": len(tokens), "max_model_len": self.profile.max_model_len, "tokens": tokens}
        return orjson.dumps({**answer, "token_strs": None})

    def _detokenize(self, request: HttpRequest) -> bytes:
        data = parse_json(request.body)
        check_model(data, self.models)
        tokens = data.get("tokens")
        size = self.profile.vocab_size
        if not isinstance(tokens, list) or not all(type(t) is int and 0 <= t < size for t in tokens):
            raise ApiError(400, f"tokens must be ids from 0 to {size - 1}. (parameter=tokens)", param="tokens")
        return orjson.dumps({"prompt": self.streams.vocabulary.decode(tokens)})

    def _reset_prefix_cache(self, _: HttpRequest) -> bytes:
        self.streams.model.reset_prefix_cache()
        return b'{"success":true}'
