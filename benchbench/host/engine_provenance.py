"""What is known of an engine without asking it: its process, its interpreter's packages, and the variables that steer
its kernels. The engine is one that we launched, one in this process, or a server on this host that we attached to.
"""

from __future__ import annotations

import contextlib
import functools
import ipaddress
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote, urlsplit

from benchbench.host.environment import git_state, ranges
from benchbench.secrets import masked, secrets_of
from benchbench.spec import EndpointEngine, Engine

if TYPE_CHECKING:
    import psutil

ASK_S = 10.0

# Variables that choose kernels, devices, threads, memory or which build is loaded.
_STEERING = re.compile(
    r"(VLLM|HIP|HIPBLASLT|ROCR|ROCM|ROCBLAS|HSA|AMD|GPU|AITER|MIOPEN|TENSILE|CUDA|CUBLAS|NCCL|RCCL|NVIDIA|"
    r"TORCH[A-Z]*|PYTORCH|TRITON|FLASHINFER|FLASH_ATTENTION|OMP|KMP|GOMP|MKL|OPENBLAS|MALLOC)_\w*"
    r"|HF_HUB_OFFLINE|LD_PRELOAD|LD_LIBRARY_PATH|PYTHONPATH|TOKENIZERS_PARALLELISM"
)

# Run by the engine's own interpreter, from Python 3.8 on. Finding a package does not import it. importlib.metadata is
# for what lies in archives alone: to import it, and email with it, was most of the CPU of this look (0.04 of 0.07 s).
_ASK_PYTHON = r"""
import importlib.util, json, os, re, sys
packages, direct, origins = {}, {}, {}
def text(*path):
    try:
        with open(os.path.join(*path), encoding="utf-8", errors="replace") as file:
            return file.read()
    except OSError:
        return ""
def names(folder):
    try:
        return os.listdir(folder)
    except OSError:
        return []
def found():
    for base in sys.path:
        if os.path.isfile(base):
            import importlib.metadata
            for one in importlib.metadata.distributions(path=[base]):
                yield lambda name: one.read_text(name) or ""
        for name in names(base or "."):
            if name.lower().endswith((".dist-info", ".egg-info")) or (name == "EGG-INFO" and base.endswith(".egg")):
                yield lambda file: text(base, name, file)
for read in found():
    head = (read("METADATA") or read("PKG-INFO")).partition("\n\n")[0]
    name, version = (re.search("^%s: *(.+?) *$" % key, head, re.M) for key in ("Name", "Version"))
    if name and version and packages.setdefault(name[1], version[1]) == version[1]:
        try:
            said = json.loads(read("direct_url.json") or "{}")
            commit, editable = said.get("vcs_info", {}).get("commit_id"), said.get("dir_info", {}).get("editable")
        except (ValueError, AttributeError):
            continue
        if commit or editable:
            direct.setdefault(name[1], [str(said.get("url")), commit])
for name in ("vllm", "torch"):
    try:
        spec = importlib.util.find_spec(name)
    except Exception:
        spec = None
    if spec and spec.origin:
        origins[name] = spec.origin
print(json.dumps({"version": sys.version.split()[0], "packages": packages, "direct": direct, "origins": origins}))
"""
_STATED = re.compile(r"^(\w+(?: = \w+)*)(?:: *[^=\n]+)? = ['\"]([^'\"\n]+)['\"]", re.MULTILINE)


