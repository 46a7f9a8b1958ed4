"""A server that is started again or replaced while a run lasts: what cannot be told to be of one server is marked."""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import orjson
import pyarrow.parquet as pq
import pytest
from answers import DONE, LAST_CHUNK, Ask, Script, chunk, completion, error, event, events, head, models, whole
from driving import CARRIED_OUT, bench, summary, write_sweep
from servers import ScriptedServer
from test_identity import named, simulator

from benchbench import load_spec, sweep
from benchbench.engines.open import Opened
from benchbench.engines.same_server import SameServer
from benchbench.http1.resolved import in_order
from benchbench.measure.observer import Observer
from benchbench.openai.target import Access
from benchbench.store.requests import round_facts
from benchbench.store.run_directory import RunDirectory

ROUNDS = {"warmup": 1, "min": 2, "max": 2, "rel_ci": 0.99}
CELL = 6  # requests of the first cell: a warm-up and two rounds of two


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


class Counting(ScriptedServer):
    """Has vLLM's /metrics. From its request number `at` on it is another life of the server, by `lives`: how long its
    page has been, what its version is; None: without a page.
    """

    def __init__(
        self, at: int = 0, *lives: dict[str, Any] | None, answer: Callable[[Ask], Script] = completion
    ) -> None:
        super().__init__(answer)
        self.at, self.lives = at, lives or ({}, {})

    def _script(self, ask: Ask) -> Script:
        life = self.lives[len(self.asks) >= self.at > 0]
        if ask.path == "/version" and life and "version" in life:
            return [whole(200, {"version": life["version"]})]
        if ask.path != "/metrics":
            return super()._script(ask)
        if life is None or life.get("page") is False:
            return [error(404, "not here")]
        mine = self.asks[self.at :] if self.at and len(self.asks) >= self.at else self.asks
        counts = {"prompt": sum(len(one.json["prompt"]) for one in mine)}
        counts["generation"] = sum(one.json["max_tokens"] for one in mine)
        lines = [f'vllm:{name}_tokens_total{{engine="0"}} {count}' for name, count in counts.items()]
        lines += [f"process_start_time_seconds {life['started']}"] if "started" in life else []
        page = "\n".join([*lines, ""]).encode()
        return [head(200, "text/plain", content_length=len(page)) + page]


def reasons(run: str = "run") -> list[set[str]]:
    return [{*(row["reasons"] or "").split(";")} for row in summary(Path(run))]


def marked(code: str, run: str = "run") -> list[bool]:
    return [code in each for each in reasons(run)]


def swept(server: ScriptedServer, *arguments: str, out: str = "run") -> str:
    write_sweep(Path("s.yaml"), server.url, grid={"input": 8, "output": 6, "batch": [2, 1]}, rounds=ROUNDS)
    result = bench("sweep", "s.yaml", "--out", out, "--no-plots", *arguments)
    assert result.exit_code in CARRIED_OUT, result.stderr
    return " ".join(result.stderr.split())


OLD, NEW = {"started": 1000.5}, {"started": 2000.5}


@pytest.mark.parametrize(
    ("at", "lives"),
    [(CELL, (OLD, NEW)), (CELL - 2, (OLD, NEW)), (CELL, ({}, {})), (CELL - 2, ({}, {})), (CELL + 1, (OLD, NEW))],
    ids=["between cells", "in a cell", "between cells, by counts", "in a cell, by counts", "after a warm-up"],
)
def test_a_restart_of_a_server_that_tells_no_flags_marks_all_cells(at: int, lives: Any) -> None:
    with Counting(at, *lives) as server:
        said = swept(server)
    assert marked("replicas") == [True, True]
    assert "the server is another process than before" in said
    assert "valid" not in {row["status"] for row in summary(Path("run"))}
    assert "unchecked" not in str(reasons())
    bench("table", "run")
    assert bench("explain", "run").stdout.count("suspect: replicas") == 2  # also from the records alone


