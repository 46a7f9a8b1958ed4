"""Which of several servers behind one address gave an answer, where a head or an event names it. Pure."""

from __future__ import annotations

import re
from collections.abc import Mapping

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
LENGTH = 100  # characters of a name that a record keeps


def named_server(headers: Mapping[bytes, bytes], provider: str = "") -> str:
    """The server that an answer's head names, and the `provider` that an event does; empty where none is named. Header
    names are in small letters.

    A CDN's own node (`X-Served-By: cache-ams21040-AMS`) is no server of a model.
    """
    names = [provider] if provider else []
    for header, data in headers.items():
        name, value = header.decode("latin-1"), data.decode("latin-1").strip()
        if name == "set-cookie" and (cookie := _STICKY.match(value)):
            names.append(cookie[1])
        elif value and _NAMING.fullmatch(name) and not value.startswith("cache-"):
            names.append(value)
    return " ".join(sorted(names)).encode("utf-8", "replace").decode()[:LENGTH]


def retries(headers: Mapping[bytes, bytes]) -> int:
    """How often a gateway asked again, or another server, before this answer, as its head tells. Names as above."""
    counts = [0]
    for header, data in headers.items():
        name, value = header.decode("latin-1"), data.decode("latin-1").strip()
        if value.isdecimal() and len(value) < 5:
            counts += [int(value) - 1] if _ATTEMPTS.fullmatch(name) else []
            counts += [int(value)] if _RETRIES.fullmatch(name) else []
    return max(counts)
