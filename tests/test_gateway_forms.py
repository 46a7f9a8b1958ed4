"""Streams as gateways and hosted services send them: what stands beside output, in heads, and in their own counts.

As `test_stream_forms`: the first of six tokens comes at 50 ms, each further one 20 ms later.
"""

from __future__ import annotations

from typing import Any

import pytest
from answers import DONE, LAST_CHUNK
from test_stream_forms import (
    CHUNKED,
    EARLY_MS,
    FIRST_MS,
    HIDDEN,
    ONES,
    ROLE,
    STEP_MS,
    TEXTS,
    Form,
    N,
    at,
    broken,
    carried_as_stated,
    chat,
    chats,
    early,
    head,
    headed,
    reasoned,
    sse,
    stream,
    text,
    usage,
)

WORDS = [{"content": "t"}] * N
CACHED = {"status": "invalid", "reasons": "cached_prefix"}
LOWER = {"status": "suspect", "reasons": "lower_limit"}
SIGNED = {"role": "assistant", "content": "", "extra_content": {"google": {"thought_signature": "CrMB"}}}
ENCRYPTED = {"content": "", "reasoning_details": [{"type": "reasoning.encrypted", "data": "gAAA", "index": 0}]}
# Fields of a delta that are no output: a first event with them is no first token.
BESIDE: dict[str, Any] = {
    "name": "bot",
    "provider": "x",
    "model": "m",
    "status": "in_progress",
    "obfuscation": "aXk",
    "citations": ["http://a"],
    "annotations": [{"type": "url_citation", "url_citation": {"url": "http://a"}}],
    "thinking_blocks": [{"type": "thinking", "thinking": "", "signature": "Eq"}],
    **SIGNED,
}
TIMINGS = {"prompt_n": 1, "prompt_ms": 2.0, "predicted_n": N, "predicted_ms": 120.0}
STORED = {
    "x-cache": ("TCP_HIT from a23", "RefreshHit from cloudfront", "MISS, HIT"),
    "cache-status": ("nginx; hit; ttl=300",),
    "x-cache-status": ("STALE", "revalidated"),
    "x-cache-hits": ("0, 1",),
    "x-from-cache": ("1",),
    "x-cached": ("true",),
}
NOT_STORED = {
    "x-cache": "TCP_MISS",
    "cache-status": "nginx; fwd=uri-miss; stored",
    "x-cache-status": "BYPASS",
    "x-cache-hits": "0, 0",
    "cache-control": "no-store, stale-while-revalidate=60",
    "x-cached": "false",
    "x-prefix-cache": "hit",
}
USED = {"prompt_tokens": 4, "completion_tokens": N}
# What servers tell of the time of an answer's tokens: 100 ms after the first.
DECODED: dict[str, dict[str, Any]] = {
    "llama.cpp": {"timings": {"predicted_n": N, "predicted_ms": 100.0}},
    "Groq": {"usage": {**USED, "queue_time": 0.01, "prompt_time": 0.04, "completion_time": 0.1}},
    "Groq's other place": {"x_groq": {"id": "r", "usage": {**USED, "completion_time": 0.1}}},
    "Cerebras": {"time_info": {"queue_time": 0.01, "completion_time": 0.1, "created": 1_790_000_000}},
    "SambaNova": {"usage": {**USED, "time_to_first_token": 0.05, "total_latency": 0.15}},
    "vLLM": {"metrics": {"mean_itl_ms": 20.0}},
}


def held_back(**told: Any) -> list[tuple[float, bytes]]:
    """All of an answer is ready and comes at 250 ms, one token each 0.2 ms, each in a read of its own."""
    events = [sse(data) for data in (*TEXTS, {**usage(), **told})]
    begin = FIRST_MS + 10 * STEP_MS
    reads = [(begin + 0.2 * k, data) for k, data in enumerate(events)]
    return [(EARLY_MS, CHUNKED), *reads, (begin + 2, sse(DONE) + LAST_CHUNK)]