def test_one_process_is_one_server_also_when_a_run_goes_on() -> None:
    with Counting(0, OLD) as server:
        swept(server, "--only", "batch=2")
        swept(server, "--resume")
        assert marked("replicas") == marked("unchecked") == marked("mixed_engines") == [False, False]
        server.lives, server.at = (OLD, NEW), 1  # started again before the run goes on once more
        said = swept(server, "--resume", "--set", "rounds={warmup: 0, min: 3, max: 3}")
    assert marked("replicas") == [True, True]
    assert "the server is another process than before" in said


def test_a_restart_with_the_same_fingerprint_is_the_same_engine() -> None:
    with Counting(CELL + 1, OLD, NEW, answer=named(lambda _number: "vllm-0.32-tp1")) as server:
        said = swept(server)
    assert marked("replicas") == marked("mixed_engines") == [False, False]
    assert "started again, as it was" in said


@pytest.mark.parametrize("what", ["version", "max_model_len"])
def test_another_version_told_without_a_page_makes_what_follows_invalid(what: str) -> None:
    with Counting(CELL + 1, {"page": False, "version": "0.32"}, {"page": False, "version": "0.33"}) as server:
        if what == "max_model_len":
            server.lives = ({"page": False}, {"page": False})
            server.listed = [models("sim", max_model_len=4096)]
            server.answer = lambda ask: shortened(server, ask)
        swept(server)
    assert marked("mixed_engines") == [False, True]
    assert {"version": "version 0.32; version 0.33", "max_model_len": "max_model_len 2048; max_model_len 4096"}[
        what
    ] in bench("explain", "run").stdout


def shortened(server: ScriptedServer, ask: Ask) -> Script:
    if ask.number >= CELL:
        server.listed = [models("sim", max_model_len=2048)]
    return completion(ask)


@pytest.mark.parametrize("at", [CELL - 2, CELL + 1])
def test_rounds_whose_page_is_gone_say_so(at: int) -> None:
    with Counting(at, OLD, None) as server:
        swept(server)
    assert marked("unchecked") == [at < CELL, True]
    assert marked("replicas") == [False, False]
    assert "not known in" in bench("explain", "run").stdout
    with Counting(1, {"page": False}, None) as server:  # it never had one: a note before the first round says so
        said = swept(server, out="never")
    assert marked("unchecked", "never") == [False, False]
    assert "no /metrics of vLLM's kind" in said


class Restarting(Observer):
    """Has the simulator end, and another start at its port, before the second round of all."""

    def __init__(self, port: int, stack: contextlib.ExitStack, *flags: str) -> None:
        self.port, self.stack, self.flags, self.notes = port, stack, flags, list[str]()
        self.begun = 0

    def round(self, *_: object) -> None:
        self.begun += 1
        if self.begun == 2:
            self.stack.close()
            self.stack.enter_context(simulator(self.port, *self.flags))

    def note(self, text: str) -> None:
        self.notes.append(text)


def test_a_restart_on_this_host_goes_on_with_the_same_command_and_ends_with_another() -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    write_sweep(
        Path("s.yaml"),
        f"http://127.0.0.1:{port}",
        grid={"input": 32, "output": 8, "batch": [1, 2]},
        rounds={"warmup": 0, "min": 1, "max": 1},
    )
    for flags, goes_on in ((("--scale", "0.5"), True), (("--scale", "0.4"), False)):
        with contextlib.ExitStack() as stack:
            stack.enter_context(simulator(port, "--scale", "0.5"))
            seen = Restarting(port, stack, *flags)
            spec, out = load_spec("s.yaml"), f"goes_on_{goes_on}"
            if goes_on:
                sweep(spec, out=out, observer=seen)
                assert "as it was" in str(seen.notes)
                assert marked("replicas", out)[0] is False
                starts = orjson.loads(Path(out, "manifest.json").read_bytes())["starts"]
                assert len({start["identity_digest"] for start in starts}) == 1 < len(starts)
            else:
                with pytest.raises(Exception, match=r"rounds of another engine \(command:"):
                    sweep(spec, out=out, observer=seen)


