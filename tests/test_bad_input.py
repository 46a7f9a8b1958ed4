"""What goes wrong outside of us: one plain line on stderr, the right exit code, a record of the right kind."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import resource
import shutil
import socket
import ssl
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import trustme
import yaml
from answers import (
    RESET,
    Ask,
    Script,
    completion,
    error,
    head,
    models,
)
from driving import BENCH, CARRIED_OUT, PATIENCE, bench, records, write_sweep
from driving import run_impatiently as run
from servers import ScriptedServer

from benchbench.engines.failures import check_server
from benchbench.engines.simulator import SimulatorProcess
from benchbench.errors import StoppedError
from benchbench.openai.target import Access, make_target
from benchbench.spec import make_plan, spec_from_mapping


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


# -- the file and the command line: exit 2, every problem on a line of its own, no folder made


GOOD = "name: t\nmodel: sim\nengine: {kind: simulator}\ngrid:\n  input: 8\n  output: 4\n  batch: 1\n"
FILES = {
    "bad yaml": ("name: [\nx: 1\n", "s.yaml:3: is not YAML: expected ',' or ']', but got '<stream end>'"),
    "duplicate key": (GOOD + "name: u\n", "s.yaml:8: name: duplicate key, first given in line 1"),
    "empty file": ("", "s.yaml: is empty: a sweep needs name, model, engine and grid"),
    "unknown key": (
        GOOD + "rounds:\n  mn: 3\n",
        "s.yaml:9: rounds.mn: unknown key, did you mean min? (allowed: warmup, min, max, ",
    ),
    "wrong type": (
        GOOD.replace("input: 8", 'input: "8"'),
        's.yaml:5: grid.input: must be a whole number, is "8"',
    ),
    "empty axis": (GOOD.replace("input: 8", "input: []"), "s.yaml:5: grid.input: must not be empty"),
    "empty grid": (GOOD.split("grid:", maxsplit=1)[0] + "grid: []\n", "s.yaml:4: grid: must not be empty"),
    "zero batch": (GOOD.replace("batch: 1", "batch: 0"), "s.yaml:7: grid.batch: must be at least 1, is 0"),
    "no scheme": (
        GOOD.replace("{kind: simulator}", '{kind: endpoint, url: "a:80"}'),
        's.yaml:3: engine.url: needs a scheme, is "a:80": write http://a:80 (allowed: http, https)',
    ),
    "two problems": (
        GOOD.replace("batch: 1", "batch: 0").replace("output: 4", "output: 1.5"),
        "s.yaml:6: grid.output: must be a whole number, is 1.5\ns.yaml:7: grid.batch: must be at least 1, is 0",
    ),
}


@pytest.mark.parametrize(("text", "message"), FILES.values(), ids=FILES.keys())
def test_a_bad_file_is_told_by_line(text: str, message: str) -> None:
    Path("s.yaml").write_text(text)
    result = bench("sweep", "s.yaml", "--out", "run")
    assert (result.exit_code, result.stdout) == (2, "")
    assert result.stderr.startswith(message if message.endswith(", ") else message + "\n")  # or the list goes on
    assert result.stderr.count("\n") == message.count("\n") + 1
    assert not Path("run").exists()


ALLOWED = "(allowed: fields input, output, batch, rate, variant; operators = == != < <= > >=; comma means and)"
LINES = {
    "missing file": (["nosuch.yaml"], "nosuch.yaml: no such file"),
    "folder": (["."], ".: is a folder, not a sweep file"),
    "no file": ([], "bench sweep: needs a sweep FILE (bench init writes one), or --url and --model"),
    "unknown option": (
        ["s.yaml", "--nope"],
        "bench sweep: No such option '--nope'.",
    ),
    "an option twice": (
        ["--url", "http://a", "--model", "m", "--batch", "1", "--batch", "8"],
        "bench sweep: --batch is given twice: once is allowed. (see bench sweep --help)",
    ),
    "only: field": (["s.yaml", "--only", "btch>3"], f"--only btch>3: unknown field 'btch' {ALLOWED}"),
    "only: nothing": (["s.yaml", "--only", "batch>3"], "--only batch>3: selects none of the 1 cells"),
    "set: key": (
        ["s.yaml", "--set", "rounds.mn=3"],
        "--set rounds.mn=3: rounds.mn: unknown key, did you mean min? (allowed: warmup, min, max, ",
    ),
    "set: form": (["s.yaml", "--set", "rounds"], "--set rounds: is not key.path=value"),
    "set: value": (
        ["s.yaml", "--set", "grid.batch=x"],
        '--set grid.batch=x: grid.batch: must be a whole number, is "x"',
    ),
    "out is a file": (["s.yaml", "--out", "s.yaml"], "bench sweep: s.yaml: not a folder"),
    "out under a file": (
        ["s.yaml", "--out", "s.yaml/run"],
        "bench sweep: s.yaml/run: cannot write here: Not a directory",
    ),
    "out holds other things": (["s.yaml", "--out", "."], "bench sweep: .: the folder is not empty and holds no run"),
}


@pytest.mark.parametrize(("arguments", "message"), LINES.values(), ids=LINES.keys())
def test_a_bad_command_line_is_told_in_one_line(arguments: list[str], message: str) -> None:
    Path("s.yaml").write_text(GOOD)
    result = bench("sweep", *arguments)
    assert (result.exit_code, result.stdout) == (2, "")
    assert result.stderr.startswith(message)
    assert result.stderr.count("\n") == 1
    assert sorted(path.name for path in Path().iterdir()) == ["s.yaml"]


def test_the_command_itself_tells_bad_input_without_a_traceback() -> None:
    done = subprocess.run([*BENCH, "sweep", "nosuch.yaml"], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (2, "", "nosuch.yaml: no such file\n")


def test_a_reader_that_leaves_ends_the_command_quietly() -> None:
    with subprocess.Popen([*BENCH, "schema"], stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout
        assert process.stderr
        process.stdout.close()
        assert process.stderr.read() == b""
    assert process.returncode == 1


# -- the run directory


def test_a_run_is_not_overwritten_and_a_second_sweep_is_kept_out() -> None:
    with ScriptedServer() as server:
        assert run(server).exit_code in CARRIED_OUT
        before = {path: path.read_bytes() for path in Path("run").rglob("*") if path.is_file()}
        again = run(server)
        assert again.exit_code == 2
        hint = "use --resume or another --out; bench sweep: --overwrite"
        assert again.stderr == f"bench sweep: run: a run is there ({hint})\n"
        with Path("run/.lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            locked = run(server, "--resume")
        assert (locked.exit_code, locked.stderr) == (2, "bench sweep: run: another sweep is running in this folder\n")
        assert {path: path.read_bytes() for path in Path("run").rglob("*") if path.is_file()} == before
        assert len(server.asks) == 1


def resumable(result: Any, reason: str) -> None:
    assert result.exit_code == 1, result.stderr
    last = result.stderr.splitlines()[-1]
    assert reason in last
    assert last.endswith("; continue with: bench sweep s.yaml --resume --out run")


@contextlib.contextmanager
def file_size_limit(size: int) -> Iterator[None]:
    """As a full disk, for any user: larger files fail."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_round_that_cannot_be_written_stops_the_sweep_and_resumes() -> None:
    grid = {"input": 8, "output": 150, "batch": 8}
    with ScriptedServer() as server:
        with file_size_limit(12_000):
            full = run(server, grid=grid)
        resumable(full, "cannot write run: File too large")
        assert records(Path("run")) == []
        assert run(server, "--resume", grid=grid).exit_code in CARRIED_OUT
    assert [row["status"] for row in records(Path("run"))] == ["ok"] * 8
    assert not list(Path("run").rglob("*.tmp"))


