"""Fields of `engine.extra_body` with which an answer is not what its cell says, or cannot be measured. Pure."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from benchbench.yamlfile.mistakes import Fault, show

_PROMPT = "is made for each request, of the cell's input length"
_LIMIT = "limits answers, whose length is the cell's"
# Field -> what is wrong with it, and what to write instead.
_OURS = {
    "model": ("is the sweep's", "the key model"),
    **dict.fromkeys(("prompt", "messages", "input", "prompt_embeds"), (_PROMPT, "grid.input, prompts")),
    "truncate_prompt_tokens": ("cuts prompts, whose length is the cell's", "grid.input"),
    **dict.fromkeys(
        ("max_tokens", "max_new_tokens", "max_output_tokens", "n_predict", "num_predict"),
        (_LIMIT, "grid.output, engine.max_tokens_field"),
    ),
}
_SEVERAL = "asks for several answers to a request, whose tokens cannot be told apart"
# Field -> the values that it may have, what is wrong with any other, and which is allowed.
_ONLY: dict[str, tuple[tuple[object, ...], str, str]] = {
    "n": ((1, None), _SEVERAL, "1"),
    "best_of": ((1, None), _SEVERAL, "1"),
    "use_beam_search": ((False, None), _SEVERAL, "false"),
    "echo": ((False, None), "sends the prompt as if it were generated", "false"),
    "stream": ((True,), "without it no token has a time", "true"),
}


def unmeasurable(engine: dict[str, Any]) -> Iterator[Fault]:
    """What is wrong with the `extra_body` of an engine's section, as far as it can be read.

    `max_completion_tokens` may stand there: it says which field limits answers, and its value is the cell's.
    """
    body = engine.get("extra_body")
    if not isinstance(body, dict) or engine.get("kind") == "vllm_inprocess":
        return
    for key, value in body.items():
        where = ("engine", "extra_body", key)
        if key in _OURS:
            yield Fault(where, *_OURS[key])
        elif key in _ONLY:
            good, why, allowed = _ONLY[key]
            if (type(value), value) not in [(type(item), item) for item in good]:
                yield Fault(where, f"is {show(value)}: {why}", allowed)
