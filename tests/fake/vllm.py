"""Stands in for vLLM in a process of its own: as much of its interface as `inprocess/async_llm.py` uses.

What it does is told by `--hf-overrides '{...}'`, as a model's peculiarities are with the real one:
`crash`/`hang`/`slow`: from so many requests on, the core dies / says nothing, not even to an abort / a token takes a
second; `late`: outputs hold so many tokens though each was made alone; `ranks`: the core has so many processes of its
own, each with shared memory: it ends when one dies, and no token comes while one is stopped.
Requests as they came are appended to the file that FAKE_VLLM_SEEN names.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import math
import os
import subprocess
import sys
import time
from collections import Counter
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import prometheus_client
import psutil

__version__ = "0.33.0.fake"
STEP_S = 0.001
CORE = """
import subprocess, sys, time
count, python, rank = sys.argv[1:]
ranks = [subprocess.Popen([f"VLLM::Worker_TP{k}", "-c", rank], executable=python) for k in range(int(count))]
while all(rank.poll() is None for rank in ranks):
    time.sleep(0.02 if ranks else 600)
sys.exit("a worker died unexpectedly, shutting down executor")
"""
RANK = """
import mmap, os, time
with open(f"/dev/shm/fake_vllm_{os.getpid()}", "w+b") as file:
    file.truncate(4096)
    held = mmap.mmap(file.fileno(), 4096)