@contextlib.contextmanager
def small_disk(folder: Path, kilobytes: int) -> Iterator[Callable[[], None]]:
    """A tmpfs of that size at `folder`, and how to make it larger; skips where none can be had."""
    mount, umount = shutil.which("mount"), shutil.which("umount")
    if not mount or not umount:
        pytest.skip("no mount command")
    folder.mkdir()
    command = [mount, "-t", "tmpfs", "-o", f"size={kilobytes}k", "tmpfs", str(folder)]
    if subprocess.run(command, capture_output=True, check=False).returncode:
        pytest.skip("may not mount a tmpfs")
    try:
        yield lambda: subprocess.run([mount, "-o", "remount,size=10m", str(folder)], check=True) and None
    finally:
        subprocess.run([umount, "--lazy", str(folder)], check=True)


@pytest.mark.parametrize("kilobytes", [4, 16, 24])  # full at the manifest, at the record, at the summary
def test_a_full_disk_stops_the_sweep_and_resumes_when_there_is_room(kilobytes: int) -> None:
    disk = Path("disk")
    with ScriptedServer() as server, small_disk(disk, kilobytes) as enlarge:
        write_sweep(Path("s.yaml"), server.url, grid={"input": 8, "output": 150, "batch": 8})
        result = bench("sweep", "s.yaml", "--out", "disk/run", "--no-plots")
        assert result.exit_code == 1, result.stderr
        last = result.stderr.splitlines()[-1]
        assert last.startswith("bench: cannot write disk/run")
        assert last.endswith(": No space left on device; continue with: bench sweep s.yaml --resume --out disk/run")
        enlarge()
        assert bench("sweep", "s.yaml", "--out", "disk/run", "--no-plots", "--resume").exit_code in CARRIED_OUT
        assert [row["status"] for row in records(disk / "run")] == ["ok"] * 8
        assert not list(disk.rglob("*.tmp"))


