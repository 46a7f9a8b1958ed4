"""The simulator over HTTP, through plain sockets: what is on the wire, byte for byte."""

from __future__ import annotations

import json
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from urllib.parse import urlsplit

import pytest
from driving import BENCH, bench
from hypothesis import given, settings
from hypothesis import strategies as st

from benchbench.engines.simulator import ProfileError, SimulatorError, SimulatorProcess, load_profile
from benchbench.engines.simulator.http import HttpRequest
from benchbench.engines.simulator.streams import Streams
from benchbench.engines.simulator.vocabulary import decode

SSE = Path(__file__).parent / "data" / "sse"
IDS = {"ignore_eos": True, "stream": True, "stream_options": {"include_usage": True}}
CHUNK_SIZE = re.compile(rb"([0-9a-f]+)\r\n")
CHAT = {"messages": [{"role": "user", "content": "hello there"}], **IDS}


@dataclass
class Reply:
    status: int
    headers: dict[str, str]
    chunks: list[bytes] = field(default_factory=list)
    body: bytes = b""
    complete: bool = True  # the body ended as its framing promised
    reset: bool = False

    @property
    def events(self) -> list[Any]:
        """The JSON of each `data:` event but [DONE]."""
        data = [c.removeprefix(b"data: ") for c in self.chunks if c.startswith(b"data: ")]
        return [json.loads(d) for d in data if d.strip() != b"[DONE]"]

    @property
    def json(self) -> Any:
        return json.loads(self.body)

    @property
    def usage(self) -> Any:
        return self.events[-1]["usage"]

    @property
    def tokens(self) -> int:
        return sum(len(c.get("token_ids") or []) for e in self.events for c in e.get("choices", []))


def read_reply(raw: bytes, *, reset: bool = False) -> Reply:
    head, _, rest = raw.partition(b"\r\n\r\n")
    lines = head.decode().split("\r\n")
    headers = dict(line.split(": ", 1) for line in lines[1:])
    reply = Reply(int(lines[0].split()[1]), headers, body=rest, reset=reset)
    if "content-length" in headers:
        reply.complete = len(rest) == int(headers["content-length"])
        return reply
    at = 0
    while (match := CHUNK_SIZE.match(rest, at)) and (size := int(match[1], 16)):
        start, at = match.end(), match.end() + size + 2
        assert rest[at - 2 : at] in (b"\r\n", b"")
        reply.chunks.append(rest[start : at - 2])
    reply.complete = rest[at:] == b"0\r\n\r\n"
    return reply


def connect(url: str) -> socket.socket:
    parts = urlsplit(url)
    assert parts.hostname
    assert parts.port
    return socket.create_connection((parts.hostname, parts.port), timeout=20)


def request_bytes(method: str, path: str, body: object = None, **headers: str) -> bytes:
    data = body if isinstance(body, bytes) else b"" if body is None else json.dumps(body).encode()
    fields = {"host": "sim", "content-length": str(len(data)), **headers}
    return f"{method} {path} HTTP/1.1\r\n".encode() + b"".join(
        f"{name.replace('_', '-')}: {value}\r\n".encode() for name, value in fields.items()
    ) + b"\r\n" + data  # fmt: skip


def ask(url: str, method: str, path: str, body: object = None, **headers: str) -> Reply:
    """One request on a connection of its own, read to its end."""
    with closing(connect(url)) as sock:
        sock.sendall(request_bytes(method, path, body, connection="close", **headers))
        raw = b""
        try:
            while data := sock.recv(1 << 16):
                raw += data
        except ConnectionResetError:
            return read_reply(raw, reset=True)
        return read_reply(raw)


def complete(url: str, **body: object) -> Reply:
    wanted = {"prompt": list(range(100, 120)), "max_tokens": 8, "return_token_ids": True, **IDS, **body}
    return ask(url, "POST", "/v1/completions", wanted)


def truth(url: str, query: str = "") -> Any:
    return ask(url, "GET", f"/truth{query}").json["requests"]


def metric(url: str, name: str, label: str = "") -> float:
    text = ask(url, "GET", "/metrics").body.decode()
    match = re.search(rf"^vllm:{name}{{[^}}]*{label}[^}}]*}} (\S+)$", text, re.MULTILINE)
    assert match, name
    return float(match[1])


