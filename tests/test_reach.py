"""What is sent, over what, and in which form answers come: one scripted server, every way to reach it."""

from __future__ import annotations

import json
import os
import select
import signal
import socket
import ssl
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import trustme
from answers import CHUNKED, CLOSE, DONE, LAST_CHUNK, Ask, Script, chunk, completion, error, event, events, head
from driving import records, summary
from driving import run_well as run
from servers import ScriptedServer

from benchbench.linux import RAISED_NICE, may_raise_priority, stolen_ns
from benchbench.senders import http_worker as worker_module
from benchbench.senders.http_worker import HttpWorker


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


# -- what is asked of a server


def test_a_request_asks_for_exact_lengths_and_fresh_prompts() -> None:
    with ScriptedServer() as server:
        run(server.url, grid={"input": [8, 9], "output": 6, "batch": 2}, rounds={"warmup": 1, "min": 2, "max": 2})
        asks = server.asks
    assert len(asks) == 2 * 3 * 2
    for ask in asks:
        assert (ask.method, ask.path) == ("POST", "/v1/completions")
        assert (ask.headers["accept-encoding"], ask.headers["content-type"]) == ("identity", "application/json")
        body = dict(ask.json)
        prompt = body.pop("prompt")
        assert len(prompt) in {8, 9}
        assert all(1000 <= token < 30000 for token in prompt)
        assert body == {
            "model": "sim",
            "max_tokens": 6,
            "min_tokens": 6,
            "ignore_eos": True,
            "temperature": 0,
            "stream": True,
            "stream_options": {"include_usage": True},
            "return_token_ids": True,
        }
    prompts = [tuple(ask.json["prompt"]) for ask in asks]
    assert len({prompt[:4] for prompt in prompts}) == len(prompts), "no two share a prefix"


def test_the_same_seed_asks_the_same_and_another_seed_does_not() -> None:
    """Of a server that tells the hits of its prefix cache; of any other see test_fresh_prompts.py."""
    page = b'vllm:prefix_cache_hits_total{engine="0"} 0\n'
    told = [head(200, "text/plain", content_length=len(page)) + page]

    def asked(seed: int) -> list[bytes]:
        with ScriptedServer(routes={"/metrics": told}) as server:
            run(server.url, out=f"run{len(list(Path().iterdir()))}", seed=seed)
            return [ask.body for ask in server.asks]

    assert asked(1) == asked(1) != asked(2)


def test_as_served_asks_a_plain_server_for_max_tokens_only_and_takes_what_comes() -> None:
    with ScriptedServer(lambda ask: completion(ask, 4)) as server:
        run(server.url, output="as_served")
        body = server.asks[0].json
    assert body["max_tokens"] == 6
    assert not body.keys() & {"min_tokens", "ignore_eos", "return_token_ids"}
    (row,) = records(Path("run"))
    assert (row["status"], row["output_tokens"], row["asked_output_tokens"], row["event_tokens"]) == (
        "ok",
        4,
        6,
        [1] * 4,
    )


