"""Values of a sweep file: what each may be, and what is said when it is not."""

from __future__ import annotations

import json
import re
from typing import Annotated, Any, Literal, Self
from urllib.parse import urlsplit

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, WithJsonSchema

from benchbench.bodies.json_values import json_mapping
from benchbench.datasets.laws import AXIS_SCHEMA, Law, LengthSchema
from benchbench.yamlfile.mistakes import show
from benchbench.yamlfile.refusal import problem


class Section(BaseModel):
    """Strict: "128" is not a number, true is not 1, unknown keys and NaN are errors."""

    model_config = ConfigDict(
        extra="forbid",
        frozen=True,
        strict=True,
        allow_inf_nan=False,
        protected_namespaces=(),  # model_facts is a key
        defer_build=True,  # of a whole sweep once, not of each of its sections too
    )

    @classmethod
    def default(cls, **given: Any) -> Self:  # noqa: ANN401 # whatever the section's keys hold
        """The section without validation, which would build its model beside the whole sweep's (1 ms each)."""
        return super().model_construct(**given)


def one_or_many(value: object) -> object:
    """A tuple of the list's items, or of the one value. Refuses an empty list."""
    if isinstance(value, (list, tuple)):
        if not value:
            raise problem("must not be empty")
        return tuple(value)
    return (value,)


def as_tuple(value: object) -> object:
    """YAML and JSON know lists only; the specs, being frozen, hold tuples."""
    return tuple(value) if isinstance(value, list) else value


def _text(value: str) -> str:
    if not value.strip() or not value.isprintable():
        raise problem(f"must be text of one line, is {show(value)}")
    return value


def _matching(pattern: str, message: str, allowed: str = "") -> AfterValidator:
    """Refuses text that is not wholly of the pattern, and shows it."""

    def check(value: str) -> str:
        if not re.fullmatch(pattern, value):
            raise problem(f"{message}, is {show(value)}", allowed)
        return value

    return AfterValidator(check)


def _variable(value: str) -> str:
    # The value is not shown: this is where a pasted secret would stand.
    if not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", value):
        raise problem("must be the name of an environment variable, never the secret itself")
    return value


def _url(value: str) -> str:
    if "://" not in value:
        raise problem(
            f"needs a scheme, is {show(value)}: write http://{value.strip() or '127.0.0.1:8000'}", "http, https"
        )
    try:
        parts = urlsplit(value)
        host, port = parts.hostname, parts.port
    except ValueError as error:
        raise problem(f"must be a URL: {str(error)[:80]}") from None
    if parts.scheme not in {"http", "https"}:
        raise problem(f"has the scheme {parts.scheme!r}", "http, https")
    if not host or port == 0 or " " in value or not value.isprintable():
        raise problem(f"must be a URL with a host, is {show(value)}")
    if parts.username is not None or parts.password is not None:
        raise problem("holds a user or a password: use api_key_env or headers_env")
    if parts.fragment:
        raise problem("holds a fragment (#...), which no server sees")
    return value


def _urls(value: object) -> object:
    """One address, or a tuple of several different ones."""
    urls: Any = one_or_many(value)
    for url in urls:
        if not isinstance(url, str):
            raise problem(f"must be text, is {show(url)}")
        _url(url)
    if len({url.rstrip("/") for url in urls}) < len(urls):
        raise problem("names an address twice")
    return urls if len(urls) > 1 else urls[0]


def _repository(value: str) -> str:
    # Git hands the URL to its helpers as an argument, where everybody on the machine can read it.
    try:
        parts = urlsplit(value)
    except ValueError:
        return value  # a folder, whatever its name
    if parts.password is not None or (parts.scheme in {"http", "https"} and parts.username is not None):
        raise problem("holds a user or a password: leave that to git's credential helper or to ssh")
    return value


def _proxy(value: str) -> str:
    parts = urlsplit(_url(value))
    if parts.scheme != "http" or parts.port is None or parts.path not in {"", "/"} or parts.query:
        raise problem(f"is {show(value)}", "http://host:port")
    return value


def _flags(value: dict[str, Any]) -> dict[str, Any]:
    for key, item in value.items():
        if key != key.strip() or not key or key.startswith("-") or not key.isprintable() or " " in key:
            raise problem(f"invalid flag {show(key)}: write its name without the leading --")
        owner = _OWN_FLAGS.get(key.replace("_", "-"))
        if owner:
            raise problem(f"{key} is not set here: use {owner}")
        if key.replace("_", "-") == "hf-token" and isinstance(item, str):
            raise problem("holds a secret, hf-token: set the environment variable HF_TOKEN")
    return value


def _variables(value: dict[str, Any]) -> dict[str, Any]:
    for key in value:
        _variable(key)
    return {key: item if isinstance(item, str) else json.dumps(item) for key, item in value.items()}


def _auto_or(low: int, high: int) -> list[Any]:
    """A whole number of this range, or `auto`."""

    def check(value: object) -> object:
        if value == "auto" or (isinstance(value, int) and not isinstance(value, bool) and low <= value <= high):
            return value
        raise problem(f"unknown value {show(value)}", f"auto, or a whole number from {low}")

    schema = {"anyOf": [{"const": "auto"}, {"type": "integer", "minimum": low}]}
    return [BeforeValidator(check), WithJsonSchema(schema)]


