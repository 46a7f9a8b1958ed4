"""What the hardware allows at best, and how much of it was reached. Pure.

Notation: B requests of I input and O output tokens; P the peak and W the bandwidth of all devices together; a the
parameters in the matrices that one token passes through, h those of the output head; w the bytes of the weights that
one token touches, less what the devices' caches hold; c the bytes of K and V that one token leaves.

    prompt    = (2 (a - h) I + 2 h) / P          compute of one prompt, 2 FLOP a parameter and token
    prefill   = max(B prompt, w / W)             all prompts computed, the weights read once
    TTFT     >= max((B + 1) / 2 prompt, w / W)   mean of a static batch: the k-th first token comes after k prompts
    TPOT     >= max((w + c L) / W, 2 a / P)      L = I + O / 2 - 1, the mean length of a context while O - 1 tokens follow
    duration >= max(prefill + (O - 1) TPOT, w / W + (O - 1) (w + B c L) / W, B prompt + B (O - 1) 2 a / P)
    Sys tok/s <= B O / duration

These hold for every order in which a server may work: prompts in one pass or in chunks, tokens of some beside prompts
of others, requests that wait. So TPOT's bound has one request's K and V: a server may serve them one by one. A closed
load's requests come one by one, so its TTFT is bounded by one prompt (B = 1), and its Sys tok/s, taken in a window
that prompts may lie outside of, by B / max((w + B c I) / W, B 2 a / P). An open load is a static one of all its
requests, less what is said of TTFT. Left out, as a bound must: attention's compute (windows and linear attention need
less), activations, communication, the output's sampling.

Experts: w counts the top_k of one token, since all B tokens could choose the same ones. That B tokens choose evenly and
so touch E (1 - (1 - k / E)^B) of E experts is likelier, no bound, and used for MBU alone.

Speculative decoding: one pass gives several tokens, so what is read per pass bounds no token. With `speculative` TPOT
and what follows from it keep only the compute, as every token is still computed.

Sources: roofline: Williams, Waterman, Patterson, CACM 52(4), 2009. 2 FLOP a parameter and token: Kaplan et al.,
arXiv:2001.08361, 2020. MFU: Chowdhery et al. (PaLM), arXiv:2204.02311, 2022. Decoding bound by bandwidth: Pope et al.,
arXiv:2211.05102, 2022. MBU: Databricks, LLM Inference Performance Engineering, 2023.
"""

from __future__ import annotations

from dataclasses import dataclass

from benchbench.record.model import ModelFacts
from benchbench.spec.hardware import Accelerator

DTYPE_BYTES = {"fp32": 4.0, "bf16": 2.0, "fp16": 2.0, "fp8": 1.0, "int8": 1.0, "fp4": 0.5, "int4": 0.5}


@dataclass(frozen=True, slots=True, kw_only=True)
class Bounds:
    """What the hardware allows at best. None: the facts do not say."""

    prefill_s: float | None  # at least: until the last of a static batch's first tokens
    ttft_s: float | None  # at least: mean TTFT
    tpot_s: float | None  # at least; of more than one token
    sys_tok_s: float | None  # at most


@dataclass(frozen=True, slots=True, kw_only=True)
class Utilisation:
    """Shares of what the hardware can do, 1 is all of it. None: the facts do not say."""

    mfu: float | None
    mbu: float | None
    sol: float | None


def bounds(
    model: ModelFacts,
    device: Accelerator,
    count: int,
    *,
    input: int,  # noqa: A002 - the axis' name
    output: int,
    batch: int,
    load: str = "static",
    speculative: bool = False,
) -> Bounds:
    """The bounds of a cell on `count` devices, as the module says. `batch`: requests in flight, of an open load all."""
    flops, flop_s = _flops(model), device.peak(model.compute_dtype) * count
    touched, bandwidth = _touched_bytes(model), device.bandwidth_bytes_s * count
    cache = device.cache_bytes * count
    if flops is None and touched is None:
        return Bounds(prefill_s=None, ttft_s=None, tpot_s=None, sys_tok_s=None)
    body, head = flops or (0.0, 0.0)
    weights, kv = touched or 0.0, float(model.kv_bytes_per_token or 0)
    context = input if load == "closed" else input + max(0.0, output / 2 - 1)

    def read_s(contexts: float) -> float:
        return max(0.0, weights + contexts * context * kv - cache) / bandwidth

    prompt, token, once = (body * input + head) / flop_s, (body + head) / flop_s, read_s(0)
    prefill = max(batch * prompt, once)
    ttft = max((batch + 1) / 2 * prompt, once) if load == "static" else max(prompt, once)
    tpot = token if speculative else max(read_s(1), token)
    step = batch * token if speculative else max(read_s(batch), batch * token)
    if load == "closed":
        duration = step * output
    else:
        following = output - 1
        computed = batch * (prompt + following * token)
        duration = max(prefill + following * tpot, computed, once + following * (0.0 if speculative else read_s(batch)))
    return Bounds(
        prefill_s=prefill or None,
        ttft_s=ttft or None,
        tpot_s=(tpot or None) if output > 1 else None,
        sys_tok_s=batch * output / duration if duration else None,
    )


