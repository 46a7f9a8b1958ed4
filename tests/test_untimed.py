"""Requests beside the timed ones: which connection they take, what of an answer is read, and what is an error."""

from __future__ import annotations

import asyncio
import gzip
import zlib
from collections.abc import Callable
from typing import Any

import pytest
from answers import CLOSE, HANG, Ask, Script, error, head, whole
from servers import ScriptedServer

from benchbench.http1 import untimed
from benchbench.http1.untimed import Connections, NoAnswerError, NotConnectedError, Peer
from benchbench.openai.client import http_session
from benchbench.openai.target import Access

HELLO = whole(200, {"hello": 1})
CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"


def packed(body: bytes, how: str = "gzip") -> bytes:
    return f"HTTP/1.1 200 OK\r\ncontent-encoding: {how}\r\ncontent-length: {len(body)}\r\n\r\n".encode() + body


def asked(server: ScriptedServer, *asks: tuple[Any, ...], limit: int | None = None) -> list[Any]:
    """Each answer, or the error that came in its place."""

    async def work() -> list[Any]:
        async with http_session(server.url, Access(connect_s=1), answer_s=1, limit=limit) as request:
            return [(await asyncio.gather(request(*ask), return_exceptions=True))[0] for ask in asks]

    return asyncio.run(work())


@pytest.mark.parametrize(
    ("answer", "body"),
    [
        ([HELLO], b'{"hello":1}'),
        ([CONTINUE, HELLO], b'{"hello":1}'),
        ([head() + b"un", 0.01, b"til close", CLOSE], b"until close"),
        ([head(204)[:-2] + b"\r\n"], b""),
        ([b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n2\r\nab\r\n", 0.01, b"1\r\nc\r\n0\r\n\r\n"], b"abc"),
        ([packed(gzip.compress(b"abc"))], b"abc"),
        ([packed(zlib.compress(b"abc"), "deflate")], b"abc"),
    ],
    ids=["length", "100 before", "until close", "no body", "chunked", "gzip", "deflate"],
)
def test_every_form_of_answer(answer: Script, body: bytes) -> None:
    with ScriptedServer(routes={"/a": answer}) as server:
        first, second = asked(server, ("/a",), ("/a",))
        assert first[1] == second[1] == body
        assert server.connections == (2 if CLOSE in answer else 1)


def test_a_kept_connection_that_is_closed_costs_a_get_nothing_and_a_post_is_never_sent_twice() -> None:
    def post(ask: Ask) -> Script:
        return [CLOSE] if ask.nth else [HELLO]

    with ScriptedServer(post) as server:
        first, second = asked(server, ("/x", {}), ("/x", {}))
        assert first[0] == 200
        assert isinstance(second, NoAnswerError)
        assert len(server.asks) == 2
    gone: dict[str, Callable[[Ask], Script]] = {"/b": lambda ask: [CLOSE] if ask.nth else [HELLO]}
    with ScriptedServer(routes={"/a": [HELLO]}) as server:
        routed, server._script = server._script, lambda ask: gone.get(ask.path, routed)(ask)  # type: ignore[method-assign]
        assert [status for status, _ in asked(server, ("/a",), ("/b",))] == [200, 200]
        assert server.connections == 2


@pytest.mark.parametrize(
    ("answer", "kind"),
    [
        ([b"garbage\r\n\r\n"], NoAnswerError),
        ([head(content_length=9) + b"half", CLOSE], NoAnswerError),
        ([b"HTTP/1.1 200 OK\r\n" + b"x: " + b"y" * 100_000], NoAnswerError),
        ([packed(b"abc")], NoAnswerError),
        ([HANG], TimeoutError),
    ],
    ids=["no HTTP", "cut", "endless head", "no gzip", "silence"],
)
def test_what_is_no_answer_is_an_error(answer: Script, kind: type[OSError], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(untimed, "HEAD_BYTES", 50_000)
    with ScriptedServer(routes={"/a": answer, "/b": [HELLO]}) as server:
        bad, good = asked(server, ("/a",), ("/b",))
    assert type(bad) is kind
    assert good[0] == 200


def test_a_longer_body_is_cut_and_a_redirect_is_not_followed() -> None:
    away = [b"HTTP/1.1 302 Found\r\nlocation: /b\r\ncontent-length: 0\r\n\r\n"]
    with ScriptedServer(routes={"/a": [head(content_length=1 << 20) + b"x" * (1 << 20)], "/r": away}) as server:
        (status, body), redirect = asked(server, ("/a",), ("/r",), limit=100_000)
        assert [get.path for get in server.gets] == ["/a", "/r"]
    assert status == 200
    assert 100_000 < len(body) < 300_000
    with ScriptedServer(routes={"/a": [packed(gzip.compress(bytes(1 << 24)))]}) as server:
        assert len(asked(server, ("/a",), limit=100_000)[0][1]) == 100_001
    assert redirect == (302, b"")


def test_the_next_address_is_tried_and_the_last_ones_words_are_told(monkeypatch: pytest.MonkeyPatch) -> None:
    places = [("127.0.0.1", 1)]

    async def addresses(_host: str, _port: int) -> list[tuple[int, tuple[str, int]]]:
        return [(2, place) for place in places]

    async def get() -> tuple[int, bytes]:
        async with Connections(Peer("name", 1)) as connections:
            return await connections.ask(b"GET /a HTTP/1.1\r\nhost: name\r\n\r\n", 100, again=True)

    monkeypatch.setattr(untimed, "_addresses", addresses)
    with pytest.raises(NotConnectedError) as caught:
        asyncio.run(get())
    assert isinstance(caught.value.reason, ConnectionRefusedError)
    with ScriptedServer(routes={"/a": (error(404, "no"),)}) as server:
        places.append(("127.0.0.1", server.port))
        assert asyncio.run(get())[0] == 404


@pytest.mark.parametrize("host", ["a..b", "x" * 70])
def test_a_name_that_can_be_none_has_no_address(host: str) -> None:
    async def get() -> None:
        async with http_session(f"http://{host}", Access()) as request:
            await request("/")

    with pytest.raises(NotConnectedError):
        asyncio.run(get())
