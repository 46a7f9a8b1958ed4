"""Profiles of the simulator: YAML files that say how fast the engine is, what it serves, how it misbehaves.

Plain dataclasses, checked by hand: the server process starts in a moment because it imports little.
A key that ends in `_s` is a duration in seconds, and only those are changed by a time scale.
"""

from __future__ import annotations

import dataclasses
import math
import types
import typing
from collections.abc import Mapping
from dataclasses import MISSING, dataclass, field
from pathlib import Path
from typing import Any

from benchbench.engines.simulator.laws import FixedLaw, LinearLaw, TableLaw

if typing.TYPE_CHECKING:
    from _typeshed import DataclassInstance

_Data = typing.TypeVar("_Data", bound="DataclassInstance")

PROFILE_DIR = Path(__file__).parent / "profiles"
LAWS: dict[str, type[FixedLaw | LinearLaw | TableLaw]] = {
    "fixed": FixedLaw,
    "linear": LinearLaw,
    "table": TableLaw,
}


class ProfileError(ValueError):
    """A profile that cannot be used; the message names each wrong key and what is allowed."""


_SHARE = {"low": 0.0, "high": 1.0}


def _at_least(low: float, high: float = math.inf) -> dict[str, float]:
    return {"low": low, "high": high}


@dataclass(frozen=True, slots=True)
class Stall:
    """Every `every`-th step (fixed law: token of a request) takes `for_s` longer."""

    every: int = field(metadata=_at_least(1))
    for_s: float = field(metadata=_at_least(0))


@dataclass(frozen=True, slots=True)
class SlowFirst:
    """The first `count` rounds take `factor` times as long, as when kernels are being tuned."""

    count: int = field(metadata=_at_least(0))
    factor: float = field(metadata=_at_least(0))


@dataclass(frozen=True, slots=True)
class WrongUsage:
    """Tokens added to what `usage` truthfully says."""

    prompt_tokens: int = 0
    completion_tokens: int = 0


@dataclass(frozen=True, slots=True)
class ShortOutput:
    """That share of the requests ends `tokens` early (negative: late) with finish reason `stop`."""

    share: float = field(default=1.0, metadata=_SHARE)
    tokens: int = 1


@dataclass(frozen=True, slots=True)
class Status:
    """That share of the requests is answered with an HTTP error; `retry_after` is the header, in seconds."""

    code: int = field(default=503, metadata=_at_least(400, 599))
    share: float = field(default=1.0, metadata=_SHARE)
    retry_after: int | None = None


@dataclass(frozen=True, slots=True)
class Faults:
    """Ways to misbehave. Who is hit by a share follows from the profile's seed and the request's number.

    wrong_usage, missing_usage, cached_tokens: what `usage` says (`cached_tokens`: a lie about hits).
    short_output, reset_share (RST), cut_share (close), error_in_stream_share (an error event): in mid-stream,
    after half of the tokens. silence_share: headers, then nothing, ever. status: see `Status`.
    stall, slow_first, drift (a share of the law's time, added per round), noise (standard deviation of a round's
    time, as a share of it; seeded): the engine's pace.
    reasoning_start (chat): so many first tokens are `reasoning_content`. role_early (chat): the role-only
    chunk comes with the headers instead of with the first token.
    """

    wrong_usage: WrongUsage | None = None
    missing_usage: bool = False
    cached_tokens: int | None = None
    short_output: ShortOutput | None = None
    reset_share: float = field(default=0.0, metadata=_SHARE)
    cut_share: float = field(default=0.0, metadata=_SHARE)
    error_in_stream_share: float = field(default=0.0, metadata=_SHARE)
    silence_share: float = field(default=0.0, metadata=_SHARE)
    status: Status | None = None
    stall: Stall | None = None
    slow_first: SlowFirst | None = None
    drift: float = field(default=0.0, metadata=_at_least(-0.5))
    noise: float = field(default=0.0, metadata=_at_least(0, 0.2))
    reasoning_start: int = field(default=0, metadata=_at_least(0))
    role_early: bool = False


