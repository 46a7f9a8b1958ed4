"""Engine processes: launched, watched, stopped on every way out, and nothing of them left."""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import re
import select
import signal
import socket
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil
import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchbench.engines import supervisor
from benchbench.engines.open import start_facts
from benchbench.engines.process import EngineProcess, Hooks
from benchbench.engines.process_tree import shared_memory
from benchbench.engines.vllm import command_line, environment_of, flags, free_port, serve
from benchbench.errors import EngineError, LaunchStoppedError
from benchbench.spec.engine_sections import CACHE_VARIABLES, VllmServeEngine

STANDIN = str(Path(__file__).with_name("standin.py"))
PATIENCE_S = 60  # until a test is stuck; no test waits for it otherwise


def eventually(true: Callable[[], object]) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while not true():
        assert time.monotonic() < deadline, "it never came"
        time.sleep(0.02)


@dataclass
class Launches:
    """What one test launches, marked in its environment, on one port, logging to one folder."""

    folder: Path
    mark: str = field(default_factory=lambda: uuid.uuid4().hex)
    port: int = field(default_factory=lambda: free_port("127.0.0.1", 0))

    def env(self, modes: str = "", **more: str) -> dict[str, str]:
        return {**os.environ, "BENCH_TEST_MARK": self.mark, "STANDIN": modes, **more}

    def argv(self) -> list[str]:
        return [sys.executable, STANDIN, "--port", str(self.port)]

    def own(self, modes: str = "", **more: str) -> EngineProcess:
        """A stand-in that listens, told to be ready."""
        process = EngineProcess(self.argv(), self.env(modes, **more), None, self.folder / "log", grace_s=0.5)
        eventually(self.listens)
        process.ready()
        return process

    def engine(self, modes: str = "", **more: Any) -> VllmServeEngine:
        env = {"BENCH_TEST_MARK": self.mark, "STANDIN": modes, **more.pop("env", {})}
        given = {"command": ("python", STANDIN), "python": sys.executable, "port": self.port, **more}
        return VllmServeEngine(kind="vllm_serve", env=env, **given)

    def processes(self) -> list[psutil.Process]:
        found = []
        for process in psutil.process_iter():
            with contextlib.suppress(psutil.Error, OSError):
                if process.environ().get("BENCH_TEST_MARK") == self.mark:
                    found.append(process)
        return found

    def listens(self) -> bool:
        with socket.socket() as sock:
            return sock.connect_ex(("127.0.0.1", self.port)) == 0

    def left(self) -> list[object]:
        """Processes, port and shared memory that are still there."""
        memory = [path for path in shared_memory() if self.mark in path]
        return [*self.processes(), *([self.port] if self.listens() else []), *memory]


@pytest.fixture
def launches(tmp_path: Path) -> Iterator[Launches]:
    """After each test that launches something, nothing of it is left."""
    made = Launches(tmp_path)
    yield made
    left = made.left()
    for process in made.processes():
        process.kill()
    assert left == []


# ---- The tree -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "modes", ["", "deaf", "hung", "daemon", "memory", "flood", "untitled", "deaf hung daemon memory"]
)
def test_closing_leaves_nothing(launches: Launches, modes: str) -> None:
    process = launches.own(modes)
    assert process.ranks is not None
    assert len(process.ranks) == 8 + (modes == "untitled daemon")
    assert len(launches.left()) >= 10  # the first process, its ranks, its port
    assert process.died() is None
    process.close()
    assert launches.left() == []
    assert process.died() is None
    process.close()


@pytest.mark.parametrize("modes", ["", "untitled", "memory hung"])
def test_a_killed_rank_is_missed_at_once_and_a_helper_is_not(launches: Launches, modes: str) -> None:
    with launches.own(modes) as process:
        process.ready()  # said twice
        eventually(lambda: not any(process.name() == "sleep" for process in launches.processes()))
        assert process.died() is None
        pid = list(process.ranks or {})[3]
        os.kill(pid, signal.SIGKILL)
        assert select.select([process.events_fd], [], [], PATIENCE_S)[0]
        died = process.died() or ""
        assert f"(pid {pid})" in died
        assert modes == "untitled" or "the engine lost VLLM::TP" in died
    assert process.died() == died  # our own SIGTERM is no reason


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSEGV])
def test_a_killed_first_process_is_missed(launches: Launches, number: signal.Signals) -> None:
    with launches.own("daemon memory") as process:
        os.kill(process.pid, number)
        eventually(process.died)
        assert f"the engine was killed by {number.name}" in (process.died() or "")


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_the_death_of_the_supervisor(launches: Launches, number: signal.Signals) -> None:
    with launches.own("daemon memory deaf") as process:
        os.kill(process._process.pid, number)
        eventually(process.died)
        assert "supervisor ended" in (process.died() or "")


