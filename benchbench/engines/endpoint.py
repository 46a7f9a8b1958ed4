"""Attach to a server that runs already: what is it, what does it serve, and which checks will be possible.

Only GETs, before the first round; the generation routes get nothing but the sweep's own requests.
"""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

from benchbench import __version__

ANSWER_BYTES = 1 << 20
ANSWER_S = 5.0


class EngineError(Exception):
    """A server can't be used. `key`: the sweep's key at fault. `gone`: nobody answers now, later somebody may."""

    def __init__(self, message: str, key: str, *, allowed: str = "", gone: bool = False) -> None:
        super().__init__(message)
        self.message, self.key, self.allowed, self.gone = message, key, allowed, gone


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
    return asyncio.run(_attach(url, model, access))


async def _attach(url: str, model: str, access: Access) -> Capabilities:
    import aiohttp

    timeout = aiohttp.ClientTimeout(total=access.connect_s + ANSWER_S, sock_connect=access.connect_s)
    headers = {"User-Agent": f"benchbench/{__version__}", **access.headers}
    try:
        connector = aiohttp.TCPConnector(ssl=access.ssl(url))
    except OSError as error:
        raise EngineError(f"cannot be read: {error}", "engine.ca_file") from None
    async with aiohttp.ClientSession(
        connector=connector, timeout=timeout, headers=headers, auto_decompress=True, trust_env=False
    ) as session:

        async def get(path: str) -> tuple[int, Any]:
            async with asyncio.timeout(access.connect_s + ANSWER_S):
                async with session.get(url + path, allow_redirects=False, proxy=access.proxy) as answer:
                    body = await answer.content.read(ANSWER_BYTES)
                    return answer.status, body

        try:
            status, body = await get("/v1/models")
        except aiohttp.ClientConnectorCertificateError as error:
            raise EngineError(f"TLS certificate refused: {error.certificate_error}", "engine.ca_file") from None
        except (aiohttp.ClientConnectorError, aiohttp.ClientProxyConnectionError, OSError) as error:
            if isinstance(error, TimeoutError) and not isinstance(error, aiohttp.ClientError):
                return Capabilities(notes=("GET /v1/models did not answer: the model list is not checked",))
            reason = getattr(error, "os_error", error)
            where = urlsplit(access.proxy or url).netloc.rpartition("@")[2]
            words = getattr(reason, "strerror", None) or str(reason)
            raise EngineError(f"nobody answers at {where}: {words}", "engine.url", gone=True) from None
        except aiohttp.ClientHttpProxyError as error:
            raise EngineError(f"the proxy refused the tunnel: {error.status}", "engine.proxy") from None
        except aiohttp.ClientError as error:
            return Capabilities(
                notes=(f"GET /v1/models failed ({type(error).__name__}): the model list is not checked",)
            )
        found = read_models(status, body, model)
        version, metrics = None, False
        try:
            answered, text = await get("/version")
            version = _version(text) if answered == 200 else None
            answered, text = await get("/metrics")
            metrics = answered == 200 and b"vllm:" in text
        except (aiohttp.ClientError, OSError):
            pass
        return Capabilities(found.models, found.max_model_len, found.owned_by, version, metrics, found.notes)


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
