"""What a response's bytes mean must not depend on how they were cut into reads."""

from __future__ import annotations

import json
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rounds_made import job

from benchbench.decoding.response import Response
from benchbench.linux import to_stamp
from benchbench.loadgen.columns import collect, decode_log
from benchbench.loadgen.exchange import Exchange, Log
from benchbench.store.requests import round_table

STREAMS = Path(__file__).parent / "data" / "sse"

# file -> (tokens per event, input tokens, output tokens as the server told, how they are known)
EXPECTED = {
    "vllm-chat-stream.txt": ([1] * 8, 7, 8, "events"),
    "vllm-chat-stream-tokenids.txt": ([1] * 4, 7, 4, "ids"),
    "vllm-completions-n2.txt": ([1] * 8, 2, 8, "events"),
    "vllm-completions-stream-continuous-usage.txt": ([1] * 4, 6, 4, "usage"),
    "vllm-completions-stream-ids.txt": ([1] * 8, 8, 8, "events"),
    "vllm-completions-stream-text.txt": ([1] * 8, 6, 8, "events"),
    "vllm-completions-stream-logprobs.txt": ([1] * 3, None, None, "events"),
    "vllm-completions-stream-nousage.txt": ([1] * 3, None, None, "events"),
    "vllm-completions-stream-interval5-skip-tokenizer.txt": ([1, 5, 5, 1], 3, 12, "ids"),
    "vllm-completions-stream-sse-keepalive.txt": ([1, 1], 3, 2, "events"),
    "vllm-completions-stream-tokenids.txt": ([1] * 4, 8, 4, "ids"),
}
REFUSED = {
    "vllm-chat-400-badparam.txt": 400,
    "vllm-chat-500-skip-tokenizer.txt": 500,
    "vllm-completions-404-model.txt": 404,
    "vllm-completions-emptyprompt.txt": 400,
    "vllm-completions-prompt-plus-max-too-long.txt": 400,
    "vllm-completions-toolong.txt": 400,
}


def exchange_of(reads: list[bytes]) -> Exchange:
    exchange = Exchange(0, b"", Log())
    complete = False
    for at, data in enumerate(reads):
        assert not complete, "the end was seen before the last read"
        complete = exchange.took(data, to_stamp(at), at)
    assert complete, "the end was not seen"
    return exchange


def decode(exchange: Exchange) -> Response:
    (answer,) = decode_log([exchange], exchange.log)
    return answer


def split(raw: bytes, cuts: list[int]) -> list[bytes]:
    edges = [0, *sorted({cut for cut in cuts if 0 < cut < len(raw)}), len(raw)]
    return [raw[a:b] for a, b in pairwise(edges)]


def raw_of(name: str) -> bytes:
    return (STREAMS / name).read_bytes()


def test_every_captured_stream_is_expected_somewhere() -> None:
    streams = {path.name for path in STREAMS.glob("*.txt") if b"text/event-stream" in path.read_bytes()}
    assert streams == set(EXPECTED)


@pytest.mark.parametrize("name", sorted(EXPECTED))
def test_split_at_every_byte(name: str) -> None:
    raw = raw_of(name)
    whole = decode(exchange_of([raw]))
    assert whole.problem is None
    tokens, given_input, given_output, known = EXPECTED[name]
    assert (whole.event_tokens, whole.input_tokens, whole.output_tokens) == (tokens, given_input, given_output)
    assert whole.tokens_from == known
    for cut in range(1, len(raw)):
        answer = decode(exchange_of([raw[:cut], raw[cut:]]))
        assert told(answer) == told(whole), cut
    single = decode(exchange_of([raw[i : i + 1] for i in range(len(raw))]))
    assert told(single) == told(whole)


def told(answer: Response) -> tuple[object, ...]:
    return (
        answer.event_tokens,
        answer.tokens_from,
        answer.input_tokens,
        answer.output_tokens,
        answer.cached_tokens,
        answer.finish_reason,
        answer.problem,
        answer.done,
        answer.server_metrics,
    )


