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

Experts: w has the top_k of one token, since all B could choose the same ones. That they choose evenly, and touch
E (1 - (1 - k / E)^B) of E experts, is likelier but no bound; it serves MBU alone.

Speculative decoding: a pass gives several tokens. Those of one pass come in one event (or in several), so there were at
least as many passes as events: after the first token read counts times `passes`, that share (0 where flags name
speculative decoding, since then a server may send them one by one); every token is still computed.

Sources: roofline: Williams, Waterman, Patterson, CACM 52(4), 2009. 2 FLOP a parameter and token: Kaplan et al.,
arXiv:2001.08361, 2020. MFU: Chowdhery et al. (PaLM), arXiv:2204.02311, 2022. Decoding bound by bandwidth: Pope et al.,
arXiv:2211.05102, 2022. MBU: Databricks, LLM Inference Performance Engineering: Best Practices, 2023.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any

from benchbench.analysis.stats import Estimate
from benchbench.analysis.validity import Evidence
from benchbench.model.config import ModelFacts
from benchbench.model.quantization import BITS
from benchbench.spec.accelerators import Accelerator

if TYPE_CHECKING:
    from benchbench.analysis.cell import CellInfo

MOSTLY_SINGLE = 0.9  # below this many events a token there were fewer steps than tokens, so that MBU is not known
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
    """What was served, and on how many of what."""

    model: ModelFacts
    device: Accelerator
    count: int
    speculative: bool = False


@dataclass(frozen=True, slots=True)
class Utilization:
    """A cell against its bounds. `mfu`, `mbu`, `sol` (Sys tok/s over its bound): shares of 1. `too_fast`: in words."""

    platform: Platform
    limits: Bounds
    mfu: float | None
    mbu: float | None
    sol: float | None
    too_fast: tuple[str, ...]


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
    return Platform(facts, figures, device["count"], bool(manifest.get("speculative")))


def utilization_of(
    cell: CellInfo, platform: Platform, estimates: Mapping[str, Estimate | None], evidence: Evidence
) -> Utilization | None:
    """The cell's bounds, how near it came, and which of its numbers are beyond them by more than their interval.

    None where answers are as long as the server likes (`output: as_served`): their lengths bound nothing.
    """
    if cell.output_mode != "exact":
        return None
    passes = 0.0 if platform.speculative else _passes(cell, evidence)
    batch = cell.requests if cell.load == "open" else cell.batch or 1
    of: dict[str, Any] = {"input": cell.input, "output": cell.output, "batch": batch}
    limits = bounds(platform.model, platform.device, platform.count, **of, load=cell.load, passes=passes)
    point = {name: one.point for name, one in estimates.items() if one}
    mfu, mbu = mfu_mbu(
        *(platform.model, platform.device, platform.count),
        **of,
        prefill_s=point.get("ttft_last") if cell.load == "static" else None,
        tpot_s=point.get("tpot") if cell.load != "open" and passes > MOSTLY_SINGLE else None,
    )
    rate = point.get("sys_tok_s")
    sol = rate / limits.sys_tok_s if rate is not None and limits.sys_tok_s else None
    return Utilization(platform, limits, mfu, mbu, sol, _beyond(estimates, limits, evidence.send_skew_s))


def _passes(cell: CellInfo, evidence: Evidence) -> float:
    """Passes of the model per token after the first, at least: tokens of one pass come in one event, or in several."""
    following = evidence.requests * (cell.output - 1)
    return min(1.0, max(0, evidence.events - evidence.requests) / following) if following and evidence.grouped else 1.0


def _beyond(estimates: Mapping[str, Estimate | None], limits: Bounds, skew_s: float) -> tuple[str, ...]:
    """`skew_s`: a batch's work begins with its first send, so that later requests wait less."""
    found = []
    for name, least, slack in (("ttft", limits.ttft_s, skew_s), ("tpot", limits.tpot_s, 0.0)):
        one = estimates[name]
        if one and least and max(one.point, one.high or 0.0) + slack < least * (1 - ROUNDING):
            found.append(f"mean {name.upper()} {one.point * 1e3:.2f} ms is below {least * 1e3:.2f}")
    rate, most = estimates["sys_tok_s"], limits.sys_tok_s
    if rate and most and min(rate.point, rate.point if rate.low is None else rate.low) > most * (1 + ROUNDING):
        found.append(f"Sys tok/s {rate.point:,.1f} is above {most:,.1f}")
    return tuple(found)


