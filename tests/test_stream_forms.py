"""Streams in the forms of many servers, and broken ones, from bytes to the table: status, reasons, and no wrong number.

Time is made up: a request is sent at 0, the first of six tokens comes at 50 ms, each further one 20 ms later, whatever
the stream looks like. What a form must lead to is exact.
"""

from __future__ import annotations

import json
import re
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import pytest
from answers import CHUNKED, DONE, LAST_CHUNK, chunk, error, head
from rounds_made import MS, T0, job
from test_summary import FACTS, cell

from benchbench.analysis.summary import summarise, summary_row
from benchbench.linux import to_stamp
from benchbench.loadgen.columns import collect
from benchbench.loadgen.exchange import Exchange, Failure, Log
from benchbench.report.summary_table import markdown_table
from benchbench.store.requests import ErrorKind, ErrorPhase, round_table

N, FIRST_MS, STEP_MS, EARLY_MS = 6, 50.0, 20.0, 5.0
WORDS = "CUDA out of memory on rank 3"
Read = tuple[float, bytes]  # ms after the send, bytes
Data = Mapping[str, Any] | bytes


@dataclass(frozen=True)
class Form:
    """`reads`, and what they lead to. `words`: part of the failed request's detail. `tokens`: of each event."""

    reads: Sequence[Read]
    reasons: str = ""
    status: str = "valid"
    words: str = ""
    tokens: Sequence[int] = ()
    exact: bool = False
    failure: Failure | None = None  # of the connection, at the end
    changes: Mapping[str, Any] = field(default_factory=dict)


def chat(delta: object, reason: object = None, **more: Any) -> dict[str, Any]:
    return {"id": "c", "choices": [{"index": 0, "delta": delta, "finish_reason": reason}], **more}


def text(value: str | None, reason: object = None, **more: Any) -> dict[str, Any]:
    return {"id": "c", "choices": [{"index": 0, "text": value, "finish_reason": reason, **more}]}


def usage(count: object = N, prompt: object = 4, **more: Any) -> dict[str, Any]:
    return {"id": "c", "choices": [], "usage": {"prompt_tokens": prompt, "completion_tokens": count, **more}}


def sse(data: Data) -> bytes:
    return chunk(data if isinstance(data, bytes) else b"data: " + json.dumps(data).encode() + b"\n\n")


TEXTS = [text(f" w{k}", "length" if k == N - 1 else None) for k in range(N)]


def at(token: float) -> float:
    return FIRST_MS + STEP_MS * token


def stream(
    events: Sequence[Data] = TEXTS,
    *after: Data,
    before: Sequence[Data] = (),
    every: int = 1,
    ending: bytes = DONE,
    top: bytes = CHUNKED,
) -> list[Read]:
    """`events` at the times of every `every`-th token, and `after` (usage) with the last of them."""
    reads = [(EARLY_MS, top), *((EARLY_MS, sse(data)) for data in before)]
    reads += [(at(k * every + every - 1 if every > 1 else k), sse(data)) for k, data in enumerate(events)]
    tail = after or (usage(),)
    return [
        *reads,
        *((reads[-1][0] + 0.01, sse(data)) for data in tail),
        (reads[-1][0] + 0.02, ending and sse(ending) + LAST_CHUNK),
    ]


def chats(deltas: Sequence[object], *after: Data, **more: Any) -> list[Read]:
    return stream([chat(d, "stop" if k == len(deltas) - 1 else None) for k, d in enumerate(deltas)], *after, **more)


def broken(words: str = WORDS, **more: Any) -> dict[str, Any]:
    return {"status": "invalid", "reasons": "request_failed", "words": words, **more}


def early(*events: Data, after: Sequence[Data] = ()) -> list[Read]:
    """Three tokens, then `events`, `after` or usage, and [DONE]."""
    return stream([*TEXTS[:3], *events], *(after or (usage(3),)), ending=DONE)


def with_usage(counts: Sequence[Any], *after: Data) -> list[Read]:
    events = [dict(event, usage=count) for event, count in zip(TEXTS, counts, strict=True)]
    return stream(events, *(after or (b": no usage\n\n",)))


def running(counts: Sequence[int]) -> list[dict[str, Any]]:
    return [{"prompt_tokens": 4, "completion_tokens": count} for count in counts]


