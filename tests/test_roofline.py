"""What the hardware allows at best: the figures, the bounds by hand and against servers that are as fast as can be."""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from pathlib import Path
from statistics import fmean
from typing import Any

import pytest
from driving import bench, summary, write_sweep
from hypothesis import given
from hypothesis import strategies as st
from rounds_made import table_of
from test_summary import FACTS, cell, stream

from benchbench import open_run
from benchbench.analysis.summary import summarise, summary_row
from benchbench.analysis.utilization import utilization_of
from benchbench.explain.explanation import explain
from benchbench.figures.plots import draw_plots
from benchbench.model.accelerators import Accelerator, accelerator, given_accelerator, known
from benchbench.model.config import ModelFacts
from benchbench.model.roofline import (
    Platform,
    bounds,
    experts_touched,
    mfu_mbu,
    platform_of,
    step_bytes,
    touched_bytes,
)
from benchbench.model.served import caption_of, hardware_notes, served_model, served_on, speculative_decoding
from benchbench.spec import load_spec, spec_from_mapping

SWEEPS = Path(__file__).parents[1] / "sweeps"
M2 = served_model(load_spec(SWEEPS / "w7900d.yaml"))
assert M2 is not None
W7900D = accelerator("W7900D")
assert W7900D is not None


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("AMD Radeon PRO W7900D", "AMD Radeon PRO W7900D"),
        ("8x AMD W7900D (48 GB each)", "AMD Radeon PRO W7900D"),
        ("AMD Radeon PRO W7900 Dual Slot", "AMD Radeon PRO W7900"),
        ("AMD Instinct MI300X OAM", "AMD Instinct MI300X"),
        ("mi355x", "AMD Instinct MI355X"),
        ("NVIDIA A100-SXM4-40GB", "NVIDIA A100 SXM 40GB"),
        ("NVIDIA A100 80GB PCIe", "NVIDIA A100 PCIe 80GB"),
        ("NVIDIA A100 40 GB", "NVIDIA A100 SXM 40GB"),
        ("A100", "NVIDIA A100 SXM 80GB"),  # the fastest, since it does not say
        ("NVIDIA H100 80GB HBM3", "NVIDIA H100 SXM"),
        ("NVIDIA H100 PCIe", "NVIDIA H100 PCIe"),
        ("NVIDIA H100 NVL", "NVIDIA H100 NVL"),
        ("NVIDIA H200", "NVIDIA H200"),
        ("NVIDIA B200", "NVIDIA B200"),
        ("NVIDIA GH200 480GB", None),
        ("NVIDIA GeForce RTX 4090", None),
        ("", None),
    ],
)
def test_an_accelerator_by_what_it_is_called(text: str, name: str | None) -> None:
    device = accelerator(text)
    assert (device.name if device else None) == name


def test_the_data_file_is_whole() -> None:
    for model, _, figures in known():
        assert model in figures.name.lower().split(" ")
        assert figures == accelerator(figures.name)
        assert figures.source
        assert 300e9 < figures.bandwidth_bytes_s < 20e12
        assert all(50e12 < peak < 50e15 for peak in figures.flop_s.values())
        assert figures.flop_s["int8"] <= 2.001 * figures.flop_s["bf16"]  # dense: sparsity would double it again
        assert 0 < figures.cache_bytes < figures.memory_bytes
    assert W7900D.peak("fp8") == W7900D.peak(None) == max(W7900D.flop_s.values())  # emulated: never too low


# -- by hand, with the published rows