def test_a_name_is_one_machine_in_whatever_order_a_resolver_has_its_addresses() -> None:
    four, six = socket.AF_INET, socket.AF_INET6
    told = [(four, 1, 6, "", ("10.0.0.2", 80)), (six, 1, 6, "", ("::2", 80)), (four, 1, 6, "", ("10.0.0.1", 80))]
    sorted_once = in_order(told)
    assert [where[0] for _, where in sorted_once] == ["10.0.0.1", "10.0.0.2", "::2"]
    assert in_order([told[2], told[1], told[0]]) == sorted_once
    assert in_order([told[1], told[0]])[0] == (six, ("::2", 80)), "which family comes first, the resolver says"


def test_answers_of_two_machines_under_one_name_mark_all_cells() -> None:
    run = RunDirectory(Path("run"))
    run.open_for_writing(resume=False)
    with ScriptedServer() as server:
        write_sweep(Path("s.yaml"), server.url)
        spec = load_spec("s.yaml")
        for urls, proxy, marks in (((), None, True), ((server.url,), None, False), ((), "http://127.0.0.1:1", False)):
            opened = Opened(server.url, None, None, Access(proxy=proxy), others=urls)
            same = SameServer(run, spec, opened, f"v{marks}{len(urls)}", None, lambda _opened: "")
            assert same.notice({"10.0.0.1:80": 3}) == same.notice({"10.0.0.1:80": 4}) == ""
            assert ("several machines" in same.notice({"10.0.0.2:80": 1})) is marks
    run.close()
    assert RunDirectory(Path("run")).doubted == {"vTrue0"}


def test_a_round_tells_which_addresses_have_answered() -> None:
    with ScriptedServer() as server:
        swept(server)
        path = next(Path("run/records").glob("*-measured-0000.parquet"))
        assert round_facts(pq.read_table(path))["peers"].keys() == {f"127.0.0.1:{server.port}"}


def behind_a_gateway(headers: Callable[[int], dict[str, str]], provider: Callable[[int], str]) -> ScriptedServer:
    """Answers that name the server behind the gateway in their heads and events; no /metrics tell them apart."""

    def answer(ask: Ask) -> Script:
        parts = [orjson.loads(one[6:]) | {"provider": provider(ask.number)} for one in events(ask)]
        top = head(transfer_encoding="chunked", **headers(ask.number))
        return [top, *(step for part in parts for step in (0.002, chunk(event(part)))), chunk(DONE) + LAST_CHUNK]

    return ScriptedServer(answer)


A_OR_B: dict[str, tuple[Callable[[int], dict[str, str]], Callable[[int], str], bool]] = {
    "one server": (lambda _: {"x_served_by": "a"}, lambda _: "", False),
    "in turn, as a head tells": (lambda n: {"x_upstream_addr": f"10.0.0.{n % 2}:8000"}, lambda _: "", True),
    "LiteLLM's deployments": (lambda n: {"x_litellm_model_id": "ab"[n % 2]}, lambda _: "", True),
    "a sticky cookie": (lambda n: {"set_cookie": f"SERVERID=s{n % 2}; path=/"}, lambda _: "", True),
    "OpenRouter's providers": (lambda _: {}, lambda n: ("Together", "DeepInfra")[n % 2], True),
    "a CDN's nodes": (lambda n: {"x_served_by": f"cache-ams{n}-AMS"}, lambda _: "", False),
    "what is another each time": (lambda n: {"x_request_id": str(n), "x_upstream_time": str(n)}, lambda _: "X", False),
}


@pytest.mark.parametrize(("headers", "provider", "several"), A_OR_B.values(), ids=A_OR_B.keys())
def test_servers_that_a_gateway_names_are_known_for_several(
    headers: Callable[[int], dict[str, str]], provider: Callable[[int], str], several: bool
) -> None:
    with behind_a_gateway(headers, provider) as server:
        write_sweep(Path("s.yaml"), server.url, grid={"input": 8, "output": 6, "batch": 2}, rounds=ROUNDS)
        result = bench("sweep", "s.yaml", "--out", "run", "--no-plots")
    assert result.exit_code in CARRIED_OUT
    (row,) = summary(Path("run"))
    assert ("replicas" in row["reasons"].split(";")) == several
    assert ("several machines under one name" in result.stderr) == several