def cpu_numbers(text: str) -> list[int]:
    """The CPUs of `0-3,8`, each once, in the order given; of `3-0` none."""
    ends = [part.partition("-") for part in text.split(",")]
    return list(dict.fromkeys(cpu for low, _, high in ends for cpu in range(int(low), int(high or low) + 1)))


def _vocab(value: tuple[int, int]) -> tuple[int, int]:
    if value[0] >= value[1]:
        raise problem(f"must be [low, high) with low below high, is [{value[0]}, {value[1]}]")
    return value


def _pair(value: object) -> object:
    if isinstance(value, (list, tuple)) and len(value) != 2:
        raise problem(f"must be two token ids [low, high), has {len(value)}")
    return as_tuple(value)


def _axis(kind: str, **bound: int) -> WithJsonSchema:
    number = {"type": kind, **bound}
    return WithJsonSchema({"anyOf": [number, {"type": "array", "items": number, "minItems": 1}]})


def _amount(value: object) -> object:
    if not isinstance(value, str):
        return value
    match = re.fullmatch(r"(\d+(?:\.\d+)?) ?(?:([KMBGT])B?)", value)
    if not match:
        raise problem(f"must be a number, is {show(value)}", "a whole number, or as 12.5M, 230B, 215GB, 1T")
    return round(float(match[1]) * {"K": 1e3, "M": 1e6, "B": 1e9, "G": 1e9, "T": 1e12}[match[2]])


# Flags that would contradict what the sweep says elsewhere, or show a secret in the list of processes.
_OWN_FLAGS = {"host": "engine.host", "port": "engine.port", "api-key": "engine.api_key_env"}

Count = Annotated[int, Field(ge=1, le=10**9)]
Amount = Annotated[
    int,
    Field(ge=1, le=10**15),
    BeforeValidator(_amount),
    WithJsonSchema({"anyOf": [{"type": "integer", "minimum": 1}, {"type": "string"}]}),
]
Dtype = Literal["bf16", "fp16", "fp8", "int8", "fp4", "int4"]
TokenId = Annotated[int, Field(ge=0, le=2**31 - 1)]
Positive = Annotated[float, Field(gt=0)]
Share = Annotated[float, Field(ge=0, le=1)]
Text = Annotated[str, AfterValidator(_text)]
Variable = Annotated[str, AfterValidator(_variable)]
Pair = Annotated[tuple[Text, Text], BeforeValidator(as_tuple)]
Repository = Annotated[Text, AfterValidator(_repository)]
Json = Annotated[dict[str, Any], AfterValidator(json_mapping)]
Flags = Annotated[dict[str, Any], AfterValidator(json_mapping), AfterValidator(_flags)]
Variables = Annotated[dict[str, str | int | float | bool], AfterValidator(_variables)]
Command = Annotated[tuple[Text, ...], BeforeValidator(as_tuple), Field(min_length=1)]
Loopback = Annotated[
    str,
    _matching(r"::1|localhost|127(\.\d{1,3}){3}", "must be a loopback address", allowed="127.0.0.1, ::1, localhost"),
]
Path = Annotated[Text, _matching("/.*", "must be a path such as /health")]
_Length = Annotated[int | Law, LengthSchema()]
TokenLengths = Annotated[tuple[_Length, ...], BeforeValidator(one_or_many), WithJsonSchema(AXIS_SCHEMA)]
Batches = Annotated[
    tuple[Annotated[int, Field(ge=1, le=65_536)], ...], BeforeValidator(one_or_many), _axis("integer", minimum=1)
]
Urls = Annotated[str | tuple[str, ...], BeforeValidator(_urls), _axis("string")]
Rates = Annotated[tuple[Positive, ...], BeforeValidator(one_or_many), _axis("number", exclusiveMinimum=0)]
Warmup = Annotated[int | Literal["auto"], *_auto_or(0, 10**6)]
Workers = Annotated[int | Literal["auto"], *_auto_or(1, 256)]
Cpus = Annotated[
    str,
    BeforeValidator(lambda value: str(value) if type(value) is int else value),
    _matching(r"\d{1,4}(-\d{1,4})?( *, *\d{1,4}(-\d{1,4})?)*", "must be numbers of CPUs", "as 0-3,8"),
    WithJsonSchema({"anyOf": [{"type": "string"}, {"type": "integer", "minimum": 0}]}),
]
Vocab = Annotated[tuple[TokenId, TokenId], BeforeValidator(_pair), AfterValidator(_vocab)]
Indices = Annotated[
    tuple[Annotated[int, Field(ge=0, le=1023)], ...], BeforeValidator(one_or_many), _axis("integer", minimum=0)
]
Header = Annotated[str, _matching(r"[A-Za-z0-9!#$%&'*+.^_`|~-]+", "must be the name of an HTTP header")]
Proxy = Annotated[str, AfterValidator(_proxy)]
Sha256 = Annotated[str, _matching(r"[0-9a-f]{64}", "must be a SHA-256 in hex")]
Name = Annotated[Text, _matching(r"[^./\\][^/\\]*", "must be usable as a folder name (no slash, no leading dot)")]
PromptKind = Literal["token_ids", "text", "corpus", "file"]
Api = Literal["completions", "chat"]
TokenLimit = Literal["max_tokens", "max_completion_tokens"]