@pytest.mark.parametrize(
    ("prompt", "output", "batch", "ttft_ms", "sys_tok_s", "slower_than_light"),
    [
        (128, 128, 1, 68.5, 24.1, True),
        (128, 128, 32, 254.7, 504.6, True),
        (1024, 256, 32, 170.8, 508.6, False),
        (1024, 1024, 32, 169.5, 509.8, False),
        (2048, 1024, 32, 276.5, 537.5, False),
    ],
)
def test_the_published_rows_by_hand(
    prompt: int, output: int, batch: int, ttft_ms: float, sys_tok_s: float, slower_than_light: bool
) -> None:
    limits = bounds(Platform(M2, W7900D, 8), input=prompt, output=output, batch=batch)
    # 62 layers of 256 experts of 3 x 3072 x 1536, 8 of them for a token; attention 2 x 3072 x (48 + 8) x 128; router.
    layer = 8 * 3 * 3072 * 1536 + 2 * 3072 * 56 * 128 + 3072 * 256
    head, peak, bandwidth = 200064 * 3072, 8 * 122.64e12, 8 * 864e9
    one_s = (2 * 62 * layer * prompt + 2 * head) / peak
    read = (62 * layer + head) * 1.0 - 8 * 96 * 2**20  # int8, less the Infinity Caches
    mean_context = 62 * 2 * 8 * 128 * 2 * (prompt + output / 2 - 1)
    tpot_s = (read + mean_context) / bandwidth
    assert limits.prefill_s == pytest.approx(max(batch * one_s, read / bandwidth))
    assert limits.ttft_s == pytest.approx(max((batch + 1) / 2 * one_s, read / bandwidth))
    assert limits.tpot_s == pytest.approx(tpot_s)
    all_passes_s = (output - 1) * (read + batch * mean_context) / bandwidth + read / bandwidth
    duration_s = max(batch * one_s + (output - 1) * tpot_s, all_passes_s)
    assert limits.sys_tok_s == pytest.approx(batch * output / duration_s, rel=0.01)
    assert limits.ttft_s is not None
    assert limits.sys_tok_s is not None
    assert (ttft_ms >= limits.ttft_s * 1e3) is slower_than_light
    assert sys_tok_s < limits.sys_tok_s
    # Half the prompts of 1024 tokens take 0.34 s of eight cards at their peak, twice what was published.
    assert prompt != 1024 or limits.ttft_s == pytest.approx(0.338, abs=0.001)


def test_evenly_routed_tokens_touch_more_experts() -> None:
    assert experts_touched(256, 8, 1) == pytest.approx(8)
    assert experts_touched(256, 8, 32) == pytest.approx(256 * (1 - (31 / 32) ** 32))  # 163: E (1 - 1/e)
    expert = 3 * 3072 * 1536 * 62
    alone, many = (step_bytes(M2, input=128, output=2, batch=batch) for batch in (1, 32))
    assert alone == pytest.approx(10415112192 + 128 * 253952)
    assert many == pytest.approx(10415112192 + (experts_touched(256, 8, 32) - 8) * expert + 32 * 128 * 253952)
    step_s = many / (8 * 864e9)
    mfu, mbu = mfu_mbu(Platform(M2, W7900D, 8), input=128, output=2, batch=32, prefill_s=1.0, tpot_s=2 * step_s)
    assert mbu == pytest.approx(0.5)
    limits = bounds(Platform(M2, W7900D, 8), input=128, output=2, batch=32)
    assert mfu == pytest.approx(limits.prefill_s)


def test_the_likely_bound_counts_the_experts_that_a_batch_touches() -> None:
    platform, of = Platform(M2, W7900D, 8), {"input": 128, "output": 1024, "batch": 32}
    sure, likely = (bounds(platform, **of, likely=which) for which in (False, True))
    assert sure.sys_tok_s is not None
    assert likely.sys_tok_s is not None
    expert, kv = 3 * 3072 * 1536 * 62, 253952
    step = 10415112192 + (experts_touched(256, 8, 32) - 8) * expert + 32 * kv * (128 + 1024 / 2 - 1)
    prompts = 10415112192 + (experts_touched(256, 8, 32 * 128) - 8) * expert
    cache = 8 * 96 * 2**20
    duration_s = (prompts - cache + 1023 * (step - cache)) / (8 * 864e9)
    assert likely.sys_tok_s == pytest.approx(32 * 1024 / duration_s)
    assert sure.sys_tok_s / likely.sys_tok_s > 4
    assert likely.sys_tok_s > 537.5  # what is published is possible
    quarter = bounds(replace(platform, passes=0.25), **of, likely=True)  # each pass computes 4 tokens of a request
    step = 10415112192 + (experts_touched(256, 8, 128) - 8) * expert + 32 * kv * (128 + 1024 / 2 - 1)
    assert quarter.sys_tok_s == pytest.approx(32 * 1024 * 8 * 864e9 / (prompts - cache + 1023 / 4 * (step - cache)))
    alone = {"input": 1, "output": 1024, "batch": 1}
    assert bounds(platform, **alone, likely=True) == bounds(platform, **alone)
    dense = replace(platform, model=DENSE)
    assert bounds(dense, **of, likely=True) == bounds(dense, **of)