def test_our_own_death_by_sigkill(launches: Launches) -> None:
    code = (
        "import os, sys, time; from pathlib import Path; from benchbench.engines.process import EngineProcess\n"
        "process = EngineProcess(sys.argv[2:], dict(os.environ), None, Path(sys.argv[1]), grace_s=0.5)\n"
        "print(process.pid, flush=True); time.sleep(1000)"
    )
    log = launches.folder / "log"
    with subprocess.Popen(
        [sys.executable, "-c", code, log, *launches.argv()],
        stdout=subprocess.PIPE,
        env=launches.env("daemon deaf memory"),
    ) as process:
        eventually(lambda: log.exists() and "listening" in log.read_text())
        process.kill()
    eventually(lambda: not launches.left())


def test_what_cannot_be_started(launches: Launches) -> None:
    for argv, cwd in ([["no-such-program"], None], [launches.argv(), "/no/such/folder"]):
        with pytest.raises(FileNotFoundError) as error:
            EngineProcess(argv, launches.env(), cwd, launches.folder / "log")
        assert error.value.filename == (cwd or "no-such-program")


def test_descriptors_pass_through_and_end_with_the_engine(launches: Launches) -> None:
    ours, theirs = socket.socketpair()
    code = f"import socket; socket.socket(fileno={theirs.fileno()}).send(b'here')"
    with EngineProcess([sys.executable, "-c", code], launches.env(), None, launches.folder / "log", [theirs.fileno()]):
        theirs.close()
        with ours:
            ours.settimeout(PATIENCE_S)
            assert ours.recv(10) == b"here"
            assert ours.recv(10) == b""


# ---- Its log --------------------------------------------------------------------------------------------


def test_the_last_line_is_one_that_says_something(launches: Launches) -> None:
    code = r"print('loading\n\x1b[0;36m(EngineCore pid=7)\x1b[0;0m \n\x1b[0m')"
    with EngineProcess([sys.executable, "-c", code], launches.env(), None, launches.folder / "log") as process:
        eventually(lambda: process.last_line() == "loading" and len(process.tail()) == 3)


def test_secrets_stay_out_of_the_log_and_of_command_lines(launches: Launches) -> None:
    with launches.own("secret", A_TOKEN="hf_abcdefgh", OTHER_KEY="plain words") as process:
        assert "the token is *** and the other ***" in process.text()
        said = [word for process in psutil.Process().children(recursive=True) for word in process.cmdline()]
        assert not any("hf_abcdefgh" in word or "plain words" in word for word in said)


@given(
    pieces=st.lists(
        st.sampled_from(["hunter2 and more", "hunter2", "hunter2 an", "\n", "\r", "ab", "x" * 40, "é", "hun"]),
        max_size=30,
    ),
    cuts=st.lists(st.integers(1, 50), min_size=1, max_size=40),
)
def test_no_secret_survives_however_the_output_is_cut(pieces: list[str], cuts: list[int]) -> None:
    data, read = "".join(pieces).encode(), os.memfd_create("log")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(supervisor, "LINE_BYTES", 64)
        log = supervisor.Log(read, ["hunter2", "hunter2 and more"])
        rest = data
        for cut in cuts * len(data):
            log.write(rest[:cut])
            rest = rest[cut:]
            assert len(log._rest) <= 64
            if not rest:
                break
        log.write(b"", last=True)
    written = Path(f"/proc/self/fd/{read}").read_bytes()
    os.close(read)
    assert b"hunter2" not in written
    if b"hunter2" not in data and all(len(line) <= 64 for line in re.split(rb"[\n\r]", data)):
        assert written == data


# ---- The command ----------------------------------------------------------------------------------------


def test_flags() -> None:
    args = {
        "max-model-len": 8192,
        "trust_remote_code": True,
        "enable-prefix-caching": False,
        "hf-overrides": {"scoring_func": "softmax", "rope": {"a_b": 1.5}},
        "quantization": None,
        "lora-modules": ["a=b", {"name": "c"}],
        "compilation_config.max_size": 4,
        "seed": -1,
    }
    assert flags(args) == [
        *("--max-model-len", "8192", "--trust-remote-code", "--no-enable-prefix-caching"),
        *("--hf-overrides", '{"scoring_func": "softmax", "rope": {"a_b": 1.5}}'),
        *("--lora-modules", "a=b", '{"name": "c"}', "--compilation-config.max_size", "4", "--seed=-1"),
    ]


