"""Reasons found in logs: real ones of vLLM 0.32 on a CPU (shortened), and lines that GPUs are known for."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchbench.engines.log_diagnosis import diagnose, plain

LOGS = Path(__file__).parent / "data" / "logs"
REASONS = {
    "bad-choice": ("engine.args", "--dtype: invalid choice: 'int3' (choose from 'auto', 'bfloat16', "),
    "first-request": ("engine.args", 'AssertionError: assert self.scoring_func == "softmax" (cpu_router.py, line 239)'),
    "int8-moe": ("engine.args", "NotImplementedError: No Int8 MoE backend supports the deployment configuration"),
    "killed-core": ("engine", ""),
    "killed-worker": (
        "engine",
        "Worker proc VllmWorker-0 died unexpectedly (exit code: None), shutting down executor.",
    ),
    "kv-cache": ("engine.args", "the KV cache is too small for max-model-len: To serve at least one request with "),
    "kv-memory": (
        "engine.args",
        "out of memory: nothing is left for the KV cache; raise gpu-memory-utilization or use",
    ),
    "no-such-folder": (
        "model",
        "model not found: Repo id must be in the form 'repo_name' or 'namespace/repo_name': '/no",
    ),
    "no-such-model": ("model", "model not found: Cannot find an appropriate cached snapshot folder for the specified "),
    "no-vllm": ("engine.python", "this Python has no vLLM: set engine.venv or engine.python to one that has"),
    "no-weights": ("model", "the model has no weights: Cannot find any model weights with `tiny-llama`"),
    "platform": ("engine.python", "this build of vLLM finds no device that it supports"),
    "port-taken": ("engine.port", "the port is taken: [Errno 98] Address already in use"),
    "too-long": ("engine.args", "User-specified max_model_len (999999) is greater than the derived max_model_len (max"),
    "tp-too-many": (
        "engine.args",
        "Total number of attention heads (4) must be divisible by tensor parallel size (3).",
    ),
    "unknown-flag": ("engine.args", "unknown flag --max-modellen"),
}


def test_every_log_has_its_reason() -> None:
    assert {path.stem for path in LOGS.glob("*.log")} == REASONS.keys()


@pytest.mark.parametrize("name", REASONS)
def test_real_logs(name: str) -> None:
    key, reason = REASONS[name]
    found = diagnose((LOGS / f"{name}.log").read_text(), 1)
    assert (found.key, found.reason[: len(reason)]) == (key, reason)
    assert bool(found.reason) == bool(reason)
    assert 1 <= len(found.lines) <= 5
    for line in (found.reason, *found.lines):
        assert not line.startswith((" ", "(", "Traceback", "ERROR"))
        assert len(line) <= 250
        assert "\x1b" not in line


_WORKER = "(Worker_TP3 pid=77) ERROR 01-02 03:04:05 [multiproc_executor.py:857] "


@pytest.mark.parametrize(
    ("line", "key", "reason"),
    [
        (
            "torch.OutOfMemoryError: HIP out of memory. Tried to allocate 12.95 GiB. GPU 0 has a total capacity of",
            "engine.args",
            "out of GPU memory: HIP out of memory. Tried to allocate 12.95 GiB.",
        ),
        ("torch.cuda.OutOfMemoryError: CUDA out of memory. Tried to", "engine.args", "out of GPU memory: CUDA out of"),
        (
            "ValueError: Free memory on device cuda:0 (111.99/139.8 GiB) on startup is less than desired GPU memory",
            "engine.args",
            "GPU memory is in use already: Free memory on device cuda:0 (111.99/139.8 GiB)",
        ),
        ("RuntimeError: No HIP GPUs are available", "engine.env", "no GPU is available: No HIP GPUs are available"),
        (
            "ImportError: libcudart.so.12: cannot open shared object file: No such file or directory",
            "engine.env",
            "a library is missing: libcudart.so.12: cannot open shared object file",
        ),
        (
            "FULL):  88%|###| Memory access fault by GPU node-5 (Agent handle: 0x46) on address 0x7e. Reason: Write",
            "engine.python",
            "a kernel of this build went wrong: Memory access fault by GPU node-5 (Agent handle: 0x46) on address",
        ),
        ("RuntimeError: HIP error: invalid device function", "engine.python", "this build has no kernels for this GPU"),
        (
            "  Value error, World size (8) is larger than the number of available GPUs (1) in this node.",
            "engine.args",
            "too few GPUs: ",
        ),
        ("OSError: You are trying to access a gated repo.", "model", "the model is gated"),
        (
            "RuntimeError: NCCL error: unhandled system error (run with NCCL_DEBUG=INFO for details)",
            "engine.args",
            "RuntimeError: NCCL error: unhandled system error",
        ),
        ("OSError: [Errno 28] No space left on device: '/psm_1'", "engine.env", "a disk or /dev/shm is full"),
    ],
)
def test_known_lines_of_gpus(line: str, key: str, reason: str) -> None:
    after = "RuntimeError: Engine core initialization failed. See root cause above. Failed core proc(s): {}"
    found = diagnose(f"\x1b[31m{_WORKER}{line}\x1b[0m\n{after}\n", 1)
    assert (found.key, found.reason[: len(reason)]) == (key, reason)


def test_warnings_are_no_reasons() -> None:
    warned = _WORKER.replace("ERROR", "WARNING") + "ValueError: Tokenizer not available\n"
    assert diagnose(warned, 1).reason == ""
    assert diagnose(warned, -9).reason == "perhaps the system ran out of memory"


def test_warnings_of_torch_are_not_shown() -> None:
    log = "W1123 20:33:18.232000 30592 site-packages/torch/_library/triton.py:53] Triton not available\nValueError: x\n"
    assert diagnose(log, 1).lines == ("ValueError: x",)


def test_a_line_without_its_trimmings() -> None:
    assert plain("\x1b[1m(EngineCore_DP0 pid=9) INFO 11-23 17:42:47 [utils.py:347] Using it\x1b[0m ") == "Using it"


@given(st.text(), st.none() | st.integers(-64, 255))
def test_any_text_has_a_diagnosis_of_few_short_lines(text: str, code: int | None) -> None:
    found = diagnose(text, code)
    assert "\n" not in found.reason
    assert len(found.lines) <= 5
    assert all(0 < len(line) <= 250 for line in found.lines)
