"""What `bench check` measured of the instrument and `bench noise` of a sweep, kept per host and version, to print."""

from __future__ import annotations

import contextlib
import math
import os
import platform
import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import orjson

from benchbench.slo.attainment import slo_sentence
from benchbench.store.run_directory import replace_file
from benchbench.version import __version__

KEPT = 50
RATE_SHARE = 0.9  # of a sweep's token rate: what bench check foresees of it is not exact
LIKE = 3.0  # a load that was not measured for the sweep itself is up to so many times its own
INSTRUMENT, NOISE = "instrument.json", "noise.json"
Results = Sequence[Mapping[str, Any]] | Mapping[str, Any] | None


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

    Of the instrument: `tok_s` (events a second that it was measured at), `streams`, the errors in ms, and the name of
    the `sweep` that it was measured for, if for one. Of an A/A run: the sweep's `name`, `blocks`, and the noise per
    start of Sys tok/s in a `cell` (median) and in the `mean` of all.
    """
    entry = {"host": platform.node(), "version": __version__, "time_ns": time.time_ns(), **result}
    path = store_path(file)
    path.parent.mkdir(parents=True, exist_ok=True)
    replace_file(path, orjson.dumps([*_entries(file), entry][-KEPT:], option=orjson.OPT_INDENT_2))


def stored(file: str = INSTRUMENT, **fields: str) -> dict[str, Any] | None:
    """The latest result of this host and version with these fields, None when there is none."""
    ours = _ours(file, **fields)
    return ours[-1] if ours else None


def _ours(file: str, **fields: str) -> list[dict[str, Any]]:
    wanted = {"host": platform.node(), "version": __version__, **fields}
    return [entry for entry in _entries(file) if entry.items() >= wanted.items()]


def measured_errors(sweep: str) -> list[dict[str, Any]]:
    """The instrument's errors, by this version on this host: the latest of each load and sweep, newest first.

    For a manifest: which of them is the sweep's own is known once its rates are. Other sweeps are not named in it.
    """
    latest = {(entry["streams"], entry["tok_s"], entry.get("sweep")): entry for entry in _ours(INSTRUMENT)}
    newest = sorted(latest.values(), key=lambda entry: -entry["time_ns"])
    hidden = [{"host"} | ({"sweep"} if entry.get("sweep") != sweep else set()) for entry in newest]
    return [{k: v for k, v in entry.items() if k not in keys} for entry, keys in zip(newest, hidden, strict=True)]


def own_error(
    results: Results, rows: Iterable[Mapping[str, Any]], sweep: str = ""
) -> tuple[Mapping[str, Any] | None, int, float]:
    """The instrument's error at the load of these rows, or None; the most streams, and the highest token rate, tok/s.

    Invalid rows do not count. A result is theirs if it was measured with at least as many streams, and at nine tenths
    of the token rate at least; and with no more than three times either, unless it was measured for this `sweep` (by
    name). Of several the one with the fewest streams, then the lowest rate, then the latest.
    """
    usable = [row for row in rows if row.get("status") != "invalid" and row.get("rounds")]
    streams = max((_streams(row) for row in usable), default=0)
    tok_s = max((_token_rate(row) for row in usable), default=0.0)
    known = [results] if isinstance(results, Mapping) else results or ()  # earlier versions kept one
    covering = [
        entry
        for entry in known
        if streams <= entry["streams"] and RATE_SHARE * tok_s <= entry["tok_s"]
        if (sweep and entry.get("sweep") == sweep)
        or (entry["streams"] <= LIKE * streams and entry["tok_s"] <= LIKE * tok_s)
    ]
    own = min(covering, key=lambda entry: (entry["streams"], entry["tok_s"]), default=None) if usable else None
    return own, streams, tok_s


def _streams(row: Mapping[str, Any]) -> int:
    """Requests in flight: of an open load the mean, by Little's law."""
    if row.get("batch"):
        return int(row["batch"])
    return math.ceil((row.get("req_s") or 0.0) * (row.get("e2el_ms") or 0.0) / 1e3)


def _token_rate(row: Mapping[str, Any]) -> float:
    """Tokens per second while all streams run: streams / TPOT."""
    decoding = 1e3 * _streams(row) / row["tpot_ms"] if row.get("tpot_ms") else 0.0
    return max(decoding, row.get("sys_tok_s") or 0.0)


def sentence(results: Results, rows: Iterable[Mapping[str, Any]], sweep: str = "") -> str:
    """As tables of these rows of a sweep print it."""
    own, streams, tok_s = own_error(results, rows, sweep)
    if own:
        return f"{error_text(own)}, no less than the {_load(streams, tok_s)} here."
    at = f" at the {_load(streams, tok_s)} here" if results and streams else ""
    return f"Instrument error: not measured{at} (bench check FILE measures it)."


def error_text(result: Mapping[str, Any]) -> str:
    """One result, and the load that it was measured at."""
    ttft_ms, itl_ms = result["ttft_error_ms_mean"], result["itl_error_ms_p99"]
    load = _load(result["streams"], result["tok_s"])
    senders = f", sent by {result['workers']} processes" if result.get("workers", 1) > 1 else ""
    error = f"TTFT {ttft_ms:+.3f} ms (mean), ITL {itl_ms:+.3f} ms (p99)"
    return f"Instrument error: {error}, measured on this host at {load}{senders}"


def _load(streams: int, tok_s: float) -> str:
    rate = f"{tok_s / 1e3:.1f}k" if tok_s >= 100 else f"{tok_s:.0f}"
    return f"{streams} stream{'s'[: streams != 1]} and {rate} tok/s"


def closing(manifest: Mapping[str, Any], rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """The last lines of the caption of a table of a sweep's rows: the sweep's own, the SLO, the instrument's error.

    An engine without HTTP has nothing of the latter.
    """
    lines = [*(manifest.get("caption") or []), *slo_sentence(manifest.get("plan", []))]
    over_http = manifest["spec"]["engine"]["kind"] != "vllm_inprocess"
    if not over_http:
        return lines
    return [*lines, sentence(manifest.get("instrument"), rows, str(manifest["spec"].get("name", "")))]
