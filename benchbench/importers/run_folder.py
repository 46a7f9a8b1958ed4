"""Other tools' results as a run folder: a manifest that says where each came from, and summary.parquet; no records."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchbench.analysis.metrics import percentile
from benchbench.analysis.stats import two_stage_estimate
from benchbench.analysis.summary import COLUMNS
from benchbench.analysis.validity import Reason, worst
from benchbench.errors import RunError, UnknownFormatError
from benchbench.host.environment import environment, spec_hash
from benchbench.importers.read import read
from benchbench.importers.result import Found
from benchbench.report.summary_table import markdown_table
from benchbench.store.run_directory import RunDirectory, replace_file

RANKS = (50, 90, 99)
_AXES = ("tool", "load", "input", "output", "batch", "rate")


class Source:
    """A result file: its name, what its folder in `vllm bench sweep` says of the server, and its bytes."""

    def __init__(self, path: Path) -> None:
        self.name = path.name
        folder = path.resolve().parent.name
        server = folder.removeprefix("SERVE--").partition("BENCH--")[0].rstrip("-")
        self.variant = server if folder.startswith("SERVE--") else ""
        self.data = path.read_bytes()


def found_in(paths: Iterable[Path]) -> list[tuple[Source, Found]]:
    """What these files say; of folders all JSON files below them that are results.

    Raises ValueError that names the file, and OSError.
    """
    found: list[tuple[Source, Found]] = []
    for path in paths:
        some = len(found)
        for file in sorted(path.rglob("*.json")) if path.is_dir() else [path]:
            source = Source(file)
            if twin := next((other for other, _ in found if other.data == source.data), None):
                raise ValueError(f"{file}: the same as {twin.name}, given before: it would count as a second run")
            try:
                found += [(source, one) for one in read(source.data)]
            except UnknownFormatError as error:
                if not path.is_dir():
                    raise ValueError(f"{file}: {error}") from None
            except ValueError as error:
                raise ValueError(f"{file}: {error}") from None
        if len(found) == some:
            raise ValueError(f"{path}: holds no result that can be imported")
    return found


def import_files(paths: Sequence[Path], out: Path | None = None, name: str | None = None) -> Path:
    """Write the run folder (default: runs/NAME-TIME) and return it.

    Raises ValueError and OSError as `found_in`, RunError for a folder that is not empty.
    """
    found = found_in(paths)
    tools = list(dict.fromkeys(one.tool for _, one in found))
    name = name or (tools[0].split(" (")[0].lower().replace(" ", "-") if len(tools) == 1 else "imported")
    path = out or Path("runs") / f"{name}-{time.strftime('%Y%m%d-%H%M%S')}"
    if path.exists() and not (path.is_dir() and not any(path.iterdir())):
        raise RunError(f"{path}: the folder is not empty: choose another --out")
    rows = rows_of(found)
    manifest = _manifest(name, found, rows)
    path.mkdir(parents=True, exist_ok=True)
    run = RunDirectory(path)
    run.write_summary(rows, COLUMNS)
    replace_file(path / "table.md", markdown_table(rows, closing=manifest["caption"]).encode())
    run.write_manifest(manifest)  # last: with it the folder is a run
    return path


def rows_of(found: Sequence[tuple[Source, Found]]) -> list[dict[str, Any]]:
    """Summary rows, one a cell: several results of one shape by one tool are its rounds."""
    several = len({one.tool for _, one in found}) > 1
    groups: dict[tuple[Any, ...], list[Found]] = {}
    for source, one in found:
        variant = " ".join(filter(None, (one.tool if several else "", one.variant or source.variant)))
        groups.setdefault((variant, *(getattr(one, axis) for axis in _AXES)), []).append(one)
    return [_row(identity, group) for identity, group in groups.items()]


def _row(identity: tuple[Any, ...], group: Sequence[Found]) -> dict[str, Any]:
    row: dict[str, Any] = dict.fromkeys(COLUMNS) | dict(zip(("variant", *_AXES), identity, strict=True))
    row["key"] = hashlib.sha256(repr(identity).encode()).hexdigest()[:16]
    told = any(one.values or one.pools for one in group)
    seen = {Reason.IMPORTED, *(reason for one in group for reason in one.reasons), *([] if told else [Reason.NO_DATA])}
    reasons = [reason for reason in Reason if reason in seen]
    row |= {"status": worst(one.status for one in reasons), "reasons": ";".join(one.code for one in reasons)}
    if all(one.requests is not None for one in group):  # of a table it is not known what its numbers are made of
        row |= {"rounds": len(group), **{n: sum(getattr(one, n) or 0 for one in group) for n in ("requests", "failed")}}
    for name in row.keys() & {name for one in group for name in one.values}:
        values = [one.values[name] for one in group if name in one.values]
        ranked = name.rpartition("_p")[2].isdigit()
        if len(values) != len(group) or (ranked and len(group) > 1):
            continue  # percentiles of several runs have no mean
        estimate = two_stage_estimate(values, len(values))
        row[name] = estimate.point if estimate else None
        if estimate and estimate.low is not None and f"{name}_low" in row:
            row |= {f"{name}_low": estimate.low, f"{name}_high": estimate.high}
    for name in ("ttft", "itl", "e2el"):
        if all(name in one.pools for one in group):
            pool = np.concatenate([one.pools[name] for one in group])
            row |= {f"{name}_ms_p{q}": percentile(pool, q) for q in RANKS if f"{name}_ms_p{q}" in row}
    return row


def _manifest(name: str, found: Sequence[tuple[Source, Found]], rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    spec: dict[str, Any] = {
        "name": name,
        "model": ", ".join(dict.fromkeys(one.model for _, one in found if one.model)),
        "engine": {"kind": "imported"},
        "variants": {row["variant"]: {} for row in rows if row["variant"]},
        "baseline": None,
        "blocks": None,
        "load": {"kind": "/".join(dict.fromkeys(row["load"] or "unknown" for row in rows))},
        "prompts": {"kind": "unknown"},
        "output": "unknown",
    }
    files = {
        (source.name, one.tool): {
            "name": source.name,
            "sha256": hashlib.sha256(source.data).hexdigest(),
            **{key: getattr(one, key) or None for key in ("tool", "version", "date")},
        }
        for source, one in found
    }
    return {
        "created_ns": time.time_ns(),
        "spec": spec,
        "spec_sha256": spec_hash(spec),
        "only": None,
        "plan": [_entry(index, row) for index, row in enumerate(rows)],
        "notes": [],
        "engine": None,
        "engine_environment": None,
        "starts": [],
        "variants": {},
        "devices": [],
        "caption": _caption([one for _, one in found], rows),
        "instrument": None,
        "imported": {"files": list(files.values())},
        **environment(),
        "host": {},  # where it was measured is not known
    }


def _caption(found: Sequence[Found], rows: Sequence[Mapping[str, Any]]) -> list[str]:
    tools = list(dict.fromkeys(f"{one.tool} {one.version}".strip() for one in found))
    lines = [f"Imported from {', '.join(tools)}: their numbers, by their definitions (docs/imports.md)."]
    if any(row["sys_tok_s"] is None and row["run_tok_s"] is not None for row in rows):
        lines.append("Run tok/s of an imported row: output tokens / duration of the whole run, by the tool's clock.")
    if any(row["sys_tok_s"] is not None and row["requests"] is not None for row in rows):
        lines.append(
            "Sys tok/s of an imported row: of one wave, or by our formula from the tool's times of each token."
        )
    return lines


def _entry(index: int, row: Mapping[str, Any]) -> dict[str, Any]:
    """As an entry of a sweep's plan (`CellInfo.from_entry`)."""
    axes = {name: row[name] for name in ("key", "variant", "input", "output", "batch", "rate", "load")}
    rounds = {"rounds_min": row["rounds"] or 1, "rounds_max": row["rounds"] or 1, "rel_ci": 0.0, "warmup": 0}
    third = f"batch={row['batch']}" if row["batch"] is not None else f"rate={row['rate']:g}"
    how = {"capped": False, "prompts": "unknown", "output_mode": "unknown", "slo": {}, "validity": {}}
    return {
        "label": f"in={row['input']} out={row['output']} {third}",
        "index": index,
        "requests": row["requests"] or 0,
        **axes,
        **rounds,
        **how,
    }
