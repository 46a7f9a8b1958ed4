"""Where requests go and what stands before their bodies: addresses, TLS, proxy, request head. Picklable, no sockets."""

from __future__ import annotations

import base64
import socket
import ssl
from collections.abc import Mapping
from dataclasses import dataclass, field
from urllib.parse import quote, unquote, urlsplit

from benchbench.spec.values import base_path
from benchbench.version import __version__

ROUTES = {"completions": "/v1/completions", "chat": "/v1/chat/completions"}


@dataclass(frozen=True, slots=True)
class Target:
    """One generation route of one server.

    `headers` and `proxy_headers` hold secrets: a Target goes through a pipe to the worker, never into a file.
    """

    host: str
    port: int
    path: str
    tls: bool = False
    ca_file: str | None = None
    insecure: bool = False
    proxy: tuple[str, int] | None = None
    headers: Mapping[str, str] = field(default_factory=dict, repr=False)
    proxy_headers: Mapping[str, str] = field(default_factory=dict, repr=False)

    def request(self, body: bytes) -> bytes:
        """The whole HTTP/1.1 request, head and body, as it goes to the socket in one send."""
        lines = [
            f"POST {self.path} HTTP/1.1",
            f"Host: {host_header(self.host, self.port, tls=self.tls)}",
            f"User-Agent: benchbench/{__version__}",
            "Accept: text/event-stream",
            "Accept-Encoding: identity",
            "Content-Type: application/json",
            *(f"{name}: {value}" for name, value in self.headers.items()),
            f"Content-Length: {len(body)}",
        ]
        return "\r\n".join(lines).encode() + b"\r\n\r\n" + body

    def connect_request(self) -> bytes:
        """What a proxy is asked before anything else: a tunnel to the server."""
        where = host_header(self.host, self.port)
        extra = "".join(f"{name}: {value}\r\n" for name, value in self.proxy_headers.items())
        return f"CONNECT {where} HTTP/1.1\r\nHost: {where}\r\n{extra}\r\n".encode()

    def addresses(self) -> list[tuple[int, tuple[str, int]]]:
        """(family, socket address) of the peer we connect to, in the resolver's order. Raises OSError."""
        host, port = self.proxy or (self.host, self.port)
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
        return [(int(family), address) for family, _, _, _, address in found]  # type: ignore[misc]

    def ssl_context(self) -> ssl.SSLContext | None:
        """A context for TLS over memory; None for plain HTTP. Raises OSError for an unreadable `ca_file`."""
        if not self.tls:
            return None
        context = ssl.create_default_context(cafile=self.ca_file)
        if self.insecure:
            context.check_hostname = False
            context.verify_mode = ssl.CERT_NONE
        context.set_alpn_protocols(["http/1.1"])
        return context


def host_header(host: str, port: int, *, tls: bool | None = None) -> str:
    """`host:port` with brackets around IPv6, without the port that the scheme implies."""
    name = f"[{host}]" if ":" in host else host
    return name if tls is not None and port == (443 if tls else 80) else f"{name}:{port}"


def make_target(
    url: str,
    api: str,
    headers: Mapping[str, str],
    *,
    ca_file: str | None = None,
    insecure: bool = False,
    proxy: str | None = None,
) -> Target:
    """The Target of `api` (completions or chat) under `url`, whose base path and query are kept."""
    parts = urlsplit(url)
    tls = parts.scheme == "https"
    path = base_path(parts.path) + ROUTES[api] + (f"?{parts.query}" if parts.query else "")
    where, proxy_headers = None, {}
    if proxy:
        at = urlsplit(proxy)
        where = (at.hostname or "", at.port or 80)
        if at.username:
            pair = f"{unquote(at.username)}:{unquote(at.password or '')}".encode()
            proxy_headers["Proxy-Authorization"] = "Basic " + base64.b64encode(pair).decode()
    return Target(
        host=parts.hostname or "",
        port=parts.port or (443 if tls else 80),
        path=quote(path, safe="%/?:@!$&'()*+,;=[]"),
        tls=tls,
        ca_file=ca_file,
        insecure=insecure,
        proxy=where,
        headers=dict(headers),
        proxy_headers=proxy_headers,
    )
