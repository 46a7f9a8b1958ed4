"""Where and with what a run was made: this tool and this host. The engine's side is in `engine_side`.

What a platform does not tell is absent. Nothing here takes more than some ten milliseconds.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import platform
import re
import subprocess
import sys
from collections.abc import Iterable, Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

from benchbench.version import __version__

_PACKAGES = (
    *("aiohttp", "click", "httptools", "matplotlib", "numpy", "orjson", "pandas", "psutil", "pyarrow", "pydantic"),
    "scipy",
)
_LIMITS = {"open_files": "RLIMIT_NOFILE", "locked_bytes": "RLIMIT_MEMLOCK"}


def environment() -> dict[str, Any]:
    """Tool, Python, libraries, operating system, CPU, memory and drivers of this host."""
    state = _GitState(Path(__file__))  # git runs while the rest is found out: 0.01 s of each start
    rest = {"python": sys.version.split()[0], "packages": versions(), "host": host()}
    return {"tool": {"name": "benchbench", "version": __version__, "git": state.facts()}, **rest}


def spec_hash(spec: Mapping[str, Any]) -> str:
    """SHA-256 of a resolved and masked spec, as JSON with sorted keys: equal for two runs that were asked the same."""
    import orjson

    return hashlib.sha256(orjson.dumps(spec, option=orjson.OPT_SORT_KEYS)).hexdigest()


def versions() -> dict[str, str]:
    """Installed versions of the libraries that can move a number or change a file."""
    facts = {}
    for name in _PACKAGES:
        with contextlib.suppress(metadata.PackageNotFoundError):
            # `metadata.version` would parse the whole description as an e-mail, which took 0.01 s of each start.
            head = (metadata.distribution(name).read_text("METADATA") or "").partition("\n\n")[0]
            if line := re.search(r"^Version: *(.+?) *$", head, re.MULTILINE):
                facts[name] = line[1]
    return facts


def git_state(inside: Path) -> dict[str, Any] | None:
    """The checkout that holds the file or folder `inside`: path, commit and its date, and whether tracked files differ.

    None outside of one, and for what is installed into an environment, wherever that lies.
    """
    return _GitState(inside).facts()


class _GitState:
    """What `git_state` tells, asked of git from now on: both questions at once."""

    def __init__(self, inside: Path) -> None:
        installed = {"site-packages", "dist-packages"} & set(inside.parts)
        folders = () if installed else (inside, *inside.parents)
        self._checkout = next((folder for folder in folders if (folder / ".git").exists()), None)
        self._head = self._asked("rev-list", "--max-count=1", "--timestamp", "HEAD")
        self._changed = self._asked("--no-optional-locks", "status", "--porcelain", "-uno")

    def facts(self) -> dict[str, Any] | None:
        head, changed = _answer(self._head), _answer(self._changed)
        if not head:
            return None
        date, _, commit = head.partition(" ")
        dirty = None if changed is None else bool(changed)
        return {"path": str(self._checkout), "commit": commit, "committed_ns": int(date) * 10**9, "dirty": dirty}

    def _asked(self, *words: str) -> subprocess.Popen[str] | None:
        if self._checkout is None:
            return None
        command = ["git", *words]  # the user's own git
        pipe = subprocess.PIPE
        try:
            return subprocess.Popen(command, cwd=self._checkout, stdout=pipe, stderr=subprocess.DEVNULL, text=True)
        except OSError:
            return None


def _answer(git: subprocess.Popen[str] | None) -> str | None:
    """What it said; None where it failed or took too long."""
    if git is None:
        return None
    with git:
        try:
            text = git.communicate(timeout=5)[0]
        except subprocess.TimeoutExpired:
            git.kill()
            return None
    return text.strip() if git.returncode == 0 else None


def host(root: Path = Path("/")) -> dict[str, Any]:
    """Facts of this host that can move a number. `root` is where `proc`, `sys` and `opt` lie."""
    facts: dict[str, Any] = {
        "name": platform.node(),
        "system": platform.system(),
        "kernel": platform.release(),
        "machine": platform.machine(),
        "cpu": _cpu_model(root),
        "cpus": os.cpu_count(),
        "cpus_usable": len(affinity) if (affinity := _affinity()) is not None else os.cpu_count(),
        "affinity": ranges(affinity) if affinity is not None else None,
        "governor": _governors(root),
        "numa_nodes": _numa(root),
        "memory_bytes": _memory(root),
        "transparent_hugepages": _selected(_read(root / "sys/kernel/mm/transparent_hugepage/enabled")),
        "hugepages": _number(_read(root / "proc/sys/vm/nr_hugepages")),
        "limits": _limits(),
        "drivers": drivers(root),
    }
    return {name: value for name, value in facts.items() if value is not None}


def drivers(root: Path = Path("/")) -> dict[str, str]:
    """Versions of the accelerators' kernel drivers and of ROCm, where there are any."""
    rocm = os.environ.get("ROCM_PATH") or "/opt/rocm"
    matches = {
        "nvidia": re.search(r"\s(\d+\.\d+(?:\.\d+)*)\s", _read(root / "proc/driver/nvidia/version")),
        "amdgpu": re.match(r"(\S+)", _read(root / "sys/module/amdgpu/version")),
        "rocm": re.match(r"(\S+)", _read(root / rocm.lstrip("/") / ".info/version")),
    }
    facts = {name: match[1] for name, match in matches.items() if match}
    if "amdgpu" not in facts and (root / "sys/module/amdgpu").is_dir():
        facts["amdgpu"] = "the kernel's own"  # a module that is no package of AMD's states no version
    return facts