@dataclass(frozen=True, slots=True)
class SimProfile:
    """One simulated engine: `law` says how fast, the limits are vLLM's, the rest is what it tells clients.

    Without `ignore_eos`, outputs have a length drawn from the seed and the prompt with mean
    `mean_output_tokens`. `empty_text` answers as with --skip-tokenizer-init, `report_cached` as with
    --enable-prompt-tokens-details, `tokens_per_event` as with --stream-interval, `keep_alive_s` sends
    comments at that interval until the first token.
    """

    law: FixedLaw | LinearLaw | TableLaw
    seed: int = 0
    max_model_len: int = field(default=8192, metadata=_at_least(2))
    vocab_size: int = field(default=200_064, metadata=_at_least(8192, 26**4))
    max_num_seqs: int = field(default=1024, metadata=_at_least(1))
    max_num_batched_tokens: int = field(default=8192, metadata=_at_least(1))
    kv_tokens: int = field(default=1_048_576, metadata=_at_least(2))
    prefix_cache: bool = True
    tokens_per_event: int = field(default=1, metadata=_at_least(1))
    mean_output_tokens: float = field(default=256, metadata=_at_least(1))
    role_first: bool = True
    empty_text: bool = False
    report_cached: bool = False
    usage_in_last_choice: bool = False
    send_done: bool = True
    close_after_response: bool = False
    keep_alive_s: float | None = field(default=None, metadata=_at_least(0.001))
    api_key: str | None = None
    owned_by: str = "benchbench"
    version: str = "simulator-1"
    faults: Faults = field(default_factory=Faults)

    def __post_init__(self) -> None:
        if not isinstance(self.law, FixedLaw) and self.kv_tokens < self.max_model_len:
            raise ValueError(f"kv_tokens ({self.kv_tokens}) must be at least max_model_len ({self.max_model_len})")


def shipped_profiles() -> list[str]:
    return sorted(path.stem for path in PROFILE_DIR.glob("*.yaml"))


def load_profile(name_or_path: str | Path, overrides: Mapping[str, Any] | None = None) -> SimProfile:
    """A shipped profile by name, or a YAML file by path, with `overrides` merged in key by key.

    Raises ProfileError for unknown names and keys, wrong types and values out of range.
    """
    import yaml

    path = PROFILE_DIR / f"{name_or_path}.yaml"
    if not path.is_file():
        path = Path(name_or_path)
    if not path.is_file():
        raise ProfileError(
            f"no simulator profile {str(name_or_path)!r} (allowed: {', '.join(shipped_profiles())}, or a file)"
        )
    try:
        data = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise ProfileError(f"{path}: cannot be read as YAML: {error}") from error
    if not isinstance(data, dict):
        raise ProfileError(f"{path}: must be a mapping of keys")
    return profile_from_mapping(_merged(data, overrides or {}), str(name_or_path))


def profile_from_mapping(data: Mapping[str, Any], source: str = "profile") -> SimProfile:
    """A profile from data as a YAML file holds it. Raises ProfileError with every problem found."""
    problems: list[str] = []
    profile = _build(SimProfile, data, "", problems)
    if profile is None or problems:
        raise ProfileError("; ".join(f"{source}: {problem}" for problem in problems))
    return profile


def scaled(profile: SimProfile, scale: float) -> SimProfile:
    """The same engine with every duration (each key that ends in `_s`) multiplied by `scale`."""
    if not (math.isfinite(scale) and scale > 0):
        raise ProfileError(f"scale must be a number above 0, is {scale}")
    return _scaled(profile, scale)


def _scaled(value: _Data, scale: float) -> _Data:
    changed: dict[str, object] = {}
    for f in dataclasses.fields(value):
        old = getattr(value, f.name)
        if dataclasses.is_dataclass(old) and not isinstance(old, type):
            changed[f.name] = _scaled(old, scale)
        elif f.name.endswith("_s") and old is not None:
            changed[f.name] = _times(old, scale)
    return dataclasses.replace(value, **changed)


