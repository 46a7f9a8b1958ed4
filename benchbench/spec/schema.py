"""What may stand in a sweep file: one model per section, each key described where it is declared."""

from __future__ import annotations

from typing import Annotated, Any, Final, Literal, Self

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    PrivateAttr,
    SerializerFunctionWrapHandler,
    field_validator,
    model_serializer,
    model_validator,
)
from pydantic.functional_validators import ModelWrapValidatorHandler

from benchbench.spec.accelerators import known_names
from benchbench.spec.machine import Hardware, ModelFactsGiven, Speculative
from benchbench.spec.mistakes import show
from benchbench.spec.values import (
    Api,
    Command,
    Count,
    Counts,
    Flags,
    Header,
    Indices,
    Json,
    Loopback,
    Name,
    Path,
    Positive,
    Proxy,
    Rates,
    Repository,
    Section,
    Share,
    Text,
    Url,
    Variable,
    Variables,
    Vocab,
    Warmup,
    as_tuple,
    json_mapping,
    one_or_many,
    problem,
)

DEFAULT_MIN_ROUNDS, DEFAULT_MAX_ROUNDS = 5, 20
DEFAULT_BLOCKS = 6


# ---- Engines --------------------------------------------------------------------------------------------

# Caches that hold choices measured at a start: torch.compile's and vLLM's, Inductor's, Triton's, MIOpen's.
CACHE_VARIABLES = (
    *("VLLM_CACHE_ROOT", "TORCHINDUCTOR_CACHE_DIR", "TRITON_CACHE_DIR"),
    *("MIOPEN_USER_DB_PATH", "MIOPEN_CUSTOM_CACHE_DIR"),
)
ENGINE_KEYS: Final[dict[str, tuple[str, ...]]] = {
    "endpoint": ("url", "api", "api_key_env", "headers_env", "ca_file", "insecure", "proxy", "extra_body"),
    "simulator": ("profile", "scale", "port", "api", "extra_body", "options"),
    "vllm_serve": (
        *("command", "args", "env", "python", "venv", "cwd", "host", "port", "ready", "restarts", "nice"),
        *("api", "api_key_env", "extra_body", "fresh_caches"),
    ),
    "vllm_inprocess": (
        "args",
        "env",
        "python",
        "venv",
        "cwd",
        "ready",
        "restarts",
        "nice",
        "detokenize",
        "fresh_caches",
    ),
}
"""Keys by engine kind: those of another kind are kept as data, so that `--set engine.kind=...` works."""


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


class EndpointEngine(_Engine):
    """A server that runs already and speaks OpenAI's API."""

    kind: Literal["endpoint"] = Field(description="endpoint: attach to a server that runs already")
    url: Url = Field(
        description="http:// or https:// address before /v1; may have a base path, a query and an IPv6 host"
    )
    api: Api = Field("completions", description="completions (takes token ids or text) or chat (takes text)")
    api_key_env: Variable | None = Field(None, description="environment variable that holds the bearer token")
    headers_env: dict[Header, Variable] = Field(
        default={}, description="further request headers: header name -> environment variable with its value"
    )
    ca_file: Text | None = Field(None, description="PEM file of certificate authorities to trust")
    insecure: bool = Field(default=False, description="true: accept any TLS certificate")
    proxy: Proxy | None = Field(
        None, description="http://host:port of a CONNECT proxy; never taken from the environment"
    )
    extra_body: Json = Field(default={}, description="fields added to every request's JSON body")


class SimulatorEngine(_Engine):
    """The embedded simulator of a continuous-batching server, started and stopped with the sweep."""

    kind: Literal["simulator"] = Field(description="simulator: the embedded server, needs no GPU")
    profile: Text = Field("fixed", description="profile with the step-time law: fixed, w7900d or another")
    scale: Positive = Field(1.0, description="factor on every duration: 0.1 is ten times as fast")
    port: int = Field(0, ge=0, le=65535, description="TCP port on 127.0.0.1; 0 picks a free one")
    api: Api = Field("completions", description="completions (takes token ids or text) or chat (takes text)")
    extra_body: Json = Field(default={}, description="fields added to every request's JSON body")
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
    ready: Ready = Field(Ready(), description="when it counts as ready")
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