@pytest.fixture(scope="module")
def sim() -> Iterator[str]:
    with SimulatorProcess("tiny", models=["tiny", "alias"]) as process:
        yield process.url


def faulty(**faults: object) -> SimulatorProcess:
    return SimulatorProcess("tiny", options={"faults": faults})


# Form.


def skeleton(value: Any) -> Any:
    """The keys in order, and the types of values; numbers and texts stand for any."""
    if isinstance(value, dict):
        return [(key, skeleton(v)) for key, v in value.items()]
    if isinstance(value, list):
        return [skeleton(v) for v in value if not isinstance(v, int)] or ["ints"] * bool(value)
    return value if value is None else type(value).__name__


def captured(name: str) -> Reply:
    return read_reply((SSE / f"{name}.txt").read_bytes())


@pytest.mark.parametrize(
    ("name", "path", "body"),
    [
        ("vllm-completions-stream-ids", "completions", {"prompt": [10] * 8, "max_tokens": 8, **IDS}),
        ("vllm-completions-stream-text", "completions", {"prompt": "some words here", "max_tokens": 8, **IDS}),
        (
            "vllm-completions-stream-tokenids",
            "completions",
            {"prompt": [10] * 8, "max_tokens": 4, "return_token_ids": True, **IDS},
        ),
        (
            "vllm-completions-stream-nousage",
            "completions",
            {"prompt": [10] * 6, "max_tokens": 3, "ignore_eos": True, "stream": True},
        ),
        ("vllm-chat-stream", "chat/completions", {**CHAT, "max_tokens": 8}),
        ("vllm-chat-stream-tokenids", "chat/completions", {**CHAT, "max_tokens": 4, "return_token_ids": True}),
    ],
)
def test_streams_have_the_form_of_captured_ones(sim: str, name: str, path: str, body: dict[str, object]) -> None:
    expected, got = captured(name), ask(sim, "POST", f"/v1/{path}", body)
    assert got.complete
    assert [skeleton(event) for event in got.events] == [skeleton(event) for event in expected.events]
    assert len(got.chunks) == len(expected.chunks)
    assert got.chunks[-1] == expected.chunks[-1] == b"data: [DONE]\n\n"
    for header in ("content-type", "transfer-encoding"):
        assert got.headers[header] == expected.headers[header]
    ends = [choice["finish_reason"] for event in got.events for choice in event["choices"]]
    assert ends == [choice["finish_reason"] for event in expected.events for choice in event["choices"]]


def test_several_tokens_an_event_and_empty_texts_have_the_form_of_captured_ones() -> None:
    expected = captured("vllm-completions-stream-interval5-skip-tokenizer")
    with SimulatorProcess("tiny", options={"tokens_per_event": 5, "empty_text": True}) as process:
        got = complete(process.url, prompt=[10, 11, 12], max_tokens=12)
        assert [r["tokens"] for r in truth(process.url)] == [[1, 5, 5, 1]]
    assert [skeleton(event) for event in got.events] == [skeleton(event) for event in expected.events]
    assert [len(e["choices"][0]["token_ids"]) for e in got.events[:-1]] == [1, 5, 5, 1]
    assert got.usage["completion_tokens"] == 12


def test_whole_answers_have_the_form_of_captured_ones(sim: str) -> None:
    body = {"prompt": [1, 2, 3], "max_tokens": 3, "ignore_eos": True}
    got = ask(sim, "POST", "/v1/completions", body)
    assert skeleton(got.json) == skeleton(captured("vllm-completions-nostream").json)
    assert got.json["usage"]["completion_tokens"] == 3
    chat = ask(sim, "POST", "/v1/chat/completions", {**CHAT, "stream": False, "stream_options": None, "max_tokens": 2})
    assert chat.json["choices"][0]["message"]["role"] == "assistant"
    assert len(chat.json["choices"][0]["message"]["content"].split()) == 2


