"""Answers that are none: a record of the right kind and a line on stderr each, the cell invalid, the sweep goes on."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from answers import (
    CHUNKED,
    CLOSE,
    DONE,
    HANG,
    LAST_CHUNK,
    RESET,
    Ask,
    Script,
    chunk,
    completion,
    error,
    event,
    events,
    head,
    models,
    whole,
)
from driving import CARRIED_OUT, LABEL, PATIENCE, bench, records, summary, sweeping, write_sweep
from driving import run_impatiently as run
from servers import ScriptedServer

from benchbench.openai import client as endpoint


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def half(ask: Ask) -> list[bytes]:
    return [CHUNKED, *map(chunk, events(ask)[:3])]


def comments() -> list[Any]:
    return [chunk(b": keep-alive\n\n"), 0.03] * 30


def heartbeats() -> list[Any]:
    return [chunk(event({})), 0.03] * 60 + [HANG]


ROLE = {"choices": [{"index": 0, "delta": {"role": "assistant", "content": ""}}]}
TOO_LONG = "This model's maximum context length is 10 tokens."
ENGINE_DIED = event({"error": {"message": "EngineCore died", "type": "InternalServerError", "code": 500}})
NO_TOKEN = ("timeout", "wait", "no token within 0.3 s")
NO_TOKEN_YET = ("timeout", "stream", "no token within 0.3 s")
STALLED = ("stall", "stream", "no token for 0.3 s")
CUT = ("stream", "stream", "connection closed by the server")
Answer = Callable[[Ask], Any]
FAILURES: dict[str, tuple[Answer, tuple[str, str, str]]] = {
    "400 context too long": (lambda _: [error(400, TOO_LONG)], ("status", "wait", f"status 400: {TOO_LONG}")),
    "503 html": (
        lambda _: [head(503, "text/html", content_length=9) + b"<b>no</b>"],
        ("status", "wait", "status 503: <b>no</b>"),
    ),
    "500 in mid-stream": (
        lambda ask: [*half(ask), chunk(ENGINE_DIED) + chunk(DONE) + LAST_CHUNK],
        ("stream", "stream", "the server reported an error in the stream: EngineCore died"),
    ),
    "stream cut": (lambda ask: [*half(ask), CLOSE], CUT),
    "stream reset": (
        lambda ask: [*half(ask), 0.05, RESET],
        ("stream", "stream", "connection lost: Connection reset by peer"),
    ),
    "cut before a token": (lambda _: [CHUNKED, CLOSE], ("stream", "wait", "connection closed by the server")),
    "never an answer": (lambda _: [CLOSE], ("stream", "wait", "connection closed by the server")),
    "until-close body cut": (
        lambda ask: [head(200), *events(ask)[:3], CLOSE],
        ("stream", "stream", "the stream ended without finish_reason and [DONE]"),
    ),
    "content-length cut": (lambda ask: [head(content_length=9999), *events(ask)[:3], CLOSE], CUT),
    "endless silence": (lambda _: [HANG], NO_TOKEN),
    "silence after the head": (lambda _: [CHUNKED, HANG], NO_TOKEN),
    "comments only": (lambda _: [CHUNKED, *comments(), HANG], NO_TOKEN),
    "stall in mid-stream": (lambda ask: [*half(ask), HANG], STALLED),
    "heartbeats only": (lambda _: [CHUNKED, *heartbeats()], NO_TOKEN_YET),
    "a role and heartbeats": (lambda _: [CHUNKED, chunk(event(ROLE)), *heartbeats()], NO_TOKEN_YET),
    "stall with heartbeats": (lambda ask: [*half(ask), *heartbeats()], STALLED),
    "stall with comments": (lambda ask: [*half(ask), *comments(), HANG], STALLED),
    "JSON, no stream": (
        lambda _: [whole(200, {"choices": []})],
        ("protocol", "wait", "the answer is not an event stream (Content-Type: application/json): b'{\"choices\":[]}'"),
    ),
    "HTML": (
        lambda _: [head(200, "text/html", content_length=13) + b"<html></html>"],
        ("protocol", "wait", "the answer is not an event stream (Content-Type: text/html): b'<html></html>'"),
    ),
    "SSE, not JSON": (
        lambda _: [CHUNKED, chunk(b"data: {nope\n\n"), LAST_CHUNK],
        ("protocol", "wait", "an event is not JSON ("),
    ),
    "SSE, no object": (
        lambda _: [CHUNKED, chunk(b"data: [1]\n\n"), LAST_CHUNK],
        ("protocol", "wait", "an event is not a JSON object: b'[1]'"),
    ),
    "SSE, other object": (
        lambda _: [CHUNKED, chunk(event({"choices": 5})), LAST_CHUNK],
        ("protocol", "wait", "an event has an unknown form (TypeError: "),
    ),
    "bytes for SSE": (
        lambda _: [CHUNKED, chunk(b"\x00\xff\xfe\n\n"), LAST_CHUNK],
        ("protocol", "wait", "the stream ended without a token"),
    ),
    "no event": (
        lambda _: [CHUNKED, chunk(DONE), LAST_CHUNK],
        ("protocol", "wait", "the stream ended without a token"),
    ),
    "not HTTP": (
        lambda _: [b"SSH-2.0-OpenSSH_9.6\r\n", HANG],
        ("protocol", "wait", "not an HTTP response (Expected HTTP/"),
    ),
    "broken HTTP head": (
        lambda _: [b"HTTP/1.1 abc\r\n\r\n", HANG],
        ("protocol", "wait", "not an HTTP response ("),
    ),
    "another protocol from here on": (
        lambda _: [b"HTTP/1.1 101 Switching Protocols\r\nConnection: upgrade\r\nUpgrade: h2c\r\n\r\n", HANG],
        ("status", "wait", "status 101: no message"),
    ),
    "broken chunks": (
        lambda _: [CHUNKED, b"zz\r\nhello\r\n\r\n", HANG],
        ("protocol", "wait", "broken HTTP framing: Invalid character in chunk size"),
    ),
    "output too short": (
        lambda ask: completion(ask, 4),
        ("short_output", "stream", "4 output tokens, asked for exactly 6 (finish_reason: length)"),
    ),
    "output too long": (
        lambda ask: completion(ask, 8),
        ("long_output", "stream", "8 output tokens, asked for exactly 6 (finish_reason: length)"),
    ),
}


INPUTS = dict(enumerate(FAILURES, 8))  # how many tokens a cell's prompts have -> how its one request fails


@pytest.fixture(scope="module")
def sweep_of_failures(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Any], dict[str, Any], list[str]]:
    """All failures in one sweep, each with a cell to itself: record and row of each, and the lines on stderr."""

    def answer(ask: Ask) -> Script:
        told: Script = FAILURES[INPUTS[len(ask.json["prompt"])]][0](ask)
        return told

    with pytest.MonkeyPatch.context() as patch, ScriptedServer(answer) as server:
        patch.chdir(tmp_path_factory.mktemp("failures"))
        result = run(server, grid={"input": [*INPUTS], "output": 6, "batch": 1})
        rows, cells = records(Path("run")), summary(Path("run"))
    assert result.exit_code == 3
    assert len(rows) == len(FAILURES)
    return (
        {INPUTS[row["input"]]: row for row in rows},
        {INPUTS[cell["input"]]: cell for cell in cells},
        result.stderr.splitlines(),
    )


@pytest.mark.parametrize("name", FAILURES)
def test_a_failed_request_is_a_record_and_is_told(name: str, sweep_of_failures: Any) -> None:
    rows, cells, lines = sweep_of_failures
    kind, phase, detail = FAILURES[name][1]
    row, cell = rows[name], cells[name]
    assert (row["status"], row["error_kind"], row["error_phase"]) == ("failed", kind, phase), row["error_detail"]
    assert row["error_detail"].startswith(detail)
    assert (cell["status"], cell["failed"], cell["requests"]) == ("invalid", 1, 1)
    assert ("output_length" if kind.endswith("_output") else "request_failed") in cell["reasons"].split(";")
    label = f"in={cell['input']} out=6 batch=1"
    told = f"note: {label}: 1 of 1 requests failed, first: {kind} ({phase}): {detail}"
    own = [line for line in lines if label in line]
    assert len(own) == 2, own  # the failure, the cell
    assert sum(line.startswith(told) for line in own) == 1


def test_a_failure_is_told_once(sweep_of_failures: Any) -> None:
    _, _, lines = sweep_of_failures
    assert len(lines) == 2 + 2 * len(FAILURES) + 1, lines  # begun, no /metrics; failure and cell; none is valid


def test_a_failure_among_others_leaves_the_rest_and_the_sweep_goes_on() -> None:
    def third_fails(ask: Ask) -> Script:
        return [*half(ask), 0.02, CLOSE] if ask.number == 2 else completion(ask)

    grid = {"input": 8, "output": [6, 4], "batch": 3}
    with ScriptedServer(third_fails) as server:
        result = run(server, "--strict", grid=grid)
    rows = records(Path("run"))
    assert sorted((row["output"], row["status"]) for row in rows) == [(4, "ok")] * 3 + [(6, "failed")] + [(6, "ok")] * 2
    first, second = summary(Path("run"))
    assert (first["status"], first["requests"], first["failed"]) == ("invalid", 3, 1)
    assert first["ttft_ms"] is not None  # whatever the status, its numbers are kept
    assert second["failed"] == 0
    assert "request_failed" not in second["reasons"]
    assert result.exit_code == 3
    busy = second["status"] == "invalid"  # the machine
    told = "bench: no cell is valid (see bench explain run)" if busy else "bench: some cells are invalid"
    assert result.stderr.splitlines()[-1] == told
    assert "| 8 | 6 | 3 |" not in result.stdout


def test_a_cell_whose_requests_all_fail_is_given_up_once_and_for_all() -> None:
    changes = {"grid": {"input": 8, "output": [6, 4], "batch": 2}, "rounds": {"warmup": 1, "min": 3, "max": 3}}

    def six_fail(ask: Ask) -> Script:
        return [error(500, "boom")] if ask.json["max_tokens"] == 6 else completion(ask)

    with ScriptedServer(six_fail) as server:
        assert run(server, **changes).exit_code in CARRIED_OUT
        asked = [ask.json["max_tokens"] for ask in server.asks]
        assert (asked.count(6), asked.count(4)) == (2 * 2, 2 * 4)  # a warm-up and one round; all four
        assert run(server, "--resume", **changes).exit_code in CARRIED_OUT
        assert len(server.asks) == len(asked)


def test_what_the_server_does_not_tell_makes_a_cell_suspect() -> None:
    with ScriptedServer(lambda ask: completion(ask, usage=False)) as server:
        assert run(server, output="as_served").exit_code in CARRIED_OUT
    (row,) = records(Path("run"))
    assert (row["status"], row["output_tokens"], row["event_tokens"]) == ("ok", None, [1] * 6)
    assert (row["input_tokens"], row["tokens_from"]) == (None, "events")
    (cell,) = summary(Path("run"))
    assert cell["status"] != "valid"
    assert {"input_unverified", "output_unverified"} <= set(cell["reasons"].split(";"))


def test_a_stream_that_comes_at_once_is_flagged_as_buffered() -> None:
    with ScriptedServer(lambda ask: [CHUNKED + b"".join(map(chunk, events(ask))) + LAST_CHUNK]) as server:
        assert run(server).exit_code in CARRIED_OUT
    assert "buffered_stream" in summary(Path("run"))[0]["reasons"].split(";")


LISTS: dict[str, tuple[Script, str]] = {
    "silence": ([HANG], "GET /v1/models did not answer: the model list is not checked"),
    "garbage": ([b"garbage\r\n\r\n"], "GET /v1/models failed (the answer is no HTTP): the model list is not checked"),
    "cut": (
        [CLOSE],
        "GET /v1/models failed (the connection was closed before the answer was whole): the model list is not checked",
    ),
    "404": ([error(404, "no")], "GET /v1/models gave no list (status 404): the model name is not checked"),
    "HTML": (
        [head(200, "text/html", content_length=2) + b"hi"],
        "GET /v1/models gave no list (status 200): the model name is not checked",
    ),
    "other names": ([models("a", owner="me")], "the server lists a, not 'sim': continuing"),
    "short context": ([models("sim", max_model_len=10)], f"{LABEL} needs 14 tokens, the server allows 10"),
}


@pytest.mark.parametrize(("listed", "note"), LISTS.values(), ids=LISTS.keys())
def test_a_server_without_a_good_model_list_is_measured_and_noted(
    listed: Script, note: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(endpoint, "ANSWER_S", 0.2)
    with ScriptedServer(listed=listed) as server:
        result = run(server, timeouts={"connect_s": 0.3})
    assert result.exit_code in CARRIED_OUT
    assert f"note: {note}" in result.stderr.splitlines()
    assert [row["status"] for row in records(Path("run"))] == ["ok"]


# -- secrets


SECRET = "sk-" + "x7Qz" * 12
ECHOES: dict[str, Callable[[str], Script]] = {
    "status": lambda key: [error(400, f"Incorrect API key provided: {key}")],
    "cut off": lambda key: [error(400, "x" * 250 + key)],
    "in the stream": lambda key: [CHUNKED, chunk(event({"error": {"message": f"bad {key}"}})), LAST_CHUNK],
    "not SSE": lambda key: [whole(200, {"you sent": key})],
    "not JSON": lambda key: [CHUNKED, chunk(f"data: {'y' * 40} {key}\n\n".encode()), LAST_CHUNK],
    "not HTTP": lambda key: [f"you sent {key}\r\n".encode(), CLOSE],
    "as the answer's id": lambda key: [
        CHUNKED,
        chunk(event({"id": key, "choices": [{"text": "a", "finish_reason": key}]})),
        LAST_CHUNK,
    ],
    "refusal": lambda key: [error(401, f"Incorrect API key provided: {key}")],
}


@pytest.fixture(autouse=True, scope="module")
def _keys() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MY_KEY", SECRET)
        patch.setenv("TEAM", SECRET[::-1])
        yield


def echoing(echo: Callable[[Ask], Callable[[str], Script]]) -> ScriptedServer:
    told = {"/version": [whole(200, {"version": f"for {SECRET}"})]}
    return ScriptedServer(
        lambda ask: echo(ask)(f"{ask.headers['authorization'][7:]} {ask.headers['x-team']}"), routes=told
    )


def with_keys(server: ScriptedServer) -> dict[str, Any]:
    return {"kind": "endpoint", "url": server.url, "api_key_env": "MY_KEY", "headers_env": {"X-Team": "TEAM"}}


def not_in(said: list[bytes]) -> None:
    for part in (SECRET[:9], SECRET[::-1][:9]):
        assert not [data for data in said if part.encode() in data]


def test_a_key_that_the_server_echoes_is_nowhere() -> None:
    """Each echo has a cell to itself; the last, a refusal, ends the sweep."""
    inputs = dict(enumerate(ECHOES.values(), 8))
    with echoing(lambda ask: inputs[len(ask.json["prompt"])]) as server:
        result = run(server, engine=with_keys(server), grid={"input": [*inputs], "output": 6, "batch": 1})
        assert {ask.headers["authorization"] for ask in server.asks} == {f"Bearer {SECRET}"}
        assert server.gets[0].headers["authorization"] == f"Bearer {SECRET}"
        assert len(server.asks) == len(ECHOES)
    rows = records(Path("run"))
    assert len(rows) == len(ECHOES) - 1
    said = [path.read_bytes() for path in Path("run").rglob("*") if path.is_file()]
    said += [str(row).encode() for row in rows]  # the files are compressed
    not_in([*said, *(text.encode() for text in (result.stdout, result.stderr))])


@pytest.mark.parametrize("echo", ECHOES.values(), ids=ECHOES.keys())
def test_nor_does_bench_check_show_it(echo: Callable[[str], Script]) -> None:
    with echoing(lambda _: echo) as server:
        write_sweep(Path("s.yaml"), server.url, timeouts=PATIENCE, engine=with_keys(server))
        check = bench("check", "s.yaml", "--seconds", "0.1")
        assert {ask.headers["authorization"] for ask in server.asks} == {f"Bearer {SECRET}"}
    not_in([text.encode() for text in (check.stdout, check.stderr)])


def test_a_sweep_in_its_own_process_ends_as_the_one_in_ours() -> None:
    with ScriptedServer(lambda _: [error(400, TOO_LONG)]) as server:
        write_sweep(Path("s.yaml"), server.url)
        with sweeping("s.yaml", "--out", "run", "--no-plots") as sweep:
            code, _, err = sweep.end()
            assert sweep.descendants() == []
    assert code == 3
    assert f"status 400: {TOO_LONG}" in err
    assert "Traceback" not in err