_NAMES = st.sampled_from(["xa", "xa_b", "x_long_name", "max-len", "x0"])
_TEXTS = st.text("a-= \"'{é", max_size=5).filter(lambda text: text != "--")  # which argparse drops, at least in 3.11
_SCALARS = st.integers() | st.floats(allow_nan=False, allow_infinity=False) | _TEXTS
_VALUES = _SCALARS | st.booleans() | st.none() | st.dictionaries(_NAMES, _SCALARS | st.lists(_SCALARS), max_size=3)


@given(st.dictionaries(_NAMES, _VALUES, max_size=6))
def test_a_parser_reads_what_flags_wrote(args: dict[str, Any]) -> None:
    parser = argparse.ArgumentParser(allow_abbrev=False)
    for key, value in args.items():
        action: Any = argparse.BooleanOptionalAction if isinstance(value, bool) else "store"
        parser.add_argument("--" + key.replace("_", "-"), dest=key, action=action)
    read = vars(parser.parse_args(flags(args)))
    for key, value in read.items():
        wanted = args[key]
        assert value == (wanted if isinstance(wanted, (bool, str)) or wanted is None else json.dumps(wanted))


def _engine(**keys: Any) -> VllmServeEngine:
    return VllmServeEngine(kind="vllm_serve", **keys)


@pytest.mark.parametrize(
    ("keys", "words"),
    [
        ({}, "python -m vllm.entrypoints.openai.api_server --model m --host 127.0.0.1 --port 8000"),
        ({"command": ("vllm", "serve")}, "vllm serve m --host 127.0.0.1 --port 8000"),
        ({"command": ("vllm", "serve", "--tp", "2")}, "vllm serve m --tp 2 --host 127.0.0.1 --port 8000"),
        ({"command": ("vllm", "serve", "given")}, "vllm serve given --host 127.0.0.1 --port 8000"),
        (
            {"python": "/opt/py/bin/python", "venv": "/v", "args": {"model": "/models/m", "dtype": "auto"}},
            "/opt/py/bin/python -m vllm.entrypoints.openai.api_server --model /models/m --dtype auto \
            --served-model-name m --host 127.0.0.1 --port 8000",
        ),
        (
            {"venv": "/v", "host": "::1", "args": {"model": "/m", "served_model_name": ["m", "n"]}},
            "/v/bin/python -m vllm.entrypoints.openai.api_server --model /m --served-model-name m n \
            --host ::1 --port 8000",
        ),
    ],
)
def test_the_command_line(keys: dict[str, Any], words: str) -> None:
    assert command_line(_engine(**keys), "m", 8000) == words.split()


def test_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MY_KEY", "sesame")
    env = environment_of(_engine(venv="/v", env={"A": "1", "VLLM_API_KEY": "other"}, api_key_env="MY_KEY"))
    assert env["PATH"].startswith("/v/bin:")
    assert (env["VIRTUAL_ENV"], env["A"], env["VLLM_API_KEY"], env["PYTHONUNBUFFERED"]) == ("/v", "1", "sesame", "1")
    assert not any("sesame" in word for word in command_line(_engine(api_key_env="MY_KEY"), "m", 1))
    with pytest.raises(EngineError, match="NOT_SET is not set"):
        environment_of(_engine(api_key_env="NOT_SET"))


# ---- Until it works -------------------------------------------------------------------------------------


