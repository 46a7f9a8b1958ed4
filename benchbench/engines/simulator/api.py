"""What a request asks for, and what is wrong with it, in vLLM's words and codes. Pure."""

from __future__ import annotations

import random
import zlib
from array import array
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import orjson

from benchbench.engines.simulator.model import BLOCK_TOKENS
from benchbench.engines.simulator.vocabulary import encode, encode_chat

if TYPE_CHECKING:
    from benchbench.engines.simulator.profiles import SimProfile

DEFAULT_COMPLETION_TOKENS = 16  # OpenAI's default for completions
MAX_LOGPROBS = 20  # vLLM's default
_KINDS: dict[str, tuple[type, str]] = {
    **dict.fromkeys(("n", "max_tokens", "max_completion_tokens", "min_tokens"), (int, "an integer")),
    **dict.fromkeys(("stream", "ignore_eos", "return_token_ids", "return_tokens_as_token_ids"), (bool, "a boolean")),
    "add_generation_prompt": (bool, "a boolean"),
    "stream_options": (dict, "an object"),
}


@dataclass(eq=False)
class ApiError(Exception):
    """An answer other than 200, with the fields of vLLM's error object; `in_stream` if the status is 200 all
    the same, and the error an event of the stream.
    """

    message: str
    param: str | None = None
    status: int = 400
    kind: str = "BadRequestError"
    retry_after: int | None = None
    in_stream: bool = False

    def body(self) -> bytes:
        error = {"message": self.message, "type": self.kind, "param": self.param, "code": self.status}
        return orjson.dumps({"error": error})


@dataclass(frozen=True, slots=True)
class Generation:
    """One request to generate, checked. `output_tokens` is what the engine will make of it.

    `seed` is of its output: the same prompt gives the same tokens, with the same log-probabilities, which only an
    answer that is not streamed tells. `prefix` has one hash per full block of the
    prompt, each over all tokens before it too.
    """

    chat: bool
    model: str
    prompt: list[int]
    output_tokens: int
    finish_reason: str  # length | stop
    stream: bool
    include_usage: bool
    return_token_ids: bool
    seed: int
    logprobs: int | None  # likeliest tokens a place; None without log-probabilities
    as_ids: bool  # tokens are named token_id:ID there
    prefix: tuple[int, ...]


def parse_body(body: bytes, models: Sequence[str]) -> dict[str, Any]:
    """The fields of a request that are not null, `model` filled in. Raises ApiError."""
    try:
        data = orjson.loads(body)
    except orjson.JSONDecodeError as error:
        raise ApiError(f"JSON decode error: {error}") from None
    if not isinstance(data, dict):
        raise ApiError("The request body must be a JSON object.")
    data = {"model": models[0], **{key: value for key, value in data.items() if value is not None}}
    for key, (kind, name) in _KINDS.items():
        if key in data and type(data[key]) is not kind:
            raise ApiError(f"{key} must be {name}. (parameter={key}, value={data[key]})", key)
    if data["model"] not in models:
        message = f"The model `{data['model']}` does not exist. Valid aliases: {', '.join(models)}."
        raise ApiError(message, "model", 404, "NotFoundError")
    return data


def parse_prompt(data: Mapping[str, Any], vocab_size: int, *, chat: bool) -> list[int]:
    """Token ids of a prompt (text, ids, or a list of one of them) or of messages. Raises ApiError."""
    if chat:
        messages = data.get("messages")
        if not isinstance(messages, list) or not messages or not all(isinstance(m, dict) for m in messages):
            raise ApiError("messages must be a non-empty list of objects. (parameter=messages)", "messages")
        return encode_chat(messages, vocab_size, answer=data.get("add_generation_prompt", True))
    prompt = data.get("prompt")
    if isinstance(prompt, list) and prompt and isinstance(prompt[0], str | list):
        if len(prompt) > 1:
            raise ApiError("The simulator takes one prompt a request. (parameter=prompt)", "prompt")
        prompt = prompt[0]
    if isinstance(prompt, str):
        prompt = encode(prompt, vocab_size)
    if not isinstance(prompt, list) or set(map(type, prompt)) != {int}:
        raise ApiError("Either prompt or prompt_embeds must be provided and non-empty. (parameter=prompt)", "prompt")
    return prompt