def ranges(numbers: Iterable[int]) -> str:
    """Numbers as Linux writes CPU lists: 0-3,8."""
    spans: list[list[int]] = []
    for number in sorted(numbers):
        if spans and number == spans[-1][1] + 1:
            spans[-1][1] = number
        else:
            spans.append([number, number])
    return ",".join(f"{low}" if low == high else f"{low}-{high}" for low, high in spans)


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace").strip()
    except OSError:
        return ""


def _number(text: str) -> int | None:
    return int(text) if text.isdecimal() else None


def _selected(text: str) -> str | None:
    """The choice in brackets: `always [madvise] never`."""
    match = re.search(r"\[(\w+)\]", text)
    return match[1] if match else None


def _cpu_model(root: Path) -> str:
    match = re.search(r"^model name\s*:\s*(.+)$", _read(root / "proc/cpuinfo"), re.MULTILINE)
    return match[1] if match else platform.processor()


def _affinity() -> set[int] | None:
    return os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else None


def _governors(root: Path) -> str | None:
    """The CPUs' frequency governors, each once; virtual machines have none."""
    governors = {_read(path) for path in root.glob("sys/devices/system/cpu/cpu[0-9]*/cpufreq/scaling_governor")}
    return ", ".join(sorted(governors - {""})) or None


def _numa(root: Path) -> dict[str, str] | None:
    """The CPUs of each NUMA node."""
    nodes = sorted(root.glob("sys/devices/system/node/node[0-9]*"), key=lambda node: int(node.name[4:]))
    return {node.name[4:]: _read(node / "cpulist") for node in nodes} or None


def _memory(root: Path) -> int | None:
    match = re.search(r"^MemTotal:\s*(\d+) kB$", _read(root / "proc/meminfo"), re.MULTILINE)
    return int(match[1]) * 1024 if match else None


def _limits() -> dict[str, int | None]:
    """Soft limits of this process; None is no limit."""
    import resource

    soft = {name: resource.getrlimit(getattr(resource, kind))[0] for name, kind in _LIMITS.items()}
    return {name: None if value == resource.RLIM_INFINITY else value for name, value in soft.items()}
