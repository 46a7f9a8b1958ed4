"""vLLM's AsyncLLM, called directly: the only module that imports vllm, and only inside functions.

What differs between vLLM 0.24 and 0.33 is met here: where the server's parser of flags lies, which exceptions are a
refusal, and what requests and configurations tell. Prompts go in as vLLM's own server hands them over (`tokens_input`),
with the penalties of the model's generation config, and the engine is built for the usage context of that server, on
which vLLM's default batch limits depend.
"""

from __future__ import annotations

import importlib
import sys
import time
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import fields
from operator import attrgetter
from typing import Any

import numpy as np

from benchbench.counters.server_metrics import Counts, parse
from benchbench.errors import EngineError
from benchbench.fidelity.answers import Finished, GreedyAnswer
from benchbench.fidelity.greedy_request import floored

# Newest first: 0.33, then 0.32, then 0.24.
_PARSERS = tuple(f"vllm.entrypoints.{room}.cli_args" for room in ("common", "launchers", "openai"))
_REFUSALS = ("VLLMClientError", "GracefulHTTPError")
_CONFIG = {
    "model": "model_config.model",
    "dtype": "model_config.dtype",
    "quantization": "model_config.quantization",
    "enforce_eager": "model_config.enforce_eager",
    "tensor_parallel": "parallel_config.tensor_parallel_size",
    "pipeline_parallel": "parallel_config.pipeline_parallel_size",
    "data_parallel": "parallel_config.data_parallel_size",
    "max_num_seqs": "scheduler_config.max_num_seqs",
    "max_num_batched_tokens": "scheduler_config.max_num_batched_tokens",
    "stream_interval": "scheduler_config.stream_interval",
    "prefix_caching": "cache_config.enable_prefix_caching",
    "kv_cache_dtype": "cache_config.cache_dtype",
}

Tokens = Callable[[int, float], None]
"""Called with each output: its number of tokens, and when the engine made it, in s of CLOCK_MONOTONIC (0: unknown)."""
Ask = Callable[[int, Tokens], Coroutine[Any, Any, Finished]]
"""Generates the answer to request `index`. ValueError: refused. Cancelled: the engine is to stop working on it."""


class InprocessEngine:
    """A living AsyncLLM. `facts`: what it is, for the manifest.

    `one_by_one`: it makes one token per step, so that an output with more is several that we saw late.
    """

    def __init__(self, llm: Any, notes: Sequence[str]) -> None:  # noqa: ANN401 - AsyncLLM
        import vllm
        from prometheus_client import generate_latest
        from vllm import exceptions
        from vllm.inputs import tokens_input

        self._llm, self._text, self._prompt = llm, generate_latest, tokens_input
        config = llm.vllm_config
        self.one_by_one = (
            config.scheduler_config.stream_interval == 1
            and config.speculative_config is None
            and not getattr(config.model_config, "is_diffusion", False)
        )
        # What vLLM raises for a request that it will not serve.
        self._refusals = (ValueError, *(getattr(exceptions, name) for name in _REFUSALS if hasattr(exceptions, name)))
        defaults = config.model_config.get_diff_sampling_param()
        self._penalties = {name: value for name, value in defaults.items() if name.endswith("_penalty")}
        self._rounds = 0
        self.facts: dict[str, Any] = {
            "version": vllm.__version__,
            "vocab_size": config.model_config.get_vocab_size(),
            "max_model_len": config.model_config.max_model_len,
            "kv_tokens": self.counts().get("kv_tokens"),
            "config": {name: _plain(attrgetter(path)(config)) for name, path in _CONFIG.items()},
            "notes": list(notes),
        }

    def prepare(self, payloads: Sequence[bytes], outputs: Sequence[int], *, exact: bool, detokenize: bool) -> Ask:
        """Prompts (little-endian int32) and sampling parameters of a round, made before it.

        `exact`: `outputs` tokens, whatever they are; else up to so many.
        """
        llm, refusals, number = self._llm, self._refusals, self._rounds
        self._rounds += 1
        prompts = [self._prompt(np.frombuffer(payload, "<i4").tolist()) for payload in payloads]
        params = {output: self._params(output, "DELTA", exact=exact, detokenize=detokenize) for output in set(outputs)}

        async def ask(index: int, tokens: Callable[[int, float], None]) -> Finished:
            last = None
            try:
                async for last in llm.generate(prompts[index], params[outputs[index]], f"{number}-{index}"):
                    if count := len(last.outputs[0].token_ids):
                        tokens(count, last.metrics.last_token_ts if last.metrics else 0.0)
            except refusals as error:
                raise ValueError(str(error)) from error
            return _finished(last)

        return ask

    def _params(self, output: int, kind: str, *, exact: bool, **more: Any) -> Any:  # noqa: ANN401 - SamplingParams
        from vllm.sampling_params import RequestOutputKind, SamplingParams

        limits = {"max_tokens": output, "min_tokens": output if exact else 0, "ignore_eos": exact}
        more |= {"output_kind": RequestOutputKind[kind]}
        return SamplingParams(temperature=0, **limits, **more, **self._penalties)

    async def answer(self, number: int, payload: bytes, output: int, *, exact: bool, top: int) -> GreedyAnswer:
        """The greedy answer to one prompt, with log-probabilities; `payload` and `exact` as in `prepare`."""
        params = self._params(output, "FINAL_ONLY", exact=exact, detokenize=False, seed=0, logprobs=top)
        prompt = self._prompt(np.frombuffer(payload, "<i4").tolist())
        results = [result async for result in self._llm.generate(prompt, params, f"fidelity-{number}")]
        completion = results[-1].outputs[0]
        likely = tuple({token: floored(of.logprob) for token, of in place.items()} for place in completion.logprobs)
        tokens = tuple(completion.token_ids)
        return GreedyAnswer(tokens, tuple(place[token] for token, place in zip(tokens, likely, strict=True)), likely)

    def gone(self) -> str | None:
        """Why no request can be served any more; None while the engine lives."""
        return str(self._llm.dead_error) if self._llm.errored else None

    def counts(self) -> Counts:
        """The same counters that a server shows under /metrics."""
        return parse(self._text().decode())

    async def reset_prefix_cache(self) -> bool:
        """Empty the prefix cache; False when vLLM could not."""
        return await self._llm.reset_prefix_cache() is not False

    def shutdown(self) -> None:
        """End the engine's processes and wait for them."""
        self._llm.shutdown()


