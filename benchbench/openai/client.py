"""Attach to a server that runs already: what is it, what does it serve, and which checks will be possible.

Only GETs, before the first round; the generation routes get nothing but the sweep's own requests. Whether a route for
POSTs is there, a GET tells too: it is answered with 405 where one that is not there gets 404.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any
from urllib.parse import urlsplit

from benchbench.errors import EngineError
from benchbench.http1.untimed import Connections, NoAnswerError, NotConnectedError, NoTunnelError, Peer
from benchbench.model.served_names import names_of
from benchbench.openai.target import MODELS, Access, route_target
from benchbench.secrets import mask_text, masked
from benchbench.stopping import unless_stopped

ANSWER_BYTES = 1 << 20
ANSWER_S = 5.0
SERVER_INFO_S = 30.0  # vLLM runs a dozen programs to answer it the first time
INFO_CHARS = 4000  # longer texts in it are cut

Request = Callable[..., Awaitable[tuple[int, bytes]]]

_KINDS = {"vllm": "vllm", "benchbench": "benchbench simulator"}  # by the owner that /v1/models names
_BUILD = ("VLLM_BUILD_COMMIT", "VLLM_IMAGE_TAG")
_CACHE_CONFIG = re.compile(rb"^vllm:cache_config_info\{(.*)\} ", re.MULTILINE)
# A router has metrics of that name too, and counts no tokens (production-stack)
_COUNTED = re.compile(rb"^vllm:(prompt_tokens|generation_tokens|prefix_cache_hits)(?:_total)?[ {]", re.MULTILINE)
_LABEL = re.compile(r'(\w+)="([^"]*)"')
_NO_METRICS = (
    "no /metrics of vLLM's kind: preemptions, foreign load and prefix hits are not checked "
    "(but for cached tokens that its answers report)"
)
_NO_TLS = {"WRONG_VERSION_NUMBER", "RECORD_LAYER_FAILURE"}  # what OpenSSL calls an answer that is no TLS


@dataclass(frozen=True, slots=True)
class Capabilities:
    """What a server says of itself. None: it does not say. `notes` say what could not be found out.

    `kind`: "vllm", "benchbench simulator", or "openai" for any other that lists its models. `metrics`: it counts in
    vLLM's way, so that preemptions and foreign load are checked, and `prefix_hits` too where it tells them. `tokenize`,
    `reset_prefix_cache`: whether the route is there. `server_info`: vLLM's configuration in its development mode,
    masked and cut short; `cache_config`: what its metrics tell of its cache (block size, dtype, prefix caching).
    Whether answers tell cached tokens and the server's own times, only answers show. `answers_as`: the names of the
    model that was asked for, empty where it is not listed.
    """

    models: tuple[str, ...] = ()
    max_model_len: int | None = None
    owned_by: str | None = None
    kind: str | None = None
    version: str | None = None
    metrics: bool = False
    prefix_hits: bool = False
    tokenize: bool | None = None
    reset_prefix_cache: bool | None = None
    server_info: Mapping[str, Any] | None = None
    cache_config: Mapping[str, str] | None = None
    answers_as: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()


def attach(url: str, model: str, access: Access, stop: int | None = None) -> Capabilities:
    """Ask the server at `url` what it is.

    Raises EngineError when nobody listens, when the credentials are refused, or when a vLLM server lists other models
    than `model` (other servers take any name, so there it is a note); InterruptedSweep when `stop` becomes readable.
    """
    if access.proxy and url.startswith("http:"):
        # Requests go through a CONNECT tunnel; what a proxy says to a plain GET would be its own words.
        return Capabilities(notes=("a plain-http server behind a proxy is not asked what it is",))
    return asyncio.run(unless_stopped(stop, _attach(url, model, access)))


async def post(
    url: str, access: Access, route: str, body: Mapping[str, Any], answer_s: float | None = None
) -> tuple[int, bytes]:
    """Status and body of one POST of JSON, in a session of its own. Raises as `http_session` does."""
    async with http_session(url, access, answer_s=answer_s) as request:
        return await request(route, body)


@contextlib.asynccontextmanager
async def http_session(
    url: str, access: Access, *, answer_s: float | None = None, limit: int | None = None
) -> AsyncIterator[Request]:
    """`request(route)` is a GET and `request(route, body)` a POST of JSON, each giving (status, body); no redirects.

    An answer is waited for `answer_s` seconds (ANSWER_S; `request` takes it too) and read until it exceeds `limit`
    bytes (ANSWER_BYTES), so that a longer body was cut. `request` raises OSError (see `http1.untimed`); making the
    session raises EngineError when the CA file cannot be read.
    """
    import orjson

    usual_s, limit, root = answer_s or ANSWER_S, limit or ANSWER_BYTES, route_target(url, MODELS, access)
    try:
        context = access.tls_context() if root.tls else None
    except OSError as error:
        raise EngineError(f"cannot be read: {error}", "engine.ca_file") from None
    tunnel = root.connect_request() if root.proxy else b""
    peer = Peer(root.host, root.port, context, root.proxy, tunnel, access.connect_s)
    async with Connections(peer) as connections:

        async def request(
            route: str, body: Mapping[str, Any] | None = None, answer_s: float = usual_s
        ) -> tuple[int, bytes]:
            method, content = ("GET", b"") if body is None else ("POST", orjson.dumps(body))
            payload = route_target(url, route, access).request(content, method, "*/*")
            async with asyncio.timeout(access.connect_s + answer_s):
                return await connections.ask(payload, limit, again=body is None)

        yield request


async def _attach(url: str, model: str, access: Access) -> Capabilities:
    async with http_session(url, access) as request:
        answer = await _listing(request, url, access)
        if isinstance(answer, str):
            return Capabilities(notes=(f"GET {MODELS} {answer}: the model list is not checked",))
        capabilities = replace(read_models(*answer, model, access), **await _probe(request, access.secrets))
        if capabilities.metrics and capabilities.kind in {None, "openai"}:
            capabilities = replace(capabilities, kind="vllm")  # under another owner's name
        if capabilities.kind == "vllm":
            capabilities = replace(capabilities, server_info=await _server_info(request, access.secrets))
        notes = capabilities.notes if capabilities.metrics else (*capabilities.notes, _NO_METRICS)
        return replace(capabilities, notes=notes)


async def _listing(request: Request, url: str, access: Access) -> tuple[int, bytes] | str:
    """Status and body of GET /v1/models; in words, why it was not answered. Raises EngineError as `attach` does."""
    plain = urlsplit(url).scheme == "http"
    try:
        status, body = await request(MODELS)
    except NoTunnelError as error:
        raise EngineError(str(error), "engine.proxy") from None
    except NotConnectedError as error:
        if isinstance(error.reason, ssl.SSLCertVerificationError):
            raise EngineError(f"TLS certificate refused: {error.reason}", "engine.ca_file") from None
        if await _lacks_tls(url, access, error.reason):
            raise _other_scheme(url, "the server does not speak TLS at this port") from None
        raise _unreachable(url, access, error.reason) from None
    except TimeoutError:
        return "did not answer"
    except OSError as error:
        if plain and await _speaks_tls(url):
            raise _other_scheme(url, "the server speaks TLS at this port") from None
        if isinstance(error, NoAnswerError):
            return f"failed ({error})"
        raise _unreachable(url, access, error) from None
    if plain and status == 400 and await _speaks_tls(url):
        raise _other_scheme(url, "the server speaks TLS at this port")
    return status, body


async def _probe(request: Request, secrets: frozenset[str]) -> dict[str, Any]:
    """Fields of Capabilities that further GETs tell; after one that failed no more are tried."""
    fields: dict[str, Any] = {}
    with contextlib.suppress(OSError):
        version = json_object(*await request("/version")).get("version")
        fields["version"] = None if version is None else mask_text(str(version)[:100], secrets)
        status, body = await request("/metrics")
        names = {match[1] for match in _COUNTED.finditer(body)} if status == 200 else set[bytes]()
        is_cut = status == 200 and len(body) > ANSWER_BYTES and b"vllm:" in body  # of very many ranks
        fields["metrics"], fields["prefix_hits"] = bool(names) or is_cut, b"prefix_cache_hits" in names or is_cut
        labels = _CACHE_CONFIG.search(body) if fields["metrics"] else None
        fields["cache_config"] = dict(_LABEL.findall(labels[1].decode(errors="replace"))) if labels else None
        nowhere, _ = await request("/no-such-route")
        for route in ("tokenize", "reset_prefix_cache"):
            status, _ = await request(f"/{route}")
            fields[route] = {405: True, 404: False}.get(status) if nowhere == 404 else None
    return fields


async def _server_info(request: Request, secrets: frozenset[str]) -> dict[str, Any] | None:
    """What vLLM's development mode says of its configuration and system."""
    try:
        info = json_object(*await request("/server_info?config_format=json", answer_s=SERVER_INFO_S))
    except OSError:
        return None
    env = info.get("vllm_env")
    build = {name: env.get(name) for name in _BUILD} if isinstance(env, dict) else {}
    kept = {"config": info.get("vllm_config"), "system": info.get("system_env"), "build": build}
    return _short(masked(kept, secrets=secrets)) if info else None