# -- nobody there, or somebody who will not have us


def test_nobody_listening_stops_and_can_be_resumed() -> None:
    with ScriptedServer() as server:
        pass  # its port is free again
    resumable(run(server), f"engine.url: nobody answers at 127.0.0.1:{server.port}: Connection refused")
    with socket.create_server(("127.0.0.1", 0)) as listener:  # accepts for us, and never reads
        write_sweep(Path("s.yaml"), f"https://127.0.0.1:{listener.getsockname()[1]}", timeouts={"connect_s": 0.2})
        resumable(bench("sweep", "s.yaml", "--out", "run", "--resume"), "no answer in time")


def test_a_server_that_dies_stops_the_sweep_and_another_takes_it_up() -> None:
    grid = {"input": 8, "output": [4, 5, 6], "batch": 1}
    servers: list[ScriptedServer] = []

    def once(ask: Ask) -> Script:
        if ask.number:
            servers[0].stop_listening()
            return [RESET]
        return completion(ask)

    with ScriptedServer(once) as server:
        servers.append(server)
        resumable(run(server, grid=grid), f"the server at 127.0.0.1:{server.port} is gone: ")
        assert [row["output"] for row in records(Path("run"))] == [4]
        port = server.port
    with ScriptedServer(port=port) as server:
        assert run(server, "--resume", grid=grid).exit_code in CARRIED_OUT
        assert len(server.asks) == 2
    assert sorted(row["output"] for row in records(Path("run"))) == [4, 5, 6]


REFUSED: dict[str, tuple[Script, Script, str]] = {
    "401 on the list": (
        [error(401, "no")],
        [],
        "s.yaml:3: engine.api_key_env: the server asks for credentials (status 401), and the sweep names none",
    ),
    "401": (
        [models("sim")],
        [error(401, "Invalid\nkey")],
        (
            "s.yaml:3: engine.api_key_env: the server asks for credentials (status 401), and the sweep names none: "
            r"status 401: Invalid\nkey"
        ),
    ),
    "404 model, listed": (
        [models("a", "b")],
        [],
        "s.yaml:2: model: the server does not serve 'sim' (allowed: a, b)",
    ),
    "404 model": (
        [error(404, "no list")],
        [error(404, "The model `sim` does not exist.")],
        "s.yaml:2: model: every request was refused: status 404: The model `sim` does not exist.",
    ),
    "404 of the route": (
        [error(404, "no list")],
        [error(404, "Not Found")],
        (
            "s.yaml:5: engine.url: every request was refused: status 404: Not Found; "
            "engine.path names the API's path where it is not /v1, engine.api: chat is for one without completions"
        ),
    ),
    "token ids": (
        [models("sim")],
        [error(422, "prompt: invalid type: sequence, expected a string")],
        (
            "s.yaml:15: prompts.kind: every request was refused: status 422: "
            "prompt: invalid type: sequence, expected a string; it takes no token ids (allowed: text)"
        ),
    ),
    "max_tokens": (
        [models("sim")],
        [error(400, "Unsupported parameter: 'max_tokens'. Use 'max_completion_tokens' instead.")],
        (
            "s.yaml:3: engine.max_tokens_field: every request was refused: status 400: "
            "Unsupported parameter: 'max_tokens'. "
            "Use 'max_completion_tokens' instead. (allowed: max_completion_tokens)"
        ),
    ),
    "ignore_eos": (
        [models("sim")],
        [error(400, "Unrecognized argument: ignore_eos")],
        (
            "s.yaml:1: output: every request was refused: status 400: Unrecognized argument: ignore_eos "
            "(allowed: as_served: answers end when they do)"
        ),
    ),
    "redirect on the list": (
        [head(307, location="http://127.0.0.1:1/", content_length=0)],
        [],
        "s.yaml:5: engine.url: the server redirects (status 307); give the final address",
    ),
    "redirect": (
        [models("sim")],
        [head(308, location="http://127.0.0.1:1/", content_length=0)],
        "s.yaml:5: engine.url: the server redirects; give the final address: status 308: redirects to http://127.0.0.1:1/",
    ),
}


@pytest.mark.parametrize(("listed", "answer", "message"), REFUSED.values(), ids=REFUSED.keys())
def test_a_refusal_of_everything_is_bad_input_at_its_key(listed: Script, answer: Script, message: str) -> None:
    with ScriptedServer(lambda _: answer, listed) as server:
        result = run(server)
        assert len(server.asks) <= 1
    assert (result.exit_code, result.stdout) == (2, "")
    assert result.stderr.splitlines()[-1] == message
    assert records(Path("run")) == []