async def start(words: Sequence[str]) -> InprocessEngine:
    """The engine that a vLLM server with these flags would have, once it has generated a token.

    To be awaited on the loop that will use it, which stands still while the model loads. Raises EngineError for what
    the flags or the environment are to blame for, and whatever vLLM raises.
    """
    begun = time.monotonic()
    try:
        import vllm  # noqa: F401
    except ModuleNotFoundError as error:
        if error.name != "vllm":
            raise
        message = f"vLLM is not installed for {sys.executable}: install it there, or name the interpreter that has it"
        raise EngineError(message, "engine.python") from None
    from vllm.usage.usage_lib import UsageContext
    from vllm.v1.engine.async_llm import AsyncLLM

    args, notes = engine_args(words)
    llm = AsyncLLM.from_engine_args(args, usage_context=UsageContext.OPENAI_API_SERVER)
    engine = InprocessEngine(llm, notes)
    # 16 tokens: see the first request of a launched server.
    ask = engine.prepare([np.ones(16, "<i4").tobytes()], [1], exact=True, detokenize=False)
    await ask(0, lambda _count, _engine_s: None)
    engine.facts["start_s"] = time.monotonic() - begun
    return engine


def engine_args(words: Sequence[str]) -> tuple[Any, list[str]]:
    """AsyncEngineArgs of vLLM from a server's flags, by the server's own parser, and notes about what was left out.

    Raises EngineError when vLLM knows a flag or a value not.
    """
    import vllm
    from vllm.engine.arg_utils import AsyncEngineArgs
    from vllm.utils.argparse_utils import FlexibleArgumentParser

    def refuse(message: str) -> None:
        raise EngineError(f"vLLM {vllm.__version__} refuses them: {message}", "engine.args")

    parser = _make_arg_parser()(FlexibleArgumentParser())
    parser.error = refuse
    parsed = parser.parse_args(list(words))
    args = AsyncEngineArgs.from_cli_args(parsed)
    known = {item.name for item in fields(AsyncEngineArgs)}
    of_server = [
        name.replace("_", "-")
        for name, value in vars(parsed).items()
        if name not in known and value != parser.get_default(name)
    ]
    notes = [f"engine.args.{name} is of the HTTP server: not used in-process" for name in of_server]
    if args.disable_log_stats:
        args.disable_log_stats = False
        notes.append("engine.args.disable-log-stats is not used in-process: its counts are needed")
    return args, notes


def request_metrics(stats: Any) -> dict[str, float]:  # noqa: ANN401 - RequestStateStats
    """Per-request metrics of vLLM, as its server sends them with --enable-per-request-metrics (0.24 has none).

    All from stamps of the engine core, which are of one clock. TTFT is scheduled -> first token: without the queue.
    """
    queued, scheduled, first, last = stats.queued_ts, stats.scheduled_ts, stats.first_token_ts, stats.last_token_ts
    tokens = stats.num_generation_tokens
    spans = {
        "queue_time_ms": (queued, scheduled),
        "time_to_first_token_ms": (scheduled, first),
        "generation_time_ms": (first, last),
    }
    metrics = {name: (end - begin) * 1e3 for name, (begin, end) in spans.items() if begin > 0 and end > 0}
    if tokens > 1 and "generation_time_ms" in metrics:
        metrics["mean_itl_ms"] = metrics["generation_time_ms"] / (tokens - 1)
    if last > scheduled > 0:
        metrics["tokens_per_second"] = tokens / (last - scheduled)
    return metrics


def _finished(last: Any) -> Finished:  # noqa: ANN401 - RequestOutput or None
    if last is None:
        return Finished()
    return Finished(
        input_tokens=None if last.prompt_token_ids is None else len(last.prompt_token_ids),
        cached_tokens=last.num_cached_tokens,
        finish_reason=str(last.outputs[0].finish_reason or ""),
        server_metrics=request_metrics(last.metrics) if last.metrics else {},
    )


def _make_arg_parser() -> Callable[[Any], Any]:
    for name in _PARSERS:
        try:
            make: Callable[[Any], Any] = importlib.import_module(name).make_arg_parser
        except ModuleNotFoundError as error:
            if not name.startswith(error.name or "?"):
                raise
        else:
            return make
    import vllm

    raise EngineError(f"vLLM {vllm.__version__} has its flags elsewhere: 0.24 to 0.33 are known", "engine.python")


def _plain(value: object) -> str | float | bool | None:
    return value if value is None or isinstance(value, str | int | float | bool) else str(value)