@pytest.mark.parametrize(
    ("name", "path", "body"),
    [
        ("vllm-completions-404-model", "completions", {"model": "nope", "prompt": [20]}),
        ("vllm-completions-emptyprompt", "completions", {"prompt": ""}),
        ("vllm-completions-emptyprompt", "completions", {"prompt": []}),
        ("vllm-completions-toolong", "completions", {"prompt": [20] * 6000}),
        ("vllm-completions-prompt-plus-max-too-long", "completions", {"prompt": [20], "max_tokens": 100_000}),
        ("vllm-chat-400-badparam", "chat/completions", {**CHAT, "max_tokens": -5}),
    ],
)
def test_errors_are_vllms_to_the_letter(name: str, path: str, body: dict[str, object]) -> None:
    expected = captured(name)
    with SimulatorProcess("tiny", models=["tiny"]) as process:
        got = ask(process.url, "POST", f"/v1/{path}", body)
    assert (got.status, got.body) == (expected.status, expected.body.rstrip())


@pytest.mark.parametrize(
    ("method", "path", "body", "status", "message"),
    [
        ("POST", "/v1/completions", b"{not json", 400, "JSON decode error"),
        ("POST", "/v1/completions", [1], 400, "must be a JSON object"),
        ("POST", "/v1/completions", {"prompt": [20], "n": 2}, 400, "n=1"),
        ("POST", "/v1/completions", {"prompt": [[20], [21]]}, 400, "one prompt"),
        ("POST", "/v1/completions", {"prompt": [20], "max_tokens": "8"}, 400, "must be an integer"),
        ("POST", "/v1/completions", {"prompt": [20], "max_tokens": 2, "min_tokens": 3}, 400, "min_tokens"),
        ("POST", "/v1/completions", {"prompt": [20] * 4000, "max_tokens": 97}, 400, "total of 4097 tokens"),
        ("POST", "/v1/completions", {"prompt": [300_000]}, 400, "Token id 300000 is out of vocabulary"),
        ("POST", "/v1/completions", {"prompt": [20], "stream_options": {"include_usage": True}}, 400, "stream=True"),
        ("POST", "/v1/chat/completions", {"messages": []}, 400, "messages"),
        ("GET", "/v1/completions", None, 405, "Method Not Allowed"),
        ("GET", "/nowhere", None, 404, '{"detail":"Not Found"}'),
    ],
)
def test_bad_requests_are_refused(sim: str, method: str, path: str, body: object, status: int, message: str) -> None:
    got = ask(sim, method, path, body)
    assert got.status == status
    assert message in got.body.decode()
    assert got.complete


def test_an_unknown_token_is_an_error_inside_a_stream_that_began_well(sim: str) -> None:
    got = complete(sim, prompt=[20, 2**70, 21])
    assert got.status == 400  # beyond what JSON parsers keep exact, it is no id at all
    for token in (2**40, -3, 200_064):
        got = complete(sim, prompt=[20, token])
        assert got.status == 200
        assert got.complete
        assert got.events[0]["error"]["message"] == f"Token id {token} is out of vocabulary"
        assert got.chunks[-1] == b"data: [DONE]\n\n"


# Routes.


def test_small_routes(sim: str) -> None:
    assert ask(sim, "GET", "/health").status == 200
    assert ask(sim, "GET", "/version").json["version"]
    models = ask(sim, "GET", "/v1/models").json["data"]
    assert [(m["id"], m["max_model_len"], m["owned_by"]) for m in models] == [
        ("tiny", 4096, "benchbench"),
        ("alias", 4096, "benchbench"),
    ]
    assert ask(sim, "POST", "/reset_prefix_cache").json == {"success": True}


def test_texts_are_counted_as_tokenize_counts_them(sim: str) -> None:
    text = "Benchmarks of LLM servers, twice  over\n"
    tokens = ask(sim, "POST", "/tokenize", {"prompt": text}).json
    assert tokens["count"] == len(tokens["tokens"])
    assert complete(sim, prompt=text).usage["prompt_tokens"] == tokens["count"]
    chat = ask(sim, "POST", "/tokenize", {"messages": CHAT["messages"]}).json
    assert ask(sim, "POST", "/v1/chat/completions", {**CHAT, "max_tokens": 1}).usage["prompt_tokens"] == chat["count"]
    ids = [2000, 30_000, 77]
    assert ask(sim, "POST", "/tokenize", {"prompt": decode(ids)}).json["tokens"] == ids


