"""Keep a run small, for the gallery: `python plots/keep.py RUN FOLDER` writes its manifest and its summary there.

Left out are the records, telemetry, journal and logs, and what names a machine: host names, its kernel, process ids,
GPU ids, the path of the checkout, environment variables that hold paths. Tables and figures can be made from what is
left; what was checked of each request cannot.
"""

from __future__ import annotations

import re
import shutil
import sys
from pathlib import Path
from typing import Any

from benchbench import open_run
from benchbench.store.run_directory import RunDirectory

PATH = re.compile(r"/(?!v1|health\b)\w")


def keep(run: Path, folder: Path) -> None:
    manifest = open_run(run).manifest
    git = (manifest.get("tool") or {}).get("git")
    told = [(manifest.get("host"), "name", "kernel"), (git, "path")]
    measured = manifest.get("instrument") or []  # of earlier versions one result, with the host's name
    told += [(result, "host") for result in ([measured] if isinstance(measured, dict) else measured)]
    told += [(start, "pid", "ranks", "log") for start in manifest.get("starts", [])]
    told += [(device, "uuid", "hip_uuid", "bus_id") for device in manifest.get("devices", [])]
    for facts, *keys in told:
        for key in keys:
            (facts or {}).pop(key, None)
    manifest = _without_paths(manifest)
    folder.mkdir(parents=True)
    RunDirectory(folder).write_manifest({"run": "", **manifest})  # "": of an earlier version
    shutil.copyfile(run / "summary.parquet", folder / "summary.parquet")


def _without_paths(value: Any) -> Any:  # noqa: ANN401 - JSON
    """Leave out each text that is an absolute path (not /v1 and /health of URLs); of a key the last part stays."""
    if isinstance(value, dict):
        kept = {key: one for key, one in value.items() if not _is_path(one)}
        return {key.rsplit("/", 1)[-1] if _is_path(key) else key: _without_paths(one) for key, one in kept.items()}
    return [_without_paths(one) for one in value if not _is_path(one)] if isinstance(value, list) else value


def _is_path(value: Any) -> bool:  # noqa: ANN401 - JSON
    return isinstance(value, str) and bool(PATH.match(value))


if __name__ == "__main__":
    keep(Path(sys.argv[1]), Path(sys.argv[2]))