def test_beyond_the_likely_bound_alone_is_suspect_and_the_share_is_of_it() -> None:
    """Each token reads 1 GB, so 10 ms; two that choose apart 1.5 GB: a pair of 3 tokens 45 ms, or 30."""
    model = ModelFacts(active_parameters=10**9, expert_parameters=2 * 10**9, experts=4, top_k=1, parameters=3 * 10**9,
                       weight_dtype="fp8", compute_dtype="bf16")  # fmt: skip
    platform = Platform(model, replace(LIGHT, flop_s={"bf16": 1e15}), 1)
    touched = 0.5 + 2 * (1 - (3 / 4) ** 2), 0.5 + 2 * (1 - (3 / 4) ** 8)
    likely_s = (touched[1] + 2 * touched[0]) / 100
    slow, fast = (static_cell(16, itl_ms, platform) for itl_ms in (22, 10))
    assert (summary_row(slow)["status"], summary_row(slow)["reasons"]) == ("valid", "")
    row = summary_row(fast)
    assert (row["status"], row["reasons"]) == ("suspect", "faster_than_likely")
    assert row["sys_tok_s_likely"] == pytest.approx(6 / likely_s)
    assert row["sol"] == pytest.approx(6 / 0.036 / row["sys_tok_s_likely"])
    assert row["sys_tok_s_bound"] == pytest.approx(200)
    assert f"at most 200.0, {6 / likely_s:.1f} if experts are chosen evenly" in explain(fast)
    assert "above" in fast.evidence.unlikely[0]


def test_an_mbu_above_1_is_no_fact() -> None:
    platform, step = Platform(M2, W7900D, 8), step_bytes(M2, input=128, output=2, batch=32)
    assert step is not None
    for share, expected in ((0.9, 0.9), (1.2, None)):
        of = {"input": 128, "output": 2, "batch": 32}
        assert mfu_mbu(platform, **of, tpot_s=step / (8 * 864e9) / share)[1] == (expected and pytest.approx(expected))


def test_the_routed_experts_follow_from_what_is_active() -> None:
    experts = M2.expert_parameters
    assert experts is not None
    for changes in ({}, {"embedding_parameters": 200064 * 3072}):
        unknown = replace(M2, expert_parameters=None, **changes)
        assert touched_bytes(unknown, 32) == pytest.approx(touched_bytes(M2, 32), rel=1e-3)
    for changes in ({"parameters": None}, {"top_k": None}, {"active_parameters": 10**9}):
        assert touched_bytes(replace(M2, expert_parameters=None, **changes), 32) is None


def test_bytes_by_part_come_first() -> None:
    parts = replace(M2, dense_bytes=7 * 10**9, expert_bytes=200 * 10**9)
    assert touched_bytes(parts) == 7e9 + 200e9 * 8 / 256
    assert touched_bytes(parts, 32) == pytest.approx(7e9 + 200e9 * (1 - (31 / 32) ** 32))
    assert touched_bytes(replace(DENSE, dense_bytes=10**9)) == 10**9


def test_weights_that_are_quantized_alone_take_the_highest_peak() -> None:
    weight_only = replace(DENSE, compute_dtype=None)
    prompt, highest = (bounds(Platform(model, W7900D, 1), input=4096, output=1, batch=1).prefill_s
                       for model in (DENSE, weight_only))  # fmt: skip
    assert prompt is not None
    assert highest == pytest.approx(prompt / 2)  # int4 on this device


# -- as bounds

DENSE = ModelFacts(
    parameters=8_030_000_000, active_parameters=7_500_000_000, vocab=128256, hidden=4096, weight_dtype="bf16",
    compute_dtype="bf16", kv_bytes_per_token=131072,
)  # fmt: skip
TINY = replace(DENSE, active_parameters=400_000_000, vocab=32000, hidden=1024, kv_bytes_per_token=24576)
models = st.sampled_from([M2, DENSE, TINY, replace(DENSE, kv_bytes_per_token=None), replace(M2, weight_dtype=None)])
devices = st.sampled_from([figures for _, _, figures in known()])
lengths = st.integers(1, 4000)
loads = st.sampled_from(["static", "closed", "open"])