class VllmServeEngine(_Launched):
    """A vLLM server that the sweep launches, owns and stops."""

    kind: Literal["vllm_serve"] = Field(description="vllm_serve: launch a vLLM server")
    command: Command | None = Field(
        None, description="what to launch, as a list; empty: [python, -m, vllm.entrypoints.openai.api_server]"
    )
    host: Loopback = Field("127.0.0.1", description="loopback address to bind: 127.0.0.1, ::1 or localhost")
    port: int = Field(0, ge=0, le=65535, description="TCP port; 0 picks a free one")
    api: Api = Field("completions", description="completions (takes token ids or text) or chat (takes text)")
    api_key_env: Variable | None = Field(
        None, description="environment variable with the key that the server shall ask for; it gets it as VLLM_API_KEY"
    )
    extra_body: Json = Field(default={}, description="fields added to every request's JSON body")


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


Engine = EndpointEngine | SimulatorEngine | VllmServeEngine | VllmInprocessEngine

# ---- Load -----------------------------------------------------------------------------------------------


class StaticLoad(Section):
    """`batch` requests sent at once and all awaited: that is a round."""

    kind: Literal["static"] = Field(description="static: a batch sent at once, all awaited")


class ClosedLoad(Section):
    """`batch` requests kept in flight: each that ends is replaced."""

    kind: Literal["closed"] = Field(description="closed: a batch kept in flight")
    requests: Count | None = Field(None, description="requests of one round; empty means 5 x batch")


class OpenLoad(Section):
    """Requests sent at their own times, whatever is still in flight."""

    kind: Literal["open"] = Field(description="open: requests sent at a rate")
    rate: Positive | None = Field(None, description="requests per second, where the grid has no rate")
    arrival: Literal["constant", "poisson", "gamma"] = Field("poisson", description="law of the gaps")
    burstiness: Positive = Field(
        1.0, description="shape of the gamma law, as in vLLM: 1 is Poisson, smaller is burstier"
    )
    max_concurrency: Count | None = Field(None, description="most requests in flight; empty: no limit")
    requests: Count = Field(100, description="requests of one round")

    @field_validator("burstiness")
    @classmethod
    def _of_gamma(cls, value: float, info: Any) -> float:  # noqa: ANN401 # ValidationInfo's type is generic since 2.12
        if value != 1.0 and info.data.get("arrival", "gamma") != "gamma":
            raise problem(f"is {value:g}, but only arrival: gamma has a burstiness")
        return value


Load = StaticLoad | ClosedLoad | OpenLoad

# ---- The other sections ---------------------------------------------------------------------------------


class Product(Section):
    """Every combination of the values of its axes; one value each is a point."""

    input: Counts = Field(description="prompt lengths in tokens: one or a list")
    output: Counts = Field(description="answer lengths in tokens: one or a list")
    batch: Counts | None = Field(None, description="requests in flight (static, closed): one or a list")
    rate: Rates | None = Field(None, description="requests per second (open): one or a list")


class Rounds(Section):
    """How often a cell is measured; of `min` and `max`, the one that is not given gives way to the other."""

    warmup: Warmup = Field("auto", description="rounds before the measured ones, or auto: until stable")
    min: Count = Field(DEFAULT_MIN_ROUNDS, description="measured rounds at least")
    max: Count = Field(DEFAULT_MAX_ROUNDS, description="measured rounds at most")
    rel_ci: float = Field(0.02, gt=0, lt=1, description="asked half-width of the 95 % interval: 0.02 is 2 %")
    budget_s: Positive | None = Field(
        None, description="seconds that the measured rounds of a cell may take; empty: no limit but max"
    )
    reset_prefix_cache: bool = Field(
        default=False, description="true: POST /reset_prefix_cache before each round, where the server has it"
    )

    @model_validator(mode="before")
    @classmethod
    def _fill(cls, data: Any) -> Any:  # noqa: ANN401 # anything
        if isinstance(data, dict):
            low, high = data.get("min"), data.get("max")
            if type(low) is int and "max" not in data:
                return data | {"max": max(low, DEFAULT_MAX_ROUNDS)}
            if type(high) is int and "min" not in data:
                return data | {"min": min(high, DEFAULT_MIN_ROUNDS)}
        return data

    @field_validator("max")
    @classmethod
    def _above_min(cls, value: int, info: Any) -> int:  # noqa: ANN401 # ValidationInfo's type is generic since 2.12
        if value < info.data.get("min", 1):
            raise problem(f"must be at least rounds.min ({info.data['min']}), is {value}")
        return value