def test_usage_and_outputs_are_right_and_repeatable(sim: str) -> None:
    first, second, other = complete(sim, max_tokens=5), complete(sim, max_tokens=5), complete(sim, prompt=[9] * 20)
    assert first.usage == {"prompt_tokens": 20, "total_tokens": 25, "completion_tokens": 5}
    assert first.tokens == 5

    def ids(reply: Reply) -> list[int]:
        return [t for event in reply.events for choice in event["choices"] for t in choice["token_ids"]]

    assert ids(first) == ids(second)
    assert ids(first) != ids(other)[:5]
    text = "".join(c["text"] for event in first.events for c in event["choices"])
    assert ask(sim, "POST", "/tokenize", {"prompt": text}).json["tokens"] == ids(first)


def test_without_ignore_eos_outputs_end_when_they_will() -> None:
    ends = []
    with SimulatorProcess("tiny", options={"mean_output_tokens": 20}) as process:
        for i in range(12):
            got = complete(process.url, prompt=[50 + i], ignore_eos=False, min_tokens=3, max_tokens=60)
            reason = got.events[-2]["choices"][0]["finish_reason"]
            assert (reason == "stop") == (got.usage["completion_tokens"] < 60)
            ends.append(got.usage["completion_tokens"])
            assert got.tokens == ends[-1] >= 3
    assert len(set(ends)) > 6
    assert min(ends) < 60


def test_metrics_count_what_was_served() -> None:
    with SimulatorProcess("tiny") as process:
        for prompt in ([5] * 40, [5] * 40, [6] * 10):
            complete(process.url, prompt=prompt, max_tokens=3)
        expected = {
            "prompt_tokens_total": 90,
            "generation_tokens_total": 9,
            "prefix_cache_queries_total": 90,
            "prefix_cache_hits_total": 32,
            "num_preemptions_total": 0,
            "num_requests_running": 0,
            "num_requests_waiting": 0,
            "time_to_first_token_seconds_count": 3,
            "request_queue_time_seconds_count": 3,
        }
        assert {name: metric(process.url, name) for name in expected} == expected
        assert metric(process.url, "request_success_total", 'finished_reason="length"') == 3
        real = set(re.findall(r"vllm:\w+", (SSE.parent / "vllm-metric-names.txt").read_text()))
        ours = set(re.findall(r"^(vllm:\w+)", ask(process.url, "GET", "/metrics").body.decode(), re.MULTILINE))
        assert ours <= real
        assert ask(process.url, "POST", "/reset_prefix_cache").status == 200
        assert complete(process.url, prompt=[5] * 40).complete
        assert metric(process.url, "prefix_cache_hits_total") == 32


def test_prefix_hits_are_told_when_asked() -> None:
    with SimulatorProcess("tiny", options={"report_cached": True}) as process:
        told = [complete(process.url, prompt=[5] * 40).usage["prompt_tokens_details"] for _ in range(2)]
        assert told == [{"cached_tokens": 0}, {"cached_tokens": 32}]
        assert [r["cached_tokens"] for r in truth(process.url)] == [0, 32]


def test_a_small_kv_cache_preempts_and_loses_no_token() -> None:
    options = {"kv_tokens": 120, "max_model_len": 100, "prefix_cache": False}
    with SimulatorProcess("tiny", options=options) as process:
        socks = [connect(process.url) for _ in range(4)]
        for i, sock in enumerate(socks):
            body = {"prompt": [50 + i] * 20, "max_tokens": 60, **IDS}
            sock.sendall(request_bytes("POST", "/v1/completions", body, connection="close"))
        for sock in socks:
            with closing(sock):
                raw = b"".join(iter(lambda s=sock: s.recv(1 << 16), b""))
            assert read_reply(raw).usage["completion_tokens"] == 60
        assert metric(process.url, "num_preemptions_total") > 0


# The oracle.


def test_truth_agrees_with_the_wire(sim: str) -> None:
    truth(sim, "?clear=1")
    before = time.time_ns()
    with closing(connect(sim)) as sock:
        whole = request_bytes("POST", "/v1/completions", {"prompt": [9] * 30, "max_tokens": 6, **IDS})
        sock.sendall(whole[:-1])
        assert truth(sim) == []  # nothing is received before its last byte
        middle = time.time_ns()
        sock.sendall(whole[-1:] + request_bytes("GET", "/health", connection="close"))
        raw = b"".join(iter(lambda: sock.recv(1 << 16), b""))
    after = time.time_ns()
    assert raw.index(b"[DONE]") < raw.rindex(b"HTTP/1.1 200 OK")  # one connection, answered in turn
    [request] = truth(sim, "?clear=1")
    assert f'"id":"{request["id"]}"'.encode() in raw
    assert request["prompt_tokens"] == 30
    assert request["tokens"] == [1] * 6
    assert before < middle < request["received_ns"] < request["planned_ns"][0]
    assert all(planned <= write for planned, write in zip(request["planned_ns"], request["writes_ns"], strict=True))
    assert request["writes_ns"] == sorted(request["writes_ns"])
    assert request["writes_ns"][-1] < after
    assert truth(sim) == []