ROLE = chat({"role": "assistant", "content": ""})
CUT = Failure(ErrorKind.STREAM, ErrorPhase.STREAM, "connection closed by the server")
STALL = Failure(ErrorKind.STALL, ErrorPhase.STREAM, "no token for 60 s")
OUTPUTS: dict[str, object] = {
    "reasoning_details": [{"type": "reasoning.text", "text": "t", "format": "x", "index": 0}],
    "thinking": "t",
    "analysis": {"text": "t"},
    "function_call": {"name": "f", "arguments": ""},
    "tool_calls": [{"index": 0, "function": {"arguments": "{"}}],
    "refusal": "t",
    "audio": {"id": "a", "data": "UklGRg=="},
    "content": [{"type": "text", "text": "t"}],
    "an_unknown_field": [["t"]],
}
EMPTIES: dict[str, Data] = {
    "a role": ROLE,
    "a null role": chat({"role": None, "content": None}),
    "no content": chat({"content": ""}),
    "an empty delta": chat({}),
    "a null delta": chat(None),
    "an empty list": chat({"tool_calls": [], "content": None}),
    "parts without text": chat({"reasoning_details": [{"type": "reasoning.text", "text": "", "index": 0}]}),
    "an empty text": text(""),
    "no choices": {"id": "c", "choices": []},
}
CACHED: dict[str, dict[str, Any]] = {
    "OpenAI": {"prompt_tokens_details": {"cached_tokens": 3}},
    "OpenAI's responses": {"input_tokens_details": {"cached_tokens": 3}},
    "DeepSeek": {"prompt_cache_hit_tokens": 3, "prompt_cache_miss_tokens": 1},
    "Moonshot": {"cached_tokens": 3},
    "Anthropic": {"cache_read_input_tokens": 3, "cache_creation_input_tokens": 1},
    "text": {"prompt_tokens_details": {"cached_tokens": "3"}},
}
ENDS: dict[str, Data] = {
    "finish_reason error": text("", "error"),
    "finish_reason abort": text("", "abort"),
    "finish_reason content_filter": text("", "content_filter"),
    "a finish_reason of DeepSeek's": text("", "insufficient_system_resource"),
    "an object as finish_reason": text("", {"type": "abort", "message": WORDS}),
}
ERRORS: dict[str, Data] = {
    "error": {"error": {"message": WORDS, "code": 500}},
    "error, a text": {"error": WORDS, "error_type": "generation"},
    "object: error": {"object": "error", "message": WORDS, "type": "InternalServerError", "code": 500},
    "type: error": {"type": "error", "error": {"type": "overloaded_error", "message": WORDS}},
    "event: error": f'event: error\ndata: {{"message": "{WORDS}"}}\n\n'.encode(),
    "event: error, detail": f'event:error\r\ndata:{{"detail": "{WORDS}"}}\r\n\r\n'.encode(),
    "event: error, text": f"event: error\ndata: {WORDS}\n\n".encode(),
    "error_code": {"text": WORDS, "error_code": 50001},
    "a status and a message": {"status": 502, "message": WORDS},
    "a detail alone": {"detail": [{"loc": ["body"], "msg": WORDS}]},
    "an error in a choice": text("", error={"code": 502, "message": WORDS}),
    "an error beside text": text("x", error=WORDS),
    "an error in a delta": chat({"content": "", "error": {"message": WORDS}}),
    "base_resp": {"choices": None, "base_resp": {"status_code": 1002, "status_msg": WORDS}},
    "base_resp beside a choice": {**text("", "stop"), "base_resp": {"status_code": 1002, "status_msg": WORDS}},
    "a page": f"<html><body>{WORDS}</body></html>\n\n".encode(),
    "plain text": f"data: {WORDS}\n\n".encode(),
    "bare JSON": json.dumps({"error": {"message": WORDS}}).encode() + b"\n\n",
    "bare JSON in lines": json.dumps({"error": {"message": WORDS}}, indent=1).encode() + b"\n\n",
}


def raw(*replace: tuple[bytes, bytes]) -> list[Read]:
    """The plain stream with bytes of its events replaced."""
    reads = []
    for data in [*TEXTS, usage()]:
        line = b"data: " + json.dumps(data).encode() + b"\n\n"
        for old, new in replace:
            line = line.replace(old, new)
        reads.append(line)
    return stream(reads[:-1], reads[-1])