def engine_environment(
    env: Mapping[str, str] | None = None, python: str | Path | None = None, pid: int | None = None
) -> dict[str, Any]:
    """What is known of an engine on this host; what is not is absent, with a sentence in `notes`. Secrets are masked.

    `env`: its whole environment; by default that of process `pid`. `python`: its interpreter; by default the one that
    process `pid` runs. With neither there is nothing to tell. Keys: `pid`, `command`, `affinity`, `env` (the variables
    that steer kernels), `python`, `packages` (name: version), `sources` (packages that run from a checkout: path,
    commit, dirty), `vllm` and `torch` (version, commit, hip, cuda).
    """
    facts: dict[str, Any] = {}
    notes: list[str] = []
    folder: Path | None = None
    if pid is not None:
        import psutil

        try:
            process = psutil.Process(pid)
            command = process.cmdline()
            facts |= {"pid": pid, "command": command}
            if hasattr(process, "cpu_affinity"):
                facts["affinity"] = ranges(process.cpu_affinity() or [])
            env = process.environ() if env is None else env
            folder = Path(process.cwd()) if "-m" in command else None
            python = _interpreter(process, env) if python is None else python
        except (psutil.Error, OSError, _UnknownError) as error:
            notes.append(_unknown(pid, error))
    env = {} if env is None else env
    facts["env"] = {name: env[name] for name in sorted(env) if _STEERING.fullmatch(name)}
    packages: dict[str, str] = {}
    if python is not None:
        try:
            answer, packages = _python_facts(str(python), env, folder)
            facts |= answer
        except (OSError, subprocess.SubprocessError, ValueError) as error:
            notes.append(f"{python} does not tell its packages: {_why(error)}")
    hidden = masked(facts, secrets=secrets_of(env))
    # Packages are left as they are: google-auth has a version, not a secret.
    return {name: value for name, value in {**hidden, "packages": packages, "notes": notes}.items() if value}


def endpoint_environment(url: str) -> dict[str, Any]:
    """`engine_environment` of the process that listens at `url`, if that is an address of this host's loopback."""
    parts = urlsplit(url)
    if not is_loopback(parts.hostname or ""):
        return {"notes": ["the server is not on this host: its process, packages and environment are not known"]}
    port = parts.port or (443 if parts.scheme == "https" else 80)
    try:
        pid = _listener(port)
    except _UnknownError as error:
        return {"notes": [f"{error}: packages and environment of the server are not known"]}
    return engine_environment(pid=pid)


def side_of(engine: Engine, pid: int | None = None) -> dict[str, Any]:
    """`engine_environment` of a sweep's engine; `pid` is its process, where we have launched one."""
    if isinstance(engine, EndpointEngine) and engine.proxy is not None:
        return {"notes": ["the server is behind a proxy: its process, packages and environment are not known"]}
    if isinstance(engine, EndpointEngine):
        return endpoint_environment(engine.urls[0])
    return engine_environment(pid=pid) if pid is not None else {}  # the simulator is this tool's own


def is_loopback(name: str) -> bool:
    """Whether a URL's host name is an address of this host's loopback."""
    with contextlib.suppress(ValueError):
        return ipaddress.ip_address(name).is_loopback
    return name == "localhost"


class _UnknownError(Exception):
    """Something can't be found out; the message says what."""


def _listener(port: int) -> int:
    """The process that listens at a port of the loopback; of a parent and children that share it, the parent."""
    import psutil

    try:
        connections = psutil.net_connections("tcp")
    except (psutil.Error, OSError):
        raise _UnknownError(f"this platform does not tell which process listens at port {port}") from None
    listening = [
        (connection.pid, *connection.laddr) for connection in connections if connection.status == psutil.CONN_LISTEN
    ]
    local = [pid for pid, ip, at in listening if at == port and (is_loopback(ip) or ip in {"0.0.0.0", "::"})]  # noqa: S104
    if not local:
        raise _UnknownError(f"nobody listens at port {port} of this host")
    if None in local:
        raise _UnknownError(f"the process that listens at port {port} may not be looked at by this user")
    pids: set[int] = {pid for pid in local if pid is not None}
    with contextlib.suppress(psutil.Error):
        pids = {pid for pid in pids if not pids & {parent.pid for parent in psutil.Process(pid).parents()}}
    if len(pids) > 1:
        raise _UnknownError(f"several processes listen at port {port}")
    return pids.pop()


