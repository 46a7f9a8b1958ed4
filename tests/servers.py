"""A server whose every answer is scripted: plain sockets in threads, so that a test says what is on the wire."""

from __future__ import annotations

import contextlib
import socket
import ssl
import struct
import threading
import time
from collections.abc import Callable, Mapping
from typing import BinaryIO, Self

from answers import HANG, RESET, Ask, Script, completion, error, models

SERVES_SIM = (models("sim"),)


class ScriptedServer:
    """Answers by path: `answer(ask)` for POSTs, `listed` for GET /v1/models, `routes` for other GETs, 404 for the rest.

    `asks` are the generation requests in the order in which they came; `connections` were accepted.
    """

    def __init__(
        self,
        answer: Callable[[Ask], Script] = completion,
        listed: Script = SERVES_SIM,
        *,
        host: str = "127.0.0.1",
        port: int = 0,
        tls: ssl.SSLContext | None = None,
        routes: Mapping[str, Script] | None = None,
    ) -> None:
        self.answer, self.listed, self._tls, self.routes = answer, listed, tls, routes or {}
        self.asks: list[Ask] = []
        self.gets: list[Ask] = []
        self.connections = 0
        self._ended = threading.Event()
        self._lock = threading.Lock()
        self._listener = socket.create_server((host, port), family=socket.AF_INET6 if ":" in host else socket.AF_INET)
        self.port = int(self._listener.getsockname()[1])
        where = f"[{host}]" if ":" in host else "localhost" if tls else host
        self.url = f"{'https' if tls else 'http'}://{where}:{self.port}"
        self._open: list[socket.socket] = []
        self._threads = [threading.Thread(target=self._accept)]

    def __enter__(self) -> Self:
        self._threads[0].start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self.stop_listening()
        for sock in self._open:
            with contextlib.suppress(OSError):
                sock.shutdown(socket.SHUT_RDWR)  # wakes the thread that waits in it
        for thread in self._threads:
            thread.join()

    def stop_listening(self) -> None:
        """As when the server is gone: connections are refused from now on."""
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()

    def _accept(self) -> None:
        while not self._ended.is_set():
            try:
                sock, _ = self._listener.accept()
            except OSError:
                return
            self.connections += 1
            self._open.append(sock)
            self._threads.append(threading.Thread(target=self._converse, args=(sock, self.connections)))
            self._threads[-1].start()

    def _converse(self, sock: socket.socket, connection: int) -> None:
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        with contextlib.suppress(OSError), contextlib.ExitStack() as stack:
            wire = stack.enter_context(self._tls.wrap_socket(sock, server_side=True) if self._tls else sock)
            file = stack.enter_context(wire.makefile("rb"))
            nth = 0
            while not self._ended.is_set() and (ask := self._next(file, connection, nth)):
                self._play(wire, self._script(ask))
                nth += 1

    def _next(self, file: BinaryIO, connection: int, nth: int) -> Ask | None:
        method, path, *_ = [*file.readline().decode("latin-1").split(), "", ""]
        headers = {}
        while line := file.readline().strip():
            name, _, value = line.decode("latin-1").partition(":")
            headers[name.lower()] = value.strip()
        body = file.read(int(headers.get("content-length", 0)))
        if not method:
            return None
        with self._lock:
            kept = self.asks if method == "POST" else self.gets
            kept.append(Ask(method, path, headers, body, connection, nth, len(kept)))
            return kept[-1]

    def _script(self, ask: Ask) -> Script:
        if ask.method == "POST":
            return self.answer(ask)
        if "/v1/models" in ask.path:
            return self.listed
        return self.routes.get(ask.path) or (error(404, "not here"),)

    def _play(self, wire: socket.socket, steps: Script) -> None:
        for step in steps:
            if isinstance(step, bytes):
                wire.sendall(step)
            elif isinstance(step, float):
                time.sleep(step)
            elif step == HANG:
                self._ended.wait()
            else:
                if step == RESET:
                    wire.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                raise ConnectionError(step)  # leaves the conversation, which closes the socket
