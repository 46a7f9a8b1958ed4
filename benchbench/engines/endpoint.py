"""Attach to a server that runs already: what is it, what does it serve, and which checks will be possible.

Only GETs, before the first round; the generation routes get nothing but the sweep's own requests.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

from benchbench import __version__

ANSWER_BYTES = 1 << 20
ANSWER_S = 5.0


class EngineError(Exception):
    """A server can't be used. `key`: the sweep's key at fault. `gone`: nobody answers now, later somebody may.

    `lines`: what its log says last, when we launched it.
    """

    def __init__(
        self, message: str, key: str, *, allowed: str = "", gone: bool = False, lines: Sequence[str] = ()
    ) -> None:
        super().__init__(message)
        self.message, self.key, self.allowed, self.gone, self.lines = message, key, allowed, gone, tuple(lines)


@dataclass(frozen=True, slots=True)
class Capabilities:
    """What a server says of itself. None: it does not say. `notes` say what could not be found out."""

    models: tuple[str, ...] = ()
    max_model_len: int | None = None
    owned_by: str | None = None
    version: str | None = None
    metrics: bool = False
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Access:
    """How to reach a server besides its URL; `headers` hold secrets."""

    headers: Mapping[str, str] = field(default_factory=dict, repr=False)
    ca_file: str | None = None
    insecure: bool = False
    proxy: str | None = None
    connect_s: float = 10.0

    def ssl(self, url: str) -> ssl.SSLContext | bool:
        if not url.startswith("https:"):
            return True
        context = ssl.create_default_context(cafile=self.ca_file)
        if self.insecure:
            context.check_hostname = False
            context.verify_mode = ssl.CERT_NONE
        return context


def attach(url: str, model: str, access: Access) -> Capabilities:
    """Ask the server at `url` (a root, without /v1) what it is.

    Raises EngineError when nobody listens, when the credentials are refused, or when a vLLM server lists other
    models than `model` (other servers take any name, so there it is a note).
    """
    if access.proxy and url.startswith("http:"):
        # Requests go through a CONNECT tunnel; what a proxy says to a plain GET would be its own words.
        return Capabilities(notes=("a plain-http server behind a proxy is not asked what it is",))
    return asyncio.run(_attach(url, model, access))


@contextlib.asynccontextmanager
async def asking(
    url: str, access: Access, *, answer_s: float | None = None, limit: int | None = None
) -> AsyncIterator[Callable[..., Awaitable[tuple[int, bytes]]]]:
    """`ask(path)` is a GET and `ask(path, body)` a POST of JSON, each giving (status, body), redirects as they are.

    An answer is waited for `answer_s` seconds (ANSWER_S) and read until it has more than `limit` bytes
    (ANSWER_BYTES), so that a longer body was cut. `ask` raises aiohttp.ClientError and OSError; making the session
    raises EngineError when the CA file cannot be read.
    """
    import aiohttp

    answer_s, limit = answer_s or ANSWER_S, limit or ANSWER_BYTES
    timeout = aiohttp.ClientTimeout(total=access.connect_s + answer_s, sock_connect=access.connect_s)
    headers = {"User-Agent": f"benchbench/{__version__}", **access.headers}
    try:
        connector = aiohttp.TCPConnector(ssl=access.ssl(url))
    except OSError as error:
        raise EngineError(f"cannot be read: {error}", "engine.ca_file") from None
    async with aiohttp.ClientSession(
        connector=connector, timeout=timeout, headers=headers, auto_decompress=True, trust_env=False
    ) as session:

        async def ask(path: str, body: Mapping[str, Any] | None = None) -> tuple[int, bytes]:
            method = "GET" if body is None else "POST"
            async with asyncio.timeout(access.connect_s + answer_s):
                async with session.request(
                    method, url + path, json=body, allow_redirects=False, proxy=access.proxy
                ) as answer:
                    read = b""
                    async for piece in answer.content.iter_chunked(65_536):
                        read += piece
                        if len(read) > limit:
                            break
                    return answer.status, read

        yield ask


async def _attach(url: str, model: str, access: Access) -> Capabilities:
    import aiohttp

    async with asking(url, access) as ask:
        try:
            status, body = await ask("/v1/models")
        except aiohttp.ClientConnectorCertificateError as error:
            raise EngineError(f"TLS certificate refused: {error.certificate_error}", "engine.ca_file") from None
        except (aiohttp.ClientConnectorError, aiohttp.ClientProxyConnectionError, OSError) as error:
            if isinstance(error, TimeoutError) and not isinstance(error, aiohttp.ClientError):
                return Capabilities(notes=("GET /v1/models did not answer: the model list is not checked",))
            where = urlsplit(access.proxy or url).netloc.rpartition("@")[2]
            raise EngineError(f"nobody answers at {where}: {_why(error)}", "engine.url", gone=True) from None
        except aiohttp.ClientHttpProxyError as error:
            raise EngineError(f"the proxy refused the tunnel: {error.status}", "engine.proxy") from None
        except aiohttp.ClientError as error:
            return Capabilities(
                notes=(f"GET /v1/models failed ({type(error).__name__}): the model list is not checked",)
            )
        found = read_models(status, body, model)
        version, metrics = None, False
        try:
            answered, text = await ask("/version")
            version = _version(text) if answered == 200 else None
            answered, text = await ask("/metrics")
            metrics = answered == 200 and b"vllm:" in text
        except (aiohttp.ClientError, OSError):
            pass
        return Capabilities(found.models, found.max_model_len, found.owned_by, version, metrics, found.notes)


def _why(error: Exception) -> str:
    """The system's words for a failed connection; asyncio's and aiohttp's own hide them or repeat the address."""
    reason = getattr(error, "os_error", error)
    if isinstance(reason, TimeoutError):
        return "no answer in time"
    code = getattr(reason, "errno", None)
    if code and code > 0 and not isinstance(reason, ssl.SSLError):
        return os.strerror(code)
    return str(getattr(reason, "strerror", None) or reason)


def read_models(status: int, body: bytes, model: str) -> Capabilities:
    """What GET /v1/models said. Pure; raises EngineError as `attach` does."""
    import orjson

    if status in {401, 403}:
        raise EngineError(f"the server refused the credentials (status {status})", "engine.api_key_env")
    if 300 <= status < 400:
        raise EngineError(f"the server redirects (status {status}); give the final address", "engine.url")
    try:
        listed = [item for item in orjson.loads(body)["data"] if isinstance(item, dict)] if status == 200 else []
    except (orjson.JSONDecodeError, KeyError, TypeError):
        listed = []
    names = tuple(str(item.get("id")) for item in listed)
    if not names:
        return Capabilities(notes=(f"GET /v1/models gave no list (status {status}): the model name is not checked",))
    entry = next((item for item in listed if item.get("id") == model), None)
    owner = str((entry or listed[0]).get("owned_by") or "") or None
    if entry is None:
        if owner in {"vllm", "benchbench"}:
            raise EngineError(f"the server does not serve {model!r}", "model", allowed=", ".join(names))
        note = f"the server lists {', '.join(names[:5])}, not {model!r}: asked all the same"
        return Capabilities(names, None, owner, notes=(note,))
    length = entry.get("max_model_len")
    return Capabilities(names, length if isinstance(length, int) else None, owner)


def _version(body: bytes) -> str | None:
    import orjson

    try:
        return str(orjson.loads(body)["version"])[:100]
    except (orjson.JSONDecodeError, KeyError, TypeError):
        return None
