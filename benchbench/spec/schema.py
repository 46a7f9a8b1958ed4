"""What may stand in a sweep file: one model per section, each key described where it is declared."""

# Annotations are no strings here (`from __future__`): pydantic would compile each of them again at every start.

from typing import Annotated, Any, Literal

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    field_validator,
    model_validator,
)

from benchbench.spec.engine_sections import ENGINE_KEYS, Engine
from benchbench.spec.machine import Hardware, ModelFactsGiven, Speculative
from benchbench.spec.values import (
    Batches,
    Count,
    Cpus,
    Indices,
    Name,
    Pair,
    Positive,
    PromptKind,
    Rates,
    Repository,
    Section,
    Sha256,
    Share,
    Text,
    TokenLengths,
    Variable,
    Vocab,
    Warmup,
    Workers,
    as_tuple,
    cpu_numbers,
    one_or_many,
)
from benchbench.yamlfile.mistakes import show
from benchbench.yamlfile.refusal import problem

DEFAULT_MIN_ROUNDS, DEFAULT_MAX_ROUNDS = 5, 20
WARMUP_ROUNDS, WARMUP_TOKENS = 8, 32  # of warmup: auto, at most: rounds, and output tokens of a request in them
DEFAULT_BLOCKS = 6
MAX_CELLS = 10_000

# ---- Load -----------------------------------------------------------------------------------------------


class StaticLoad(Section):
    """`batch` requests sent at once and all awaited: that is a round."""

    kind: Literal["static"] = Field(description="static: a batch sent at once, all awaited")


# Requests of a closed load, in batches: fewer than the first have no window in which the batch is full, fewer than the
# second less than two batches of requests that are of its steady state (`analysis.metrics`).
WINDOW_BATCHES, STEADY_BATCHES = 4, 5


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

    input: TokenLengths = Field(description="prompt lengths in tokens: one or a list, a number or a law each")
    output: TokenLengths = Field(description="answer lengths in tokens: one or a list, a number or a law each")
    batch: Batches | None = Field(None, description="requests in flight (static, closed): one or a list")
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


class SharedPrefix(Section):
    """Prefixes that the server is sent before each round, so that a share of the requests finds one in its cache."""

    prefix_tokens: Count | None = Field(
        None, description="tokens of a prefix: a multiple of the cache's block size, below input"
    )
    groups: Count = Field(1, description="different prefixes, which requests begin with in turn")
    hit_rate: float = Field(1.0, gt=0, le=1, description="share of a round's requests that begin with a shared prefix")
    turns: Annotated[int, Field(ge=2, le=1000)] | None = Field(
        None, description="instead of a prefix: requests of a conversation, each with all before it in its prompt"
    )


class Prompts(Section):
    """What is sent: fresh prompts for each request and round, from the seed (docs/prompts.md)."""

    kind: PromptKind = Field("token_ids", description="token_ids, text (random words), corpus (running text) or file")
    vocab: Vocab | None = Field(
        None, description="[low, high): token ids drawn from low to high - 1; empty: asked of the engine"
    )
    tokenizer: Text | None = Field(None, description="tokenizer for text prompts: a file or folder")
    shared: SharedPrefix | None = Field(None, description="hits of the server's prefix cache that are wanted")
    path: Text | None = Field(None, description="of kind file: JSON lines; of kind corpus: a text (empty: ours)")
    field: Text | None = Field(None, description="key of a line that holds its prompt; empty: the usual ones")
    output: Text | None = Field(None, description="key of a line for grid.output: file; empty: output_tokens")
    fit: Literal["exact", "as_is"] | None = Field(None, description="exact: cut or filled up to grid.input; or as_is")
    sha256: Sha256 | None = Field(None, description="hash that the file must have; filled in when the sweep is read")

    @property
    def label(self) -> str:
        """The kind, of a file its name and the beginning of its hash too."""
        name = (self.path or "").rpartition("/")[2]
        return self.kind if self.sha256 is None else " ".join(filter(None, (self.kind, name, self.sha256[:12])))


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
    statistic: Literal["p50", "p90", "p95", "p99", "p99.9", "mean"] = Field(
        "p99", description="what meets the limits: p99, that 99 % of requests are within all of them; mean, each mean"
    )

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