def engine_refused(url: str, **engine: object) -> tuple[int, str]:
    write_sweep(Path("s.yaml"), url, timeouts=PATIENCE, engine={"kind": "endpoint", "url": url, **engine})
    result = bench("sweep", "s.yaml", "--out", "run", "--no-plots")
    shutil.rmtree("run", ignore_errors=True)
    return result.exit_code, result.stderr.splitlines()[-1]


def test_an_unset_key_and_a_wrong_key_and_no_key_are_told_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NOT_SET", raising=False)
    monkeypatch.setenv("KEY", "sk-wrong")
    with ScriptedServer(listed=[error(401, "no")]) as server:
        words = [engine_refused(server.url, api_key_env=name)[1] for name in ("NOT_SET", "KEY", None)]
    assert "engine.api_key_env: the environment variable NOT_SET is not set" in words[0]
    assert "engine.api_key_env: the server refused the credentials (status 401)" in words[1]
    assert "engine.api_key_env: the server asks for credentials (status 401), and the sweep names none" in words[2]


@pytest.mark.parametrize(
    ("scheme", "words"),
    [
        ("http", "the proxy of engine.proxy at 127.0.0.1:1 is gone"),
        ("https", "engine.proxy: the proxy does not answer"),
    ],
)
def test_a_dead_proxy_is_not_a_dead_server(scheme: str, words: str) -> None:
    code, line = engine_refused(f"{scheme}://127.0.0.1:2", proxy="http://127.0.0.1:1")
    assert code == 1
    assert words in line


def test_https_where_http_is_spoken_and_the_reverse() -> None:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    trustme.CA().issue_cert("localhost").configure_cert(context)
    with SimulatorProcess("fixed", models=["sim"]) as plain, ScriptedServer(tls=context) as secure:
        code, line = engine_refused(plain.url.replace("http:", "https:"))
        assert (code, line[line.index("engine") :]) == (
            2,
            f"engine.url: the server does not speak TLS at this port (allowed: {plain.url})",
        )
        code, line = engine_refused(secure.url.replace("https:", "http:"))
        assert (code, line[line.index("engine") :]) == (
            2,
            f"engine.url: the server speaks TLS at this port (allowed: {secure.url})",
        )


@pytest.mark.parametrize(
    ("code", "words"),
    [(errno.EADDRNOTAVAIL, "this host has no local port left"), (errno.EMFILE, "this host allows no more connections")],
)
def test_what_this_host_lacks_is_not_the_servers_fault(code: int, words: str) -> None:
    target = make_target("http://127.0.0.1:1", "completions", Access())
    columns: Any = {
        "status": ["failed"],
        "error_kind": ["connect"],
        "error_phase": ["connect"],
        "error_detail": [f"connect: {os.strerror(code)}"],
    }
    with pytest.raises(StoppedError, match=words):
        check_server(columns, target, make_plan(spec_from_mapping(yaml.safe_load(GOOD))).cells[0], answered=True)


@pytest.mark.parametrize("command", [["validate"], ["sweep", "--dry-run"], ["sweep"]])
def test_an_unknown_profile_of_the_simulator_is_found_in_the_file(command: list[str]) -> None:
    Path("s.yaml").write_text(GOOD.replace("kind: simulator", "kind: simulator, profile: nope"))
    result = bench(*command, "s.yaml")
    assert result.exit_code == 2
    assert result.stderr.startswith("s.yaml:3: engine.profile: no simulator profile 'nope' (allowed: ")
    assert not Path("runs").exists()


def test_a_certificate_that_nobody_vouches_for_is_refused() -> None:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    trustme.CA().issue_cert("localhost").configure_cert(context)
    with ScriptedServer(tls=context) as server:
        result = run(server)
        assert result.exit_code == 2
        assert "s.yaml:3: engine.ca_file: TLS certificate refused: " in result.stderr.splitlines()[-1]
        assert server.asks == []


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (None, "the environment variable TEAM is not set"),
        ("a\r\nb: c", "its value holds characters that no HTTP header may"),
    ],
)
def test_headers_env_must_be_set_and_fit_for_a_header(
    value: str | None, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("TEAM", raising=False)
    if value is not None:
        monkeypatch.setenv("TEAM", value)
    with ScriptedServer() as server:
        result = run(server, engine={"kind": "endpoint", "url": server.url, "headers_env": {"X-Team": "TEAM"}})
        assert server.connections == 0
    assert result.exit_code == 2
    assert result.stderr.splitlines()[-1] == f"s.yaml:7: engine.headers_env.X-Team: {message}"