class Prompts(Section):
    """What is sent: fresh prompts for each request and round, reproducible from the seed."""

    kind: Literal["token_ids", "text"] = Field("token_ids", description="token_ids (exact lengths) or text")
    vocab: Vocab | None = Field(
        None, description="[low, high): token ids drawn from low to high - 1; empty: asked of the engine"
    )
    tokenizer: Text | None = Field(None, description="tokenizer for text prompts: a file or folder")


class Timeouts(Section):
    """Limits in seconds; a request over one of them is a failure."""

    connect_s: Positive = Field(10.0, description="until connected (TCP and TLS), in seconds")
    first_token_s: Positive = Field(300.0, description="from sent to the first token, in seconds")
    stall_s: Positive = Field(60.0, description="between two tokens, in seconds")


class Slo(Section):
    """Limits that a request must meet to count as good: goodput is good requests per second."""

    ttft_ms: Positive | None = Field(None, description="time to first token at most, in ms")
    tpot_ms: Positive | None = Field(None, description="time per output token after the first at most, in ms")
    e2el_ms: Positive | None = Field(None, description="end-to-end latency at most, in ms")

    @property
    def is_set(self) -> bool:
        """Whether there is any limit."""
        return any(limit is not None for limit in (self.ttft_ms, self.tpot_ms, self.e2el_ms))


class Validity(Section):
    """Budgets beyond which a cell is suspect or invalid."""

    grouped: Share = Field(0.01, description="suspect above this share of events that hold several tokens")
    shared_suspect: Share = Field(0.01, description="suspect above this share of events in shared reads")
    shared_invalid: Share = Field(0.10, description="invalid above this share of events in shared reads")
    cached_tokens: int = Field(0, ge=0, le=2**63 - 1, description="prompt tokens that may come from a cache")
    preemptions: int = Field(0, ge=0, le=2**63 - 1, description="preemptions that the server may count")
    foreign_tokens: int = Field(0, ge=0, le=2**63 - 1, description="tokens of others that the server may count")
    send_skew: Share = Field(0.25, description="suspect when a batch's sends are further apart than this share of TTFT")
    late_send: Share = Field(0.25, description="suspect when p99 of sends is later than this share of TTFT")
    client_lag: Share = Field(0.50, description="suspect when p99 of client lag exceeds this share of the median ITL")
    warmup_agree: Share = Field(0.05, description="warmup: auto ends when two rounds agree within this share")
    straggler: Share = Field(
        0.10, description="suspect when one GPU's mean clock is this share below its peers' median"
    )


class Telemetry(Section):
    """What is sampled of this host while the sweep runs, where the engine is on it."""

    enabled: bool = Field(default=True, description="false: nothing is sampled")
    hz: float = Field(10.0, ge=2, le=100, description="samples per second")
    gpus: Indices | None = Field(
        None,
        description="GPUs that the engine uses, as amd-smi list or nvidia-smi -L count them; empty: all it may see",
    )


class Override(BaseModel):
    """`when` and any sections; those replace the sweep's values in the cells that `when` selects."""

    model_config = ConfigDict(extra="allow", frozen=True, strict=True)

    when: str = Field(description="which cells, as batch>=16,input=128 (comma means and)")

    @property
    def changes(self) -> dict[str, Any]:
        """The part that is merged into the sweep."""
        return dict(self.model_extra or {})


class Git(Section):
    """Where a variant's source comes from. The repository is only read; what is built lies in a cache folder."""

    repo: Repository = Field(description="folder or URL of the git repository")
    ref: Text = Field(description="branch, tag or commit")
    build: Annotated[tuple[Text, ...], BeforeValidator(as_tuple)] = Field(
        (), description="commands that build it, each in a shell in its folder, once for each commit"
    )


class Variant(Section):
    """One of the builds that are compared: what differs from the sweep's engine."""

    engine: dict[str, Any] = Field(default={}, description="keys of engine that differ in this variant")
    git: Git | None = Field(None, description="the source that this variant is built from, and started in")