def test_fixed_profile_plans_from_the_kernel_stamp() -> None:
    with SimulatorProcess("fixed", scale=0.1) as process:
        complete(process.url, max_tokens=4)
        [request] = truth(process.url)
    since = [planned - request["received_ns"] for planned in request["planned_ns"]]
    assert since == [10_000_000, 11_000_000, 12_000_000, 13_000_000]


def test_a_client_that_leaves_is_aborted(sim: str) -> None:
    truth(sim, "?clear=1")
    with closing(connect(sim)) as sock:
        sock.sendall(request_bytes("POST", "/v1/completions", {"prompt": [9] * 30, "max_tokens": 4000, **IDS}))
        sock.recv(100)
    deadline = time.monotonic() + 20
    while metric(sim, "num_requests_running") and time.monotonic() < deadline:
        pass
    [request] = truth(sim, "?clear=1")
    assert request["finish_reason"] == "abort"
    assert sum(request["tokens"]) < 4000


def test_a_slow_reader_loses_nothing_and_delays_nobody() -> None:
    options = {"law": {"kind": "fixed", "ttft_s": 0.0, "itl_s": 1e-6}, "max_model_len": 100_000}
    with SimulatorProcess("tiny", options=options) as process, closing(connect(process.url)) as slow:
        body = {"prompt": [9], "max_tokens": 40_000, "return_token_ids": True, **IDS}
        slow.sendall(request_bytes("POST", "/v1/completions", body, connection="close"))
        assert complete(process.url).complete
        while metric(process.url, "num_requests_running"):
            time.sleep(0.01)
        raw = b"".join(iter(lambda: slow.recv(1 << 20), b""))
    got = read_reply(raw)
    assert got.complete
    assert got.tokens == 40_000


# Options.


def test_api_key_close_and_keep_alive_comments() -> None:
    options = {"api_key": "secret", "close_after_response": True, "keep_alive_s": 0.002, "law": {"base_s": 0.03}}
    with SimulatorProcess("tiny", options=options) as process:
        assert ask(process.url, "GET", "/v1/models").status == 401
        assert ask(process.url, "GET", "/health").status == 200
        body = {"prompt": [9], "max_tokens": 2, **IDS}
        assert ask(process.url, "POST", "/v1/completions", body).status == 401
        with closing(connect(process.url)) as sock:
            sock.sendall(request_bytes("POST", "/v1/completions", body, authorization="Bearer secret"))
            got = read_reply(b"".join(iter(lambda: sock.recv(1 << 16), b"")))  # ends, though not asked to
    assert got.headers["connection"] == "close"
    assert got.usage["completion_tokens"] == 2
    comments = [chunk == b": keep-alive\n\n" for chunk in got.chunks]
    assert comments == sorted(comments, reverse=True)
    assert comments[0]


