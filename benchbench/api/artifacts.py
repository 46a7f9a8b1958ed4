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
    from benchbench.page.document import Section


def pictures_of(run: Run, folder: str | Path | None = None, cell: str | None = None) -> Pictures:
    """The run's figures and, with variants, those of their comparison, of more than two the choice of the best too; of
    a search for a capacity its own.

    `folder`: plots/ in the run by default.

    `cell`: whose timeline, by its key. Raises ValueError for an unknown cell.
    """
    from benchbench.api.capacities import searches_in
    from benchbench.comparison.candidates import pairs_of
    from benchbench.figures.caption import run_title
    from benchbench.figures.timeline import timeline_of

    keys = [known.key for known in run.cells]
    if cell is not None and cell not in keys:
        raise ValueError(f"no cell {cell} in this run (allowed: {', '.join(keys)})")
    out = run.path / "plots" if folder is None else Path(folder)
    pairs = pairs_of(run) if run.has_records else []
    times, searches = timeline_of(run, run.rows, cell), searches_in(run)
    return Pictures(run.rows, times, pairs, out, run_title(run), choice_of(run), searches)


def choice_of(run: Run) -> Answer | None:
    """Which setting is best, of a run with more than two that has records."""
    if not run.has_records or len({cell.variant for cell in run.cells}) < 3:
        return None
    from benchbench.choice.answer import answer
    from benchbench.choice.from_run import trial_of

    return answer(trial_of(run, metric := "sys_tok_s"), metric)


def page_of(runs: Sequence[Run]) -> str:
    """The HTML page of runs; what a search found and, of more than two settings, which is best. Raises RunError."""
    from benchbench.page.document import page

    named = [(run, run.name if len(runs) > 1 else "") for run in runs]
    sections = [make(*of_run) for make in (_capacity_section, _best_section) for of_run in named]
    return page(runs, [section for section in sections if section])


def _best_section(run: Run, name: str) -> Section | None:
    from benchbench.choice.answer_text import best_notes, best_sentences, default_table
    from benchbench.choice.pareto import best_figures
    from benchbench.figures.caption import run_title
    from benchbench.page.document import Section

    if not (choice := choice_of(run)):
        return None
    lines, figures = best_sentences(choice), partial(best_figures, choice, run_title(run))
    return Section("best", name, lines, lines[-1:], [default_table(choice)], best_notes(choice), figures)


def _capacity_section(run: Run, name: str) -> Section | None:
    from benchbench.api.capacities import searches_in
    from benchbench.capacity.answer_texts import run_parts
    from benchbench.figures.caption import run_title
    from benchbench.figures.searches import search_figures
    from benchbench.page.document import Section

    if not (searches := searches_in(run)):
        return None
    lines, tables, reasons, slo = run_parts(run.directory)
    figures = partial(search_figures, searches, run_title(run))
    return Section("capacity", name, lines, lines, tables, [*reasons, *slo], figures)


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