def packed(top: bytes) -> list[Read]:
    pack = zlib.compressobj(wbits=31)
    events = [
        pack.compress(b"data: " + json.dumps(e).encode() + b"\n\n") + pack.flush(zlib.Z_SYNC_FLUSH) for e in TEXTS
    ]
    return [(EARLY_MS, top), *((at(k), chunk(data)) for k, data in enumerate(events)), (at(N), LAST_CHUNK)]


def reasoned(count: int, out: int = N, **more: Any) -> dict[str, Any]:
    return usage(out, completion_tokens_details={"reasoning_tokens": count}, **more)


def headed(**headers: object) -> list[Read]:
    return stream(top=head(transfer_encoding="chunked", **headers))


HIDDEN = {"status": "suspect", "reasons": "hidden_tokens", "tokens": (4, 1, 1), "changes": {"n": N, "held": 4}}
GROUPED = {"status": "suspect", "reasons": "grouped_tokens"}
UNKNOWN = {"status": "suspect", "reasons": "input_unverified;output_unverified"}
MISMATCH = {"status": "invalid", "reasons": "server_count_mismatch"}
ONES = (1,) * N
PAIRS = [text(" a b", "length" if k == 2 else None) for k in range(3)]
SILENT = [text(" a"), text(" b"), *[b": nothing\n\n"] * 3]
FORMS: dict[str, Form] = {
    **{
        f"output in {name}": Form(chats([{name: part}] * N, before=[ROLE]), tokens=ONES)
        for name, part in OUTPUTS.items()
    },
    "output beside a role": Form(chats([{"role": "assistant", "thinking": "t"}] * N), tokens=ONES),
    "a delta that is text": Form(chats(["t"] * N), tokens=ONES),
    **{f"{name} first": Form(stream(before=[data]), tokens=ONES) for name, data in EMPTIES.items()},
    **{
        f"{name} first, no usage": Form(stream(TEXTS, b": none\n\n", before=[data]), **UNKNOWN)
        for name, data in EMPTIES.items()
    },
    "an empty text first, two tokens an event": Form(
        [(EARLY_MS, CHUNKED), (EARLY_MS, sse(text(""))), *stream(PAIRS, usage(N), every=2)[1:]],
        tokens=(2,) * 3,
        **GROUPED,
    ),
    "empty texts amid the others": Form(
        stream([text(""), text(" a"), text(""), text(" b"), text(""), text(" c", "stop")], usage(5)),
        tokens=(1,) * 5,
        changes={"first": 1, "n": 5},
    ),
    "usage: running": Form(with_usage(running(range(1, N + 1))), tokens=ONES),
    "usage: zeros, then the total": Form(with_usage(running([0] * (N - 1) + [N])), tokens=ONES),
    "usage: zeros, the total at the end": Form(with_usage(running([0] * N), usage()), tokens=ONES),
    "usage: the total in every event": Form(with_usage(running([N] * N)), tokens=ONES),
    "usage: one an event, then the total": Form(with_usage(running([1] * N), usage()), tokens=ONES),
    "usage: one an event": Form(with_usage(running([1] * N)), **MISMATCH),
    "usage: falls": Form(with_usage(running([1, 3, 2, 5, 4, N])), tokens=ONES),
    "usage: one event behind": Form(with_usage(running(range(N)), usage()), tokens=ONES),
    "usage: running, and another total": Form(with_usage(running(range(1, N + 1)), usage(N - 1)), **MISMATCH),
    "usage: null later": Form(stream(TEXTS, usage(), usage(None, None), {"choices": [], "usage": None}), tokens=ONES),
    "usage: {} later": Form(stream(TEXTS, usage(), {"id": "c", "choices": [], "usage": {}}), tokens=ONES),
    "usage: 0 later": Form(stream(TEXTS, usage(), usage(0, 0)), tokens=ONES),
    "usage: as text": Form(stream(TEXTS, usage(str(N), "4")), tokens=ONES),
    "usage: as float": Form(stream(TEXTS, usage(float(N), 4.0)), tokens=ONES),
    "usage: Groq's": Form(stream(TEXTS, {"choices": [], "x_groq": usage()}), tokens=ONES),
    "usage: in the choice": Form(
        stream([*TEXTS[:-1], text(" w", "stop", usage=usage()["usage"])], b": none\n\n"), tokens=ONES
    ),
    "usage: other names": Form(
        stream(TEXTS, {"choices": [], "usage": {"input_tokens": 4, "output_tokens": N}}), tokens=ONES
    ),
    "usage: less than came": Form(stream(TEXTS, usage(N - 1)), **MISMATCH),
    "usage: of two choices, each running": Form(
        stream(
            [
                {"choices": [{"index": k % 2, "text": "t", "finish_reason": "stop" if k > 3 else None}], "usage": count}
                for k, count in enumerate(running([2, 1, 4, 2, 6, 3]))
            ],
            usage(9),
        ),
        tokens=(2, 1, 2, 1, 2, 1),
        changes={"n": 9, "held": 2},
        **GROUPED,
    ),
    **{
        f"cached tokens: {name}": Form(stream(TEXTS, usage(**told)), "cached_prefix", "invalid")
        for name, told in CACHED.items()
    },
    "cached tokens: llama.cpp": Form(stream(TEXTS, {**usage(), "timings": {"cache_n": 3}}), "cached_prefix", "invalid"),
    "cached tokens: null later": Form(
        stream(TEXTS, usage(cached_tokens=3), usage(cached_tokens=None)), "cached_prefix", "invalid"
    ),
    "cached tokens: none": Form(stream(TEXTS, usage(prompt_tokens_details={"cached_tokens": 0})), tokens=ONES),
    "reasoning that is not sent": Form(stream(TEXTS[3:], reasoned(3)), **HIDDEN),
    "reasoning that is not sent, exact": Form(stream(TEXTS[3:], reasoned(3)), exact=True, **HIDDEN),
    "reasoning that is not sent, with ids": Form(
        stream([text("a", "stop" if k == 2 else None, token_ids=[k]) for k in range(3)], reasoned(3)), **HIDDEN
    ),
    "reasoning that is not sent, counted in the total alone": Form(
        stream(TEXTS[3:], reasoned(3, 3, total_tokens=4 + N)), **HIDDEN
    ),
    "reasoning that is not sent, beside the details": Form(stream(TEXTS[3:], usage(reasoning_tokens=3)), **HIDDEN),
    **{
        f"reasoning that is sent as {name}": Form(
            chats([{name: "t", "content": None}] * 3 + [{"content": "t"}] * 3, told), tokens=ONES
        )
        for name in ("reasoning", "reasoning_content")
        for told in (reasoned(3), reasoned(3, 3, total_tokens=4 + N))
    },
    "reasoning that is sent as text": Form(stream(TEXTS, reasoned(3)), tokens=ONES),
    "a summary of the reasoning": Form(
        chats([{"reasoning": "in short"}] * 2 + [{"content": "t"}] * 2, reasoned(4)),
        changes={"n": N, "held": 1},
        **GROUPED,
    ),
    "more than the limit": Form(stream([*TEXTS, *TEXTS[-1:]], usage(7)), "output_length", "invalid", "at most 6"),
    "more than the limit, by usage": Form(
        stream(TEXTS, usage(7)), "output_length;grouped_tokens", "invalid", "7 output tokens, asked for at most 6"
    ),
    "as many as the limit": Form(stream(TEXTS, usage(N)), tokens=ONES),
    "a cache of answers": Form(headed(cf_aig_cache_status="HIT"), **broken("cf-aig-cache-status: HIT")),
    "an age": Form(headed(age=12), **broken("age: 12")),
    "a cache of answers that had none": Form(
        headed(x_cache="MISS from proxy", age=0, x_kv_cache_hit="true", cache_control="no-cache"), tokens=ONES
    ),
    "text ends early": Form(stream([*SILENT, text("", "length")], usage()), tokens=(1, 1, 4), **GROUPED),
    "text ends early, no finish_reason": Form(stream([*SILENT, b": x\n\n"], usage()), tokens=(1, 1, 4), **GROUPED),
    "several tokens in the first event": Form(
        [
            *stream([text("a", token_ids=[1, 2, 3, 4])])[:2],
            *stream([b": x\n\n", *[text("a", token_ids=[1])] * 4, text("b", "stop", token_ids=[2])], usage(9))[1:],
        ],
        tokens=(4, *[1] * 5),
        changes={"n": 9, "held": 4},
        **GROUPED,
    ),
    "ids in some events only": Form(
        stream([text("a", token_ids=[1]) if k % 2 else TEXTS[k] for k in range(N - 1)] + TEXTS[-1:]), tokens=ONES
    ),
    "a closing event that is late": Form(
        [
            *stream([*TEXTS[:-1], text(" w")], ending=b"")[:-2],
            (400.0, sse(text("", "stop"))),
            (401.0, sse(usage()) + sse(DONE) + LAST_CHUNK),
        ],
        tokens=ONES,
    ),
    **{
        f"ends with {name}": Form(
            early(data),
            **broken(
                data["choices"][0]["finish_reason"]
                if isinstance(data, dict) and isinstance(data["choices"][0]["finish_reason"], str)
                else WORDS
            ),
        )
        for name, data in ENDS.items()
    },
    **{f"{name}, after tokens": Form(early(data, after=[b": x\n\n"]), **broken()) for name, data in ERRORS.items()},
    **{
        f"{name}, at once": Form([(EARLY_MS, CHUNKED), (at(0), sse(data) + sse(DONE) + LAST_CHUNK)], **broken())
        for name, data in ERRORS.items()
    },
    "finish_reason error in exact": Form(
        stream([*TEXTS[:-1], text(" w", "error")]), exact=True, **broken("ended the request: error")
    ),
    "base_resp: 0": Form(stream(TEXTS, {**usage(), "base_resp": {"status_code": 0, "status_msg": ""}}), tokens=ONES),
    "an error and usage": Form(early(ERRORS["base_resp"], after=[usage(3)]), **broken()),
    "a page and usage": Form(early(ERRORS["a page"], after=[usage(3)]), **broken()),
    "error: null": Form(stream(TEXTS, usage(), {"error": None, "id": "x", "choices": []}), tokens=ONES),
    "cut, neither finish_reason nor [DONE]": Form(
        stream([*TEXTS[:-1]], b": x\n\n", ending=b": x\n\n"), **broken("without finish_reason and [DONE]")
    ),
    "cut by the connection": Form(
        stream(TEXTS[:3], b": x\n\n", ending=b"")[:-1], failure=CUT, **broken("closed by the server")
    ),
    "cut by the connection after an error": Form(
        [*stream([*TEXTS[:3], ERRORS["error"]], b": x\n\n", ending=b"")[:-1]], failure=CUT, **broken()
    ),
    "only the last chunk is missing": Form([*stream(ending=b"")[:-1], (at(N), sse(DONE))], failure=CUT, tokens=ONES),
    "only the last chunk is missing, stalled": Form(
        [*stream(ending=b"")[:-1], (at(N), sse(DONE))], failure=STALL, tokens=ONES
    ),
    "a lone surrogate": Form(raw((b" w2", b"\\ud83d")), tokens=ONES),
    "half a character": Form(raw((b" w2", b"\xe4\xbd")), tokens=ONES),
    "NaN": Form(raw((b'"index": 0', b'"index": 0, "logprobs": NaN, "p": -Infinity')), tokens=ONES),
    "a BOM at the start": Form(
        [
            (EARLY_MS, CHUNKED),
            (at(0), chunk(b"\xef\xbb\xbf" + b"data: " + json.dumps(TEXTS[0]).encode() + b"\n\n")),
            *stream()[2:],
        ],
        tokens=ONES,
    ),
    "a BOM in each event": Form(raw((b"data: ", b"data: \xef\xbb\xbf")), tokens=ONES),
    "CR lines": Form(raw((b"\n", b"\r")), tokens=ONES),
    "CRLF lines": Form(raw((b"\n", b"\r\n")), tokens=ONES),
    "an event in several lines": Form(raw((b'"choices"', b'\ndata: "choices"')), tokens=ONES),
    "ids and times of events": Form(raw((b"data: ", b"id: 7\nretry: 10\nevent: message\ndata: ")), tokens=ONES),
    "empty data": Form(stream(before=[b"data: \n\n", b"data:\n\n"]), tokens=ONES),
    "a space after [DONE]": Form(stream(ending=b"data: [DONE] \n\n"), tokens=ONES),
    "no space before [DONE]": Form(stream(ending=b"data:[DONE]\n\n"), tokens=ONES),
    "finish_reason '' until the end": Form(raw((b'"finish_reason": null', b'"finish_reason": ""')), tokens=ONES),
    "finish_reason 'null' until the end": Form(
        raw((b'"finish_reason": null', b'"finish_reason": "null"')), tokens=ONES
    ),
    "compressed": Form(
        packed(head(transfer_encoding="chunked", content_encoding="gzip")), **broken("Content-Encoding: gzip")
    ),
    "compressed, and nothing says so": Form(packed(CHUNKED), **broken("gzip")),
    "no content type": Form(
        stream(top=b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n"), **broken("no Content-Type")
    ),
    "another content type": Form(
        stream(top=head(200, "application/json", transfer_encoding="chunked")),
        **broken("Content-Type: application/json"),
    ),
    "a redirect": Form(
        [(EARLY_MS, head(307, "text/plain", location="http://other:1/v1", content_length=0))],
        **broken("http://other:1/v1"),
    ),
    "a compressed refusal": Form(
        [(EARLY_MS, head(503, "text/html", content_encoding="br", content_length=2) + b"\x0b\x02")],
        **broken("status 503"),
    ),
    "a refusal's words": Form([(EARLY_MS, error(400, WORDS))], **broken()),
}


def carry(form: Form, cuts: int = 1) -> tuple[dict[str, Any], dict[str, Any]]:
    """(row of the cell, the request's record); each read may come in so many pieces at once."""
    log = Log()
    exchange = Exchange(0, b"", log, scheduled_ns=T0)
    exchange.sent_ns, exchange.failure = T0, form.failure
    for ms, data in form.reads:
        size = max(1, -(-len(data) // cuts))
        for begin in range(0, len(data), size):
            stamp_ns = T0 + round(ms * MS)
            exchange.took(data[begin : begin + size], to_stamp(stamp_ns), stamp_ns)
    exchange.end_ns = T0 + round(form.reads[-1][0] * MS)
    columns = collect([exchange], log, job([4], [form.changes.get("n", N)], exact=form.exact))
    table = round_table(columns, {"phase": "measured"}, FACTS)
    info = cell(
        batch=1, requests=1, output=N, rounds_min=1, rounds_max=1, output_mode="exact" if form.exact else "as_served"
    )
    return dict(summary_row(summarise(info, [table]))), table.to_pylist()[0]


def carried_as_stated(form: Form, cuts: int) -> tuple[dict[str, Any], dict[str, Any]]:
    """`carry`, whose status, reasons, words of a failure and tokens are those of the form."""
    row, record = carry(form, cuts)
    assert (row["status"], row["reasons"]) == (form.status, form.reasons), (
        record["error_detail"],
        record["event_tokens"],
    )
    assert (record["status"] == "failed") == bool(form.words)
    assert form.words in record["error_detail"]
    if form.status != "invalid" and form.tokens:
        assert tuple(record["event_tokens"]) == tuple(form.tokens)
    return row, record


@pytest.mark.parametrize("cuts", [1, 3, 1000], ids=["whole", "in three", "by bytes"])
@pytest.mark.parametrize("form", FORMS.values(), ids=FORMS.keys())
def test_a_form_gives_its_status_and_no_wrong_number(form: Form, cuts: int) -> None:
    row, record = carried_as_stated(form, cuts)
    printed = [line for line in markdown_table([row]).splitlines() if re.match(r"\| \d", line)]
    assert len(printed) == (form.status != "invalid")
    if form.status == "invalid":
        return
    first = at(form.changes.get("first", 0)) + (STEP_MS if form.tokens == (2,) * 3 else 0)
    assert row["ttft_ms"] == pytest.approx(first)
    if "held" in form.changes:
        last = (record["event_ns"][-1] - record["event_ns"][0]) / MS
        assert row["tpot_ms"] == pytest.approx(last / (form.changes["n"] - form.changes["held"]))
    elif "n" not in form.changes:
        assert row["tpot_ms"] == pytest.approx(STEP_MS, rel=1e-3)
        assert row["e2el_ms"] == pytest.approx(at(N - 1), abs=0.02)