BOOM = "out of memory on rank 3"
ERRORS: dict[str, dict[str, Any]] = {
    "AWS": {"internalServerException": {"message": BOOM}},
    "Tencent": {"Response": {"Error": {"Code": "InternalError", "Message": BOOM}}},
    "Apigee": {"fault": {"faultstring": BOOM, "detail": {"errorcode": "x"}}},
    "an exception": {"exception": BOOM},
    "ErrCode": {"ErrCode": 4001, "ErrMsg": BOOM},
    "OpenAI's responses": {"type": "response.failed", "response": {"error": {"message": BOOM}}},
    "Cohere": {"is_finished": True, "finish_reason": "ERROR", "message": BOOM},
}
NO_ERRORS: dict[str, dict[str, Any]] = {
    "error_code 0": {"error_code": 0, "id": "x"},
    "error_code 0 as text": {"error_code": "0"},
    "an error that is none": {"error": None, "exception": "", "errors": []},
    "a default": {"default": "x", "is_default": True},
}
FORMS: dict[str, Form] = {
    **{
        f"{name} first": Form(chats(WORDS, usage(), before=[chat({"role": "assistant", "content": "", name: part})]))
        for name, part in BESIDE.items()
        if name != "role"
    },
    # Its total counts the end of the answer, so that counts alone do not tell that the first event is none.
    "a name first, and an end that is counted": Form(
        chats([*WORDS[:-1], {}], usage(), before=[chat({"role": "assistant", "name": "bot", "content": ""})])
    ),
    "a signature at the end": Form(chats([*WORDS, SIGNED], usage())),
    "encrypted reasoning": Form(
        chats([ENCRYPTED, *WORDS[3:]], reasoned(3)), **HIDDEN | {"changes": {"first": 1, **HIDDEN["changes"]}}
    ),
    "encrypted reasoning at the end": Form(chats([*WORDS[3:], ENCRYPTED], reasoned(3)), **HIDDEN),
    "hidden tokens that only the total counts": Form(stream(TEXTS[3:], usage(3, total_tokens=4 + N)), **HIDDEN),
    "a total that holds what was sent": Form(stream(TEXTS, usage(total_tokens=4 + N)), tokens=ONES),
    "a total of 0": Form(stream(TEXTS, usage(total_tokens=0)), tokens=ONES),
    "a total with cached tokens beside the prompt's": Form(
        stream(TEXTS, usage(total_tokens=4 + N + 3, cache_read_input_tokens=3)), **CACHED
    ),
    "cached tokens: a header": Form(headed(fireworks_cached_prompt_tokens=3), **CACHED),
    "cached tokens: a header with none": Form(headed(fireworks_cached_prompt_tokens=0), tokens=ONES),
    "cached tokens: a head of another name": Form(headed(x_cached_tokens=1), **CACHED),
    "cached tokens: LangChain": Form(stream(TEXTS, usage(input_token_details={"cache_read": 3})), **CACHED),
    "cached tokens: written ones": Form(stream(TEXTS, usage(input_token_details={"cache_creation": 3})), tokens=ONES),
    "cached tokens: their price": Form(stream(TEXTS, usage(cached_tokens_cost=3)), tokens=ONES),
    "cached tokens: llama.cpp before cache_n": Form(stream(TEXTS, {**usage(), "timings": TIMINGS}), **CACHED),
    "cached tokens: llama.cpp, all computed": Form(
        stream(TEXTS, {**usage(), "timings": {**TIMINGS, "prompt_n": 4}}), tokens=ONES
    ),
    "cached tokens: llama.cpp's own count": Form(
        stream(TEXTS, {**usage(), "timings": {**TIMINGS, "cache_n": 0}}), tokens=ONES
    ),
    "usage that counts events": Form(
        [
            (EARLY_MS, CHUNKED),
            *((at(k), sse(text(" a b", "length" if k == N - 1 else None))) for k in (1, 3, 5)),
            (at(5.1), sse(usage(3)) + sse(DONE)),
            (at(5.1), b"0\r\n\r\n"),
        ],
        changes={"first": 1, "held": 1},
        **LOWER,
    ),
    **{
        f"ends with {reason} below the limit": Form(early(text("", reason)), **LOWER)
        for reason in ("length", "MAX_TOKENS", "model_context_window_exceeded")
    },
    **{
        f"ends with {reason}": Form(early(text("", reason)))
        for reason in ("stop", "eos_token", "end_turn", "COMPLETE", "tool_calls", "skill_call")
    },
    **{
        f"ends with {reason}": Form(early(text("", reason)), **broken(reason))
        for reason in (
            *("guardrail_intervened", "sensitive", "OTHER", "SPII", "MALFORMED_FUNCTION_CALL", "terminated", "oom"),
            *("quota_exceeded", "killed", "preempted", "incomplete"),
        )
    },
    **{
        f"{name}: {value}": Form(headed(**{name.replace("-", "_"): value}), **broken(value))
        for name, values in STORED.items()
        for value in values
    },
    **{
        f"{name}: {value}": Form(headed(**{name.replace("-", "_"): value}), tokens=ONES)
        for name, value in NOT_STORED.items()
    },
    **{
        f"held back and let go at once: {name}": Form(
            released, "delayed_stream", "suspect", changes={"first": 10, "held": 1}
        )
        for name, released in ((name, held_back(**told)) for name, told in DECODED.items())
    },
    **{
        f"at the server's own pace: {name}": Form(stream(TEXTS, {**usage(), **told}), tokens=ONES)
        for name, told in DECODED.items()
        if "usage" not in told
    },
    **{
        f"{name}: {value}, a gateway's second try": Form(
            headed(**{name: value}), "resent" if again else "", "suspect" if again else "valid", tokens=ONES
        )
        for name, value, again in (
            ("x_envoy_attempt_count", 1, False),
            ("x_envoy_attempt_count", 2, True),
            ("x_litellm_attempted_retries", 0, False),
            ("x_litellm_attempted_retries", 2, True),
            ("x_litellm_attempted_fallbacks", 1, True),
            ("x_portkey_retry_attempt_count", 0, False),
            ("retry_after", 3, False),
        )
    },
    **{
        f"an error of {name} after tokens, {what}": Form(early(data, after=[after]), **broken(BOOM))
        for name, data in ERRORS.items()
        for what, after in (("then usage", usage(3)), ("no usage", b": none\n\n"))
    },
    **{f"{name} beside": Form(stream([*TEXTS], data, usage()), tokens=ONES) for name, data in NO_ERRORS.items()},
    "a whole answer in one event": Form(
        [(EARLY_MS, CHUNKED), (at(5), sse(text(" a b c d e f", "length")) + sse(usage()) + sse(DONE) + LAST_CHUNK)],
        "grouped_tokens;buffered_stream",
        "invalid",
    ),
    "a whole call of a tool in one event": Form(
        [
            (EARLY_MS, CHUNKED),
            (EARLY_MS, sse(ROLE)),
            (at(5), sse(chat({"tool_calls": [{"function": {"name": "f", "arguments": "{}"}}]}, "tool_calls"))),
            (at(5.1), sse(usage()) + sse(DONE) + LAST_CHUNK),
        ],
        "grouped_tokens;buffered_stream",
        "invalid",
    ),
    "an encoding that is none": Form(headed(content_encoding="none"), tokens=ONES),
    "status 201": Form(stream(top=head(201, transfer_encoding="chunked")), tokens=ONES),
    "status 204": Form([(EARLY_MS, head(204, "text/plain"))], **broken("204")),
    "a role, then what is measured": Form(chats(WORDS, usage(), before=[ROLE]), tokens=ONES),
}


@pytest.mark.parametrize("cuts", [1, 1000], ids=["whole", "by bytes"])
@pytest.mark.parametrize("form", FORMS.values(), ids=FORMS.keys())
def test_a_gateways_form_gives_its_status_and_no_wrong_number(form: Form, cuts: int) -> None:
    row, _ = carried_as_stated(form, cuts)
    if form.status == "invalid":
        return
    assert row["ttft_ms"] == pytest.approx(FIRST_MS + STEP_MS * form.changes.get("first", 0))
    if "held" not in form.changes:
        assert row["tpot_ms"] == pytest.approx(STEP_MS, rel=1e-3)