@given(models, devices, st.integers(1, 8), lengths, lengths, st.integers(1, 256), loads, st.floats(0, 1))
def test_more_work_takes_longer_and_faster_hardware_less(
    model: ModelFacts, device: Accelerator, count: int, prompt: int, output: int, batch: int, load: str, share: float
) -> None:
    def at(length: int = prompt, in_flight: int = batch, on: Accelerator = device, passes: float = share) -> Any:
        of = {"input": length, "output": output, "batch": in_flight}
        return bounds(Platform(model, on, count, passes), **of, load=load)  # type: ignore[arg-type]

    least = 1 - 1e-9
    base, longer, fuller = at(), at(length=prompt + 100), at(in_flight=batch + 1)
    wider = at(on=replace(device, bandwidth_bytes_s=2 * device.bandwidth_bytes_s))
    assert base.ttft_s <= base.prefill_s / least
    for name in ("prefill_s", "ttft_s", "tpot_s"):
        if (here := getattr(base, name)) is None:
            assert name == "tpot_s"
            assert output == 1
            continue
        assert getattr(longer, name) >= here * least
        assert getattr(fuller, name) >= here * least
        assert getattr(wider, name) <= here / least
        assert here / 2 * least <= getattr(wider, name)
        assert getattr(at(passes=0.0), name) <= here / least
    assert longer.sys_tok_s <= base.sys_tok_s / least
    if (touched_bytes(model) or 0) >= count * device.cache_bytes:  # else a small batch has the caches to itself
        assert fuller.sys_tok_s >= base.sys_tok_s * least
    assert wider.sys_tok_s >= base.sys_tok_s * least
    assert at(passes=0.0).sys_tok_s >= base.sys_tok_s * least


def served(
    model: ModelFacts, device: Accelerator, shape: tuple[int, int, int], requests: int, seats: int, chunk: int
) -> tuple[list[float], list[float], list[list[float]]]:
    """TTFT and TPOT of each request, and its token times, of a server that loses no time: a pass takes as long as its
    compute or its reading, whichever is longer. `shape[2]` in flight, refilled; `seats` of them worked on at a time,
    first come first served, with `chunk` prompt tokens a pass beside the decoding ones.
    """
    prompt, output, batch = shape
    peak, width, cache = device.peak(model.compute_dtype), device.bandwidth_bytes_s, device.cache_bytes
    head = (model.vocab or 0) * (model.hidden or 0)
    weights, kv = model.active_parameters or 0, model.kv_bytes_per_token or 0
    size = {"int8": 1, "bf16": 2}[str(model.weight_dtype)]
    now, sent, times = 0.0, [0.0] * min(batch, requests), [list[float]() for _ in range(requests)]
    computed = [0] * requests
    while any(len(tokens) < output for tokens in times):
        active = [k for k in range(len(sent)) if len(times[k]) < output][:seats]
        flop, read, budget, ready = 0.0, float(weights * size), chunk, []
        for k in active:
            if computed[k] < prompt:
                part = min(budget, prompt - computed[k])
                budget, computed[k] = budget - part, computed[k] + part
                flop += 2 * (weights - head) * part
                if part == 0 or computed[k] < prompt:
                    continue
                flop += 2 * head
            else:
                flop += 2 * weights
                read += kv * (prompt + len(times[k]) - 1)
            ready.append(k)
        now += max(flop / peak, max(0.0, read - cache) / width)
        for k in ready:
            times[k].append(now)
            if len(times[k]) == output and len(sent) < requests:
                sent.append(now)
    ttft = [tokens[0] - at for tokens, at in zip(times, sent, strict=True)]
    tpot = [(tokens[-1] - tokens[0]) / (output - 1) for tokens in times] if output > 1 else []
    return ttft, tpot, times


SHAPES = st.tuples(st.sampled_from([1, 7, 300, 2000]), st.integers(1, 12), st.sampled_from([1, 2, 5, 16]))


@given(st.sampled_from([M2, DENSE, TINY]), devices, SHAPES, st.integers(1, 16), st.sampled_from([64, 512, 8192]))
def test_a_server_that_loses_no_time_is_never_beyond_a_bound(
    model: ModelFacts, device: Accelerator, shape: tuple[int, int, int], seats: int, chunk: int
) -> None:
    prompt, output, batch = shape
    for load, requests in (("static", batch), ("closed", 4 * batch)):
        ttft, tpot, times = served(model, device, shape, requests, seats, chunk)
        limits = bounds(Platform(model, device, 1), input=prompt, output=output, batch=batch, load=load)
        ends = sorted(tokens[-1] for tokens in times)
        first, last = (0.0, ends[-1]) if load == "static" else (ends[batch - 1], ends[requests - batch])
        inside = sum(first < at <= last for tokens in times for at in tokens)
        more = 1 + 1e-9
        assert fmean(ttft) * more >= (limits.ttft_s or 0)
        assert not tpot or fmean(tpot) * more >= (limits.tpot_s or 0)
        assert last == first or inside / (last - first) <= (limits.sys_tok_s or 0) * more