def utilisation(
    model: ModelFacts,
    device: Accelerator,
    count: int,
    limits: Bounds,
    *,
    input: int,  # noqa: A002
    output: int,
    batch: int,
    prefill_s: float | None = None,
    tpot_s: float | None = None,
    sys_tok_s: float | None = None,
) -> Utilisation:
    """How much of the hardware was used; `limits` are the cell's `bounds`.

    MFU = compute of the batch's prompts / (`prefill_s` P), `prefill_s` being the time until the last first token of a
    static batch. MBU = bytes of one decode step / (`tpot_s` W): the weights that B evenly routed tokens touch, and K and
    V of B contexts at their mean length; with `tpot_s` the mean of a load that keeps B in flight. SOL = `sys_tok_s` over its
    bound. Each is None without its measurement or facts.
    """
    flops, step = _flops(model), step_bytes(model, input=input, output=output, batch=batch)
    mfu = mbu = None
    if flops and prefill_s:
        mfu = batch * (flops[0] * input + flops[1]) / (prefill_s * device.peak(model.compute_dtype) * count)
    if step and tpot_s:
        mbu = step / (tpot_s * device.bandwidth_bytes_s * count)
    sol = sys_tok_s / limits.sys_tok_s if sys_tok_s and limits.sys_tok_s else None
    return Utilisation(mfu=mfu, mbu=mbu, sol=sol)


def experts_touched(experts: int, top_k: int, tokens: int) -> float:
    """Experts of a layer that `tokens` tokens touch on average when each chooses `top_k` evenly: E (1 - (1 - k/E)^n)."""
    return experts * (1 - (1 - top_k / experts) ** tokens)


def step_bytes(model: ModelFacts, *, input: int, output: int, batch: int) -> float | None:  # noqa: A002
    """Bytes that one decode step of `batch` tokens reads on average, experts chosen evenly. None: not known."""
    one, size = _touched_bytes(model), _bytes_per_parameter(model)
    if one is None or size is None or model.kv_bytes_per_token is None:
        return None
    if model.experts and model.top_k:
        if model.expert_parameters is None:
            return None
        more = experts_touched(model.experts, model.top_k, batch) - model.top_k
        one += model.expert_parameters * more / model.experts * size
    return one + batch * (input + max(0.0, output / 2 - 1)) * model.kv_bytes_per_token


def _active(model: ModelFacts) -> int | None:
    """Parameters in the matrices that one token passes through: without those that are only looked up."""
    active = model.active_parameters
    if active is None and not model.experts:
        active = model.parameters
    return None if active is None else max(0, active - (model.embedding_parameters or 0))


def _flops(model: ModelFacts) -> tuple[float, float] | None:
    """FLOP of one token without and in the output head, which of a prompt only the last token passes through."""
    active = _active(model)
    if active is None:
        return None
    head = min(active, (model.vocab or 0) * (model.hidden or 0))
    return 2.0 * (active - head), 2.0 * head


def _bytes_per_parameter(model: ModelFacts) -> float | None:
    """Of the smallest dtype that can be meant: that of most weights, or the mean over the files where it is less."""
    sizes = [DTYPE_BYTES[model.weight_dtype]] if model.weight_dtype in DTYPE_BYTES else []
    if model.weight_bytes and model.parameters:
        sizes.append(model.weight_bytes / model.parameters)
    return min(sizes, default=None)


def _touched_bytes(model: ModelFacts) -> float | None:
    active, size = _active(model), _bytes_per_parameter(model)
    return None if active is None or size is None else active * size
