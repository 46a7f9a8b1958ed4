"""Keep a run small, for the gallery: `python plots/keep.py RUN FOLDER` writes its manifest and its summary there.

Left out are the records, telemetry, journal and logs, and what names a machine: host names, its kernel, process ids,
the path of the checkout. Tables and figures can be made from what is left; what was checked of each request cannot.
"""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

from benchbench import open_run
from benchbench.record.store import RunDirectory


def keep(run: Path, folder: Path) -> None:
    manifest = open_run(run).manifest
    git = (manifest.get("tool") or {}).get("git")
    told = [(manifest.get("host"), "name", "kernel"), (manifest.get("instrument"), "host"), (git, "path")]
    told += [(start, "pid", "ranks", "log") for start in manifest.get("starts", [])]
    for facts, *keys in told:
        for key in keys:
            (facts or {}).pop(key, None)
    folder.mkdir(parents=True)
    RunDirectory(folder).write_manifest(manifest)
    shutil.copyfile(run / "summary.parquet", folder / "summary.parquet")


if __name__ == "__main__":
    keep(Path(sys.argv[1]), Path(sys.argv[2]))
