"""What a request asks for, and what is wrong with it, in vLLM's words and codes. Pure."""

from __future__ import annotations

import random
import zlib
from array import array
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import orjson

from benchbench.engines.simulator.model import BLOCK_TOKENS
from benchbench.engines.simulator.profiles import SimProfile
from benchbench.engines.simulator.vocabulary import Vocabulary

DEFAULT_COMPLETION_TOKENS = 16  # OpenAI's default for completions
_BAD_REQUEST = "BadRequestError"


class ApiError(Exception):
    """An answer other than 200, with the fields of vLLM's error object; `in_stream` if the status is 200 all
    the same, and the error an event of the stream.
    """

    def __init__(
        self,
        status: int,
        message: str,
        kind: str = _BAD_REQUEST,
        param: str | None = None,
        *,
        headers: Mapping[str, str] | None = None,
        in_stream: bool = False,
    ) -> None:
        super().__init__(message)
        self.status, self.message, self.kind, self.param = status, message, kind, param
        self.headers, self.in_stream = headers, in_stream

    def body(self) -> bytes:
        error = {"message": self.message, "type": self.kind, "param": self.param, "code": self.status}
        return orjson.dumps({"error": error})


@dataclass(frozen=True, slots=True)
class Generation:
    """One request to generate, checked. `output_tokens` is what the engine will make of it."""

    chat: bool
    model: str
    prompt: list[int]
    output_tokens: int
    finish_reason: str  # length | stop
    stream: bool
    include_usage: bool
    continuous_usage: bool
    return_token_ids: bool
    seed: int  # of its output: the same prompt gives the same tokens

    def prefix(self) -> tuple[int, ...]:
        """One hash per full block of the prompt, each over all tokens before it too."""
        packed = array("I", self.prompt)
        step = BLOCK_TOKENS * packed.itemsize
        hashes, parent, data = [], 0, packed.tobytes()
        for i in range(0, len(data) - step + 1, step):
            parent = hash((parent, data[i : i + step]))
            hashes.append(parent)
        return tuple(hashes)


def parse_json(body: bytes) -> dict[str, Any]:
    """The body as a mapping; ApiError 400 if it is none."""
    try:
        data = orjson.loads(body)
    except orjson.JSONDecodeError as error:
        message = f"[{{'type': 'json_invalid', 'loc': ('body', 0), 'msg': 'JSON decode error: {error}'}}]"
        raise ApiError(400, message, "Bad Request") from None
    if not isinstance(data, dict):
        raise ApiError(400, "The request body must be a JSON object.", "Bad Request")
    return data


def check_model(data: Mapping[str, Any], models: Sequence[str]) -> str:
    model = data.get("model") or models[0]
    if model not in models:
        message = f"The model `{model}` does not exist. Valid aliases: {', '.join(models)}."
        raise ApiError(404, message, "NotFoundError", "model")
    return str(model)


def parse_prompt(data: Mapping[str, Any], vocabulary: Vocabulary, *, chat: bool) -> list[int]:
    """Token ids of a prompt (text, ids, or a list of one of them) or of messages; ApiError 400 if there are none."""
    if chat:
        messages = data.get("messages")
        if not isinstance(messages, list) or not all(isinstance(m, dict) for m in messages) or not messages:
            raise ApiError(400, "messages must be a non-empty list of objects. (parameter=messages)", param="messages")
        return vocabulary.encode_chat(messages, answer=data.get("add_generation_prompt") is not False)
    prompt = data.get("prompt")
    if isinstance(prompt, list) and prompt and isinstance(prompt[0], str | list):
        if len(prompt) > 1:
            raise ApiError(400, "The simulator takes one prompt a request. (parameter=prompt)", param="prompt")
        prompt = prompt[0]
    if isinstance(prompt, str):
        prompt = vocabulary.encode(prompt)
    if not isinstance(prompt, list) or not _are_ids(prompt):
        message = "Either prompt or prompt_embeds must be provided and non-empty. (parameter=prompt)"
        raise ApiError(400, message, param="prompt")
    return prompt


