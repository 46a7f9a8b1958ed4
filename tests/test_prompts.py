"""Prompts, request bodies and arrivals: reproducible from the seed, and never the same twice."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from benchbench.engines.open import access_of
from benchbench.errors import EngineError
from benchbench.openai.target import Access, make_target
from benchbench.prompts.arrivals import due_offsets_ns
from benchbench.prompts.round_job import bodies, make_job
from benchbench.prompts.seeds import round_generator
from benchbench.refills.quota import Quota
from benchbench.spec import Cell, EndpointEngine, make_plan, spec_from_mapping

VOCAB = (1000, 200_000)
TARGET = make_target("http://127.0.0.1:8000", "completions", Access())


def cells(**changes: Any) -> tuple[Cell, ...]:
    base = {
        "name": "s",
        "model": "m",
        "engine": {"kind": "endpoint", "url": "http://127.0.0.1:8000"},
        "grid": {"input": 16, "output": 8, "batch": 4},
        "order": "as_written",
    }
    return make_plan(spec_from_mapping(base | changes)).cells


def words(generator: np.random.Generator, count: int, tokens: int) -> list[str]:
    """Stands in for `exact_texts`: as many words as tokens."""
    return [" ".join(f"w{k}" for k in row) for row in generator.integers(0, 200_000, (count, tokens))]


def made(cell: Cell, phase: str = "measured", number: int = 0, attempt: int = 0) -> list[bytes]:
    source = VOCAB if cell.prompts.kind == "token_ids" else words
    inputs, outputs = ([tokens] * cell.requests for tokens in (cell.input or 0, cell.output))
    return bodies(cell, round_generator(cell, phase, number, attempt), inputs, outputs, source)


@pytest.mark.parametrize("kind", ["token_ids", "text"])
def test_no_two_prompts_of_a_sweep_are_equal_and_all_come_again(kind: str) -> None:
    def everything() -> list[str]:
        # Equal inputs in all cells but one, so that only what differs by name can make the prompts differ.
        grid = [{"input": 16, "output": [8, 9], "batch": [4, 5]}, {"input": 17, "output": 8, "batch": 4}]
        found = []
        for seed in (0, 1):
            for cell in cells(grid=grid, seed=seed, prompts={"kind": kind}):
                for phase in ("warmup", "measured"):
                    for place in ((0, 0), (1, 0), (0, 1)):
                        found += [json.dumps(json.loads(body)["prompt"]) for body in made(cell, phase, *place)]
        return found

    prompts = everything()
    assert len(set(prompts)) == len(prompts)
    assert len({prompt[:24] for prompt in prompts}) > 0.9 * len(prompts), "prompts share beginnings"
    assert everything() == prompts


def test_open_cells_of_different_rates_ask_different_prompts() -> None:
    slow, fast = cells(grid={"input": 16, "output": 8, "rate": [1, 2]}, load={"kind": "open", "requests": 3})
    assert not set(made(slow)) & set(made(fast))


def test_variants_of_an_engine_are_asked_the_same() -> None:
    one = cells()[0]
    other = cells(engine={"kind": "endpoint", "url": "http://10.0.0.1:9"})[0]
    assert one.key != other.key
    assert made(one) == made(other)


@given(st.integers(0, 2**31 - 2), st.integers(1, 5), st.integers(0, 9))
def test_token_ids_lie_in_the_vocabulary_and_use_all_of_it(low: int, wide: int, seed: int) -> None:
    high = min(low + wide, 2**31 - 1)
    cell = cells(grid={"input": 100, "output": 8, "batch": 2})[0]
    for body in bodies(cell, np.random.default_rng(seed), [100, 100], [8, 8], (low, high)):
        ids = json.loads(body)["prompt"]
        assert len(ids) == 100
        assert set(ids) == set(range(low, high))


EXACT = {
    "model": "m", "max_tokens": 8, "min_tokens": 8, "ignore_eos": True, "temperature": 0, "stream": True,
    "stream_options": {"include_usage": True}, "return_token_ids": True,
}  # fmt: skip
AS_SERVED = {key: EXACT[key] for key in ("model", "max_tokens", "temperature", "stream", "stream_options")}


def one_body(**changes: Any) -> dict[str, Any]:
    body: dict[str, Any] = json.loads(made(cells(**changes)[0])[0])
    return body


def test_the_fields_of_a_body() -> None:
    ids = one_body()
    assert {key: value for key, value in ids.items() if key != "prompt"} == EXACT
    text = one_body(prompts={"kind": "text"})
    assert text.keys() == ids.keys()
    assert len(text["prompt"].split()) == 16
    served = one_body(output="as_served")
    assert {key: value for key, value in served.items() if key != "prompt"} == AS_SERVED


def test_chat_asks_one_message_of_the_user() -> None:
    engine = {"kind": "endpoint", "url": "http://127.0.0.1:8000", "api": "chat"}
    chat = one_body(engine=engine, prompts={"kind": "text"})
    (message,) = chat.pop("messages")
    assert chat == EXACT
    assert message["role"] == "user"
    assert len(message["content"].split()) == 16


def test_extra_body_goes_over_everything() -> None:
    extra = {"temperature": 0.7, "ignore_eos": False, "top_k": 3, "stream_options": {"include_usage": False}}
    body = one_body(engine={"kind": "endpoint", "url": "http://127.0.0.1:8000", "extra_body": extra})
    assert {key: value for key, value in body.items() if key != "prompt"} == EXACT | extra


def test_a_job_asks_what_the_cell_says() -> None:
    closed = cells(load={"kind": "closed", "requests": 20}, timeouts={"connect_s": 1.0, "stall_s": 3.0})[0]
    job = make_job(closed, TARGET, VOCAB, "measured", 0, 0)
    assert (len(job.payloads), job.in_flight, job.due_ns, job.paced, job.exact) == (20, 4, [0] * 20, False, True)
    assert (job.connect_s, job.first_token_s, job.stall_s) == (1.0, 300.0, 3.0)
    assert (job.asked_input, job.asked_output) == ([16] * 20, [8, 6, 4, 2] + [8] * 16)
    short = make_job(closed, TARGET, VOCAB, "warmup", 0, 0, output=2)
    assert short.asked_output == [2, 2, 1, 1] + [2] * 16
    limits = [json.loads(payload.split(b"\r\n\r\n", 1)[1])["max_tokens"] for payload in short.payloads]
    assert limits == short.asked_output
    three = cells(load={"kind": "closed", "requests": 15})[0]  # of less than 4 batches all figures are of the whole run
    assert make_job(three, TARGET, VOCAB, "measured", 0, 0).asked_output == [8] * 15


def test_a_closed_load_whose_answers_end_by_themselves_has_spare_prompts() -> None:
    served = cells(load={"kind": "closed"}, output="as_served")[0]
    job = make_job(served, TARGET, VOCAB, "measured", 0, 0)
    assert (served.requests, job.spare, len(job.payloads), job.asked_output[-1]) == (20, 16, 36, 8)
    exact = make_job(cells(load={"kind": "closed"})[0], TARGET, VOCAB, "measured", 0, 0)
    assert (exact.spare, len(exact.payloads)) == (0, 20)


def test_a_closed_load_is_kept_full_until_the_steady_requests_have_ended() -> None:
    job = make_job(cells(load={"kind": "closed"}, output="as_served")[0], TARGET, VOCAB, "measured", 0, 0)
    quota = Quota(job)
    assert (quota.planned, quota.sendable) == (20, 36)
    for index in (*range(15), 16, 17, 18):  # steady are those before the 15th, which B others follow after the next
        assert quota.sendable == (36 if index < 15 else 20)
        quota.ended(index)
    assert quota.sendable == 20
    given_up = Quota(job)
    given_up.close()
    assert given_up.sendable == 20
    arrivals = {"kind": "open", "rate": 8, "arrival": "constant", "requests": 5, "max_concurrency": 3}
    job = make_job(cells(grid={"input": 16, "output": 8}, load=arrivals)[0], TARGET, VOCAB, "measured", 0, 0)
    assert (job.in_flight, job.paced) == (3, True)
    assert job.due_ns == [0, 125_000_000, 250_000_000, 375_000_000, 500_000_000]


@given(
    st.integers(1, 200),
    st.floats(0.01, 1e4),
    st.sampled_from(["constant", "poisson", "gamma"]),
    st.floats(0.05, 20),
    st.integers(0, 99),
)
def test_arrivals_ascend_from_zero(count: int, rate: float, arrival: str, burstiness: float, seed: int) -> None:
    due = due_offsets_ns(count, rate, arrival, burstiness, np.random.default_rng(seed))
    assert len(due) == count
    assert due[0] == 0
    assert due == sorted(due)
    assert all(type(offset) is int for offset in due)
    assert due == due_offsets_ns(count, rate, arrival, burstiness, np.random.default_rng(seed))


@given(st.integers(1, 500), st.integers(1, 10_000))
@settings(max_examples=30)
def test_constant_arrivals_are_exact_to_the_nanosecond(count: int, rate: int) -> None:
    due = due_offsets_ns(count, rate, "constant", 1.0, np.random.default_rng(0))
    assert all(abs(offset * rate - 1_000_000_000 * k) <= 0.501 * rate for k, offset in enumerate(due))


@pytest.mark.parametrize(
    ("arrival", "burstiness", "spread"),
    [("poisson", 1.0, 1.0), ("poisson", 4.0, 1.0), ("gamma", 0.25, 2.0), ("gamma", 1.0, 1.0), ("gamma", 4.0, 0.5)],
)
def test_gaps_have_their_mean_and_their_spread(arrival: str, burstiness: float, spread: float) -> None:
    due = due_offsets_ns(200_000, 50.0, arrival, burstiness, np.random.default_rng(7))
    gaps = np.diff(due) / 1e9
    assert gaps.mean() == pytest.approx(1 / 50, rel=0.02)
    assert gaps.std() / gaps.mean() == pytest.approx(spread, rel=0.02)


# ---- where requests go ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("url", "api", "path", "host", "address"),
    [
        ("http://h", "completions", "/v1/completions", "h", ("h", 80)),
        ("http://h:80/", "chat", "/v1/chat/completions", "h", ("h", 80)),
        ("http://h:8000/v1", "completions", "/v1/completions", "h:8000", ("h", 8000)),
        ("https://h", "completions", "/v1/completions", "h", ("h", 443)),
        ("https://h:80/v1/", "completions", "/v1/completions", "h:80", ("h", 80)),
        ("http://h:443", "completions", "/v1/completions", "h:443", ("h", 443)),
        ("http://h/a/b/", "completions", "/a/b/v1/completions", "h", ("h", 80)),
        ("http://h/a/v1?k=v&w=%20x", "completions", "/a/v1/completions?k=v&w=%20x", "h", ("h", 80)),
        ("http://h?k=a/b?c", "completions", "/v1/completions?k=a/b?c", "h", ("h", 80)),
        ("http://[::1]:8000", "completions", "/v1/completions", "[::1]:8000", ("::1", 8000)),
        ("https://[fe80::2]/v1", "completions", "/v1/completions", "[fe80::2]", ("fe80::2", 443)),
        ("http://h/modèle", "completions", "/mod%C3%A8le/v1/completions", "h", ("h", 80)),
        ("http://h/a\r\nX-Evil: 1", "completions", "/aX-Evil:%201/v1/completions", "h", ("h", 80)),
    ],
)
def test_where_a_request_goes(url: str, api: str, path: str, host: str, address: tuple[str, int]) -> None:
    target = make_target(url, api, Access())
    lines = target.request(b"").decode().split("\r\n")
    assert lines[0] == f"POST {path} HTTP/1.1"
    assert lines[1] == f"Host: {host}"
    assert (target.host, target.port) == address
    assert target.tls == url.startswith("https")
    assert not any(line.startswith("X-Evil") for line in lines)


@pytest.mark.parametrize("value", ["a\r\nX-Evil: 1", "key\n"])
def test_a_header_brings_no_line_of_its_own(value: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SOME_VALUE", value)
    for secret in ({"api_key_env": "SOME_VALUE"}, {"headers_env": {"X-A": "SOME_VALUE"}}):
        engine = EndpointEngine.model_validate({"kind": "endpoint", "url": "http://h"} | secret)
        with pytest.raises(EngineError, match="no HTTP header may"):
            access_of(engine, 1.0)


@given(st.binary(max_size=300))
def test_a_request_says_how_long_its_body_is(body: bytes) -> None:
    target = make_target("http://h:1", "completions", Access({"Authorization": "Bearer k\u20acy", "X-A": "b"}))
    head, sent = target.request(body).split(b"\r\n\r\n", 1)
    assert sent == body
    fields = dict(line.split(": ", 1) for line in head.decode().split("\r\n")[1:])
    assert fields["Content-Length"] == str(len(body))
    assert (fields["Authorization"], fields["X-A"]) == ("Bearer k\u20acy", "b")
    assert (fields["Accept-Encoding"], fields["Content-Type"]) == ("identity", "application/json")


def test_a_proxy_is_asked_for_a_tunnel_with_its_own_credentials_only() -> None:
    secret = {"Authorization": "Bearer server"}
    target = make_target("https://[::1]/v1", "completions", Access(secret, proxy="http://us%40er:p%3Aw@proxy:3128"))
    assert target.proxy == ("proxy", 3128)
    assert target.connect_request() == (
        b"CONNECT [::1]:443 HTTP/1.1\r\nHost: [::1]:443\r\nProxy-Authorization: Basic dXNAZXI6cDp3\r\n\r\n"
    )
    assert b"Proxy-Authorization" not in target.request(b"")
    assert b"Basic" not in repr(target).encode()
    assert "Bearer" not in repr(target)
    plain = make_target("http://h", "completions", Access(proxy="http://proxy"))
    assert plain.proxy == ("proxy", 80)
    assert plain.connect_request() == b"CONNECT h:80 HTTP/1.1\r\nHost: h:80\r\n\r\n"
