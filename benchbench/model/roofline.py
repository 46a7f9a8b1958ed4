"""What the hardware allows at best, and how much of it was used. Pure.

B requests of I input and O output tokens; P the peak and W the bandwidth of all devices together; a the parameters in
the matrices that one token passes through, h those of the output head among them; w the bytes of the weights that one
token touches, c the bytes of K and V that it leaves, C the bytes of the devices' last caches.

    prompt     = (2 (a - h) I + 2 h) / P               compute of one prompt, 2 FLOP a parameter and token
    token      = 2 a / P
    read(n)    = (w + n c L - C) / W, not below 0      one pass that goes on with n requests; L = I + O / 2 - 1, the
                                                       mean length of a context while O - 1 tokens follow the first
    prefill   >= max(B prompt, read(0))
    TTFT      >= max((B + 1) / 2 prompt, read(0))      mean of a static batch: the k-th first token follows k prompts
    TPOT      >= max(read(1), token)
    duration  >= max(prefill + (O - 1) TPOT, B (prompt + (O - 1) token), read(0) + (O - 1) read(B))
    Sys tok/s <= B O / duration

They hold in whatever order a server works: prompts whole or in chunks, beside tokens of others or not, requests that
wait. So TPOT's has the K and V of one request, since a server may serve them one by one. A closed load's requests come
one by one: its TTFT is bounded by max(prompt, read(0)). Its Sys tok/s is taken in a window that prompts may lie outside
of and that may hold a pass more than its time, so there

    duration  >= max(O B token, read(0) + (O - 1) read(B)) (1 - 1 / (2 O)), with L = I

An open load is a static one of all its requests, but for its TTFT, which is as in a closed one.

Left out, since a bound must not be too tight: attention's compute (windows and linear attention need little),
activations, communication, sampling, launches. Peaks are those of data sheets, at the clocks that these assume.

Experts: w has the top_k of one token, since all B could choose the same ones. The *likely* bounds take it that n tokens
of a pass choose evenly and touch E (1 - (1 - k / E)^n) of E experts on average: n = B in decoding, all tokens of the
prompts in prefill. Fewer passes read less, so no order of work helps. Beyond them a number is suspicious, not
impossible, as real routing is uneven. Without experts both bounds are the same.

K and V: of layers with a window of s tokens min(context, s) count, the mean taken over the O - 1 contexts.

Speculative decoding: a pass gives several tokens. Those of one pass come in one event (or in several), so there were at
least as many passes as events: after the first token read counts times `passes`, that share; 1 / (n + 1) where n tokens
are proposed a pass, 0 where n is unknown, since a server may send them one by one. Every token is still computed, and
the fewer passes touch more experts each.

Sources: roofline: Williams, Waterman, Patterson, CACM 52(4), 2009. 2 FLOP a parameter and token: Kaplan et al.,
arXiv:2001.08361, 2020. MFU: Chowdhery et al. (PaLM), arXiv:2204.02311, 2022. Decoding bound by bandwidth: Pope et al.,
arXiv:2211.05102, 2022. MBU: Databricks, LLM Inference Performance Engineering: Best Practices, 2023.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

from benchbench.model.accelerators import Accelerator
from benchbench.model.config import ModelFacts
from benchbench.model.quantization import BITS

ROUNDING = 1e-3  # data sheets print four digits: no nearer than this to a bound is beyond it


@dataclass(frozen=True, slots=True, kw_only=True)
class Bounds:
    """What the hardware allows at best. None: the facts do not say."""

    prefill_s: float | None  # at least: until the last of a static batch's first tokens
    ttft_s: float | None  # at least: mean TTFT
    tpot_s: float | None  # at least; of more than one token
    sys_tok_s: float | None  # at most


@dataclass(frozen=True, slots=True)
class Platform:
    """What was served, and on how many of what. `passes`: of the model per token after the first, at least: 1, but
    1 / (n + 1) with speculative decoding of n tokens, 0 where n is unknown.
    """

    model: ModelFacts
    device: Accelerator
    count: int
    passes: float = 1.0


def platform_of(manifest: Mapping[str, Any], variant: str = "") -> Platform | None:
    """What a run's manifest says of model (that of `variant`, where it has its own) and accelerators.

    None where it does not know both.
    """
    model = manifest.get("variant_model_facts", {}).get(variant, manifest.get("model_facts"))
    device = manifest.get("accelerator")
    if not model or not device:
        return None
    known = {field.name for field in fields(ModelFacts)} - {"quantization"}
    facts = ModelFacts(**{name: value for name, value in model.items() if name in known})
    figures = Accelerator(**{field.name: device[field.name] for field in fields(Accelerator) if field.name in device})
    return Platform(facts, figures, device["count"], least_passes(manifest.get("speculative")))


def least_passes(speculative: object) -> float:
    """`Platform.passes` of what a manifest says: false, true, or a mapping with `tokens`."""
    if not speculative and not isinstance(speculative, dict):
        return 1.0
    tokens = speculative.get("tokens") if isinstance(speculative, dict) else None
    return 1 / (tokens + 1) if tokens else 0.0


def bounds(
    platform: Platform,
    *,
    input: int,  # noqa: A002 - the axis' name
    output: int,
    batch: int,
    load: str = "static",
    likely: bool = False,
) -> Bounds:
    """The bounds of a cell, as the module says; `likely`: if tokens choose their experts evenly.

    `batch`: requests in flight, of an open load all.
    """
    model, device, count, passes = platform.model, platform.device, platform.count, platform.passes
    flops, touched = _flops(model), touched_bytes(model)
    if flops is None and touched is None:
        return Bounds(prefill_s=None, ttft_s=None, tpot_s=None, sys_tok_s=None)
    body, head = flops or (0.0, 0.0)
    flop_s, bandwidth = device.peak(model.compute_dtype) * count, device.bandwidth_bytes_s * count
    last = input if load == "closed" else input + max(0, output - 2)

    def read(requests: int, tokens: float) -> float:
        weights = (touched_bytes(model, tokens) if likely else None) or touched or 0.0
        held = requests * (model.kv_bytes(input, last) or 0.0)
        return max(0.0, weights + held - device.cache_bytes * count) / bandwidth

    prompt, token, following = (body * input + head) / flop_s, (body + head) / flop_s, output - 1
    prompts = read(0, batch * input)
    prefill, tpot = max(batch * prompt, prompts), max(read(1, 1) * passes, token)
    all_passes = prompts + following * read(batch, batch / passes if passes else 0) * passes
    if load == "closed":
        duration = max(output * batch * token, all_passes) * (1 - 1 / (2 * output))
    else:
        duration = max(prefill + following * tpot, batch * (prompt + following * token), all_passes)
    return Bounds(
        prefill_s=prefill or None,
        ttft_s=max((batch + 1) / 2 * prompt if load == "static" else prompt, read(0, input)) or None,
        tpot_s=(tpot or None) if following else None,
        sys_tok_s=batch * output / duration if duration else None,
    )


def mfu_mbu(
    platform: Platform,
    *,
    input: int,  # noqa: A002
    output: int,
    batch: int,
    prefill_s: float | None = None,
    tpot_s: float | None = None,
) -> tuple[float | None, float | None]:
    """MFU of prefill and MBU of decode, shares of 1; None without their measurement or facts.

    MFU = B prompt / `prefill_s`, the time until a static batch's last first token. MBU = bytes of one decode step /
    (`tpot_s` W): the weights that B evenly routed tokens touch, and K and V of B contexts of mean length; `tpot_s` is
    the mean of a load that keeps B in flight. Above 1 it is None: then the step did not read what is assumed.
    """
    model, device, count = platform.model, platform.device, platform.count
    flops, step = _flops(model), step_bytes(model, input=input, output=output, batch=batch)
    mfu = mbu = None
    if flops and prefill_s:
        mfu = batch * (flops[0] * input + flops[1]) / (prefill_s * device.peak(model.compute_dtype) * count)
    if step and tpot_s:
        mbu = step / (tpot_s * device.bandwidth_bytes_s * count)
    return mfu, mbu if mbu is not None and mbu <= 1 + ROUNDING else None


def experts_touched(experts: int, top_k: int, tokens: float) -> float:
    """Experts of a layer that n tokens touch on average when each chooses k of E evenly: E (1 - (1 - k / E)^n)."""
    return float(experts * (1 - (1 - top_k / experts) ** tokens))


def step_bytes(model: ModelFacts, *, input: int, output: int, batch: int) -> float | None:  # noqa: A002
    """Bytes that one decode step of `batch` tokens reads on average, experts chosen evenly. None: unknown."""
    weights, held = touched_bytes(model, batch), model.kv_bytes(input, input + max(0, output - 2))
    return None if weights is None or held is None else weights + batch * held


def _active(model: ModelFacts) -> int | None:
    """Parameters in the matrices that one token passes through: without an embedding that is only looked up."""
    looked_up = model.embedding_parameters
    if looked_up is None and model.vocab and model.hidden:
        looked_up = model.vocab * model.hidden
    if model.active_parameters is not None or model.experts or model.parameters is None or looked_up is None:
        return model.active_parameters
    return max(0, model.parameters - looked_up)


def _routed(model: ModelFacts) -> float | None:
    """Parameters of all routed experts: as known, else (P - looked up - a) / (1 - k / E): k of E are active."""
    total, active, experts, top = model.parameters, model.active_parameters, model.experts, model.top_k
    if model.expert_parameters is not None or not (total and active and experts and top) or top >= experts:
        return model.expert_parameters
    looked_up = model.embedding_parameters
    looked_up = (model.vocab or 0) * (model.hidden or 0) if looked_up is None else looked_up
    routed = (total - looked_up - active) / (1 - top / experts)
    return routed if 0 < routed * top / experts <= active else None


def _flops(model: ModelFacts) -> tuple[float, float] | None:
    """FLOP of one token without and in the output head, which of a prompt only the last token passes through."""
    active = _active(model)
    if active is None:
        return None
    head = min(active, (model.vocab or 0) * (model.hidden or 0))
    return 2.0 * (active - head), 2.0 * head


def _bytes_per_parameter(model: ModelFacts) -> float | None:
    """Of the smallest dtype that can be meant: that of most weights, or the mean over the files where it is less."""
    sizes = [BITS[model.weight_dtype] / 8] if model.weight_dtype in BITS else []
    if model.weight_bytes and model.parameters:
        sizes.append(model.weight_bytes / model.parameters)
    return min(sizes, default=None)


def touched_bytes(model: ModelFacts, tokens: float | None = None) -> float | None:
    """Bytes of the weights that one pass reads at least, since all tokens may choose the same experts.

    With `tokens`, what so many of them touch on average when they choose evenly. None: unknown.
    """
    dense, routed = model.dense_bytes, model.expert_bytes
    if dense is None or (model.experts and routed is None):
        active, size = _active(model), _bytes_per_parameter(model)
        if active is None or size is None or not model.experts or tokens is None:
            return None if active is None or size is None else active * size
        experts = _routed(model)
        if experts is None or model.top_k is None:
            return None
        dense, routed = round((active - experts * model.top_k / model.experts) * size), round(experts * size)
    if not model.experts or routed is None:
        return dense
    if model.top_k is None:
        return None
    touched = model.top_k if tokens is None else experts_touched(model.experts, model.top_k, tokens)
    return dense + routed * touched / model.experts