time.sleep(600)
"""


class VLLMClientError(Exception):
    pass


class EngineDeadError(Exception):
    def __init__(self) -> None:
        super().__init__("EngineCore encountered an issue. See stack trace (above) for the root cause.")


class EngineGenerateError(Exception):
    pass


class UsageContext(Enum):
    OPENAI_API_SERVER = 1


class RequestOutputKind(Enum):
    DELTA = 1
    FINAL_ONLY = 2


@dataclass
class SamplingParams:
    temperature: float
    max_tokens: int
    min_tokens: int
    ignore_eos: bool
    detokenize: bool
    output_kind: RequestOutputKind
    repetition_penalty: float = 1.0
    seed: int | None = None
    logprobs: int | None = None


def tokens_input(prompt_token_ids: list[int]) -> dict[str, Any]:
    return {"type": "token", "prompt_token_ids": prompt_token_ids}


@dataclass
class AsyncEngineArgs:
    model: str = ""
    stream_interval: int = 1
    max_model_len: int = 4096
    hf_overrides: dict[str, Any] = field(default_factory=dict)
    disable_log_stats: bool = False

    @classmethod
    def from_cli_args(cls, args: argparse.Namespace) -> AsyncEngineArgs:
        return cls(**{name: getattr(args, name) for name in cls.__dataclass_fields__})


def make_arg_parser(parser: argparse.ArgumentParser) -> argparse.ArgumentParser:
    parser.add_argument("--model")
    parser.add_argument("--stream-interval", type=int, default=1)
    parser.add_argument("--max-model-len", type=int, default=4096)
    parser.add_argument("--hf-overrides", type=json.loads, default={})
    parser.add_argument("--disable-log-stats", action="store_true")
    parser.add_argument("--enable-per-request-metrics", action="store_true")
    return parser


COUNTERS = {
    name: prometheus_client.Counter(f"vllm:{name}", name, ["engine"]).labels(engine="0")
    for name in ("prompt_tokens", "generation_tokens", "prefix_cache_queries", "prefix_cache_hits", "num_preemptions")
}
CAPACITY = prometheus_client.Gauge("vllm:cache_config_info", "KV cache", ["num_gpu_blocks", "block_size", "engine"])


class AsyncLLM:
    def __init__(self, args: AsyncEngineArgs) -> None:
        if args.model == "missing":
            raise OSError("missing is not a local folder and is not a valid model identifier")
        self._args, self._does = args, Counter(args.hf_overrides)
        self._asked, self._seen = 0, set[tuple[int, ...]]()
        CAPACITY.labels("64", "16", "0").set(1)
        config = SimpleNamespace(
            model=args.model, dtype="bfloat16", quantization=None, enforce_eager=True, max_model_len=args.max_model_len
        )
        config.get_vocab_size = lambda: 5000
        config.get_diff_sampling_param = lambda: {"repetition_penalty": 1.1, "top_k": 20}
        scheduler = SimpleNamespace(max_num_seqs=8, max_num_batched_tokens=64, stream_interval=args.stream_interval)
        parallel = SimpleNamespace(tensor_parallel_size=1, pipeline_parallel_size=1, data_parallel_size=1)
        self.vllm_config = SimpleNamespace(
            model_config=config,
            scheduler_config=scheduler,
            parallel_config=parallel,
            cache_config=SimpleNamespace(enable_prefix_caching=True, cache_dtype="auto"),
            speculative_config=None,
        )
        self._core = subprocess.Popen(
            ["VLLM::EngineCore", "-c", CORE, str(self._does["ranks"]), sys.executable, RANK],  # noqa: S607 - a title
            executable=sys.executable,
        )
        core = psutil.Process(self._core.pid)
        while sum(Path("/dev/shm", f"fake_vllm_{rank.pid}").exists() for rank in core.children()) < self._does["ranks"]:  # noqa: S108
            time.sleep(0.01)
        self._ranks = core.children()
        self.dead_error = EngineDeadError()

    @classmethod
    def from_engine_args(cls, args: AsyncEngineArgs, usage_context: UsageContext) -> AsyncLLM:
        assert usage_context is UsageContext.OPENAI_API_SERVER
        return cls(args)

    @property
    def errored(self) -> bool:
        return self._core.poll() is not None

    def shutdown(self) -> None:
        self._core.kill()
        self._core.wait()

    async def reset_prefix_cache(self) -> bool:
        self._seen.clear()
        return True

    def _crash(self) -> None:
        os.write(2, b"(EngineCore pid=1) RuntimeError: the kernel is broken\n")
        self._core.kill()
        self._core.wait()

    async def _hang(self) -> None:
        try:
            await asyncio.sleep(600)
        finally:
            await asyncio.sleep(600)  # nobody answers the abort

    async def generate(self, prompt: dict[str, Any], params: SamplingParams, request_id: str) -> Any:
        ids, self._asked = prompt["prompt_token_ids"], self._asked + 1
        does = {name for name in ("crash", "hang", "slow") if 0 < self._does[name] < self._asked}
        if path := os.environ.get("FAKE_VLLM_SEEN"):
            with open(path, "a") as file:  # noqa: ASYNC230, PTH123
                seen = {
                    "id": request_id,
                    "ids": ids,
                    **{k: v for k, v in vars(params).items() if k != "output_kind" and v is not None},
                }
                file.write(json.dumps(seen) + "\n")
        if len(ids) + params.max_tokens > self._args.max_model_len:
            raise VLLMClientError("the prompt is too long")
        now = time.monotonic()
        stats = SimpleNamespace(queued_ts=now, scheduled_ts=now, first_token_ts=0.0, last_token_ts=0.0)
        stats.num_generation_tokens = cached = sent = 0
        held = max(self._args.stream_interval, self._does["late"] or 1)
        if tuple(ids) in self._seen:
            cached = len(ids) - 1
        self._seen.add(tuple(ids))
        COUNTERS["prompt_tokens"].inc(len(ids))
        COUNTERS["prefix_cache_queries"].inc(len(ids))
        COUNTERS["prefix_cache_hits"].inc(cached)
        length = params.max_tokens if params.ignore_eos else max(1, params.max_tokens - 1)
        for at in range(length):
            if "crash" in does and at == 1:
                self._crash()
            if self.errored:
                raise self.dead_error
            if "hang" in does and at == 1:
                await self._hang()
            while any(rank.status() == psutil.STATUS_STOPPED for rank in self._ranks if rank.is_running()):  # noqa: ASYNC110
                await asyncio.sleep(STEP_S)
            await asyncio.sleep(1.0 if "slow" in does else STEP_S)
            stats.last_token_ts = time.monotonic()
            stats.first_token_ts = stats.first_token_ts or stats.last_token_ts
            stats.num_generation_tokens += 1
            COUNTERS["generation_tokens"].inc()
            last = at == length - 1
            whole = params.output_kind is RequestOutputKind.FINAL_ONLY
            if last or (not whole and (at == 0 or at % held == 0)):
                count, sent = stats.num_generation_tokens - sent, stats.num_generation_tokens
                part = SimpleNamespace(token_ids=[7] * count, finish_reason="length" if last else None, logprobs=None)
                if params.logprobs:
                    values = [-0.1, -math.inf, -2.0, -3.0, -4.0][: params.logprobs]
                    place = {7 + k: SimpleNamespace(logprob=value) for k, value in enumerate(values)}
                    part.logprobs = [place] * count
                yield SimpleNamespace(
                    outputs=[part], metrics=stats, num_cached_tokens=cached, prompt_token_ids=ids, finished=last
                )


def _module(name: str, **content: Any) -> None:
    """vllm.NAME, as if it were a file of a package."""
    path = __name__
    for part in name.split("."):
        path = f"{path}.{part}"
        sys.modules.setdefault(path, ModuleType(path))
    vars(sys.modules[path]).update(content)


__path__: list[str] = []
_module("exceptions", VLLMClientError=VLLMClientError)
_module("inputs", tokens_input=tokens_input)
_module("sampling_params", SamplingParams=SamplingParams, RequestOutputKind=RequestOutputKind)
_module("usage.usage_lib", UsageContext=UsageContext)
_module("engine.arg_utils", AsyncEngineArgs=AsyncEngineArgs)
_module("utils.argparse_utils", FlexibleArgumentParser=argparse.ArgumentParser)
_module("entrypoints.openai.cli_args", make_arg_parser=make_arg_parser)
_module("v1.engine.async_llm", AsyncLLM=AsyncLLM)
