"""Profiles of the simulator: YAML files that say how fast the engine is, what it serves, how it misbehaves.

A key that ends in `_s` is a duration in seconds, and only those are changed by a time scale.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator
from pydantic_core import PydanticCustomError

from benchbench.errors import BenchError

PROFILE_DIR = Path(__file__).parent / "profiles"

Count = Annotated[int, Field(ge=1)]
Share = Annotated[float, Field(ge=0, le=1)]
Seconds = Annotated[float, Field(ge=0)]


class ProfileError(BenchError):
    """A profile that cannot be used; the message names each wrong key and what is allowed."""


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)


# ---- How long a step takes ------------------------------------------------------------------------------


class FixedLaw(_Part):
    """Every request alone: first token `ttft_s` after its last byte, then one every `itl_s`."""

    kind: Literal["fixed"] = "fixed"
    ttft_s: Seconds
    itl_s: Seconds


class LinearLaw(_Part):
    """t = base + per_seq * decoding + per_prefill_token * prefill tokens + per_kv_token * KV tokens."""

    kind: Literal["linear"] = "linear"
    base_s: Seconds
    per_seq_s: Seconds = 0.0
    per_prefill_token_s: Seconds = 0.0
    per_kv_token_s: Seconds = 0.0


class TableLaw(_Part):
    """A lookup. `decode_s[i][b]` is a decode step at prompt length `inputs[i]` and batch `batches[b]`.

    Between entries it is linear in the input and in log2(batch); outside them it is clamped. A step
    that also computes prompt tokens takes max(prefill_base_s, decode) + prefill_per_token_s * tokens:
    the decodes ride in the same pass over the weights.
    """

    kind: Literal["table"] = "table"
    inputs: Sequence[float]
    batches: Sequence[float]
    decode_s: Sequence[Sequence[Seconds]]
    prefill_base_s: Seconds
    prefill_per_token_s: Seconds

    @model_validator(mode="after")
    def _fits(self) -> Self:
        for name, axis in (("inputs", self.inputs), ("batches", self.batches)):
            if not axis or list(axis) != sorted(set(axis)) or axis[0] < 1:
                raise PydanticCustomError("bench", f"{name} must be ascending numbers from 1 on")
        if [len(row) for row in self.decode_s] != [len(self.batches)] * len(self.inputs):
            raise PydanticCustomError("bench", "decode_s must have one row per input and one column per batch")
        return self


# ---- How it misbehaves ----------------------------------------------------------------------------------


class Stall(_Part):
    """Every `every`-th step (fixed law: token of a request) takes `for_s` longer."""

    every: Count
    for_s: Seconds


class SlowFirst(_Part):
    """The first `count` rounds take `factor` times as long, as when kernels are being tuned."""

    count: int = Field(ge=0)
    factor: float = Field(ge=0)


class WrongUsage(_Part):
    """Tokens added to what `usage` truthfully says."""

    prompt_tokens: int = 0
    completion_tokens: int = 0


class ShortOutput(_Part):
    """That share of the requests ends `tokens` early (negative: late) with finish reason `stop`."""

    share: Share = 1.0
    tokens: int = 1


class Status(_Part):
    """That share of the requests is answered with an HTTP error; `retry_after` is the header, in seconds."""

    code: int = Field(503, ge=400, le=599)
    share: Share = 1.0
    retry_after: int | None = None


class Faults(_Part):
    """Ways to misbehave. Who is hit by a share follows from the profile's seed and the request's number.

    wrong_usage, missing_usage, cached_tokens: what `usage` says (`cached_tokens`: a lie about hits).
    short_output, reset_share (RST), cut_share (close), error_in_stream_share (an error event): in mid-stream,
    after half of the tokens. silence_share: headers, then nothing, ever. status: see `Status`.
    stall, slow_first, drift (a share of the law's time, added per round), noise (standard deviation of a round's
    time, as a share of it; seeded), start_noise (the same of a whole start's time; `start` says which start it is, and
    enters the seed of both): the engine's pace.
    reasoning_start (chat): so many first tokens are `reasoning_content`. role_early (chat): the role-only
    chunk comes with the headers instead of with the first token.
    """

    wrong_usage: WrongUsage = WrongUsage()
    missing_usage: bool = False
    cached_tokens: int | None = None
    short_output: ShortOutput | None = None
    reset_share: Share = 0.0
    cut_share: Share = 0.0
    error_in_stream_share: Share = 0.0
    silence_share: Share = 0.0
    status: Status | None = None
    stall: Stall | None = None
    slow_first: SlowFirst | None = None
    drift: float = Field(0.0, ge=-0.5)
    noise: float = Field(0.0, ge=0, le=0.2)
    start_noise: float = Field(0.0, ge=0, le=0.2)
    start: str = ""
    reasoning_start: int = Field(0, ge=0)
    role_early: bool = False


# ---- The whole ------------------------------------------------------------------------------------------


class Speculation(_Part):
    """Each decode step drafts `tokens`; each is accepted with probability `acceptance` if all before it were."""

    tokens: Count = 3
    acceptance: Share = 0.6


class SimProfile(_Part):
    """One simulated engine: `law` says how fast, the limits are vLLM's, the rest is what it tells clients.

    Without `ignore_eos`, outputs have a length drawn from the seed and the prompt with mean
    `mean_output_tokens`. `empty_text` answers as with --skip-tokenizer-init, `report_cached` as with
    --enable-prompt-tokens-details, `tokens_per_event` as with --stream-interval, `keep_alive_s` sends
    comments at that interval until the first token. The tokens of an answer follow from prompt and `token_salt`.
    """

    law: FixedLaw | LinearLaw | TableLaw = Field(discriminator="kind")
    seed: int = 0
    token_salt: int = 0
    max_model_len: int = Field(8192, ge=2)
    vocab_size: int = Field(200_064, ge=8192, le=26**4)
    max_num_seqs: Count = 1024
    max_num_batched_tokens: Count = 8192
    kv_tokens: int = 1_048_576
    prefix_cache: bool = True
    tokens_per_event: Count = 1
    mean_output_tokens: float = Field(256, ge=1)
    role_first: bool = True
    empty_text: bool = False
    report_cached: bool = False
    usage_in_last_choice: bool = False
    send_done: bool = True
    close_after_response: bool = False
    keep_alive_s: float | None = Field(None, ge=0.001)
    api_key: str | None = None
    speculation: Speculation | None = None
    faults: Faults = Faults()

    @model_validator(mode="after")
    def _holds_a_request(self) -> Self:
        if self.kv_tokens < self.max_model_len:
            message = f"kv_tokens ({self.kv_tokens}) must be at least max_model_len ({self.max_model_len})"
            raise PydanticCustomError("bench", message)
        return self


def shipped_profiles() -> list[str]:
    return sorted(path.stem for path in PROFILE_DIR.glob("*.yaml"))


def load_profile(name_or_path: str | Path, overrides: Mapping[str, Any] | None = None) -> SimProfile:
    """A shipped profile by name, or a YAML file by path, with `overrides` merged in key by key.

    Raises ProfileError for unknown names and keys, wrong types and values out of range.
    """
    from benchbench.yamlfile.mistakes import Problem, SpecError, faults_of, known_keys
    from benchbench.yamlfile.yaml_document import read_yaml

    source, path = str(name_or_path), PROFILE_DIR / f"{name_or_path}.yaml"
    if not path.is_file():
        path = Path(name_or_path)
    if not path.is_file():
        raise ProfileError(f"no simulator profile {source!r} (allowed: {', '.join(shipped_profiles())}, or a file)")
    try:
        document = read_yaml(path, source)
        problems = document.problems
        profile = SimProfile.model_validate(_merged(document.data, overrides or {}))
    except SpecError as error:
        raise ProfileError(str(error)) from None
    except ValidationError as error:
        faults = faults_of(error, known_keys(SimProfile))
        problems += [Problem(source, None, ".".join(map(str, loc)), *words) for loc, *words in faults]
    if problems:
        raise ProfileError("; ".join(map(str, problems)))
    return profile


def _merged(base: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """`over` laid over `base`; a law that names its kind shares no keys with the old one."""
    out = dict(base)
    for key, value in over.items():
        if isinstance(value, Mapping) and isinstance(out.get(key), Mapping) and "kind" not in value:
            out[key] = _merged(out[key], value)
        else:
            out[key] = value
    return out


def scaled(profile: SimProfile, scale: float) -> SimProfile:
    """The same engine with every duration (each key that ends in `_s`) multiplied by `scale`."""
    if not (math.isfinite(scale) and scale > 0):
        raise ProfileError(f"scale must be a number above 0, is {scale}")
    return SimProfile.model_validate(_times(profile.model_dump(), scale))


def _times(value: Any, scale: float, key: str = "") -> Any:  # noqa: ANN401 - any value of a profile
    if isinstance(value, dict):
        return {name: _times(item, scale, name) for name, item in value.items()}
    if not key.endswith("_s") or value is None:
        return value
    return [_times(item, scale, key) for item in value] if isinstance(value, (list, tuple)) else value * scale