@pytest.mark.parametrize(
    ("options", "check"),
    [
        ({"role_first": False}, lambda got: "role" not in got.events[0]["choices"][0]["delta"]),
        (
            {"usage_in_last_choice": True},
            lambda got: got.events[-1]["choices"][0]["finish_reason"] and got.usage["completion_tokens"] == 8,
        ),
        ({"send_done": False}, lambda got: b"[DONE]" not in got.chunks[-1] and got.complete),
        ({"faults": {"missing_usage": True}}, lambda got: not any("usage" in event for event in got.events)),
        (
            {"faults": {"wrong_usage": {"prompt_tokens": 7, "completion_tokens": -2}}},
            lambda got: (
                (got.usage["completion_tokens"], got.usage["total_tokens"]) == (6, 6 + got.usage["prompt_tokens"])
            ),
        ),
        (
            {"faults": {"cached_tokens": 5}},
            lambda got: got.usage["prompt_tokens_details"] == {"cached_tokens": 5},
        ),
        (
            {"faults": {"short_output": {"tokens": 3}}},
            lambda got: (
                got.usage["completion_tokens"] == 5 == got.tokens
                and got.events[-2]["choices"][0]["finish_reason"] == "stop"
            ),
        ),
        ({"faults": {"short_output": {"tokens": -3}}}, lambda got: got.usage["completion_tokens"] == 11),
        (
            {"faults": {"reasoning_start": 3}},
            lambda got: (
                [sorted(e["choices"][0]["delta"]) for e in got.events[1:6]]
                == [["reasoning_content"]] * 3 + [["content"]] * 2
            ),
        ),
    ],
)
def test_answers_that_stray_from_the_form(options: dict[str, object], check: Any) -> None:
    with SimulatorProcess("tiny", options=options) as process:
        got = ask(process.url, "POST", "/v1/chat/completions", {**CHAT, "max_tokens": 8, "return_token_ids": True})
    assert got.status == 200
    assert check(got), got.chunks


def test_an_early_role_chunk_comes_with_the_headers() -> None:
    with (
        SimulatorProcess("fixed", options={"faults": {"role_early": True}}) as process,
        closing(connect(process.url)) as sock,
    ):
        sock.sendall(request_bytes("POST", "/v1/chat/completions", {**CHAT, "max_tokens": 1}, connection="close"))
        raw = b""
        while b'"role"' not in raw:
            raw += sock.recv(1 << 16)
        written = time.time_ns()
        raw += b"".join(iter(lambda: sock.recv(1 << 16), b""))
        assert raw.count(b'"role"') == 1
        assert written < truth(process.url)[0]["writes_ns"][0]


# Faults.


def test_broken_streams_break_in_the_middle() -> None:
    with faulty(reset_share=1) as process:
        got = complete(process.url)
        assert got.reset
        [request] = truth(process.url)
        assert (sum(request["tokens"]), request["finish_reason"]) == (4, "error")
    with faulty(cut_share=1) as process:
        got = complete(process.url)
        assert (got.reset, got.complete, got.tokens) == (False, False, 4)
    with faulty(error_in_stream_share=1) as process:
        got = complete(process.url)
        assert (got.status, got.complete, got.tokens) == (200, True, 4)
        assert got.events[-1]["error"]["code"] == 500
        got = complete(process.url, stream=False, stream_options=None)
        assert (got.status, got.json["error"]["type"]) == (500, "InternalServerError")
        assert metric(process.url, "num_requests_running") == 0


def test_silence_is_headers_and_nothing_more() -> None:
    with faulty(silence_share=1) as process, closing(connect(process.url)) as sock:
        sock.sendall(request_bytes("POST", "/v1/completions", {"prompt": [9], "max_tokens": 2, **IDS}))
        assert sock.recv(1 << 16).startswith(b"HTTP/1.1 200 OK")
        sock.settimeout(0.3)
        with pytest.raises(TimeoutError):
            sock.recv(1)


def test_shares_hit_the_same_requests_in_every_run() -> None:
    def statuses(seed: int) -> list[int]:
        faults = {"status": {"code": 429, "share": 0.5, "retry_after": 3}}
        with SimulatorProcess("tiny", options={"seed": seed, "faults": faults}) as process:
            replies = [complete(process.url, max_tokens=1) for _ in range(16)]
        assert {r.headers.get("retry-after") for r in replies if r.status == 429} == {"3"}
        return [r.status for r in replies]

    first = statuses(1)
    assert set(first) == {200, 429}
    assert statuses(1) == first != statuses(2)


def test_pace_faults_are_in_the_plan() -> None:
    law = {"law": {"kind": "fixed", "ttft_s": 0.004, "itl_s": 0.002}}
    faults = {"drift": 0.5, "slow_first": {"count": 1, "factor": 3}, "stall": {"every": 3, "for_s": 0.01}}
    with SimulatorProcess("tiny", options={**law, "faults": faults}) as process:
        for _ in range(2):
            complete(process.url, max_tokens=4)
        plans = [[p - r["received_ns"] for p in r["planned_ns"]] for r in truth(process.url)]
    ms = 10**6
    assert plans == [[12 * ms, 18 * ms, 34 * ms, 40 * ms], [6 * ms, 9 * ms, 22 * ms, 25 * ms]]