def _short(value: Any) -> Any:  # noqa: ANN401 - JSON in, JSON out
    """JSON without what is empty, long texts cut."""
    if isinstance(value, dict):
        parts = {key: _short(item) for key, item in value.items()}
        return {key: item for key, item in parts.items() if item not in (None, "", "N/A", "unknown", [], {})}
    if isinstance(value, list):
        return [_short(item) for item in value]
    return f"{value[:INFO_CHARS]} ..." if isinstance(value, str) and len(value) > INFO_CHARS else value


def _other_scheme(url: str, message: str) -> EngineError:
    scheme, _, rest = url.partition(":")
    return EngineError(message, "engine.url", allowed=f"{'https' if scheme == 'http' else 'http'}:{rest}")


def _unreachable(url: str, access: Access, error: OSError) -> EngineError:
    """What a connection that could not be made says of the server, or of the proxy on the way."""
    if access.proxy:
        where = urlsplit(access.proxy).netloc.rpartition("@")[2]
        return EngineError(f"the proxy does not answer at {where}: {_cause(error)}", "engine.proxy", gone=True)
    return EngineError(f"nobody answers at {urlsplit(url).netloc}: {_cause(error)}", "engine.url", gone=True)


async def _lacks_tls(url: str, access: Access, reason: OSError) -> bool:
    """Whether a handshake failed since the server speaks plain HTTP: its answer was no TLS, or it closed, and answers
    a plain request (without credentials).
    """
    if isinstance(reason, ssl.SSLError):
        return reason.reason in _NO_TLS
    if url.startswith("https:") and not access.proxy and isinstance(reason, ConnectionResetError):
        with contextlib.suppress(OSError):
            async with http_session(url.replace("https:", "http:", 1), Access(connect_s=access.connect_s)) as request:
                await request(MODELS)
                return True
    return False


