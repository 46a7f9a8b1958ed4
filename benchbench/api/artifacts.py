"""What is made of stored runs as files: figures, and one HTML page."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from benchbench.analysis.runs import Run
from benchbench.api.pictures import Pictures
from benchbench.api.selecting import AnyRun, opened


def pictures_of(run: Run, folder: str | Path | None = None, cell: str | None = None) -> Pictures:
    """The run's figures and, with variants, those of their comparison; `folder`: plots/ in the run by default.

    `cell`: whose timeline, by its key. Raises ValueError for an unknown cell.
    """
    from benchbench.comparison.pairs import pairs_of
    from benchbench.figures.caption import run_title
    from benchbench.figures.timeline import timeline_of

    keys = [known.key for known in run.cells]
    if cell is not None and cell not in keys:
        raise ValueError(f"no cell {cell} in this run (allowed: {', '.join(keys)})")
    out = run.path / "plots" if folder is None else Path(folder)
    pairs = pairs_of(run) if run.has_records else []
    return Pictures(run.rows, timeline_of(run, run.rows, cell), pairs, out, run_title(run))


def write_page(runs: AnyRun | Sequence[AnyRun], path: str | Path = "report.html") -> Path:
    """Write one run, or several side by side, as one HTML file that loads nothing; its path.

    Raises RunError for what cannot be read, ValueError without a run, and OSError for what cannot be written.
    """
    from benchbench.page.document import page
    from benchbench.store.run_directory import replace_file

    own = [opened(run) for run in ([runs] if isinstance(runs, (Run, str, Path)) else runs)]
    if not own:
        raise ValueError("no run to write a page of")
    file = Path(path)
    replace_file(file, page(own).encode())
    return file