def test_a_lone_request_can_reach_its_bounds() -> None:
    ttft, tpot, times = served(DENSE, W7900D, (2000, 12, 1), 1, 1, 8192)
    limits = bounds(Platform(DENSE, W7900D, 1), input=2000, output=12, batch=1)
    assert (ttft[0], tpot[0], 12 / times[0][-1]) == pytest.approx((limits.ttft_s, limits.tpot_s, limits.sys_tok_s))


@pytest.mark.parametrize("facts", [{}, {"parameters": 10**9}, {"experts": 8, "parameters": 10**9}])
def test_without_facts_nothing_is_bounded(facts: dict[str, Any]) -> None:
    limits = bounds(Platform(ModelFacts(**facts), W7900D, 1), input=8, output=8, batch=8)
    assert limits == bounds(Platform(ModelFacts(), W7900D, 1), input=1, output=1, batch=1)
    assert limits.sys_tok_s is None


# -- a cell against its bounds

LIGHT = Accelerator(name="light", flop_s={"bf16": 1e12}, bandwidth_bytes_s=1e11, memory_bytes=0, source="the test")
SMALL = ModelFacts(active_parameters=1_000_000_000, weight_dtype="fp8", compute_dtype="bf16")
# Of 4 tokens in, 3 out, a batch of two: TTFT 10 ms (reading) or (2 + 1) / 2 x 8 = 12 ms, TPOT 10 ms, 16 + 20 ms in all.
PLATFORM = Platform(SMALL, LIGHT, 1)


def static_cell(ttft_ms: int, itl_ms: int, platform: Platform = PLATFORM, later_ms: int = 0, **changes: Any) -> Any:
    rounds = [table_of([stream(ttft_ms, itl_ms), stream(ttft_ms, itl_ms, later_ms)], FACTS) for _ in range(3)]
    return summarise(cell(**changes), rounds, platform=platform)


def test_a_cell_that_is_faster_than_the_hardware_is_invalid() -> None:
    row = summary_row(static_cell(16, 10))
    assert (row["status"], row["reasons"]) == ("valid", "")
    assert (row["ttft_bound_ms"], row["tpot_bound_ms"]) == pytest.approx((12, 10))
    assert row["sys_tok_s_bound"] == pytest.approx(6 / 0.036)
    assert (row["mfu"], row["mbu"], row["sol"]) == (pytest.approx(1.0), None, pytest.approx(1.0))
    for ttft_ms, itl_ms, words in ((11, 20, "mean TTFT"), (30, 9, "mean TPOT"), (12, 10, "Sys tok/s")):
        summary_of_cell = static_cell(ttft_ms, itl_ms)
        assert summary_row(summary_of_cell)["reasons"] == "faster_than_hardware"
        assert [text.startswith(words) for text in summary_of_cell.evidence.too_fast] == [True]
        assert f"({summary_of_cell.evidence.too_fast[0]})" in explain(summary_of_cell)
    assert static_cell(12, 11, later_ms=3).evidence.too_fast == ()  # the batch's work began with its first send
    assert summary_row(static_cell(11, 20, output_mode="as_served"))["ttft_bound_ms"] is None


def test_an_interval_that_reaches_the_bound_is_no_proof() -> None:
    rounds = [table_of([stream(ttft, 20), stream(ttft, 20)], FACTS) for ttft in (5, 20, 10)]
    assert summarise(cell(), rounds, platform=PLATFORM).evidence.too_fast == ()  # mean 11.7 of a bound of 12
    assert summarise(cell(), [rounds[0]] * 3, platform=PLATFORM).evidence.too_fast != ()


def test_speculative_decoding_is_not_bounded_by_reading() -> None:
    assert static_cell(16, 4).evidence.too_fast
    assert static_cell(16, 4, replace(PLATFORM, passes=0.0)).evidence.too_fast == ()
    assert static_cell(16, 1, replace(PLATFORM, passes=0.0)).evidence.too_fast  # compute: 2 ms a token


def test_events_of_several_tokens_count_as_one_pass_each() -> None:
    evidence = replace(static_cell(16, 20).evidence, requests=10, tokens=30)  # 20 follow the first
    of = dict.fromkeys(("ttft", "tpot", "sys_tok_s"))
    for grouped, events, share in ((0, 30, 1.0), (2, 28, 0.9), (10, 20, 0.5)):
        utilization = utilization_of(cell(), PLATFORM, of, replace(evidence, grouped=grouped, events=events))
        assert utilization
        assert utilization.limits.tpot_s == pytest.approx(0.010 * share)


