"""What `bench check` measured of the instrument itself, kept per host and version, so that tables can print it."""

from __future__ import annotations

import contextlib
import os
import platform
import time
from pathlib import Path
from typing import Any

import orjson

from benchbench import __version__
from benchbench.record.store import replace_file

KEPT = 50


def store_path() -> Path:
    """`$XDG_CACHE_HOME/benchbench/instrument.json`, by default under `~/.cache`."""
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "benchbench" / "instrument.json"


def _entries() -> list[dict[str, Any]]:
    with contextlib.suppress(OSError, orjson.JSONDecodeError):
        data = orjson.loads(store_path().read_bytes())
        return [entry for entry in data if isinstance(entry, dict)]
    return []


def store(found: dict[str, Any]) -> None:
    """Add a result: `tok_s` (events a second that it was measured at), `streams` and the errors in ms."""
    entry = {"host": platform.node(), "version": __version__, "time_ns": time.time_ns(), **found}
    path = store_path()
    path.parent.mkdir(parents=True, exist_ok=True)
    replace_file(path, orjson.dumps([*_entries(), entry][-KEPT:], option=orjson.OPT_INDENT_2))


def stored() -> dict[str, Any] | None:
    """The latest result of this host and version, None when there is none."""
    ours = [e for e in _entries() if e.get("host") == platform.node() and e.get("version") == __version__]
    return ours[-1] if ours else None


def sentence(found: dict[str, Any] | None) -> str:
    """As tables print it."""
    if not found:
        return "Instrument error: not measured (bench check FILE measures it)."
    return (
        f"Instrument error: TTFT {found['ttft_error_ms_mean']:+.3f} ms (mean), ITL {found['itl_error_ms_p99']:+.3f} ms "
        f"(p99), at {found['tok_s'] / 1e3:.1f}k tok/s over {found['streams']} streams on this host."
    )