@pytest.mark.parametrize(("name", "status"), REFUSED.items())
def test_refusals_keep_the_servers_words(name: str, status: int) -> None:
    raw = raw_of(name)
    for cut in range(1, len(raw)):
        answer = decode(exchange_of([raw[:cut], raw[cut:]]))
        assert answer.problem is not None
        kind, detail = answer.problem
        assert kind == "status"
        assert detail.startswith(f"status {status}: ")
    if name == "vllm-completions-404-model.txt":
        assert detail == "status 404: The model `nope` does not exist. Valid aliases: tiny."


HEAD = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\n"


def chunked(*pieces: bytes) -> bytes:
    body = b"".join(b"%x\r\n%s\r\n" % (len(piece), piece) for piece in pieces)
    return HEAD + b"transfer-encoding: chunked\r\n\r\n" + body + b"0\r\n\r\n"


def completion(text: str, finish: str = "null", ids: str = "null") -> bytes:
    return b'data: {"id":"a","choices":[{"index":0,"text":"%s","finish_reason":%s,"token_ids":%s}]}\n\n' % (
        text.encode(),
        finish.encode(),
        ids.encode(),
    )


USAGE = b'data: {"choices":[],"usage":{"prompt_tokens":5,"completion_tokens":%d}}\n\n'
DONE = b"data: [DONE]\n\n"


@pytest.mark.parametrize(
    ("pieces", "tokens", "known"),
    [
        ([completion(" a"), completion("", '"stop"'), USAGE % 1, DONE], [1], "events"),  # a closing event is no token
        ([completion(" a"), completion(""), completion("b", '"length"'), USAGE % 3], [1, 1, 1], "events"),
        ([completion(""), completion(" a"), completion("b", '"length"'), USAGE % 2], [1, 1], "events"),
        ([completion(" a b c"), completion(" d", '"length"'), USAGE % 4], [2, 2], "spread"),
        ([completion("", ids="[7]"), completion("", '"length"', "[8,9]"), USAGE % 3], [1, 2], "ids"),
        ([completion("", ids="[]"), completion("", '"length"', "[8,9]"), USAGE % 2], [2], "ids"),
    ],
)
def test_what_counts_as_a_token(pieces: list[bytes], tokens: list[int], known: str) -> None:
    answer = decode(exchange_of([chunked(*pieces)]))
    assert (answer.event_tokens, answer.tokens_from, answer.problem) == (tokens, known, None)


def test_usage_in_the_last_choice_event_and_no_done() -> None:
    last = b'data: {"choices":[{"index":0,"text":"b","finish_reason":"length"}],"usage":{"completion_tokens":2}}\n\n'
    answer = decode(exchange_of([chunked(completion("a"), last)]))
    assert (answer.event_tokens, answer.output_tokens, answer.done) == ([1, 1], 2, False)


def test_crlf_lines_and_a_last_line_without_end() -> None:
    pieces = [completion("a").replace(b"\n", b"\r\n"), completion("b", '"length"').rstrip()]
    answer = decode(exchange_of([chunked(*pieces)]))
    assert answer.event_tokens == [1, 1]


def test_reasoning_is_a_token_and_a_role_is_not() -> None:
    deltas = ['"role":"assistant","content":""', '"reasoning_content":"hm"', '"content":"x"']
    pieces = [b'data: {"choices":[{"index":0,"delta":{%s}}]}\n\n' % delta.encode() for delta in deltas]
    raw = chunked(*pieces)
    reads = split(raw, [raw.index(b'{"reas') - 5, raw.index(b'"content":"x"')])
    answer = decode(exchange_of(reads))
    assert answer.event_read == [1, 2]