def _times(value: object, scale: float) -> object:
    """A number times `scale`, or each of a table's."""
    return tuple(_times(v, scale) for v in value) if isinstance(value, tuple) else typing.cast("float", value) * scale


def _merged(base: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    out = dict(base)
    for key, value in over.items():
        old = out.get(key)
        # Another kind of law shares no keys with the old one.
        replaces = key == "law" and isinstance(value, Mapping) and "kind" in value
        if isinstance(old, Mapping) and isinstance(value, Mapping) and not replaces:
            out[key] = _merged(old, value)
        else:
            out[key] = value
    return out


def _build(cls: type[_Data], data: object, path: str, problems: list[str]) -> _Data | None:
    """An instance of a dataclass from a mapping; None, and lines in `problems`, where that fails."""
    if not isinstance(data, Mapping):
        problems.append(f"{path}: must be a mapping of keys")
        return None
    fields = {f.name: f for f in dataclasses.fields(cls)}
    dot = f"{path}." if path else ""
    before = len(problems)
    problems += [f"{dot}{key}: unknown key (allowed: {', '.join(fields)})" for key in data if key not in fields]
    problems += [
        f"{dot}{name}: is missing"
        for name, f in fields.items()
        if name not in data and f.default is MISSING and f.default_factory is MISSING
    ]
    hints = typing.get_type_hints(cls)
    values = {
        name: _value(hints[name], data[name], f"{dot}{name}", fields[name].metadata, problems)
        for name in fields
        if name in data
    }
    if len(problems) > before:
        return None
    try:
        return cls(**values)
    except ValueError as error:
        problems.append(f"{path or 'profile'}: {error}")
        return None


def _value(hint: object, data: object, path: str, limits: Mapping[str, float], problems: list[str]) -> object:
    if path == "law":
        return _law(data, problems)
    if isinstance(hint, types.UnionType):  # only ever `X | None`
        if data is None:
            return None
        hint = next(arm for arm in typing.get_args(hint) if arm is not types.NoneType)
    if isinstance(hint, type) and dataclasses.is_dataclass(hint):
        return _build(hint, data, path, problems)
    if typing.get_origin(hint) is tuple:
        item = typing.get_args(hint)[0]
        if isinstance(data, list | tuple):
            return tuple(_value(item, v, f"{path}[{i}]", limits, problems) for i, v in enumerate(data))
        problems.append(f"{path}: must be a list, is {data!r}")
        return None
    return _scalar(hint, data, path, limits, problems)


def _law(data: object, problems: list[str]) -> object:
    kind = data.get("kind") if isinstance(data, Mapping) else None
    if not isinstance(data, Mapping) or kind not in LAWS:
        problems.append(f"law.kind: is {kind!r} (allowed: {', '.join(LAWS)})")
        return None
    return _build(LAWS[kind], {k: v for k, v in data.items() if k != "kind"}, "law", problems)


def _scalar(hint: object, data: object, path: str, limits: Mapping[str, float], problems: list[str]) -> object:
    if hint is float and type(data) is int:
        data = float(data)
    if type(data) is not hint:
        name = {int: "an integer", float: "a number", bool: "true or false"}.get(typing.cast("type", hint), "a text")
        problems.append(f"{path}: must be {name}, is {data!r}")
    elif isinstance(data, int | float) and hint is not bool:
        # No duration and no coefficient of a law has a meaning below zero.
        least = 0.0 if path.startswith("law.") or path.endswith("_s") else -math.inf
        low, high = limits.get("low", least), limits.get("high", math.inf)
        if not (low <= data <= high and math.isfinite(data)):
            problems.append(f"{path}: must be {_range(low, high)}, is {data}")
    return data


def _range(low: float, high: float) -> str:
    if high == math.inf:
        return "finite" if low == -math.inf else f"at least {low:g}"
    return f"from {low:g} to {high:g}"
