"""A server's routes, how it is reached, and what requests hold: each written here once. Picklable, no sockets."""

from __future__ import annotations

import base64
import re
import socket
import ssl
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any
from urllib.parse import quote, unquote, urlsplit

from benchbench.http1.resolved import in_order
from benchbench.version import __version__

if TYPE_CHECKING:
    from benchbench.spec import Engine

GENERATION = {"completions": "/v1/completions", "chat": "/v1/chat/completions"}
MODELS = "/v1/models"
Prompt = str | Sequence[int]
# Fields of a sweep's extra_body that are of a stream or of several answers: one untimed answer is asked without them.
_OF_A_STREAM = {"stream", "stream_options", "min_tokens", "max_tokens", "max_completion_tokens", "n", "best_of", "echo"}


# The path of an API in that of a URL: its last part, or all from the first part that names a version or is Azure's.
_API_PATH = re.compile(r"(.*)(/v1)|(.*?)(/(?:v\d+\w*|openai/deployments)(?:/.*)?)")


def address_of(url: str, route: str, path: str | None = None) -> str:
    """The address of a route of the server at `url`, whose base path and query are kept.

    Routes that begin with /v1 stand under the API's path: `path`, else what `url` names (`/openai/v1`, `/api/paas/v4`,
    `/v1beta/openai`, `/openai/deployments/NAME`, or all of a chat or completions route), else /v1. The others stand
    beside it.
    """
    parts, base = urlsplit(url), _base_path(url)
    if path is not None:
        root, api = base.removesuffix(path.rstrip("/")), path.rstrip("/")
    else:
        named = _API_PATH.fullmatch(base)
        root, api = [part for part in named.groups() if part is not None] if named else (base, "/v1")
    route = api + route.removeprefix("/v1") if route.startswith("/v1/") else route
    query = f"{'&' if '?' in route else '?'}{parts.query}" if parts.query else ""
    return f"{parts.scheme}://{parts.netloc}{root}{route}{query}"


def leaves_path_open(url: str) -> bool:
    """Whether a URL has a base path that does not tell where the API is: under it, or under its /v1."""
    base = _base_path(url)
    return bool(base) and not _API_PATH.fullmatch(base)


def _base_path(url: str) -> str:
    """The path of a URL, without that of a generation route."""
    base = urlsplit(url).path.rstrip("/")
    for generation in ("/chat/completions", "/completions"):
        base = base.removesuffix(generation)
    return base


def prompt_field(api: str, prompt: Prompt) -> dict[str, Any]:
    """The field of a request's body that holds its prompt."""
    return {"messages": [{"role": "user", "content": prompt}]} if api == "chat" else {"prompt": prompt}


def untimed_body(engine: Engine, model: str, prompt: Prompt, output: int) -> dict[str, Any]:
    """A request for one answer of at most `output` tokens that is not streamed, as a sweep's engine is asked."""
    kept = {key: value for key, value in engine.extra_body.items() if key not in _OF_A_STREAM}
    return {**kept, "model": model, engine.max_tokens_field: output, **prompt_field(engine.api, prompt)}


@dataclass(frozen=True, slots=True)
class Access:
    """How to reach a server besides its URL; `headers` hold secrets."""

    headers: Mapping[str, str] = field(default_factory=dict, repr=False)
    ca_file: str | None = None
    insecure: bool = False
    proxy: str | None = None
    connect_s: float = 10.0
    path: str | None = None  # of the API, where its URL does not tell

    @property
    def secrets(self) -> frozenset[str]:
        """What must not be quoted: the headers' values, bare tokens too."""
        return frozenset(part for value in self.headers.values() for part in (value, value.removeprefix("Bearer ")))

    def refusal(self, status: int) -> str:
        """Why a server answers with status 401 or 403."""
        if not self.headers:
            return f"the server asks for credentials (status {status}), and the sweep names none"
        return f"the server refused the credentials (status {status})"

    def tls_context(self) -> ssl.SSLContext:
        """Raises OSError for an unreadable `ca_file`."""
        context = ssl.create_default_context(cafile=self.ca_file)
        if self.insecure:
            context.check_hostname = False
            context.verify_mode = ssl.CERT_NONE
        context.set_alpn_protocols(["http/1.1"])
        return context


@dataclass(frozen=True, slots=True)
class Target:
    """One generation route of one server. Its `access` holds secrets: it goes through a pipe to the worker, never into
    a file.
    """

    host: str
    port: int
    path: str
    tls: bool
    access: Access

    @property
    def proxy(self) -> tuple[str, int] | None:
        """Host and port of the proxy that a tunnel goes through."""
        parts = urlsplit(self.access.proxy or "")
        return (parts.hostname or "", parts.port or 80) if self.access.proxy else None

    def request(self, body: bytes, method: str = "POST", accept: str = "text/event-stream") -> bytes:
        """The whole HTTP/1.1 request, head and body, as it goes to the socket in one send."""
        is_usual = self.port == (443 if self.tls else 80)
        lines = [
            f"{method} {self.path} HTTP/1.1",
            f"Host: {bracketed(self.host) if is_usual else self._address}",
            f"User-Agent: benchbench/{__version__}",
            f"Accept: {accept}",
            "Accept-Encoding: identity",
            *(["Content-Type: application/json"] if method == "POST" else []),
            *(f"{name}: {value}" for name, value in self.access.headers.items()),
            *([f"Content-Length: {len(body)}"] if method == "POST" else []),
        ]
        return "\r\n".join(lines).encode() + b"\r\n\r\n" + body

    def connect_request(self) -> bytes:
        """What a proxy is asked before anything else: a tunnel to the server."""
        proxy, login = urlsplit(self.access.proxy or ""), ""
        if proxy.username:
            pair = f"{unquote(proxy.username)}:{unquote(proxy.password or '')}".encode()
            login = f"Proxy-Authorization: Basic {base64.b64encode(pair).decode()}\r\n"
        return f"CONNECT {self._address} HTTP/1.1\r\nHost: {self._address}\r\n{login}\r\n".encode()

    def addresses(self) -> list[tuple[int, tuple[str, int]]]:
        """(family, socket address) of the peer we connect to, as `in_order`. Raises OSError."""
        return in_order(socket.getaddrinfo(*(self.proxy or (self.host, self.port)), type=socket.SOCK_STREAM))

    @property
    def _address(self) -> str:
        return f"{bracketed(self.host)}:{self.port}"


def bracketed(host: str) -> str:
    """A host as it stands in an address: with brackets around IPv6."""
    return f"[{host}]" if ":" in host else host


def make_target(url: str, api: str, access: Access) -> Target:
    """The Target of `api` (completions or chat) of the server at `url`."""
    return route_target(url, GENERATION[api], access)


def route_target(url: str, route: str, access: Access) -> Target:
    """The same of any route."""
    parts = urlsplit(address_of(url, route, access.path))
    tls = parts.scheme == "https"
    path = quote(parts.path + (f"?{parts.query}" if parts.query else ""), safe="%/?:@!$&'()*+,;=[]")
    return Target(parts.hostname or "", parts.port or (443 if tls else 80), path, tls, access)
