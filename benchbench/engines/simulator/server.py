"""The simulator's server: one thread, non-blocking sockets, and an engine model that says what is due when.

The loop reads requests before it asks the model what is due, so that the model always knows who had come by
then. It waits for the last millisecond by sleeping, because the poll's own timeout is no finer.
"""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import orjson

from benchbench import linux
from benchbench.engines.simulator.api import ApiError, parse_body, parse_prompt
from benchbench.engines.simulator.http import Connection, HttpRequest, Wire, whole
from benchbench.engines.simulator.render import VERSION
from benchbench.engines.simulator.streams import CHAT_PATH, Streams

if TYPE_CHECKING:
    from benchbench.engines.simulator.profiles import SimProfile

_POLL_NS = 1_000_000  # the poll's resolution


class Server:
    """Serves a profile under the names `models`; the metrics carry the first. `url` is known at once."""

    def __init__(self, profile: SimProfile, models: Sequence[str], port: int) -> None:
        self.profile, self.models = profile, models
        self.wire = Wire(port, self._take)
        self.url = self.wire.url
        self.streams = Streams(profile, models, self.wire)
        self._arrived: list[tuple[Connection, HttpRequest]] = []
        self._created = int(time.time())
        self._routes: dict[str, tuple[str, Callable[[HttpRequest], bytes] | None]] = {
            "/health": ("GET", lambda _: b""),
            "/version": ("GET", lambda _: orjson.dumps({"version": VERSION})),
            "/v1/models": ("GET", self._list_models),
            "/metrics": ("GET", lambda _: self.streams.ledger.metrics()),
            "/truth": ("GET", self._tell_truth),
            "/tokenize": ("POST", self._tokenize),
            "/reset_prefix_cache": ("POST", self._reset_prefix_cache),
            "/v1/completions": ("POST", None),  # these two are the streams'
            CHAT_PATH: ("POST", None),
        }

    def run(self) -> None:
        """Serve until a signal handler raises, or the process ends."""
        linux.use_timer_slack(1)
        linux.use_all_descriptors()  # one a stream
        gc.disable()  # no garbage of ours has cycles
        while True:
            if not self._arrived:
                self._wait()
            # In the order in which the kernel received them: who is read first need not have come first.
            arrived, self._arrived = sorted(self._arrived, key=lambda a: a[1].received_ns), []
            for connection, request in arrived:
                if not connection.closed:
                    self.streams.admit(connection, request)
            self.streams.work(time.time_ns())

    def _wait(self) -> None:
        """Comes back when the next event is due, or after something was ready before."""
        # Before the next step begins, in the question for its end, the engine must know all who have come.
        if self.wire.poll(0):
            return
        due = self.streams.next_due_ns()
        if due is None:
            self.wire.poll(-1)
            return
        if due - time.time_ns() > _POLL_NS:
            self.streams.prepare()
        left = due - time.time_ns()
        if left > _POLL_NS and self.wire.poll((left - _POLL_NS) / 1e9):
            return
        left = due - time.time_ns()
        if left > 0:
            time.sleep(left / 1e9)

    def _take(self, connection: Connection, request: HttpRequest) -> None:
        """Answer a request, or note the arrival of one that the streams will answer."""
        if self.profile.close_after_response:
            connection.keep_alive = False
        key, status, body = self.profile.api_key, 200, b""
        method, route = self._routes.get(request.path, ("", None))
        if key and request.path.startswith("/v1") and request.authorization != f"Bearer {key}".encode():
            status, body = 401, b'{"error":"Unauthorized"}'
        elif not method:
            status, body = 404, b'{"detail":"Not Found"}'
        elif method != request.method:
            status, body = 405, b'{"detail":"Method Not Allowed"}'
        elif route is None:
            self._arrived.append((connection, request))
            return
        else:
            try:
                body = route(request)
            except ApiError as error:
                status, body = error.status, error.body()
        headers = {"content_type": "text/plain; version=0.0.4; charset=utf-8"} if request.path == "/metrics" else {}
        self.wire.send(connection, whole(connection, status, body, **headers), last=True)

    def _list_models(self, _: HttpRequest) -> bytes:
        about = {"object": "model", "created": self._created, "owned_by": "benchbench", "root": self.models[0]}
        about |= {"parent": None, "max_model_len": self.profile.max_model_len}
        return orjson.dumps({"object": "list", "data": [{"id": name, **about} for name in self.models]})

    def _tell_truth(self, request: HttpRequest) -> bytes:
        """What the ledger knows; `?clear=1` then forgets the finished requests."""
        ledger = self.streams.ledger
        body = ledger.tell(self.streams.unfinished())
        if request.query == "clear=1":
            ledger.finished.clear()
        return body

    def _tokenize(self, request: HttpRequest) -> bytes:
        data = parse_body(request.body, self.models)
        empty = data.get("prompt") == ""
        tokens = [] if empty else parse_prompt(data, self.profile.vocab_size, chat="messages" in data)
        answer = {"count": len(tokens), "max_model_len": self.profile.max_model_len, "tokens": tokens}
        return orjson.dumps({**answer, "token_strs": None})

    def _reset_prefix_cache(self, _: HttpRequest) -> bytes:
        self.streams.model.reset_prefix_cache()
        return b'{"success":true}'
