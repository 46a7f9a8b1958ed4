"""What the head of an answer tells beside its status: which of several servers gave it, tries before it, cached tokens.

Pure.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import lru_cache
from typing import Literal, NamedTuple

from benchbench.reported.reported_usage import is_cache_hit

# Heads with which gateways name the server, instance or deployment that they chose: nginx and HAProxy as their users
# set them up, LiteLLM, SageMaker, Azure, Fireworks, Kubernetes' inference gateway.
_NAMING = re.compile(
    r"x-served-by|(?:x-|fireworks-)?backend(?:-server|-host|-name|-id)?|x-upstream(?:-addr|-server|-host|-name)?"
    r"|x-(?:server|instance|pod|replica|worker|node|container)(?:-id|-name)|x-(?:instance|pod|replica|worker|node)"
    r"|x-hostname|x-inference-pod|x-gateway-destination-endpoint(?:-served)?|x-litellm-model-(?:id|api-base)|x-ms-region"
    r"|x-amzn-invoked-production-variant|azureml-model-deployment|fireworks-deployment"
)
_STICKY = re.compile(r"(?:serverid|server|srv|srv_id|backend)=([^;]+)", re.IGNORECASE)  # HAProxy's cookies
# Heads that count a gateway's attempts, first one included, and those after it: Envoy's, LiteLLM's and the like.
_ATTEMPTS = re.compile(r"x-(?:envoy-)?attempt-count")
_RETRIES = re.compile(r"x-(?:litellm-attempted-(?:retries|fallbacks)|(?:[a-z]+-)?retry-(?:count|attempts?))")
LENGTH = 100  # characters of a server's name that a record keeps


class Head(NamedTuple):
    """`server`: its name, empty where none is told. `retries`: how often a gateway asked again, or another server,
    before. `cached`: counts of cached tokens, as they stand there.
    """

    server: str
    retries: int
    cached: tuple[str, ...]


@lru_cache(1024)
def _kind(header: bytes) -> Literal["", "server", "cookie", "attempts", "retries", "cached"]:
    name = header.decode("latin-1")
    if name == "set-cookie":
        return "cookie"
    if _NAMING.fullmatch(name):
        return "server"
    if _ATTEMPTS.fullmatch(name):
        return "attempts"
    if _RETRIES.fullmatch(name):
        return "retries"
    return "cached" if is_cache_hit(name) else ""


def told_by(headers: Mapping[bytes, bytes], provider: str = "") -> Head:
    """What these tell, names in small letters. `provider`: whom an event names as the server.

    A CDN's own node (`X-Served-By: cache-ams21040-AMS`) is no server of a model.
    """
    names, counts, cached = [provider] if provider else [], [0], []
    for header, data in headers.items():
        if not (kind := _kind(header)):
            continue
        value = data.decode("latin-1").strip()
        if kind == "cookie" and (cookie := _STICKY.match(value)):
            names.append(cookie[1])
        elif kind == "server" and value and not value.startswith("cache-"):
            names.append(value)
        elif kind == "cached":
            cached.append(value)
        elif kind in {"attempts", "retries"} and value.isdecimal() and len(value) < 5:
            counts.append(int(value) - (kind == "attempts"))
    server = " ".join(sorted(names)).encode("utf-8", "replace").decode()[:LENGTH]
    return Head(server, max(counts), tuple(cached))