def parse_generation(body: bytes, profile: SimProfile, models: Sequence[str], *, chat: bool) -> Generation:
    """A checked request of /v1/completions or /v1/chat/completions. Raises ApiError."""
    data = parse_body(body, models)
    prompt = parse_prompt(data, profile.vocab_size, chat=chat)
    if data.get("n", 1) != 1:
        raise ApiError("The simulator serves n=1 only. (parameter=n)", "n")
    max_tokens, min_tokens = _limits(data, len(prompt), profile.max_model_len, chat=chat)
    stream, options = data.get("stream", False), data.get("stream_options", {})
    if options and not stream:
        raise ApiError("Stream options can only be defined when `stream=True`.", "stream_options")
    for token in (min(prompt), max(prompt)):
        if not 0 <= token < profile.vocab_size:  # vLLM's engine finds this, when the stream's headers are gone
            raise ApiError(f"Token id {token} is out of vocabulary", in_stream=stream)
    packed = array("I", prompt)
    output, reason = max_tokens, "length"
    if not data.get("ignore_eos"):
        seed = zlib.crc32(packed.tobytes(), profile.seed & 0xFFFFFFFF)
        natural = max(1 + int(random.Random(seed).expovariate(1 / profile.mean_output_tokens)), min_tokens)
        if natural < max_tokens:
            output, reason = natural, "stop"
    return Generation(
        chat=chat,
        model=data["model"],
        prompt=prompt,
        output_tokens=output,
        finish_reason=reason,
        stream=stream,
        include_usage=bool(options.get("include_usage")),
        return_token_ids=data.get("return_token_ids", False),
        seed=zlib.crc32(packed.tobytes(), profile.token_salt & 0xFFFFFFFF),
        logprobs=_logprobs(data, chat=chat),
        as_ids=data.get("return_tokens_as_token_ids", False),
        prefix=tuple(_block_hashes(packed)) if profile.prefix_cache else (),
    )


def _logprobs(data: Mapping[str, Any], *, chat: bool) -> int | None:
    """How many likeliest tokens a place are asked, if any. Raises ApiError."""
    count = (data.get("top_logprobs", 0) if data.get("logprobs") else None) if chat else data.get("logprobs")
    if count is not None and (type(count) is not int or not 0 <= count <= MAX_LOGPROBS):
        raise ApiError(f"logprobs must be from 0 to {MAX_LOGPROBS}. (parameter=logprobs, value={count})", "logprobs")
    return count


def _block_hashes(packed: array[int]) -> Iterator[int]:
    parent = 0
    for end in range(BLOCK_TOKENS, len(packed) + 1, BLOCK_TOKENS):
        parent = hash((parent, packed[end - BLOCK_TOKENS : end].tobytes()))
        yield parent


def _limits(data: Mapping[str, Any], prompt: int, max_model_len: int, *, chat: bool) -> tuple[int, int]:
    """(max_tokens, min_tokens), with vLLM's defaults, within the context. Raises ApiError."""
    key = "max_completion_tokens" if chat and "max_completion_tokens" in data else "max_tokens"
    room = max_model_len - prompt
    most = data.get(key, room if chat else min(DEFAULT_COMPLETION_TOKENS, room))
    least = data.get("min_tokens", 0)
    context = f"This model's maximum context length is {max_model_len} tokens. However, "
    if room <= 0:
        raise ApiError(
            f"{context}your prompt contains {prompt} input tokens, which exceeds this limit even without any "
            f"output tokens. Please reduce the length of the input prompt. (parameter=input_tokens, value={prompt})",
            "input_tokens",
        )
    if most < 1:
        raise ApiError(f"{key} must be at least 1, got {most}. (parameter={key}, value={most})", key)
    if most > max_model_len:
        raise ApiError(
            f"{key}={most} cannot be greater than max_model_len={max_model_len}. Please request fewer output "
            f"tokens. (parameter={key}, value={most})",
            key,
        )
    if most > room:
        raise ApiError(
            f"{context}you requested {most} output tokens and your prompt contains {prompt} input tokens, for a "
            f"total of {prompt + most} tokens. Please reduce the length of the input prompt or the number of "
            f"requested output tokens. (parameter=input_tokens, value={prompt})",
            "input_tokens",
        )
    if not 0 <= least <= most:
        message = f"min_tokens must be from 0 to {key}={most}, got {least}. (parameter=min_tokens, value={least})"
        raise ApiError(message, "min_tokens")
    return most, least
