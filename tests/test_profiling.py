"""Kernels of traces: what a step spends where, and how two builds differ."""

from __future__ import annotations

import gzip
from pathlib import Path
from typing import Any

import orjson
import pytest
from driving import bench, write_sweep
from hypothesis import given
from hypothesis import strategies as st

from benchbench.errors import InterruptedSweep, RunError
from benchbench.profiling import recording
from benchbench.profiling.kernel_table import profile_text, rows_of
from benchbench.profiling.recording import profiled
from benchbench.profiling.traces import Profile, profile_of, read_profile
from benchbench.spec import VllmServeEngine

DATA = Path(__file__).parent / "data"


def event(name: str, ts: float, dur: float, cat: str = "cpu_op", tid: int = 1) -> dict[str, Any]:
    return {"ph": "X", "cat": cat, "name": name, "ts": ts, "dur": dur, "pid": 1, "tid": tid}


def step(ts: float, dur: float) -> dict[str, Any]:
    return event("execute_context_1(32)_generation_0(0)", ts, dur, "user_annotation")


def test_of_a_gpu_only_its_kernels_count_a_step() -> None:
    gpu = [event("gemm", 0, 30, "kernel"), event("gemm", 40, 10, "kernel"), event("copy", 60, 5, "gpu_memcpy")]
    twice = event("execute_context_1(32)_generation_0(0)", 0, 80, "gpu_user_annotation")
    profile = profile_of([step(0, 50), step(50, 50), twice, event("aten::mm", 0, 99), *gpu, {"ph": "M", "name": "x"}])
    assert profile == Profile({"gemm": (20e-6, 1.0), "copy": (2.5e-6, 0.5)}, steps=2, ranks=1, on_gpu=True)
    assert profile.step_s == pytest.approx(22.5e-6)


def test_of_a_cpu_an_operator_counts_without_those_it_calls() -> None:
    calls = [event("linear", 0, 100), event("addmm", 10, 80), event("copy", 20, 30), event("copy", 60, 10)]
    other_thread = event("copy", 0, 7, tid=2)
    profile = profile_of([step(0, 100), *calls, other_thread])
    assert {name: round(s * 1e6) for name, (s, _) in profile.kernels.items()} == {"linear": 20, "addmm": 40, "copy": 47}
    assert profile.kernels["copy"][1] == 3
    assert not profile.on_gpu


@given(st.lists(st.tuples(st.integers(0, 50), st.integers(1, 50)), max_size=12))
def test_own_times_of_a_thread_add_up_to_the_time_that_any_operator_ran(calls: list[tuple[int, int]]) -> None:
    nested: list[tuple[int, int]] = []
    for begin, length in sorted(calls, key=lambda c: (c[0], -c[1])):  # calls of a thread lie within each other or apart
        if all(begin >= b + d or begin + length <= b + d for b, d in nested):
            nested.append((begin, length))
    covered = {at for begin, length in nested for at in range(begin, begin + length)}
    profile = profile_of([event(f"op{i}", *call) for i, call in enumerate(nested)])
    assert round(profile.step_s * 1e6) == len(covered)


def test_ranks_are_averaged_and_what_is_no_trace_is_named(tmp_path: Path) -> None:
    (tmp_path / "rank0.json").write_bytes(orjson.dumps({"traceEvents": [step(0, 9), event("a", 0, 10, "kernel")]}))
    other = orjson.dumps({"traceEvents": [step(0, 9), event("b", 0, 30, "kernel")]})
    (tmp_path / "rank1.json.gz").write_bytes(gzip.compress(other))
    profile = read_profile(tmp_path)
    assert (profile.ranks, profile.kernels["a"], profile.kernels["b"]) == (2, (5e-6, 0.5), (15e-6, 0.5))
    (tmp_path / "rank2.json.gz").write_bytes(gzip.compress(other)[:-9])
    with pytest.raises(RunError, match=r"rank2.json.gz: not a trace"):
        read_profile(tmp_path)
    with pytest.raises(RunError, match="no trace"):
        read_profile(tmp_path / "nothing")


def of(**kernels: float) -> Profile:
    return Profile({name: (us / 1e6, 1.0) for name, us in kernels.items()}, 4, 1, on_gpu=True)


def test_the_kernel_that_differs_is_first_and_one_of_a_single_build_is_named() -> None:
    base, candidate = (
        [of(gemm=100, flash=50), of(gemm=102, flash=52)],
        [of(gemm=101, triton=90), of(gemm=101, triton=92)],
    )
    rows = rows_of(base, candidate)
    assert [(row.name, row.base_s is None, row.candidate_s is None) for row in rows] == [
        ("triton", True, False),
        ("flash", False, True),
        ("gemm", False, False),
    ]
    assert rows[0].difference_s == pytest.approx(91e-6)
    assert rows[0].half_s == pytest.approx(12.706 * 1e-6, rel=1e-3)  # of one side's spread alone: t with 1 degree
    assert [row.half_s for row in rows_of(base[:1], candidate)] == [None] * 3
    text = profile_text({"in=128": (base, candidate)}, "a", "b")
    assert "triton (only b)" in text
    assert "| flash (only a) | 51.0 | - | -51.0 ± 12.7 | 1 -> 0 |" in text


def test_traces_of_a_real_vllm_show_which_matrix_product_each_build_ran(tmp_path: Path) -> None:
    """Of vLLM 0.32's CPU build: one tiny model in BF16 and in FP32, 64 in, 16 out, batch 2."""
    builds = []
    for name in ("bf16", "fp32"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "rank0.json.gz").write_bytes((DATA / "traces" / f"{name}.json.gz").read_bytes())
        builds.append(read_profile(tmp_path / name))
    assert [(build.steps, build.ranks, build.on_gpu) for build in builds] == [(18, 1, False)] * 2
    first, second, *_ = rows_of(*([build] for build in builds))
    assert (first.name, first.base_s) == ("_C::onednn_mm", None)
    assert (second.name, second.candidate_s) == ("_C::weight_packed_linear", None)
    assert [round(1e6 * build.step_s, 1) for build in builds] == [1197.1, 1365.5]


def test_the_profiler_is_switched_on_as_this_vllm_knows_it(tmp_path: Path) -> None:
    engine = VllmServeEngine(kind="vllm_serve", args={"model": "m"})
    assert profiled(engine, tmp_path, "0.11.2").env == {"VLLM_TORCH_PROFILER_DIR": str(tmp_path)}
    for version in ("0.32.0", None):
        args = profiled(engine, tmp_path, version).args
        assert (args["model"], args["profiler-config.torch_profiler_dir"]) == ("m", str(tmp_path))


def test_a_run_without_variants_is_refused(tmp_path: Path) -> None:
    sweep = write_sweep(tmp_path / "s.yaml", "http://127.0.0.1:9")
    refused = bench("profile", sweep, DATA / "stored-run")
    assert refused.exit_code == 2
    assert refused.stderr.endswith("stored-run: has no variants to compare\n")
    assert not (DATA / "stored-run" / "profile.md").exists()


class Cancelled:
    def run(self, _job: object, _stop: int | None) -> tuple[None, dict[str, bool]]:
        return None, {"cancelled": True}


def test_a_traced_round_that_is_interrupted_ends_the_tracing() -> None:
    with pytest.raises(InterruptedSweep):
        recording._run(Cancelled(), None, None, None)  # type: ignore[arg-type]