def parse_generation(
    body: bytes, profile: SimProfile, vocabulary: Vocabulary, models: Sequence[str], *, chat: bool
) -> Generation:
    """A checked request of /v1/completions or /v1/chat/completions. Raises ApiError."""
    data = parse_json(body)
    model = check_model(data, models)
    prompt = parse_prompt(data, vocabulary, chat=chat)
    if _integer(data, "n", 1) != 1:
        raise ApiError(400, "The simulator serves n=1 only. (parameter=n)", param="n")
    max_tokens, min_tokens = _limits(data, len(prompt), profile.max_model_len, chat=chat)
    stream = _flag(data, "stream")
    options = data.get("stream_options") or {}
    if not isinstance(options, dict):
        raise ApiError(400, "stream_options must be an object. (parameter=stream_options)", param="stream_options")
    if options and not stream:
        message = "Stream options can only be defined when `stream=True`."
        raise ApiError(400, message, param="stream_options")
    unknown = _unknown(prompt, profile.vocab_size)
    if unknown is not None:  # vLLM's engine finds this, when the stream's headers are gone
        raise ApiError(400, f"Token id {unknown} is out of vocabulary", in_stream=stream)
    seed = zlib.crc32(array("I", prompt).tobytes(), profile.seed & 0xFFFFFFFF)
    output, reason = max_tokens, "length"
    if not _flag(data, "ignore_eos"):
        natural = 1 + int(random.Random(seed).expovariate(1 / profile.mean_output_tokens))
        natural = max(natural, min_tokens, 1)
        if natural < max_tokens:
            output, reason = natural, "stop"
    include = _flag(options, "include_usage")
    return Generation(
        chat=chat,
        model=model,
        prompt=prompt,
        output_tokens=output,
        finish_reason=reason,
        stream=stream,
        include_usage=include,
        continuous_usage=include and _flag(options, "continuous_usage_stats"),
        return_token_ids=_flag(data, "return_token_ids"),
        seed=seed,
    )


def _limits(data: Mapping[str, Any], prompt: int, max_model_len: int, *, chat: bool) -> tuple[int, int]:
    """(max_tokens, min_tokens), with vLLM's defaults, within the context."""
    key = "max_completion_tokens" if chat and data.get("max_completion_tokens") is not None else "max_tokens"
    context = f"This model's maximum context length is {max_model_len} tokens. However, "
    if prompt >= max_model_len:
        raise ApiError(
            400,
            f"{context}your prompt contains {prompt} input tokens, which exceeds this limit even without any "
            f"output tokens. Please reduce the length of the input prompt. (parameter=input_tokens, value={prompt})",
            param="input_tokens",
        )
    default = max_model_len - prompt if chat else min(DEFAULT_COMPLETION_TOKENS, max_model_len - prompt)
    most = _integer(data, key, default)
    if most < 1:
        raise ApiError(400, f"{key} must be at least 1, got {most}. (parameter={key}, value={most})", param=key)
    if most > max_model_len:
        raise ApiError(
            400,
            f"{key}={most} cannot be greater than max_model_len={max_model_len}. Please request fewer output "
            f"tokens. (parameter={key}, value={most})",
            param=key,
        )
    if prompt + most > max_model_len:
        raise ApiError(
            400,
            f"{context}you requested {most} output tokens and your prompt contains {prompt} input tokens, for a "
            f"total of {prompt + most} tokens. Please reduce the length of the input prompt or the number of "
            f"requested output tokens. (parameter=input_tokens, value={prompt})",
            param="input_tokens",
        )
    least = _integer(data, "min_tokens", 0)
    if not 0 <= least <= most:
        message = f"min_tokens must be from 0 to {key}={most}, got {least}. (parameter=min_tokens, value={least})"
        raise ApiError(400, message, param="min_tokens")
    return most, least


def _are_ids(prompt: list[Any]) -> bool:
    """Whether these are integers; packing them is the quickest way to know."""
    try:
        array("I", prompt)
    except TypeError:
        return False
    except OverflowError:
        return all(type(token) is int for token in prompt)
    return bool(prompt)


def _unknown(prompt: list[int], vocab_size: int) -> int | None:
    try:
        most = max(array("I", prompt))
    except OverflowError:
        most = min(prompt) if min(prompt) < 0 else max(prompt)
    return None if 0 <= most < vocab_size else most


def _integer(data: Mapping[str, Any], key: str, default: int) -> int:
    value = data.get(key)
    if value is None:
        return default
    if type(value) is not int:
        raise ApiError(400, f"{key} must be an integer. (parameter={key}, value={value})", param=key)
    return value


def _flag(data: Mapping[str, Any], key: str) -> bool:
    value = data.get(key)
    if value is not None and not isinstance(value, bool):
        raise ApiError(400, f"{key} must be a boolean. (parameter={key}, value={value})", param=key)
    return bool(value)
