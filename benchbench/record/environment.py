"""Where and with what a run was made; what goes into the manifest, with secrets masked."""

from __future__ import annotations

import os
import platform
import re
import subprocess
import sys
from importlib import metadata
from pathlib import Path
from typing import Any

from benchbench import __version__

_PACKAGES = ("aiohttp", "click", "httptools", "matplotlib", "numpy", "orjson", "pandas", "pyarrow", "pydantic", "scipy")
_SECRET_KEY = re.compile(r"(?i)(^|[_-])(api[_-]?key|key|token|secret|password|passwd|authorization|credential)s?$")
_USERINFO = re.compile(r"(?<=://)[^/?#\s]+@")
_SECRET_QUERY = re.compile(r"(?i)([?&][^=&]*(?:key|token|secret|passw|auth|credential|sig)[^=&]*=)[^&\s]+")
MASK = "***"


def masked(value: Any, name: str = "") -> Any:  # noqa: ANN401 - JSON in, JSON out
    """A copy of JSON-like data without secrets: values of telling keys, user info and telling queries of URLs.

    Names of environment variables (`*_env`) stay: they say where a secret is, not what it is.
    """
    if isinstance(value, dict):
        inherited = name.endswith("_env") or _SECRET_KEY.search(name)  # whatever its own keys are called
        return {key: masked(item, name if inherited else str(key)) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [masked(item, name) for item in value]
    if isinstance(value, str):
        if _SECRET_KEY.search(name):
            return MASK
        return _SECRET_QUERY.sub(rf"\1{MASK}", _USERINFO.sub(f"{MASK}@", value))
    return value


def _cpu_model() -> str:
    info = Path("/proc/cpuinfo")
    if info.exists():
        for line in info.read_text(encoding="utf-8", errors="replace").splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor()


def _git(*words: str) -> str | None:
    try:
        done = subprocess.run(
            ["git", *words],  # noqa: S607 - the user's own git
            cwd=Path(__file__).parent,
            capture_output=True,
            text=True,
            timeout=5,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 else None


def git_state() -> dict[str, Any] | None:
    """Commit of this tool's own checkout and whether tracked files differ from it; None when installed as a wheel."""
    package = Path(__file__).parents[1]
    if not (package.parent / ".git").exists():
        return None
    commit = _git("rev-parse", "HEAD")
    return None if commit is None else {"commit": commit, "dirty": bool(_git("status", "--porcelain", "-uno"))}


def versions() -> dict[str, str]:
    """Installed versions of the libraries that can move a number or change a file."""
    found = {}
    for name in _PACKAGES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


def environment() -> dict[str, Any]:
    """Tool, Python, libraries, operating system and CPU of this host."""
    affinity = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return {
        "tool": {"name": "benchbench", "version": __version__, "git": git_state()},
        "python": sys.version.split()[0],
        "packages": versions(),
        "host": {
            "name": platform.node(),
            "system": platform.system(),
            "kernel": platform.release(),
            "machine": platform.machine(),
            "cpu": _cpu_model(),
            "cpus": os.cpu_count(),
            "cpus_usable": affinity,
        },
    }
