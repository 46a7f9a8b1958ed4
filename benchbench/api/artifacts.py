"""What is made of stored runs as files: figures, and one HTML page."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from benchbench.analysis.runs import Run
from benchbench.api.pictures import Pictures
from benchbench.api.selecting import AnyRun, opened

if TYPE_CHECKING:
    from benchbench.choice.answer import Answer


def pictures_of(run: Run, folder: str | Path | None = None, cell: str | None = None) -> Pictures:
    """The run's figures and, with variants, those of their comparison, of more than two the choice of the best too.

    `folder`: plots/ in the run by default.

    `cell`: whose timeline, by its key. Raises ValueError for an unknown cell.
    """
    from benchbench.comparison.candidates import pairs_of
    from benchbench.figures.caption import run_title
    from benchbench.figures.timeline import timeline_of

    keys = [known.key for known in run.cells]
    if cell is not None and cell not in keys:
        raise ValueError(f"no cell {cell} in this run (allowed: {', '.join(keys)})")
    out = run.path / "plots" if folder is None else Path(folder)
    pairs = pairs_of(run) if run.has_records else []
    return Pictures(run.rows, timeline_of(run, run.rows, cell), pairs, out, run_title(run), choice_of(run))


def choice_of(run: Run) -> Answer | None:
    """Which setting is best, of a run with more than two that has records."""
    if not run.has_records or len({cell.variant for cell in run.cells}) < 3:
        return None
    from benchbench.choice.answer import answer
    from benchbench.choice.from_run import trial_of

    return answer(trial_of(run, metric := "sys_tok_s"), metric)


def page_of(runs: Sequence[Run]) -> str:
    """The HTML page of runs, each with more than two settings with the choice of the best. Raises RunError."""
    from benchbench.choice.answer_text import best_notes, best_sentences, default_table
    from benchbench.choice.pareto import best_figures
    from benchbench.figures.caption import run_title
    from benchbench.page.document import Section, page

    chosen = [(run, choice) for run in runs if (choice := choice_of(run))]
    sections = [
        Section(
            run.name if len(runs) > 1 else "",
            best_sentences(choice),
            [default_table(choice)],
            best_notes(choice),
            partial(best_figures, choice, run_title(run)),
        )
        for run, choice in chosen
    ]
    return page(runs, sections)


def write_page(runs: AnyRun | Sequence[AnyRun], path: str | Path = "report.html") -> Path:
    """Write one run, or several side by side, as one HTML file that loads nothing; its path.

    Raises RunError for what cannot be read, ValueError without a run, and OSError for what cannot be written.
    """
    from benchbench.store.run_directory import replace_file

    own = [opened(run) for run in ([runs] if isinstance(runs, (Run, str, Path)) else runs)]
    if not own:
        raise ValueError("no run to write a page of")
    file = Path(path)
    replace_file(file, page_of(own).encode())
    return file