async def _speaks_tls(url: str) -> bool:
    """Whether a TLS handshake succeeds where a plain-http address points to."""
    parts = urlsplit(url)
    context = Access(insecure=True).tls_context()
    with contextlib.suppress(OSError):
        async with asyncio.timeout(ANSWER_S):
            _, writer = await asyncio.open_connection(parts.hostname, parts.port or 80, ssl=context)
            writer.transport.abort()
            return True
    return False


def _cause(reason: OSError) -> str:
    """The system's words for a failed connection; asyncio's own repeat the address."""
    if isinstance(reason, TimeoutError):
        return "no answer in time"
    code = reason.errno
    if code and code > 0 and not isinstance(reason, ssl.SSLError):
        return os.strerror(code)
    return str(getattr(reason, "strerror", None) or reason)


def json_object(status: int, body: bytes) -> dict[str, Any]:
    """The JSON object that an answer with status 200 holds; empty when it holds none."""
    import orjson

    with contextlib.suppress(orjson.JSONDecodeError):
        data = orjson.loads(body) if status == 200 else None
        return data if isinstance(data, dict) else {}
    return {}


def read_models(status: int, body: bytes, model: str, access: Access) -> Capabilities:
    """What GET /v1/models said. Pure; raises EngineError as `attach` does."""
    if status in {401, 403}:
        raise EngineError(access.refusal(status), "engine.api_key_env")
    if 300 <= status < 400:
        raise EngineError(f"the server redirects (status {status}); give the final address", "engine.url")
    data = json_object(status, body).get("data")
    models = [item for item in data if isinstance(item, dict)] if isinstance(data, list) else []
    if not models:
        return Capabilities(notes=(f"GET {MODELS} gave no list (status {status}): the model name is not checked",))
    names = tuple(str(item.get("id")) for item in models)
    entry = next((item for item in models if item.get("id") == model), {})
    owner = str((entry or models[0]).get("owned_by") or "") or None
    if not entry and owner in _KINDS:
        raise EngineError(f"the server does not serve {model!r}", "model", allowed=", ".join(names))
    notes = () if entry else (f"the server lists {', '.join(names[:5])}, not {model!r}: continuing",)
    length = entry.get("max_model_len")
    most = length if isinstance(length, int) else None
    kind, own = _KINDS.get(owner or "", "openai"), names_of(models, model)
    return Capabilities(names, most, owner, kind, answers_as=own, notes=notes)
