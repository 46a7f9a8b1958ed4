"""What may stand in a sweep's `engine` section, by its kind."""

# Annotations are no strings here (`from __future__`): pydantic would compile each of them again at every start.

from typing import Any, Final, Literal, Self, get_args

from pydantic import (
    Field,
    PrivateAttr,
    SerializerFunctionWrapHandler,
    field_validator,
    model_serializer,
    model_validator,
)
from pydantic.functional_validators import ModelWrapValidatorHandler

from benchbench.bodies.json_values import json_mapping
from benchbench.spec.values import (
    Api,
    Command,
    Flags,
    Header,
    Json,
    Loopback,
    Path,
    Positive,
    Proxy,
    Section,
    Text,
    TokenLimit,
    Urls,
    Variable,
    Variables,
)
from benchbench.yamlfile.refusal import problem

# Caches that hold choices measured at a start: torch.compile's and vLLM's, Inductor's, Triton's, MIOpen's.
CACHE_VARIABLES = (
    *("VLLM_CACHE_ROOT", "TORCHINDUCTOR_CACHE_DIR", "TRITON_CACHE_DIR"),
    *("MIOPEN_USER_DB_PATH", "MIOPEN_CUSTOM_CACHE_DIR"),
)


class _Engine(Section):
    _other: dict[str, Any] = PrivateAttr(default_factory=dict)

    @property
    def other(self) -> dict[str, Any]:
        """Keys of other engine kinds: kept, dumped with the rest, not used."""
        return self._other

    @model_validator(mode="wrap")
    @classmethod
    def _keep_other(cls, data: Any, handler: ModelWrapValidatorHandler[Self]) -> Self:  # noqa: ANN401 # anything
        if not isinstance(data, dict):
            return handler(data)
        known = {key for keys in ENGINE_KEYS.values() for key in keys} - cls.model_fields.keys()
        engine = handler({key: value for key, value in data.items() if key not in known})
        engine._other = json_mapping({key: value for key, value in data.items() if key in known})  # noqa: SLF001 # its own
        return engine

    @model_serializer(mode="wrap")
    def _dump_other(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        dumped: dict[str, Any] = handler(self)
        return dumped | self._other


NEWER_LIMIT: Final = "max_completion_tokens"


class _Served(_Engine):
    """What requests over HTTP may say."""

    api: Api = Field("completions", description="completions (takes token ids or text) or chat (takes text)")
    max_tokens_field: TokenLimit = Field(
        "max_tokens", description="the field that limits an answer; newer models of OpenAI take max_completion_tokens"
    )
    answers_as: Text | None = Field(
        None, description="the name that answers give the model, where model is an alias that the server resolves"
    )
    extra_body: Json = Field(default={}, description="fields added to every request's JSON body")

    @model_validator(mode="before")
    @classmethod
    def _limit_of_the_body(cls, data: Any) -> Any:  # noqa: ANN401 # anything
        """A body that says max_completion_tokens is for a server that wants it in place of max_tokens."""
        if isinstance(data, dict) and isinstance(body := data.get("extra_body"), dict) and NEWER_LIMIT in body:
            return {"max_tokens_field": NEWER_LIMIT, **data}
        return data


class EndpointEngine(_Served):
    """A server that runs already and speaks OpenAI's API."""

    kind: Literal["endpoint"] = Field(description="endpoint: attach to a server that runs already")
    url: Urls = Field(
        description="http:// or https:// address before /v1; may have a base path, a query and an IPv6 host; "
        "or a list: servers of one model that share the load"
    )
    routing: Literal["round_robin", "pinned"] = Field(
        "round_robin",
        description="of several urls: round_robin (requests in turn) or pinned (a place in flight keeps its server)",
    )
    path: Path | None = Field(
        None, description="path of the API, as /v4, / where there is none; empty: as url names it, else /v1"
    )
    api_key_env: Variable | None = Field(None, description="environment variable that holds the bearer token")
    headers_env: dict[Header, Variable] = Field(
        default={}, description="further request headers: header name -> environment variable with its value"
    )
    ca_file: Text | None = Field(None, description="PEM file of certificate authorities to trust")
    insecure: bool = Field(default=False, description="true: accept any TLS certificate")
    proxy: Proxy | None = Field(
        None, description="http://host:port of a CONNECT proxy; never taken from the environment"
    )

    @property
    def urls(self) -> tuple[str, ...]:
        """The addresses of its servers: one or several."""
        return (self.url,) if isinstance(self.url, str) else self.url


class SimulatorEngine(_Served):
    """The embedded simulator of a continuous-batching server, started and stopped with the sweep."""

    kind: Literal["simulator"] = Field(description="simulator: the embedded server, needs no GPU")
    profile: Text = Field("fixed", description="profile with the step-time law: fixed, w7900d or another")
    scale: Positive = Field(1.0, description="factor on every duration: 0.1 is ten times as fast")
    port: int = Field(0, ge=0, le=65535, description="TCP port on 127.0.0.1; 0 picks a free one")
    options: Json = Field(default={}, description="values that replace those of the profile")


class Ready(Section):
    """When a launched engine counts as ready, and how long that may take."""

    timeout_s: Positive = Field(1800.0, description="from the launch to the first token, in seconds")
    path: Path = Field("/health", description="route that answers 200 when the server is up")


class _Launched(_Engine):
    """What launching an engine takes, as a server or in a process of ours."""

    args: Flags = Field(
        default={},
        description="vLLM's flags without --, as {max-model-len: 8192}; true is a bare flag, false is --no-...",
    )
    env: Variables = Field(default={}, description="environment variables for the engine, over those of this process")
    python: Text | None = Field(
        None,
        description="interpreter that has vLLM; empty: that of venv, else python on PATH (in-process: bench's own)",
    )
    venv: Text | None = Field(None, description="virtual environment that has vLLM")
    cwd: Text | None = Field(None, description="folder in which the engine starts; empty: this one")
    ready: Ready = Field(Ready.default(), description="when it counts as ready")
    restarts: int = Field(1, ge=0, le=10**6, description="how often a dead engine may be started again in a sweep")
    nice: int = Field(
        0,
        ge=0,
        le=19,
        description="priority as of Unix's nice: above 0 it leaves the CPU to the client that stamps its tokens",
    )
    fresh_caches: bool = Field(
        default=False,
        description="true: each start has empty compile and autotune caches, deleted when it ends: "
        + ", ".join(CACHE_VARIABLES),
    )

    @field_validator("fresh_caches")
    @classmethod
    def _of_no_given_cache(cls, value: bool, info: Any) -> bool:  # noqa: ANN401 # as above
        if value and (given := [name for name in CACHE_VARIABLES if name in info.data.get("env", {})]):
            raise problem(f"sets {given[0]} itself: take it out of engine.env")
        return value


class VllmServeEngine(_Launched, _Served):
    """A vLLM server that the sweep launches, owns and stops."""

    kind: Literal["vllm_serve"] = Field(description="vllm_serve: launch a vLLM server")
    command: Command | None = Field(
        None, description="what to launch, as a list; empty: [python, -m, vllm.entrypoints.openai.api_server]"
    )
    host: Loopback = Field("127.0.0.1", description="loopback address to bind: 127.0.0.1, ::1 or localhost")
    port: int = Field(0, ge=0, le=65535, description="TCP port; 0 picks a free one")
    api_key_env: Variable | None = Field(
        None, description="environment variable with the key that the server shall ask for; it gets it as VLLM_API_KEY"
    )


class VllmInprocessEngine(_Launched):
    """vLLM's AsyncLLM without HTTP, in a process that has both benchbench and vLLM installed."""

    kind: Literal["vllm_inprocess"] = Field(description="vllm_inprocess: vLLM's engine without HTTP")
    detokenize: bool = Field(default=False, description="true: the engine makes text of the tokens, as a server does")

    @property
    def api(self) -> Api:
        """Prompts are as those of completions: token ids."""
        return "completions"

    @property
    def extra_body(self) -> dict[str, Any]:
        """There are no request bodies."""
        return {}

    @property
    def max_tokens_field(self) -> TokenLimit:
        """As above."""
        return "max_tokens"


Engine = EndpointEngine | SimulatorEngine | VllmServeEngine | VllmInprocessEngine

ENGINE_KEYS: Final[dict[str, tuple[str, ...]]] = {
    get_args(section.model_fields["kind"].annotation)[0]: tuple(key for key in section.model_fields if key != "kind")
    for section in get_args(Engine)
}
"""Keys by engine kind: those of another kind are kept as data, so that `--set engine.kind=...` works."""
