"""A stored run, read: its rows recomputed from the records.

A run without `records/` is one that was imported (`importers.run_folder`) or kept small, as its manifest and its
summary.parquet: then these rows are all that is known.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import pyarrow as pa

from benchbench.analysis.evidence import Measured, measured
from benchbench.analysis.summary import COLUMNS, CellSummary, metrics_of, summary_of, summary_row
from benchbench.errors import RunError
from benchbench.host.energy import MAX_GAP_S
from benchbench.host.local_results import closing
from benchbench.host.samples import read_telemetry
from benchbench.model.roofline import Platform, platform_of
from benchbench.spec.cell import CellInfo
from benchbench.store.facts import Manifest
from benchbench.store.run_directory import RunDirectory

OWN = "benchbench"  # the tool of rows that are not imported, where they stand beside those that are
_MARGIN_NS = int(MAX_GAP_S * 1e9)  # samples at a window's edges may lie in other files


class Run:
    """A run directory, read only.

    Numbers are recomputed from `records/` wherever the run has them (`has_records`), else read from summary.parquet.
    Raises RunError when there is neither, and from what needs records when there are none.
    """

    def __init__(self, path: str | Path) -> None:
        self.directory = RunDirectory.existing(path)
        self.path = self.directory.path
        self.has_records = self.directory.records.is_dir()
        if not self.has_records and not (self.path / "summary.parquet").is_file():
            raise RunError(f"{path}: holds no numbers: neither records/ nor summary.parquet is there")
        self._kept: dict[str, CellSummary] = {}  # by key, see `keep_summaries`

    @cached_property
    def manifest(self) -> Manifest:
        """Spec as resolved, plan, versions, host: what was asked and with what."""
        return self.directory.manifest()

    @property
    def name(self) -> str:
        """The sweep's name."""
        return str(self.manifest["spec"]["name"])

    @property
    def imported(self) -> dict[str, Any] | None:
        """Of a run made of other tools' results: `files` (name, sha256, tool, version, date) and the names' mapping."""
        return self.manifest.get("imported")

    @property
    def caption(self) -> list[str]:
        """The lines that close a table of this run: the sweep's own, the instrument's error, what is not there."""
        lines = list(self.manifest.get("caption") or [])
        if self.imported is None:
            lines = closing(self.manifest, self.rows)
            lines += [] if self.has_records else ["Records are not kept here: these numbers are the stored summary's."]
        return lines + (self.directory.notes() if self.rows else [])  # what was not read is known once it was tried

    def need_records(self) -> None:
        """Raises RunError, which says why there are none, for a run without records."""
        if not self.has_records:
            why = "it was imported" if self.imported else "they are not kept here"
            raise RunError(f"{self.path}: has no records of requests ({why}): tables and plots are all that it has")

    @cached_property
    def cells(self) -> list[CellInfo]:
        """The plan's cells, in the order in which they were written in the sweep."""
        return sorted(self.measured, key=lambda cell: cell.index)

    @cached_property
    def measured(self) -> list[CellInfo]:
        """The cells in the order in which they were measured: then what is read of one is near what the next needs."""
        try:
            return [CellInfo.model_validate(entry) for entry in self.manifest["plan"]]
        except (KeyError, TypeError, ValueError) as error:  # pydantic's is a ValueError
            reason = " ".join(str(error).split())[:200]
            raise RunError(f"{self.path}/manifest.json: its plan is damaged ({reason}): put back a copy") from None

    @property
    def summaries(self) -> list[CellSummary]:
        """One summary a cell, computed from its measured rounds: all of them, with what each request took."""
        self.keep_summaries()
        return [self._kept[cell.key] for cell in self.cells]

    def keep_summaries(self) -> None:
        """Compute every cell's summary, and keep them in memory for all that asks for one from now on."""
        self._kept = self._kept or {cell.key: self.summary_of(cell) for cell in self.measured}

    def summary_of(self, cell: CellInfo) -> CellSummary:
        """That of one cell: the one that is kept, else computed anew."""
        self.need_records()
        return self._kept.get(cell.key) or cell_summary(self.directory, cell, self.platform(cell.variant))

    def platform(self, variant: str = "") -> Platform | None:
        """Model and accelerators as the manifest has them for a variant; None where it does not know both."""
        return platform_of(self.manifest, variant)

    @cached_property
    def rows(self) -> list[dict[str, Any]]:
        """summary.csv's rows, one a cell, keys as in `benchbench.analysis.summary.COLUMNS`."""
        if not self.has_records:
            return [dict.fromkeys(COLUMNS) | row for row in self.directory.read_summary()]
        rows = {cell.key: summary_row(self.summary_of(cell)) for cell in self.measured}  # one in memory at a time
        return [rows[cell.key] for cell in self.cells]


def side_by_side(runs: Sequence[Run]) -> list[dict[str, Any]]:
    """The rows of several runs, each run's label in front of its variants.

    The label is what tells them apart: the sweep's name, else the engine's kind, else the folder. Beside another
    tool's rows, ours too name theirs.
    """
    kinds = [str(run.manifest["spec"]["engine"]["kind"]) for run in runs]
    names = [run.name for run in runs]
    both = [f"{name} {kind}" for name, kind in zip(names, kinds, strict=True)]
    folders = [run.path.resolve().name for run in runs]
    own = OWN if any(run.imported for run in runs) else None
    labels = next((texts for texts in (names, kinds, both) if len(set(texts)) == len(runs)), folders)
    return [
        {**row, "variant": " ".join(filter(None, (label, row["variant"]))), "tool": row["tool"] or own}
        for label, run in zip(labels, runs, strict=True)
        for row in run.rows
    ]


def cell_summary(run: RunDirectory, cell: CellInfo, platform: Platform | None = None) -> CellSummary:
    """The summary of one cell from its stored rounds, the telemetry of their time, and what was served on what."""
    taken = [measured(cell, pieces, doubted=cell.variant in run.doubted) for pieces in run.read_pieces(cell.key)]
    before, spoiled = metrics_of(cell, run.read_pieces(cell.key, "warmup")), run.spoiled_rounds(cell.key)
    return summary_of(cell, taken, before, samples_of(run, taken), platform, spoiled)


def samples_of(run: RunDirectory, taken: Sequence[Measured]) -> pa.Table | None:
    """The stored telemetry that can concern these rounds."""
    windows = [r.window for r in taken if r.window]
    return read_telemetry(run, [(w.begin_ns - _MARGIN_NS, w.end_ns + _MARGIN_NS) for w in windows])