def _one_product(value: object) -> object:
    if not isinstance(value, (dict, list, tuple)):
        raise problem(f"must be a product of axes or a list of them, is {show(value)}", "input, output, batch, rate")
    return one_or_many(value)


class SweepSpec(Section):
    """A sweep as resolved: defaults filled in, one product or several in `grid`.

    Made by `load_spec` or `spec_from_mapping`, which also check what one section must know of another.
    `spec.model_dump(mode="json")` is again a mapping for `spec_from_mapping`.
    """

    name: Name = Field(description="name of the sweep and of its run folder")
    model: Text = Field(description="the model's name, as the server lists it")
    engine: Engine = Field(discriminator="kind", description="what generates the tokens")
    grid: Annotated[tuple[Product, ...], BeforeValidator(_one_product)] = Field(
        description="the shapes: one product of axes, or a list of products or points"
    )
    load: Load = Field(StaticLoad(kind="static"), discriminator="kind", description="how requests are sent")
    rounds: Rounds = Field(Rounds(), description="how often each cell is measured")
    prompts: Prompts = Field(Prompts(), description="what is sent")
    seed: int = Field(0, ge=0, le=2**63 - 1, description="prompts, arrivals and order derive from it")
    timeouts: Timeouts = Field(Timeouts(), description="when a request has failed")
    slo: Slo = Field(Slo(), description="limits for goodput")
    order: Literal["random", "as_written"] = Field("random", description="order of the cells (random: seeded)")
    output: Literal["exact", "as_served"] = Field(
        "exact",
        description="exact: ignore_eos and min_tokens give the asked length; as_served: max_tokens only",
    )
    overrides: Annotated[tuple[Override, ...], BeforeValidator(as_tuple)] = Field(
        (), description="other values for some cells; later ones win"
    )
    hardware: Hardware | None = Field(None, description="what the server runs on")
    model_facts: ModelFactsGiven = Field(ModelFactsGiven(), description="what the model is, for the roofline")
    speculative: Speculative = Field(
        None,
        description="speculative decoding: true, or {method: eagle3, tokens: 3}; empty: as flags of the engine say",
    )
    validity: Validity = Field(Validity(), description="budgets of trust")
    telemetry: Telemetry = Field(Telemetry(), description="what is sampled of GPUs and host")
    variants: dict[Name, Variant] = Field(default={}, description="builds to compare: name -> what differs")
    baseline: Text | None = Field(None, description="the variant that others are compared with; empty: the first")
    blocks: Count | None = Field(None, description="starts of each variant; empty: 6")
    cool_to: Positive | None = Field(
        None, description="degrees C above idle that GPUs must cool down to before the next start; empty: no wait"
    )
    fidelity: Literal["strict", "report", "off"] = Field(
        "off", description="compare the variants' greedy outputs: strict, report (they may differ) or off"
    )

    @property
    def block_count(self) -> int | None:
        """Starts of each variant; None in a sweep without variants."""
        return (self.blocks or DEFAULT_BLOCKS) if self.variants else None

    @property
    def caption(self) -> list[str]:
        """What a table made from this sweep must say of its engine."""
        engine, lines = self.engine, []
        if isinstance(engine, VllmInprocessEngine):
            lines = ["Measured in-process, without HTTP: from the call of vLLM's AsyncLLM to its outputs."]
        elif isinstance(engine, SimulatorEngine):
            speed = "" if engine.scale == 1 else f", every duration x {engine.scale:g}"
            lines = [f"Served by the embedded simulator (profile {engine.profile}{speed}): no measurement of hardware."]
        return lines + ([self.speculative.sentence] if self.speculative else [])

    @property
    def notes(self) -> list[str]:
        """What was read and is not used, one sentence each."""
        owners = {
            key: ", ".join(kind for kind, keys in ENGINE_KEYS.items() if key in keys) for key in self.engine.other
        }
        notes = [f"engine.{key} belongs to {kinds}: kept, not used" for key, kinds in owners.items()]
        if self.hardware and not self.hardware.accelerator:
            names, needed = ", ".join(known_names()), "hardware.tflop_s and hardware.bandwidth_gb_s"
            notes += [f"no roofline: hardware.name is none of {names}, so it needs {needed}"]
        return notes