class Heard:
    """A wire that only keeps what is sent; the streams need no more of one."""

    def __init__(self) -> None:
        self.said: dict[int, bytes] = {}

    def send(self, connection: Any, data: bytes, *, last: bool = False) -> None:  # noqa: ARG002 - as the wire's
        self.said[connection.number] = self.said.get(connection.number, b"") + data


@given(st.lists(st.booleans(), max_size=60), st.integers(1, 3), st.booleans())
@settings(max_examples=60)
def test_what_is_made_beforehand_changes_no_byte(pauses: list[bool], per_event: int, fixed: bool) -> None:
    """The engine has time before some steps and none before others, as on a busy machine."""
    law = {"law": {"kind": "fixed", "ttft_s": 0.01, "itl_s": 0.003}} if fixed else {}
    profile = load_profile("tiny", {**law, "tokens_per_event": per_event, "mean_output_tokens": 6})

    def told(pauses: list[bool]) -> list[bytes]:
        heard = Heard()
        streams = Streams(profile, ["sim"], heard)  # type: ignore[arg-type]
        for number in range(4):
            body = {
                "prompt": [50 + number] * 20,
                "max_tokens": 12,
                "return_token_ids": True,
                **IDS,
                "ignore_eos": False,
            }
            request = HttpRequest(body=json.dumps(body).encode(), received_ns=number)
            streams.admit(SimpleNamespace(number=number, keep_alive=True, on_leave=None), request)  # type: ignore[arg-type]
        left = [*pauses]
        while (due := streams.next_due_ns()) is not None:
            if left and left.pop():
                streams.prepare()
            streams.work(due)
        streams.prepare()
        return [re.sub(rb'"created":\d+|"id":"cmpl-\w+"', b"", said) for _, said in sorted(heard.said.items())]

    assert told(pauses) == told([])


# The process.


def test_it_says_why_it_cannot_start() -> None:
    with pytest.raises(ProfileError, match=r"no simulator profile 'nope' \(allowed: fixed, tiny, w7900d"):
        SimulatorProcess("nope")
    with SimulatorProcess("tiny") as process:
        port = urlsplit(process.url).port
        assert port
        with pytest.raises(SimulatorError, match="Address already in use"):
            _ = SimulatorProcess("tiny", port=port).url


def test_close_waits_for_its_end() -> None:
    process = SimulatorProcess("tiny")
    url = process.url
    with closing(connect(url)):  # an open connection does not hold it
        process.close()
    process.close()
    assert not listens(url)


@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGINT])
def test_by_hand_it_takes_options_and_ends_on_a_signal(signum: signal.Signals) -> None:
    command = [*BENCH, "sim", "--profile", "tiny", "--port", "0", "--model", "a", "--set", "faults.cached_tokens=7"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout
        said = process.stdout.readline()
        url = said.split(" at ")[1].split()[0]
        assert "profile tiny" in said
        assert complete(url, model="a").usage["prompt_tokens_details"] == {"cached_tokens": 7}
        process.send_signal(signum)
        assert process.wait(20) == 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--set", "faults.drfit=1"], "bench sim: fixed: faults.drfit: unknown key, did you mean drift?"),
        (["--set", "x"], "--set x: is not key.path=value"),
        (["--profile", "nope"], "bench sim: no simulator profile 'nope'"),
        (["--scale", "0"], "bench sim: scale must be a number above 0"),
    ],
)
def test_by_hand_bad_options_are_named(arguments: list[str], message: str) -> None:
    result = bench("sim", *arguments)
    assert (result.exit_code, result.stdout) == (2, "")
    assert result.stderr.startswith(message)
    assert result.stderr.count("\n") == 1


def test_it_dies_with_a_parent_that_is_killed() -> None:
    code = """
import time
from benchbench.engines.simulator import SimulatorProcess
process = SimulatorProcess("tiny")
print(process.url, flush=True)
time.sleep(60)
"""
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout
        url = parent.stdout.readline().strip()
        connect(url).close()
        parent.kill()
    deadline = time.monotonic() + 20
    while listens(url) and time.monotonic() < deadline:
        time.sleep(0.01)
    assert not listens(url)


def listens(url: str) -> bool:
    try:
        connect(url).close()
    except ConnectionRefusedError:
        return False
    return True