def bounds(
    model: ModelFacts,
    device: Accelerator,
    count: int,
    *,
    input: int,  # noqa: A002 - the axis' name
    output: int,
    batch: int,
    load: str = "static",
    passes: float = 1.0,
) -> Bounds:
    """The bounds of a cell on `count` devices, as the module says.

    `batch`: requests in flight, of an open load all. `passes`: of the model per token after the first, at least.
    """
    flops, touched = _flops(model), touched_bytes(model)
    if flops is None and touched is None:
        return Bounds(prefill_s=None, ttft_s=None, tpot_s=None, sys_tok_s=None)
    body, head = flops or (0.0, 0.0)
    flop_s, bandwidth = device.peak(model.compute_dtype) * count, device.bandwidth_bytes_s * count
    context = input if load == "closed" else input + max(0.0, output / 2 - 1)

    def read(requests: int) -> float:
        held = requests * context * (model.kv_bytes_per_token or 0)
        seconds = max(0.0, (touched or 0.0) + held - device.cache_bytes * count) / bandwidth
        return seconds * passes if requests else seconds

    prompt, token, following = (body * input + head) / flop_s, (body + head) / flop_s, output - 1
    prefill, tpot = max(batch * prompt, read(0)), max(read(1), token)
    passes = read(0) + following * read(batch)
    if load == "closed":
        duration = max(output * batch * token, passes) * (1 - 1 / (2 * output))
    else:
        duration = max(prefill + following * tpot, batch * (prompt + following * token), passes)
    return Bounds(
        prefill_s=prefill or None,
        ttft_s=max((batch + 1) / 2 * prompt if load == "static" else prompt, read(0)) or None,
        tpot_s=(tpot or None) if following else None,
        sys_tok_s=batch * output / duration if duration else None,
    )


def mfu_mbu(
    model: ModelFacts,
    device: Accelerator,
    count: int,
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
    the mean of a load that keeps B in flight.
    """
    flops, step = _flops(model), step_bytes(model, input=input, output=output, batch=batch)
    mfu = mbu = None
    if flops and prefill_s:
        mfu = batch * (flops[0] * input + flops[1]) / (prefill_s * device.peak(model.compute_dtype) * count)
    if step and tpot_s:
        mbu = step / (tpot_s * device.bandwidth_bytes_s * count)
    return mfu, mbu


def experts_touched(experts: int, top_k: int, tokens: int) -> float:
    """Experts of a layer that n tokens touch on average when each chooses k of E evenly: E (1 - (1 - k / E)^n)."""
    return experts * (1 - (1 - top_k / experts) ** tokens)


def step_bytes(model: ModelFacts, *, input: int, output: int, batch: int) -> float | None:  # noqa: A002
    """Bytes that one decode step of `batch` tokens reads on average, experts chosen evenly. None: not known."""
    one, size = touched_bytes(model), _bytes_per_parameter(model)
    if one is None or size is None or model.kv_bytes_per_token is None:
        return None
    if model.experts and model.top_k:
        if model.expert_parameters is None:
            return None
        more = experts_touched(model.experts, model.top_k, batch) - model.top_k
        one += model.expert_parameters * more / model.experts * size
    return one + batch * (input + max(0.0, output / 2 - 1)) * model.kv_bytes_per_token


def _active(model: ModelFacts) -> int | None:
    """Parameters in the matrices that one token passes through: without an embedding that is only looked up."""
    looked_up = model.embedding_parameters
    if looked_up is None and model.vocab and model.hidden:
        looked_up = model.vocab * model.hidden
    if model.active_parameters is not None or model.experts or model.parameters is None or looked_up is None:
        return model.active_parameters
    return max(0, model.parameters - looked_up)


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


def touched_bytes(model: ModelFacts) -> float | None:
    """Bytes of the weights that one token passes through, at least."""
    active, size = _active(model), _bytes_per_parameter(model)
    return None if active is None or size is None else active * size