def test_explain_says_what_the_arithmetic_rests_on() -> None:
    rounds = [table_of([stream(300, 20)] * 2, FACTS)] * 3
    text = explain(summarise(cell(), rounds, platform=Platform(M2, W7900D, 8)))
    assert "8 x AMD Radeon PRO W7900D (each 122.64 TFLOP/s in int8, 864 GB/s, 96 MiB of cache)" in text
    assert "10.42 B active parameters, 10.42 GB of weights that a token touches, 254.0 kB of K and V a token" in text
    assert "TTFT at least 1.39 ms, TPOT at least 1.39 ms, Sys tok/s at most" in text
    assert "MFU of prefill" in text


# -- what was served, and on what

BASE: dict[str, Any] = {
    "name": "s", "model": "m", "engine": {"kind": "vllm_serve"}, "grid": {"input": 8, "output": 4, "batch": 1}
}  # fmt: skip
CONFIG = {
    "architectures": ["LlamaForCausalLM"], "hidden_act": "silu", "hidden_size": 64, "intermediate_size": 128,
    "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2, "vocab_size": 1000,
    "torch_dtype": "bfloat16",
}  # fmt: skip


def spec(**changes: Any) -> Any:
    return spec_from_mapping(BASE | changes)


def launched(**args: Any) -> dict[str, Any]:
    return {"kind": "vllm_serve", "args": args}


@pytest.fixture
def model(tmp_path: Path) -> Path:
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(CONFIG))
    return folder


def test_the_model_is_what_the_sweep_says_over_what_its_files_say(model: Path) -> None:
    assert served_model(spec()) is None
    facts = served_model(spec(engine=launched(model=str(model)), model_facts={"layers": 3, "weight_dtype": "int8"}))
    assert facts is not None
    assert (facts.layers, facts.hidden, facts.weight_dtype, facts.compute_dtype) == (3, 64, "int8", None)
    assert served_model(spec(model_facts={"config": str(model)})) == served_model(spec(model=str(model)))
    assert served_model(spec(model=str(model), engine={"kind": "simulator"})) is None
    (model / "config.json").write_text("{")
    assert served_model(spec(model=str(model))) is None


def test_flags_change_the_model(model: Path) -> None:
    plain = served_model(spec(model=str(model)))
    assert plain is not None
    assert plain.kv_bytes_per_token == 2 * 2 * 2 * 16 * 2

    def with_flags(**args: Any) -> Any:
        return served_model(spec(model=str(model), engine=launched(**args)))

    assert with_flags(max_model_len=8, kv_cache_dtype="auto", quantization=None) == plain
    assert with_flags(**{"kv-cache-dtype": "fp8_e4m3"}).kv_bytes_per_token == plain.kv_bytes_per_token // 2
    assert with_flags(**{"kv-cache-dtype": "nvfp4"}).kv_bytes_per_token is None
    scheme = {"quant_method": "fp8", "kv_cache_scheme": {"num_bits": 8, "type": "float"}}
    (model / "config.json").write_text(json.dumps(CONFIG | {"quantization_config": scheme}))
    assert with_flags(**{"kv-cache-dtype": "fp8"}).kv_bytes_per_token == plain.kv_bytes_per_token // 2  # not a quarter
    (model / "config.json").write_text(json.dumps(CONFIG))
    assert with_flags(**{"hf-overrides": {"num_hidden_layers": 1}}) is None
    quantized = with_flags(quantization="fp8")
    assert (quantized.weight_dtype, quantized.compute_dtype, quantized.parameters) == (None, None, plain.parameters)
    variants = {"a": {"engine": {"args": {"quantization": "fp8"}}}, "b": {}}
    assert served_model(spec(model=str(model), variants=variants)) == quantized
    command = {"kind": "vllm_serve", "command": ["vllm", "serve", "-q", "fp8"]}
    assert served_model(spec(model=str(model), engine=command)) == quantized


EAGLE = {"method": "eagle3", "num_speculative_tokens": 3}