def test_content_length_and_body_until_close() -> None:
    body = completion("a") + completion("b", '"length"') + DONE
    by_length = decode(exchange_of([HEAD + b"content-length: %d\r\n\r\n" % len(body) + body]))
    assert by_length.event_tokens == [1, 1]
    open_ended = Exchange(0, b"", Log())
    assert not open_ended.took(HEAD + b"\r\n" + body, to_stamp(1), 1)
    assert open_ended.framing.until_close
    open_ended.framing.done = True  # what the connection says at end of file
    assert decode(open_ended).problem is None


def test_interim_response_is_skipped() -> None:
    raw = b"HTTP/1.1 100 Continue\r\n\r\n" + chunked(completion("a", '"length"'))
    for cut in range(1, len(raw)):
        assert decode(exchange_of([raw[:cut], raw[cut:]])).event_tokens == [1]


@pytest.mark.parametrize(
    ("body", "kind", "words"),
    [
        ([b"data: {broken\n\n"], "protocol", "not JSON"),
        ([b"data: [1]\n\n"], "protocol", "not a JSON object"),
        ([b'data: {"choices":[7]}\n\n'], "protocol", "unknown form"),
        ([b'data: {"error":{"message":"out of vocabulary","code":400}}\n\n', DONE], "stream", "out of vocabulary"),
        ([DONE], "protocol", "without a token"),
        ([b": keep-alive\n\n"], "protocol", "without a token"),
    ],
)
def test_bad_streams_are_problems_not_exceptions(body: list[bytes], kind: str, words: str) -> None:
    problem = decode(exchange_of([chunked(*body)])).problem
    assert problem is not None
    assert problem[0] == kind
    assert words in problem[1]


@given(st.binary(max_size=400))
def test_garbage_never_raises(garbage: bytes) -> None:
    for raw in (chunked(garbage), garbage):
        exchange = Exchange(0, b"", Log())
        exchange.log.add(0, raw, to_stamp(0), 0)
        answer = decode(exchange)
    assert answer.problem is not None


def test_bytes_one_by_one_cost_no_more_than_their_number() -> None:
    """Work, not time: a line in many pieces is joined once."""
    event = completion("x" * 50_000, '"length"')
    answer = decode(exchange_of([chunked(*(event[i : i + 1] for i in range(len(event))))]))
    assert answer.event_tokens == [1]


LEAVES = (
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5) | st.sampled_from(["\ud800", "error"])
)
NAMES = st.sampled_from(
    [
        "choices",
        "delta",
        "text",
        "content",
        "role",
        "usage",
        "prompt_tokens",
        "completion_tokens",
        "prompt_tokens_details",
        "cached_tokens",
        "error",
        "message",
        "finish_reason",
        "token_ids",
        "index",
        "timings",
        "metrics",
        "cache_n",
        "x_groq",
        "id",
        "type",
        "code",
        "detail",
    ]
)
TREES = st.recursive(
    LEAVES, lambda part: st.lists(part, max_size=3) | st.dictionaries(NAMES, part, max_size=5), max_leaves=25
)


@settings(max_examples=60)
@given(
    st.lists(
        st.fixed_dictionaries({"choices": st.lists(TREES, max_size=2)}, optional={"usage": TREES, "error": TREES})
        | TREES,
        max_size=6,
    ),
    st.integers(1, 200),
)
def test_no_json_raises_and_its_record_can_be_written(events: list[object], size: int) -> None:
    raw = chunked(*(b"data: " + json.dumps(event).encode() + b"\n\n" for event in events), DONE)
    exchange = Exchange(0, b"", Log())
    for begin in range(0, len(raw), size):
        exchange.log.add(0, raw[begin : begin + size], to_stamp(begin), begin)
    columns = collect([exchange], exchange.log, job([4], [4], exact=False))
    record = round_table(columns, {}, {}).to_pylist()[0]
    assert len(record["event_ns"]) == len(record["event_tokens"])
    assert all(count > 0 for count in record["event_tokens"])
    assert record["status"] == "failed" or record["event_tokens"]
