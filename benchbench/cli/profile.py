"""`bench profile`: where the difference of two builds is, kernel by kernel."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click

from benchbench.cli.console import FOLDER, SETS, fail, located, refusing, show_markdown, source_of, spec_of
from benchbench.cli.signals import Stop
from benchbench.errors import InterruptedSweep, LaunchStoppedError

if TYPE_CHECKING:
    from benchbench.cli.console import Source
    from benchbench.spec import SweepSpec


@click.command()
@click.argument("file", type=click.Path(), callback=source_of)
@click.argument("run", type=FOLDER)
@SETS
@click.option("--starts", default=1, type=click.IntRange(1), help="Traced starts of each variant.")
def profile(file: Source, run: Path, sets: tuple[str, ...], starts: int) -> None:
    """Show where the difference is: run cells of the comparison RUN once more under the server's profiler.

    Traces the cells that were called and one that was not, in starts of their own, whose times are in no table. The
    traces stay in RUN/profiles; the kernels that differ most are printed and kept in RUN/profile.md.

    Exit: 0, 1 stopped (the same command continues), 2 bad input, 130 on Ctrl-C.
    """
    spec = spec_of(file, sets)
    with Stop() as stop:
        show_markdown(profiled_text(spec, run, starts, stop, (file, sets)).rstrip("\n"))


def profiled_text(spec: SweepSpec, run: Path, starts: int, stop: Stop, source: tuple[Source, tuple[str, ...]]) -> str:
    """Trace what is not traced yet; the Markdown, which is also kept in the run."""
    from benchbench.analysis.runs import Run
    from benchbench.cli.live import observer_for
    from benchbench.comparison.candidates import pairs_of
    from benchbench.engines.process import Hooks
    from benchbench.profiling.kernel_table import profile_text
    from benchbench.profiling.recording import cells_of, read_profiles, record
    from benchbench.store.run_directory import replace_file

    parts: list[str] = []
    with refusing(), located(*source), observer_for(sys.stderr) as observer:
        opened = Run(run)
        for pair in pairs_of(opened):
            labels, sides = cells_of(pair) or [opened.cells[0].shape], (pair.base, pair.candidate)
            hooks = Hooks(run / "logs", observer.starting, stop.fd)
            try:
                record(spec, run, opened.manifest, sides, labels, starts, hooks)
            except (InterruptedSweep, LaunchStoppedError):
                fail(stop.code, "bench: interrupted; bench profile with the same words continues")
            keys = {(cell.variant, cell.shape): cell.key for cell in opened.cells}
            base, candidate = ({key: read_profiles(run, side, keys[side, key]) for key in labels} for side in sides)
            cells = {label: (base[label], candidate[label]) for label in labels}
            parts.append(f"# {pair.candidate} against {pair.base}\n\n{profile_text(cells, *sides)}")
        if not parts:
            raise ValueError(f"{run}: has no variants to compare")
        text = "\n".join(parts)
        replace_file(run / "profile.md", text.encode())
    return text