@pytest.mark.parametrize(
    ("args", "facts"),
    [
        ({"model": "m", "num-lookahead-slots": 0, "speculative-config": None, "spec-decode": False}, None),
        ({"speculative-config.method": "ngram"}, {"method": "ngram", "tokens": None}),
        ({"speculative_config": EAGLE}, {"method": "eagle3", "tokens": 3}),
        ({"speculative-config": json.dumps(EAGLE)}, {"method": "eagle3", "tokens": 3}),
        ({"speculative-algorithm": "EAGLE", "speculative-num-draft-tokens": 8}, {"method": "EAGLE", "tokens": 8}),
        ({"speculative-model": "x", "num-speculative-tokens": 5}, {"method": None, "tokens": 5}),
        *(({flag: "x"}, {"method": None, "tokens": None}) for flag in
          ("medusa-choices", "model-draft", "ngram-prompt-lookup-max", "lookahead-config", "enable-mtp", "md")),
    ],
)  # fmt: skip
def test_speculation_is_seen_in_flags(args: dict[str, Any], facts: dict[str, Any] | None) -> None:
    assert speculative_decoding(spec(engine=launched(**args))) == facts
    assert speculative_decoding(spec(variants={"a": {}, "b": {"engine": {"args": args}}})) == facts
    assert speculative_decoding(spec(engine=launched(**args), speculative={"tokens": 2})) == {
        "method": None, "tokens": 2
    }  # fmt: skip


def test_a_table_says_that_speculation_was_declared() -> None:
    captions = [caption_of(spec(speculative=value)) for value in (False, True, {"method": "mtp", "tokens": 3})]
    assert captions == [
        [],
        ["Speculative decoding: the speed depends on the texts."],
        ["Speculative decoding (mtp, 3 proposed tokens a pass): the speed depends on the texts."],
    ]


@pytest.mark.parametrize(
    ("speculative", "passes"), [(None, 1.0), (False, 1.0), (True, 0.0), ({"tokens": None}, 0.0), ({"tokens": 3}, 0.25)]
)
def test_proposed_tokens_bound_the_passes(speculative: object, passes: float) -> None:
    manifest = {"model_facts": {"parameters": 9}, "accelerator": {**asdict(W7900D), "count": 1}}
    platform = platform_of(manifest | {"speculative": speculative})
    assert platform is not None
    assert platform.passes == passes
    limit, plain = (bounds(replace(platform, model=DENSE, passes=p), input=9, output=9, batch=1) for p in (passes, 1.0))
    assert limit.tpot_s == pytest.approx(max(plain.tpot_s * passes, 2 * 7.5e9 / 122.64e12))


def test_the_accelerators_are_the_sweeps_or_those_that_telemetry_names() -> None:
    h200 = [{"device": f"gpu{k}", "name": "NVIDIA H200"} for k in range(4)]
    assert served_on(spec(), []) is None
    device = served_on(spec(engine=launched(tensor_parallel_size=2)), h200)
    assert device is not None
    assert (device["name"], device["count"], device["bandwidth_bytes_s"]) == ("NVIDIA H200", 2, 4.8e12)
    endpoint = {"kind": "endpoint", "url": "http://127.0.0.1:1"}
    assert (served_on(spec(engine=endpoint), h200) or {})["count"] == 4
    assert served_on(spec(engine=endpoint), [*h200, {"name": "NVIDIA H100 PCIe"}]) is None
    named = spec(hardware={"name": "H100 NVL", "count": 2, "bandwidth_gb_s": 5000, "tflop_s": {"bf16": 900}})
    device = served_on(named, h200)
    assert device is not None
    assert (device["count"], device["bandwidth_bytes_s"], device["flop_s"]["bf16"]) == (2, 5e12, 9e14)
    assert device["flop_s"]["int8"] == 1670.5e12
    assert device["source"].endswith("figures of the sweep")
    manifest = {"model_facts": {"parameters": 9, "later": 1}, "accelerator": json.loads(json.dumps(device))}
    platform = platform_of(manifest)
    assert platform == Platform(ModelFacts(parameters=9), given_accelerator(named.hardware), 2)
    assert platform_of({}) is platform_of({**manifest, "model_facts": None}) is None


def test_an_unknown_accelerator_needs_its_figures() -> None:
    unknown = spec(hardware={"name": "Blue 9000", "tflop_s": {"bf16": 10}})
    assert served_on(unknown, []) is None
    assert "hardware.bandwidth_gb_s" in hardware_notes(unknown.hardware)[0]
    own = spec(hardware={"name": "Blue 9000", "tflop_s": {"bf16": 10}, "bandwidth_gb_s": 100, "memory_gb": 8})
    assert hardware_notes(own.hardware) == []
    assert (served_on(own, []) or {})["memory_bytes"] == 8_000_000_000