class Loadgen(Section):
    """The processes that send requests and receive tokens."""

    workers: Workers = Field(
        "auto", description="processes that share a batch; auto: one for each 1,024 streams, as far as there are cores"
    )
    cpus: Cpus | None = Field(None, description="CPUs that they are pinned to, as 0-3,8; empty: none")
    ray: Text | None = Field(
        None, description="the Ray cluster on whose nodes they run: auto (this host's) or HOST:PORT; empty: without Ray"
    )

    @property
    def cpu_numbers(self) -> list[int]:
        """Those of `cpus`; empty where none are named."""
        return cpu_numbers(self.cpus) if self.cpus else []

    @field_validator("cpus")
    @classmethod
    def _enough(cls, value: str | None, info: Any) -> str | None:  # noqa: ANN401 # ValidationInfo's type is generic
        workers = info.data.get("workers", 1)
        if value and len(cpu_numbers(value)) < (1 if workers == "auto" else workers):
            raise problem(f"names fewer CPUs ({value}) than there are workers")
        return value


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
    load: Load = Field(StaticLoad.default(kind="static"), discriminator="kind", description="how requests are sent")
    rounds: Rounds = Field(Rounds.default(), description="how often each cell is measured")
    prompts: Prompts = Field(Prompts.default(), description="what is sent")
    seed: int = Field(0, ge=0, le=2**63 - 1, description="prompts, arrivals and order derive from it")
    timeouts: Timeouts = Field(Timeouts.default(), description="when a request has failed")
    slo: Slo = Field(Slo.default(), description="limits for goodput")
    order: Literal["random", "as_written"] = Field("random", description="order of the cells (random: seeded)")
    output: Literal["exact", "as_served"] = Field(
        "exact",
        description="exact: ignore_eos and min_tokens give the asked length; as_served: max_tokens only",
    )
    overrides: Annotated[tuple[Override, ...], BeforeValidator(as_tuple)] = Field(
        (), description="other values for some cells; later ones win"
    )
    hardware: Hardware | None = Field(None, description="what the server runs on")
    model_facts: ModelFactsGiven = Field(ModelFactsGiven.default(), description="what the model is, for the roofline")
    speculative: Speculative = Field(
        None,
        description="speculative decoding: true, or {method: eagle3, tokens: 3}; empty: as flags of the engine say",
    )
    validity: Validity = Field(Validity.default(), description="budgets of trust")
    telemetry: Telemetry = Field(Telemetry.default(), description="what is sampled of GPUs and host")
    loadgen: Loadgen = Field(Loadgen.default(), description="the processes that send and receive")
    variants: dict[Name, Variant] = Field(default={}, description="builds to compare: name -> what differs")
    baseline: Text | None = Field(None, description="the variant that others are compared with; empty: the first")
    blocks: Count | None = Field(None, description="starts of each variant (empty: 6), or of the one engine")
    cool_to: Positive | None = Field(
        None, description="degrees C above idle that GPUs must cool down to before the next start; empty: no wait"
    )
    fidelity: Literal["strict", "report", "off"] = Field(
        "off", description="compare the variants' greedy outputs: strict, report (they may differ) or off"
    )

    profile: bool = Field(
        default=False,
        description="true: after a comparison, trace the cells that were called in a start more of each variant",
    )
    axis: Annotated[dict[Variable, Pair], Field(max_length=1)] = Field(
        default={}, description="for bench bisect: a component's variable and two values, as TRITON: ['3.4', '3.6']"
    )

    @field_validator("grid")
    @classmethod
    def _feasible(cls, value: tuple[Product, ...]) -> tuple[Product, ...]:
        cells = sum(len(p.input) * len(p.output) * len(p.batch or p.rate or (1,)) for p in value)
        if cells > MAX_CELLS:
            raise problem(f"has {cells} cells", f"{MAX_CELLS} at most")
        return value

    @property
    def block_count(self) -> int | None:
        """Starts of each variant, or of the one engine; None where neither variants nor blocks are asked for."""
        return (self.blocks or DEFAULT_BLOCKS) if self.variants else self.blocks

    @property
    def notes(self) -> list[str]:
        """What was read and is not used, one sentence each."""
        owners = {key: [kind for kind, keys in ENGINE_KEYS.items() if key in keys] for key in self.engine.other}
        notes = [f"engine.{key} belongs to {', '.join(kinds)}: kept, not used" for key, kinds in owners.items()]
        return notes + ["axis is for bench bisect: kept, not used"] * len(self.axis)
