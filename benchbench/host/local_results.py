"""What `bench check` measured of the instrument and `bench noise` of a sweep, kept per host and version, to print."""

from __future__ import annotations

import contextlib
import os
import platform
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import orjson

from benchbench.store.run_directory import replace_file
from benchbench.version import __version__

KEPT = 50
INSTRUMENT, NOISE = "instrument.json", "noise.json"


def store_path(file: str = INSTRUMENT) -> Path:
    """`$XDG_CACHE_HOME/benchbench/FILE`, by default under `~/.cache`."""
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "benchbench" / file


def _entries(file: str) -> list[dict[str, Any]]:
    with contextlib.suppress(OSError, orjson.JSONDecodeError):
        data = orjson.loads(store_path(file).read_bytes())
        return [entry for entry in data if isinstance(entry, dict)]
    return []


def store(result: dict[str, Any], file: str = INSTRUMENT) -> None:
    """Add a result.

    Of the instrument: `tok_s` (events a second that it was measured at), `streams` and the errors in ms. Of an A/A run:
    the sweep's `name`, `blocks`, and the noise per start of Sys tok/s in a `cell` (median) and in the `mean` of all.
    """
    entry = {"host": platform.node(), "version": __version__, "time_ns": time.time_ns(), **result}
    path = store_path(file)
    path.parent.mkdir(parents=True, exist_ok=True)
    replace_file(path, orjson.dumps([*_entries(file), entry][-KEPT:], option=orjson.OPT_INDENT_2))


def stored(file: str = INSTRUMENT, **fields: str) -> dict[str, Any] | None:
    """The latest result of this host and version with these fields, None when there is none."""
    wanted = {"host": platform.node(), "version": __version__, **fields}
    ours = [entry for entry in _entries(file) if entry.items() >= wanted.items()]
    return ours[-1] if ours else None


def sentence(result: Mapping[str, Any] | None) -> str:
    """As tables print it."""
    if not result:
        return "Instrument error: not measured (bench check FILE measures it)."
    ttft_ms, itl_ms = result["ttft_error_ms_mean"], result["itl_error_ms_p99"]
    return (
        f"Instrument error: TTFT {ttft_ms:+.3f} ms (mean), ITL {itl_ms:+.3f} ms (p99), at "
        f"{result['tok_s'] / 1e3:.1f}k tok/s over {result['streams']} streams on this host."
    )


def closing(spec: Mapping[str, Any], caption: Iterable[str], instrument: Mapping[str, Any] | None) -> list[str]:
    """The last lines of a table's caption; an engine without HTTP has nothing of the instrument's error."""
    over_http = spec["engine"]["kind"] != "vllm_inprocess"
    return [*caption, *([sentence(instrument)] if over_http else [])]