def test_base_path_query_headers_and_extra_body_reach_the_server(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TEAM", "green")
    monkeypatch.setenv("KEY", "sk-12345")
    with ScriptedServer() as server:
        engine = {
            "kind": "endpoint",
            "url": f"{server.url}/serve/v1/?tier=a&x=1",
            "api_key_env": "KEY",
            "headers_env": {"X-Team": "TEAM"},
            "extra_body": {"top_k": 3, "temperature": 0.5},
        }
        run(server.url, engine=engine)
        (ask,), get = server.asks, server.gets[0]
    assert ask.path == "/serve/v1/completions?tier=a&x=1"
    assert get.path.startswith("/serve/v1/models")
    for one in (ask, get):
        assert (one.headers["x-team"], one.headers["authorization"]) == ("green", "Bearer sk-12345")
    assert (ask.json["top_k"], ask.json["temperature"]) == (3, 0.5)


def without_tokenize(ask: Ask) -> Script:
    return [error(404, "not here")] if "tokenize" in ask.path else completion(ask)


@pytest.mark.parametrize(
    ("base", "path", "generation", "metrics"),
    [
        ("", None, "/v1/chat/completions", "/metrics"),
        ("/openai/v1/", None, "/openai/v1/chat/completions", "/openai/metrics"),
        ("/v1beta/openai/", None, "/v1beta/openai/chat/completions", "/metrics"),
        ("/api/paas/v4", None, "/api/paas/v4/chat/completions", "/api/paas/metrics"),
        ("/v1/openai", None, "/v1/openai/chat/completions", "/metrics"),
        ("/v1/chat/completions", None, "/v1/chat/completions", "/metrics"),
        ("/team?tier=a", None, "/team/v1/chat/completions?tier=a", "/team/metrics?tier=a"),
        (
            "/openai/deployments/gpt?api-version=2024-10-21",
            None,
            "/openai/deployments/gpt/chat/completions?api-version=2024-10-21",
            "/metrics?api-version=2024-10-21",
        ),
        ("/inference", "/", "/inference/chat/completions", "/inference/metrics"),
        ("/a/v2/b", "/v1", "/a/v2/b/v1/chat/completions", "/a/v2/b/metrics"),
        ("/openai/v3/", "/v3", "/openai/v3/chat/completions", "/openai/metrics"),
    ],
)
def test_the_api_stands_where_the_url_or_the_sweep_says(
    base: str, path: str | None, generation: str, metrics: str
) -> None:
    with ScriptedServer(without_tokenize) as server:
        engine = {"kind": "endpoint", "url": server.url + base, "path": path, "api": "chat"}
        run(server.url, engine=engine, prompts={"kind": "text"}, output="as_served")
        assert {ask.path for ask in server.asks if "tokenize" not in ask.path} == {generation}
        gets = [get.path for get in server.gets]
    assert gets[0] == generation.replace("chat/completions", "models")
    assert metrics in gets
    query = generation.partition("?")[2]
    assert all(get.endswith(query) for get in gets)


def test_an_api_beside_its_base_path_is_found_by_a_request_for_one_token() -> None:
    def beside(ask: Ask) -> Script:
        return completion(ask) if ask.path == "/inference/completions" else [error(404, "Not Found")]

    with ScriptedServer(beside) as server:
        run(server.url + "/inference")
        assert [ask.path for ask in server.asks] == ["/inference/v1/completions", *["/inference/completions"] * 2]
    assert [record["status"] for record in records(Path("run"))] == ["ok"]


@pytest.mark.parametrize("api", ["completions", "chat"])
@pytest.mark.parametrize(
    "said", [{"max_tokens_field": "max_completion_tokens"}, {"extra_body": {"max_completion_tokens": 99}}], ids=str
)
def test_the_field_that_limits_an_answer_can_be_the_newer_one(api: str, said: dict[str, Any]) -> None:
    with ScriptedServer(without_tokenize) as server:
        engine = {"kind": "endpoint", "url": server.url, "api": api, **said}
        run(server.url, engine=engine, prompts={"kind": "text"}, output="as_served")
        asks = [ask.json for ask in server.asks if "tokenize" not in ask.path]
    assert {ask["max_completion_tokens"] for ask in asks if ask.get("stream")} == {6}
    assert not any("max_tokens" in ask for ask in asks)


def test_words_of_several_tokens_give_lengths_on_average() -> None:
    def by_letters(ask: Ask) -> Script:
        if "tokenize" not in ask.path:
            usage = {"prompt_tokens": len(ask.json["prompt"]) + 3, "completion_tokens": ask.json["max_tokens"]}
            return [
                CHUNKED,
                *map(chunk, events(ask, usage=False)),
                chunk(event({"choices": [], "usage": usage})),
                chunk(DONE) + LAST_CHUNK,
            ]
        body = b'{"count": %d}' % (len(ask.json["prompt"]) + 3)
        return [head(content_length=len(body)), body]

    with ScriptedServer(by_letters) as server:
        result = run(server.url, prompts={"kind": "text"}, grid={"input": 128, "output": 6, "batch": 4})
        lengths = [len(ask.json["prompt"]) + 3 for ask in server.asks if "tokenize" not in ask.path]
    assert "lengths of text prompts are not exact" in result.stderr
    assert all(90 < length < 170 for length in lengths)
    (row,) = summary(Path("run"))
    assert "input_approximate" in row["reasons"].split(";")
    assert "input_length" not in row["reasons"].split(";")


def test_only_and_set_choose_what_is_asked() -> None:
    with ScriptedServer() as server:
        grid = {"input": [8, 9], "output": 6, "batch": [1, 2]}
        run(server.url, "--only", "batch>=2,input=9", "--set", "grid.output=5", "--set", "seed=3", grid=grid)
        assert [(len(ask.json["prompt"]), ask.json["max_tokens"]) for ask in server.asks] == [(9, 5)] * 2
    assert [(row["input"], row["batch"]) for row in summary(Path("run"))] == [(9, 2)]
    assert json.loads(Path("run/manifest.json").read_text())["spec"]["seed"] == 3


# -- how answers come


def whole_answer(ask: Ask) -> Script:
    body = b"".join([*events(ask), DONE])
    return [head(content_length=len(body)), *[part for one in events(ask) for part in (one, 0.002)], DONE]


def until_close(ask: Ask) -> Script:
    return [head(), *[part for one in events(ask) for part in (one, 0.002)], DONE, CLOSE]


def by_bytes(ask: Ask) -> Script:
    data = CHUNKED + b"".join(map(chunk, [b": hello\r\n\r\n", *events(ask), DONE])) + LAST_CHUNK
    return [data[k : k + 7] for k in range(0, len(data), 7)]


def without_done(ask: Ask) -> Script:
    return [CHUNKED, *map(chunk, events(ask)), LAST_CHUNK]


def with_trailers(ask: Ask) -> Script:
    return [CHUNKED, *map(chunk, events(ask)), b"0\r\nx-checksum: 1\r\n\r\n"]


FORMS = [completion, whole_answer, until_close, by_bytes, without_done, with_trailers]


@pytest.mark.parametrize("answer", FORMS, ids=lambda form: form.__name__)
def test_every_form_of_body_is_read_to_its_end(answer: Any) -> None:
    with ScriptedServer(answer) as server:
        run(server.url, grid={"input": 8, "output": 6, "batch": 2}, rounds={"warmup": 0, "min": 2, "max": 2})
        assert len(server.asks) == 4
        timed = server.connections - 1  # one asked for the models
        assert timed == (4 if answer is until_close else 2), "kept alive where the server allows it"
    for row in records(Path("run")):
        assert (row["status"], row["output_tokens"], row["event_tokens"]) == ("ok", 6, [1] * 6), row["error_detail"]
        assert row["event_ns"] == sorted(row["event_ns"])
        assert (row["resent"], row["reused"]) == (0, answer is not until_close and row["round"] == 1)


def test_an_idle_connection_that_the_server_closes_costs_no_request() -> None:
    """Closed after the answer and seen in time: a new connection, nothing to send again."""
    with ScriptedServer(lambda ask: [*completion(ask), CLOSE]) as server:
        run(server.url, rounds={"warmup": 0, "min": 3, "max": 3})
        assert len(server.asks) == 3
    assert [(row["status"], row["resent"]) for row in records(Path("run"))] == [("ok", 0)] * 3


def test_a_close_that_races_with_a_send_is_answered_by_sending_again() -> None:
    """Nothing of an answer was read: sent again on a new connection, and recorded."""
    with ScriptedServer(lambda ask: [CLOSE] if ask.nth else completion(ask)) as server:
        run(server.url, rounds={"warmup": 0, "min": 2, "max": 2})
        assert [ask.nth for ask in server.asks] == [0, 1, 0]
        assert server.asks[1].body == server.asks[2].body
    rows = records(Path("run"))
    assert [(row["status"], row["resent"], row["reused"]) for row in rows] == [("ok", 0, False), ("ok", 1, False)]
    assert rows[1]["sent_ns"] < rows[1]["connect_ns"], "the first send counts"
    (cell,) = summary(Path("run"))
    assert (cell["failed"], cell["resent"]) == (0, 1)
    assert "resent" in cell["reasons"].split(";")


def late_close(ask: Ask) -> Script:
    return [0.3, CLOSE] if ask.nth else completion(ask)


@pytest.mark.parametrize("answer", [late_close, lambda _: [CLOSE]], ids=["kept, after a while", "new, at once"])
def test_a_dropped_request_has_failed(answer: Any) -> None:
    """It was taken, and waited or not: to send it again would hide that, and its wait."""
    with ScriptedServer(answer) as server:
        run(server.url, rounds={"warmup": 0, "min": 2, "max": 2})
        assert len(server.asks) == (2 if answer is late_close else 1)
    row = records(Path("run"))[-1]
    assert (row["status"], row["error_kind"], row["error_phase"], row["resent"]) == ("failed", "stream", "wait", 0)
    assert summary(Path("run"))[0]["status"] == "invalid"


def test_a_connection_with_an_unsent_rest_of_a_request_serves_no_other() -> None:
    """A server that refuses before it has read the body: the rest of it would begin the next request."""
    heads: list[bytes] = []
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def serve() -> None:
            with suppress(OSError):
                while True:
                    client, _ = listener.accept()
                    threading.Thread(target=converse, args=(client,), daemon=True).start()

        def converse(client: socket.socket) -> None:
            with client, suppress(OSError):
                data = client.recv(1 << 16)
                refusal = error(413, "too large") if data.startswith(b"POST") else error(404, "not here")
                heads.extend([data[:4]] if data.startswith(b"POST") else [])
                client.sendall(refusal)
                while client.recv(1):  # slowly, so that a rest is left
                    pass

        threading.Thread(target=serve, daemon=True).start()
        url = f"http://127.0.0.1:{listener.getsockname()[1]}"
        load = {"kind": "closed", "requests": 3}
        grid = {"input": 1_500_000, "output": 6, "batch": 1}  # more than the kernel's buffers hold
        run(url, grid=grid, load=load, timeouts={"first_token_s": 5}, output="as_served")
        listener.shutdown(socket.SHUT_RDWR)
    assert heads == [b"POST"] * 3
    assert [(row["http_status"], row["reused"]) for row in records(Path("run"))] == [(413, False)] * 3


def test_a_first_token_may_come_long_after_a_role() -> None:
    role = chunk(event({"choices": [{"index": 0, "delta": {"role": "assistant", "content": ""}}]}))
    with ScriptedServer(lambda ask: [CHUNKED, role, 0.6, *completion(ask)[1:]]) as server:
        run(server.url, timeouts={"first_token_s": 5, "stall_s": 0.2})
    (row,) = records(Path("run"))
    assert row["status"] == "ok", row["error_detail"]
    assert row["event_ns"][0] - row["sent_ns"] >= 600_000_000


# -- the process that sends


@pytest.mark.skipif(sys.platform != "linux", reason="priorities are Linux's")
@pytest.mark.parametrize("raised", [True, False])
def test_the_worker_has_our_session_unless_it_may_raise_its_own(raised: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Linux shares the CPU out by sessions. In either case Ctrl-C, which goes to a process group, is not for it."""
    monkeypatch.setattr(worker_module, "may_raise_priority", lambda: raised)
    with HttpWorker() as worker:
        worker.ready()
        pid = worker._process.pid
        assert os.getsid(pid) == (pid if raised else os.getsid(0))
        assert os.getpgid(pid) == pid != os.getpgid(0)
        ours = os.getpriority(os.PRIO_PROCESS, 0)
        assert os.getpriority(os.PRIO_PROCESS, pid) in ({ours, RAISED_NICE} if raised else {ours})
        os.killpg(pid, signal.SIGINT)
        assert worker._process.poll() is None
    assert worker._process.returncode == 0


def test_what_a_hypervisor_took_is_read_for_each_cpu(tmp_path: Path) -> None:
    stat = tmp_path / "stat"
    stat.write_text("cpu  9 9 9 9 9 9 9 9 0 0\ncpu0 1 2 3 4 5 6 7 0 0 0\ncpu1 1 2 3 4 5 6 7 300 0 0\nintr 8 0 0\n")
    assert stolen_ns(stat) == [0, 300 * 1_000_000_000 // os.sysconf("SC_CLK_TCK")]
    stat.write_text("cpu0 1 2 3 4\n")  # a kernel that does not count it
    assert stolen_ns(stat) == stolen_ns(tmp_path / "none") == []


def test_a_round_says_at_which_priority_it_was_driven() -> None:
    with ScriptedServer() as server:
        run(server.url)
    (path,) = Path("run/records").glob("*.parquet")
    priority = json.loads(pq.read_schema(path).metadata[b"benchbench"])["priority"]
    assert bool(priority) == may_raise_priority()


# -- how a server is reached


def test_over_ipv6() -> None:
    try:
        server = ScriptedServer(host="::1")
    except OSError:
        pytest.skip("no ::1 here")
    with server:
        run(server.url)
        assert server.asks[0].headers["host"] == f"[::1]:{server.port}"
    assert [row["status"] for row in records(Path("run"))] == ["ok"]


@pytest.fixture
def tls() -> ssl.SSLContext:
    """A context for localhost, with its authority in ca.pem."""
    authority = trustme.CA()
    authority.cert_pem.write_to_path("ca.pem")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("localhost").configure_cert(context)
    return context


def test_over_tls_with_the_handshake_before_the_request(tls: ssl.SSLContext) -> None:
    with ScriptedServer(tls=tls) as server:
        engine = {"kind": "endpoint", "url": server.url, "ca_file": "ca.pem"}
        run(server.url, engine=engine, rounds={"warmup": 0, "min": 2, "max": 2})
        run(server.url, engine={"kind": "endpoint", "url": server.url, "insecure": True}, out="insecure")
    rows = records(Path("run"))
    assert [(row["status"], row["reused"], row["event_tokens"]) for row in rows] == [
        ("ok", False, [1] * 6),
        ("ok", True, [1] * 6),
    ]
    assert rows[0]["tls_ns"] > 0
    assert rows[0]["connected_ns"] + rows[0]["tls_ns"] <= rows[0]["sent_ns"]
    assert [row["status"] for row in records(Path("insecure"))] == ["ok"]


@contextmanager
def connect_proxy(told: list[bytes]) -> Iterator[int]:
    """A proxy that can CONNECT and nothing else, on the port given back; `told` gets the heads of its requests."""
    ended = threading.Event()
    listener = socket.create_server(("127.0.0.1", 0))
    listener.settimeout(0.05)

    def relay(client: socket.socket) -> None:
        with client, suppress(OSError):
            asked = b""
            while not asked.endswith(b"\r\n\r\n"):
                asked += client.recv(4096)
            told.append(asked)
            if not asked.startswith(b"CONNECT "):
                client.sendall(b"HTTP/1.1 405 No\r\ncontent-length: 0\r\n\r\n")
                return
            client.sendall(b"HTTP/1.1 200 OK\r\n\r\n")
            host, _, port = asked.split()[1].decode().rpartition(":")
            with socket.create_connection((host, int(port))) as server:
                while not ended.is_set():
                    for one in select.select([client, server], [], [], 0.05)[0]:
                        data = one.recv(65536)
                        if not data:
                            return
                        (server if one is client else client).sendall(data)

    def accept() -> None:
        while not ended.is_set():
            with suppress(TimeoutError):
                threads.append(threading.Thread(target=relay, args=(listener.accept()[0],)))
                threads[-1].start()

    threads = [threading.Thread(target=accept)]
    threads[0].start()
    yield listener.getsockname()[1]
    ended.set()
    for thread in threads:
        thread.join()
    listener.close()


@pytest.mark.parametrize("secure", [False, True])
def test_through_a_connect_proxy(secure: bool, tls: ssl.SSLContext) -> None:
    told: list[bytes] = []
    with ScriptedServer(tls=tls if secure else None) as server, connect_proxy(told) as port:
        engine = {"kind": "endpoint", "url": server.url, "proxy": f"http://127.0.0.1:{port}"}
        run(server.url, engine=engine | ({"ca_file": "ca.pem"} if secure else {}))
        assert len(server.asks) == 1
        where = f"{'localhost' if secure else '127.0.0.1'}:{server.port}".encode()
    assert told[-1].startswith(b"CONNECT " + where + b" HTTP/1.1\r\n")
    assert [row["status"] for row in records(Path("run"))] == ["ok"]


def test_a_proxy_in_the_environment_is_not_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("http_proxy", "HTTP_PROXY", "ALL_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:1")
    monkeypatch.delenv("no_proxy", raising=False)
    monkeypatch.delenv("NO_PROXY", raising=False)
    with ScriptedServer() as server:
        run(server.url)
    assert [row["status"] for row in records(Path("run"))] == ["ok"]
