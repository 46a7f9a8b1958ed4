"""Launch a vLLM server (or another that takes --model, --host and --port), own it, wait until it works, stop it."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import socket
import sys
import time
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import orjson

from benchbench.engines.log_diagnosis import diagnose
from benchbench.engines.process import EngineProcess, Hooks
from benchbench.errors import EngineError
from benchbench.openai.client import http_session, read_models
from benchbench.openai.target import GENERATION, MODELS, Access, untimed_body
from benchbench.secrets import masked
from benchbench.spec.engine_sections import CACHE_VARIABLES, VllmInprocessEngine, VllmServeEngine

DEFAULT_COMMAND = ("python", "-m", "vllm.entrypoints.openai.api_server")
POLL_S = 0.3  # between two looks at a server that starts
END_S = 10.0  # from an answer of status 5xx to the end of a server that has crashed

Launched = VllmServeEngine | VllmInprocessEngine


@dataclass(frozen=True, slots=True)
class Served:
    """A server that works. `argv` without secrets; `ready_s`: from its launch to its first token, in seconds."""

    url: str
    access: Access
    process: EngineProcess
    argv: tuple[str, ...]
    ready_s: float


# ---- What is launched -----------------------------------------------------------------------------------


def flags(args: Mapping[str, Any]) -> list[str]:
    """Flags of vLLM from a mapping: {max-model-len: 8192} is --max-model-len 8192.

    true is a bare flag, false its --no- form, null leaves it out; a list repeats words after one flag, a mapping is
    JSON. Underscores of names become dashes, up to a dot (--compilation-config.max_size 4).
    """
    words: list[str] = []
    for key, value in args.items():
        name, dot, rest = key.partition(".")
        name = name.replace("_", "-") + dot + rest
        if value is True or value is False:
            words.append(f"--{name}" if value else f"--no-{name}")
        elif isinstance(value, (list, tuple)):
            words += [f"--{name}", *map(_word, value)]
        elif value is not None:
            word = _word(value)
            words += [f"--{name}={word}"] if word.startswith("-") else [f"--{name}", word]
    return words


def _word(value: object) -> str:
    return value if isinstance(value, str) else json.dumps(value)


def command_line(engine: VllmServeEngine, model: str, port: int) -> list[str]:
    """What to run. `vllm serve` takes its model as a word, others as --model; `model` is the name to serve it under."""
    args = dict(engine.args)
    source = args.pop("model", None) or model
    words = list(engine.command or DEFAULT_COMMAND)
    if words[0] == "python":
        words[0] = python_of(engine)
    if "serve" in words:
        after = words.index("serve") + 1
        if after == len(words) or words[after].startswith("-"):
            words.insert(after, source)
    else:
        args = {"model": source, **args}
    if source != model and "served-model-name" not in {key.replace("_", "-") for key in args}:
        args["served-model-name"] = model
    return [*words, *flags(args), "--host", engine.host, "--port", str(port)]


def python_of(engine: Launched) -> str:
    """The interpreter: engine.python, else that of engine.venv, else python on the PATH; in-process else our own."""
    if engine.python is not None:
        return str(_absolute(engine.python)) if "/" in engine.python else engine.python
    if engine.venv is not None:
        return str(_absolute(engine.venv) / "bin" / "python")
    return sys.executable if isinstance(engine, VllmInprocessEngine) else "python"


def environment_of(engine: Launched) -> dict[str, str]:
    """Our own environment, engine.env over it, the folders of the virtual environment, and the API key.

    Raises EngineError when the variable with the API key is not set.
    """
    env = {**os.environ, "PYTHONUNBUFFERED": "1", **{name: str(value) for name, value in engine.env.items()}}
    python = python_of(engine)
    if "/" in python:  # tools that vLLM calls (ninja) stand beside it
        env["PATH"] = os.pathsep.join([str(Path(python).parent), env.get("PATH", os.defpath)])
    if engine.venv is not None:
        env["VIRTUAL_ENV"] = str(_absolute(engine.venv))
        env.pop("PYTHONHOME", None)
    if isinstance(engine, VllmServeEngine) and engine.api_key_env is not None:
        if not env.get(engine.api_key_env):
            raise EngineError(f"the environment variable {engine.api_key_env} is not set", "engine.api_key_env")
        env["VLLM_API_KEY"] = env[engine.api_key_env]
    return env


def fresh_caches(scratch: Path | None) -> dict[str, str]:
    """Empty folders for the caches that hold what an earlier start has chosen. Raises OSError."""
    folders = {name: scratch.absolute() / name.lower() for name in CACHE_VARIABLES} if scratch else {}
    for folder in folders.values():
        folder.mkdir(parents=True)
    return {name: str(folder) for name, folder in folders.items()}


def _absolute(path: str) -> Path:
    return Path(path).expanduser().absolute()  # links are kept: a virtual environment's python is one


def free_port(host: str, port: int) -> int:
    """`port` if nobody listens there, or a free one for 0. Raises EngineError."""
    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as sock:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # connections that have ended do not count
        try:
            sock.bind((host, port))
        except OSError as error:
            raise EngineError(f"cannot listen on {host} port {port}: {error.strerror}", "engine.port") from None
        return int(sock.getsockname()[1])


# ---- Its life -------------------------------------------------------------------------------------------


@contextlib.contextmanager
def serve(engine: VllmServeEngine, model: str, hooks: Hooks, connect_s: float = 10.0) -> Iterator[Served]:
    """A server for as long as the block runs; when it ends, no process, port or shared memory of it is left.

    It logs into `hooks.logs`/engine-N.log. Raises EngineError with the reason when it does not get ready,
    LaunchStoppedError when `hooks.stop` becomes readable, OSError when the log can't be written to.
    """
    env, port = environment_of(engine), free_port(engine.host, engine.port)
    argv = command_line(engine, model, port)
    access = Access({"Authorization": f"Bearer {key}"} if (key := env.get("VLLM_API_KEY")) else {}, connect_s=connect_s)
    begun, process = time.monotonic(), start_process(engine, argv, next_log(hooks.logs))
    url = f"http://[{engine.host}]:{port}" if ":" in engine.host else f"http://{engine.host}:{port}"
    with process:
        asyncio.run(_Launch(engine, model, process, url, access, hooks, begun).wait())
        process.ready()
        yield Served(url, access, process, tuple(masked(argv)), time.monotonic() - begun)


def next_log(folder: Path) -> Path:
    """The first unused name in `folder`, which is made. Raises OSError."""
    folder.mkdir(parents=True, exist_ok=True)
    number = 1
    while (path := folder / f"engine-{number}.log").exists():
        number += 1
    return path


def start_process(engine: Launched, argv: Sequence[str], log: Path, pass_fds: Sequence[int] = ()) -> EngineProcess:
    """The engine's processes, which `argv` starts. Raises EngineError, and OSError when `log` can't be written to."""
    scratch = log.with_suffix(".caches") if engine.fresh_caches else None
    cwd, nice = engine.cwd and _absolute(engine.cwd), engine.nice if isinstance(engine, VllmServeEngine) else 0
    try:
        env = environment_of(engine) | fresh_caches(scratch)
        return EngineProcess(argv, env, cwd, log, pass_fds, nice=nice, scratch=scratch)
    except OSError as error:
        where = str(error.filename)
        if where == str(log):
            raise
        key = "venv" if engine.venv is not None and engine.python is None else "python"
        key = "cwd" if where == str(cwd) else key if where == python_of(engine) else "command"
        advice = "" if "/" in where or key != "python" else ": set engine.venv or engine.python to one that has vLLM"
        raise EngineError(f"cannot start {where}: {error.strerror}{advice}", f"engine.{key}") from None


@dataclass(slots=True)
class _Launch:
    """A server on its way to its first token."""

    engine: VllmServeEngine
    model: str
    process: EngineProcess
    url: str
    access: Access
    hooks: Hooks
    begun: float
    doing: str = "start"

    async def wait(self) -> None:
        """Until its route answers 200, its model is listed and one real token has come."""
        work = asyncio.ensure_future(self._ready())
        try:
            while not (await asyncio.wait([work], timeout=POLL_S))[0]:
                self._look()
            await work
        finally:
            work.cancel()

    async def _ready(self) -> None:
        engine = self.engine
        async with http_session(self.url, self.access) as request:
            path = engine.ready.path
            if (await _answer(partial(request, path), lambda status: status in {200, 404}))[0] == 404:
                raise EngineError(f"the server has no {path} (status 404)", "engine.ready.path")
            capabilities = read_models(*await _answer(partial(request, MODELS)), self.model, self.access)
            if capabilities.models and self.model not in capabilities.models:
                raise EngineError(
                    f"the server does not serve {self.model!r}", "model", allowed=", ".join(capabilities.models)
                )
            self.doing = "first request"
            # Not one or two tokens: with AMX, vLLM 0.32's CPU build dies of such a prompt when it is the first.
            prompt = "Hi" if engine.api == "chat" else [1, 2] * 8
            body = untimed_body(engine, self.model, prompt, 1)
            first = partial(request, GENERATION[engine.api], body, engine.ready.timeout_s)
            answer = await _answer(first, lambda status: status != 503)
        if answer[0] >= 500:
            await asyncio.sleep(END_S)  # if that was a crash, its end says more
        if answer[0] != 200 or not _has_token(answer[1]):
            text = " ".join(answer[1][:200].decode(errors="replace").split())
            raise self._failure(f"no token came, but status {answer[0]}: {text}")

    def _look(self) -> None:
        """Raise when there is nothing more to wait for; else say how long it takes."""
        if died := self.process.died():
            raise self._failure(died)
        self.hooks.turn("starting the server", self.begun, self.process.last_line(), wait_s=0)
        if time.monotonic() - self.begun > self.engine.ready.timeout_s:
            raise self._failure(f"not ready within {self.engine.ready.timeout_s:g} s", "engine.ready.timeout_s")

    def _failure(self, what: str, key: str = "engine") -> EngineError:
        return failure(self.engine, self.process, f"{self.doing}: {what}", key)


async def _answer(
    ask: Callable[[], Awaitable[tuple[int, bytes]]], good: Callable[[int], bool] = bool
) -> tuple[int, bytes]:
    """Status and body, asked for until there is an answer with a good status."""
    while True:
        with contextlib.suppress(OSError):
            status, body = await ask()
            if good(status):
                return status, body
        await asyncio.sleep(POLL_S)


def failure(engine: Launched, process: EngineProcess, what: str, key: str | None = None) -> EngineError:
    """The error for a launch that failed, with what its log says last; `key` is at fault if it gives no reason."""
    diagnosis = process.diagnosis() or diagnose(process.text())
    reason = f": {diagnosis.reason}" if diagnosis.reason and diagnosis.reason not in what else ""
    if "lacks the module" in reason and isinstance(engine, VllmInprocessEngine):
        reason += " (benchbench has to be installed beside vLLM)"
    at = diagnosis.key if diagnosis.reason or key is None else key
    at = "engine.args.model" if at == "model" and "model" in engine.args else at
    return EngineError(f"{what}{reason}", at, lines=(*diagnosis.lines, f"whole log: {process.log}"))


def _has_token(body: bytes) -> bool:
    try:
        return int(orjson.loads(body)["usage"]["completion_tokens"]) > 0
    except (ValueError, KeyError, TypeError):
        return False