def test_a_server_for_as_long_as_the_block_runs(launches: Launches, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MY_KEY", "open sesame")
    told: list[float] = []
    engine = launches.engine(
        "locked secret", api_key_env="MY_KEY", args={"model": "folder"}, env={"A_TOKEN": "hf_abcdefgh", "OTHER_KEY": ""}
    )
    for number in (1, 2):
        with serve(engine, "sim", Hooks(launches.folder, lambda _what, seconds, _line: told.append(seconds))) as served:
            assert served.url == f"http://127.0.0.1:{launches.port}"
            assert served.access.headers == {"Authorization": "Bearer open sesame"}
            assert served.argv[-4:] == ("--host", "127.0.0.1", "--port", str(launches.port))
            assert served.process.died() is None
            assert served.ready_s > 0
        assert not launches.left()
        assert "hf_abcdefgh" not in (launches.folder / f"engine-{number}.log").read_text()
    assert told


def test_a_server_that_leaves_the_cpu_to_others(launches: Launches) -> None:
    ours = os.getpriority(os.PRIO_PROCESS, 0)
    with serve(launches.engine(nice=7), "sim", Hooks(launches.folder)) as served:
        assert {process.nice() for process in launches.processes()} == {7}
        group = Path(f"/proc/{served.process.pid}/autogroup")
        assert not group.exists() or group.read_text().endswith(" nice 7\n")
    assert os.getpriority(os.PRIO_PROCESS, 0) == ours


def test_fresh_caches_are_empty_at_each_start_and_gone_after_it(launches: Launches) -> None:
    given = []
    for _ in range(2):
        with serve(launches.engine(fresh_caches=True), "sim", Hooks(launches.folder)) as served:
            environments = []
            for process in launches.processes():
                with contextlib.suppress(psutil.NoSuchProcess, ProcessLookupError):  # ended since
                    environments.append(process.environ())
            assert environments
            for environment in environments:
                folders = [Path(environment[name]) for name in CACHE_VARIABLES]
                assert all(folder.is_dir() and not list(folder.iterdir()) for folder in folders)
            given.append(folders)
            (folders[0] / "chosen").write_text("kernel 7")
            assert start_facts({}, served.process, 1.0)["fresh_caches"] == list(CACHE_VARIABLES)
        assert not folders[0].parent.exists()
    assert not set(given[0]) & set(given[1])
    with serve(launches.engine(), "sim", Hooks(launches.folder)) as served:
        assert start_facts({}, served.process, 1.0)["fresh_caches"] == []


def _failed(launches: Launches, engine: VllmServeEngine, model: str = "sim") -> EngineError:
    with pytest.raises(EngineError) as raised, serve(engine, model, Hooks(launches.folder)):
        pass
    assert "\n" not in raised.value.message
    return raised.value


def test_a_crash_at_the_first_request(launches: Launches) -> None:
    error = _failed(launches, launches.engine("crash"))
    assert error.message == (
        "first request: the engine ended with exit code 0: "
        'AssertionError: assert self.scoring_func == "softmax" (cpu_router.py, line 239)'
    )
    assert error.lines[-1] == f"whole log: {launches.folder / 'engine-1.log'}"
    assert not any("Traceback" in line or "File" in line for line in error.lines)


def test_a_server_that_never_gets_ready(launches: Launches) -> None:
    error = _failed(launches, launches.engine("never", ready={"timeout_s": 2}))
    assert (error.message, error.key) == ("start: not ready within 2 s", "engine.ready.timeout_s")
    assert "listening" in error.lines


def test_a_sweep_that_is_stopped_meanwhile(launches: Launches) -> None:
    read, write = os.pipe()
    os.write(write, b"x")
    with pytest.raises(LaunchStoppedError), serve(launches.engine("never"), "sim", Hooks(launches.folder, stop=read)):
        pass
    os.close(read)
    os.close(write)


def test_a_port_that_is_taken(launches: Launches) -> None:
    with socket.create_server(("127.0.0.1", launches.port)):
        error = _failed(launches, launches.engine())
        assert (error.key, str(launches.port) in error.message) == ("engine.port", True)
        with EngineProcess(launches.argv(), launches.env(), None, launches.folder / "log") as process:
            eventually(process.died)
        assert (
            process.died() == "the engine ended with exit code 1: the port is taken: [Errno 98] Address already in use"
        )


@pytest.mark.parametrize(
    ("keys", "key", "words"),
    [
        ({"command": ("no-such-program",)}, "engine.command", "No such file"),
        ({"python": "/no/python", "command": None}, "engine.python", "No such file"),
        ({"python": None, "venv": "/no/venv"}, "engine.venv", "No such file"),
        ({"cwd": "/no/such/folder"}, "engine.cwd", "No such file"),
        (
            {"command": None},
            "engine.python",
            "this Python has no vLLM: set engine.venv or engine.python to one that has",
        ),
        ({"args": {"no-such-flag": 1}}, "engine.args", "unknown flag --no-such-flag 1"),
        ({"ready": {"path": "/nope"}}, "engine.ready.path", "no /nope"),
        ({"args": {"served-model-name": "another"}}, "model", "does not serve 'sim'"),
    ],
)
def test_what_is_wrong_with_a_launch(launches: Launches, keys: dict[str, Any], key: str, words: str) -> None:
    error = _failed(launches, launches.engine(**keys))
    assert error.key == key
    assert words in error.message
