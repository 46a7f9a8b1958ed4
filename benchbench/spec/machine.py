"""What a sweep says of the hardware and of the model, for captions and for the roofline."""

# Annotations are no strings here (`from __future__`): pydantic would compile each of them again at every start.

from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import BeforeValidator, Field, field_validator

from benchbench.spec.values import Amount, Count, Dtype, Positive, Section, Text
from benchbench.yamlfile.mistakes import show
from benchbench.yamlfile.refusal import problem


class Hardware(Section):
    """What the server runs on, for captions and for the roofline. Figures given here replace those known by name."""

    name: Text = Field(description="the accelerator's name: bench knows the peaks of some, others need them here")
    count: Count = Field(1, description="how many of them serve the model")
    tflop_s: dict[Dtype, Positive] = Field(
        default={}, description="dense peak of one by dtype, in TFLOP/s or TOP/s, as {bf16: 123, int8: 123}"
    )
    bandwidth_gb_s: Positive | None = Field(None, description="memory bandwidth of one, in GB/s")
    memory_gb: Positive | None = Field(None, description="memory of one, in GB")


class ModelFactsGiven(Section):
    """What the model is, for the roofline: read from its config.json, or given; what is given here comes first."""

    config: Text | None = Field(
        None, description="the model's folder or its config.json; empty: that of a model launched from a local folder"
    )
    parameters: Amount | None = Field(None, description="all parameters, as 230B or in full")
    active_parameters: Amount | None = Field(
        None, description="those that one token passes through: without embeddings that are only looked up"
    )
    expert_parameters: Amount | None = Field(None, description="those in the routed experts of all layers")
    experts: Count | None = Field(None, description="routed experts of a layer")
    top_k: Count | None = Field(None, description="experts that a token is routed to")
    layers: Count | None = Field(None, description="layers")
    hidden: Count | None = Field(None, description="width of the model")
    vocab: Count | None = Field(
        None, description="entries of the vocabulary; with hidden: what the output head takes, once a prompt"
    )
    weight_bytes: Amount | None = Field(None, description="bytes of all weights, as 230GB or in full")
    weight_dtype: Dtype | None = Field(None, description="what most weights are stored in")
    compute_dtype: Dtype | None = Field(None, description="what most matrix products run in; empty: the fastest")
    kv_bytes_per_token: Amount | None = Field(None, description="bytes of K and V that a token leaves in all layers")

    @field_validator("active_parameters", "expert_parameters", "top_k")
    @classmethod
    def _part(cls, value: int | None, info: Any) -> int | None:  # noqa: ANN401 # ValidationInfo's type is generic
        whole = "experts" if info.field_name == "top_k" else "parameters"
        if value is not None and (most := info.data.get(whole)) is not None and value > most:
            raise problem(f"must be at most model_facts.{whole} ({most}), is {value}")
        return value


class SpeculativeDecoding(Section):
    """Speculative decoding of the server: several tokens a pass of the model. `true` and `{}` are the same."""

    method: Text | None = Field(None, description="as the engine names it: eagle3, mtp, medusa, ngram, draft_model")
    tokens: Count | None = Field(None, description="tokens that are proposed a pass")


def _switch(value: object) -> object:
    if isinstance(value, bool):
        return {} if value else None
    if value is None or isinstance(value, (Mapping, SpeculativeDecoding)):
        return value
    raise problem(f"must be true, false or a mapping, is {show(value)}", "true, {method: eagle3, tokens: 3}")


def _or_boolean(schema: dict[str, Any]) -> None:
    schema["anyOf"].insert(0, {"type": "boolean"})


Speculative = Annotated[SpeculativeDecoding | None, BeforeValidator(_switch), Field(json_schema_extra=_or_boolean)]