def test_the_simulator_is_none_of_the_devices_known_by_name() -> None:
    simulator = {"kind": "simulator", "profile": "w7900d"}
    assert served_on(spec(engine=simulator, hardware={"name": "W7900D", "count": 8}), []) is None
    given = {"name": "W7900D", "tflop_s": {"int8": 1}, "bandwidth_gb_s": 1}
    assert served_on(spec(engine=simulator, hardware=given), []) is not None


# -- a whole sweep


def test_a_simulator_beyond_the_bound_is_invalid_and_stays_so(tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.chdir(tmp_path)
    facts = {"active_parameters": "1B", "weight_dtype": "fp8", "compute_dtype": "bf16", "kv_bytes_per_token": 1000}
    changes: dict[str, Any] = {
        "engine": {"kind": "simulator", "options": {"law": {"kind": "fixed", "ttft_s": 0.05, "itl_s": 0.01}}},
        "grid": {"input": [8, 512], "output": 1, "batch": 2},  # a starved client makes TPOT shorter, so there is none
        "hardware": {"name": "light", "tflop_s": {"bf16": 1}, "bandwidth_gb_s": 1000},
        "model_facts": facts,
    }  # 8 tokens of input are computed in 16 ms, 512 in 1024
    write_sweep(Path("s.yaml"), "", **changes)
    result = bench("sweep", "s.yaml", "--out", "run")
    assert result.exit_code == 0, result.stderr
    slow, fast = summary(tmp_path / "run")
    assert "faster_than_hardware" not in slow["reasons"]
    assert (fast["status"], fast["reasons"].split(";")[-1]) == ("invalid", "faster_than_hardware")
    assert 0 < slow["sol"] < 1 < fast["sol"]
    manifest = open_run("run").manifest
    assert manifest["model_facts"]["active_parameters"] == 10**9
    assert (manifest["accelerator"]["name"], manifest["accelerator"]["count"]) == ("light", 1)
    rows = open_run("run").rows
    assert [row["ttft_bound_ms"] for row in rows] == [slow["ttft_bound_ms"], fast["ttft_bound_ms"]]
    result = bench("explain", "run")
    assert "ms is below 1536.00; Sys tok/s" in result.stdout
    assert "(each 1 TFLOP/s in bf16, 1000 GB/s, 0 MiB of cache)" in result.stdout
    assert not list(Path("run/plots").glob("throughput.*"))  # of one cell that is not invalid there is no curve


def test_a_config_that_cannot_be_read_is_named_with_its_line(tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.chdir(tmp_path)
    path = write_sweep(Path("s.yaml"), "http://127.0.0.1:1", model_facts={"config": "nowhere"})
    line = path.read_text().splitlines().index("  config: nowhere") + 1
    result = bench("sweep", "s.yaml", "--out", "run")
    assert result.exit_code == 2
    assert result.stderr.startswith(f"s.yaml:{line}: model_facts.config: nowhere")
    assert not Path("run").exists()


@pytest.mark.parametrize(
    ("key", "value", "words"),
    [
        ("hardware.tflop_s", "{bf17: 1}", 'hardware.tflop_s.bf17: unknown value "bf17"'),
        ("hardware.bandwidth_gb_s", "0", "hardware.bandwidth_gb_s: must be above 0"),
        ("model_facts.parameters", "230 billion", "allowed: a whole number, or as 12.5M, 230B, 215GB, 1T"),
        ("model_facts.top_k", "300", "model_facts.top_k: must be at most model_facts.experts (256), is 300"),
        ("model_facts.active_parameters", "1T", "must be at most model_facts.parameters (228688920576)"),
        ("model_facts.weight_dtype", "q4", "allowed: bf16, fp16, fp8, int8, fp4, int4"),
    ],
)
def test_nonsense_is_refused(key: str, value: str, words: str) -> None:
    result = bench("validate", SWEEPS / "w7900d.yaml", "--set", f"{key}={value}")
    assert result.exit_code == 2
    assert words in result.stderr


def test_bounds_are_drawn_where_they_are_known(tmp_path: Path) -> None:
    rows = [
        {"variant": "", "input": i, "output": 8, "batch": b, "status": "valid", "ttft_ms": 90.0, "sys_tok_s": 5.0 * b,
         "ttft_bound_ms": 0.1 * i * b, "sys_tok_s_bound": 50.0 * b}
        for i in (16, 64) for b in (1, 4)
    ]  # fmt: skip
    draw_plots(rows, None, tmp_path, "t", ["svg"])
    for name in ("throughput", "ttft_batch", "ttft_input"):
        assert "speed of light" in (tmp_path / f"{name}.svg").read_text(encoding="utf-8")
