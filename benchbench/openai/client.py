"""Attach to a server that runs already: what is it, what does it serve, and which checks will be possible.

Only GETs, before the first round; the generation routes get nothing but the sweep's own requests. Whether a route for
POSTs is there, a GET tells too: it is answered with 405 where one that is not there gets 404.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any
from urllib.parse import urlsplit

from benchbench.errors import EngineError
from benchbench.secrets import masked
from benchbench.version import __version__

ANSWER_BYTES = 1 << 20
ANSWER_S = 5.0
SERVER_INFO_S = 30.0  # vLLM runs a dozen programs to answer it the first time
INFO_CHARS = 4000  # longer texts in it are cut

_KINDS = {"vllm": "vllm", "benchbench": "benchbench simulator"}  # by the owner that /v1/models names
_BUILD = ("VLLM_BUILD_COMMIT", "VLLM_IMAGE_TAG")
_NO_METRICS = (
    "no /metrics of vLLM's kind: preemptions, foreign load and prefix hits are not checked "
    "(but for cached tokens that its answers report)"
)


@dataclass(frozen=True, slots=True)
class Capabilities:
    """What a server says of itself. None: it does not say. `notes` say what could not be found out.

    `kind`: "vllm", "benchbench simulator", or "openai" for any other that lists its models. `metrics`: it counts in
    vLLM's way, so that preemptions, prefix hits and foreign load are checked. `tokenize`, `reset_prefix_cache`: whether
    the route is there. `server_info`: vLLM's configuration in its development mode, masked and cut short. Whether
    answers tell cached tokens and the server's own times, only answers show.
    """

    models: tuple[str, ...] = ()
    max_model_len: int | None = None
    owned_by: str | None = None
    kind: str | None = None
    version: str | None = None
    metrics: bool = False
    tokenize: bool | None = None
    reset_prefix_cache: bool | None = None
    server_info: Mapping[str, Any] | None = None
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Access:
    """How to reach a server besides its URL; `headers` hold secrets."""

    headers: Mapping[str, str] = field(default_factory=dict, repr=False)
    ca_file: str | None = None
    insecure: bool = False
    proxy: str | None = None
    connect_s: float = 10.0

    @property
    def secrets(self) -> frozenset[str]:
        """What must not be quoted: the headers' values, bare tokens too."""
        return frozenset(part for value in self.headers.values() for part in (value, value.removeprefix("Bearer ")))

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

    An answer is waited for `answer_s` seconds (ANSWER_S; `ask` takes it too) and read until it has more than `limit`
    bytes (ANSWER_BYTES), so that a longer body was cut. `ask` raises aiohttp.ClientError and OSError; making the
    session raises EngineError when the CA file cannot be read.
    """
    import aiohttp

    usual_s, limit = answer_s or ANSWER_S, limit or ANSWER_BYTES
    headers = {"User-Agent": f"benchbench/{__version__}", **access.headers}
    try:
        connector = aiohttp.TCPConnector(ssl=access.ssl(url))
    except OSError as error:
        raise EngineError(f"cannot be read: {error}", "engine.ca_file") from None
    async with aiohttp.ClientSession(
        connector=connector, headers=headers, auto_decompress=True, trust_env=False
    ) as session:

        async def ask(path: str, body: Mapping[str, Any] | None = None, answer_s: float = usual_s) -> tuple[int, bytes]:
            method, total_s = "GET" if body is None else "POST", access.connect_s + answer_s
            timeout = aiohttp.ClientTimeout(total=total_s, sock_connect=access.connect_s)
            async with asyncio.timeout(total_s):
                async with session.request(
                    method, url + path, json=body, allow_redirects=False, proxy=access.proxy, timeout=timeout
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
        found = replace(read_models(status, body, model), **await _probed(ask))
        if found.metrics and found.kind in {None, "openai"}:
            found = replace(found, kind="vllm")  # under another owner's name
        if found.kind == "vllm":
            found = replace(found, server_info=await _server_info(ask, access.secrets))
        return found if found.metrics else replace(found, notes=(*found.notes, _NO_METRICS))


async def _probed(ask: Callable[..., Awaitable[tuple[int, bytes]]]) -> dict[str, Any]:
    """Fields of Capabilities that further GETs tell; after one that failed no more are tried."""
    import aiohttp

    said: dict[str, Any] = {}
    with contextlib.suppress(aiohttp.ClientError, OSError):
        status, body = await ask("/version")
        said["version"] = _version(body) if status == 200 else None
        status, body = await ask("/metrics")
        said["metrics"] = status == 200 and b"vllm:" in body
        nowhere, _ = await ask("/no-such-route")
        for route in ("tokenize", "reset_prefix_cache"):
            status, _ = await ask(f"/{route}")
            said[route] = {405: True, 404: False}.get(status) if nowhere == 404 else None
    return said


async def _server_info(
    ask: Callable[..., Awaitable[tuple[int, bytes]]], secrets: frozenset[str]
) -> dict[str, Any] | None:
    """What vLLM's development mode says of its configuration and system."""
    import aiohttp
    import orjson

    try:
        status, body = await ask("/server_info?config_format=json", answer_s=SERVER_INFO_S)
        told = orjson.loads(body) if status == 200 else None
    except (aiohttp.ClientError, OSError, orjson.JSONDecodeError):
        return None
    if not isinstance(told, dict):
        return None
    env = told.get("vllm_env")
    build = {name: env.get(name) for name in _BUILD} if isinstance(env, dict) else {}
    kept = {"config": told.get("vllm_config"), "system": told.get("system_env"), "build": build}
    short: dict[str, Any] = _short(masked(kept, secrets=secrets))
    return short


def _short(value: Any) -> Any:  # noqa: ANN401 - JSON in, JSON out
    """JSON without what is empty, long texts cut."""
    if isinstance(value, dict):
        parts = {key: _short(item) for key, item in value.items()}
        return {key: item for key, item in parts.items() if item not in (None, "", "N/A", "unknown", [], {})}
    if isinstance(value, list):
        return [_short(item) for item in value]
    return f"{value[:INFO_CHARS]} ..." if isinstance(value, str) and len(value) > INFO_CHARS else value


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
    kind = _KINDS.get(owner or "", "openai")
    if entry is None:
        if owner in _KINDS:
            raise EngineError(f"the server does not serve {model!r}", "model", allowed=", ".join(names))
        note = f"the server lists {', '.join(names[:5])}, not {model!r}: asked all the same"
        return Capabilities(names, None, owner, kind, notes=(note,))
    length = entry.get("max_model_len")
    return Capabilities(names, length if isinstance(length, int) else None, owner, kind)


def _version(body: bytes) -> str | None:
    import orjson

    try:
        return str(orjson.loads(body)["version"])[:100]
    except (orjson.JSONDecodeError, KeyError, TypeError):
        return None