def _interpreter(process: psutil.Process, env: Mapping[str, str]) -> str:
    """The Python of a process, by the name that it was called: that of a virtual environment is a link to another."""
    if process.pid == os.getpid():
        return sys.executable
    command = process.cmdline()
    called = command[0] if command else ""
    if not Path(called).name.startswith(("python", "pypy")):
        raise _UnknownError(f"the process {process.name()!r} is no Python that we can ask for its packages")
    if _namespace(process.pid) != _namespace(os.getpid()):
        raise _UnknownError("it runs in a container, whose packages we do not see")
    if "/" not in called:
        paths = [shutil.which(called, path=env.get("PATH")) or called]
    else:  # it may have left the folder in which it was called by a relative name
        paths = [str(Path(folder) / called) for folder in (process.cwd(), env.get("PWD")) if folder]
    for path in paths:
        with contextlib.suppress(OSError):
            if Path(path).samefile(process.exe()):
                return path
    raise _UnknownError(f"{called} is not what runs")


def _namespace(pid: int) -> str:
    try:
        return str(Path(f"/proc/{pid}/ns/mnt").readlink())
    except OSError:
        return ""


def _unknown(pid: int, error: Exception) -> str:
    import psutil

    if isinstance(error, psutil.AccessDenied | PermissionError):
        return f"process {pid} may not be looked at by this user"
    return f"process {pid}: {error}"


def _python_facts(python: str, env: Mapping[str, str], folder: Path | None) -> tuple[dict[str, Any], dict[str, str]]:
    """Facts by key, and the packages."""
    answer = _interpreter_facts(python, env.get("PYTHONPATH"), env.get("LD_LIBRARY_PATH"), folder)
    origins = {name: Path(path) for name, path in answer["origins"].items()}
    sources = {}
    for name, (url, commit) in answer["direct"].items():
        state = {"url": url, "commit": commit} if commit else git_state(Path(unquote(urlsplit(url).path)))
        if state:
            sources[name] = state
    for name, origin in origins.items():
        if name not in sources and (state := git_state(origin)):
            sources[name] = state
    facts = {"python": {"executable": python, "version": answer["version"]}, "sources": sources}
    for name, file in (("vllm", "_version.py"), ("torch", "version.py")):
        if name in origins:
            stated = _stated(origins[name].parent / file)
            version = stated.get("__version__") or answer["packages"].get(name)
            commit = stated.get("git_version") or stated.get("commit_id")
            more = {key: stated.get(key) for key in ("cuda", "hip", "rocm")}
            facts[name] = {k: v for k, v in {"version": version, "commit": commit, **more}.items() if v}
    return facts, dict(sorted(answer["packages"].items(), key=lambda item: item[0].lower()))


@functools.cache
def _interpreter_facts(
    python: str, pythonpath: str | None, libraries: str | None, folder: Path | None
) -> dict[str, Any]:
    """The interpreter's answer to `_ASK_PYTHON`, in some 0.03 s. Raises OSError, SubprocessError and ValueError."""
    import orjson

    paths = {"PYTHONPATH": pythonpath, "LD_LIBRARY_PATH": libraries}
    env = {name: value for name, value in os.environ.items() if name not in paths}
    env |= {name: value for name, value in paths.items() if value is not None}
    # In a folder of its own the interpreter finds no package that the engine would not.
    done = subprocess.run(
        [python, "-c", _ASK_PYTHON],
        cwd=folder or Path(sys.prefix),
        env=env | {"PYTHONDONTWRITEBYTECODE": "1"},
        capture_output=True,
        timeout=ASK_S,
        check=True,
        stdin=subprocess.DEVNULL,
    )
    answer = orjson.loads(done.stdout.splitlines()[-1] if done.stdout else b"")
    if not isinstance(answer, dict) or "packages" not in answer:
        raise ValueError("it answers something else")
    return answer


def _stated(path: Path) -> dict[str, str]:
    """Texts that a module of versions assigns; read, since importing torch takes seconds."""
    try:
        text = path.read_text(encoding="utf-8")
    except OSError:
        return {}
    return {name: match[2] for match in _STATED.finditer(text) for name in match[1].split(" = ")}


def _why(error: Exception) -> str:
    if isinstance(error, subprocess.TimeoutExpired):
        return f"no answer in {ASK_S:g} s"
    if isinstance(error, subprocess.CalledProcessError):
        return f"it ended with status {error.returncode}"
    return getattr(error, "strerror", None) or str(error)
