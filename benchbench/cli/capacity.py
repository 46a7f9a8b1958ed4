"""`bench capacity`: the largest load of each shape that meets the SLO, searched for or shown again."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from benchbench.cli.console import (
    BAD_INPUT,
    FOLDER,
    SETS,
    fail,
    refuse_of_runs,
    refusing,
    show,
    show_markdown,
    source_of,
)
from benchbench.cli.signals import Stop
from benchbench.cli.sweep import end_unless_complete, same_command, spec_and_sets, watching

if TYPE_CHECKING:
    from benchbench.capacity.probes import Made, SearchState
    from benchbench.cli.console import Source
    from benchbench.measure.observer import Observer


class _ProbesShown:
    """An observer that is told of a search's probes, and not of their cells."""

    def __init__(self, observer: Observer) -> None:
        self._observer = observer

    def __getattr__(self, name: str) -> Any:  # noqa: ANN401 - any of an observer's methods
        return getattr(self._observer, name)

    def row(self, *_: object) -> None:
        """Not shown: its probe is."""

    def begin(self, plan: Any, out: Path, left: int) -> None:  # noqa: ANN401 - an observer's
        what = "one search" if left == 1 else f"{left} searches"
        self._tell(f"{plan.spec.name}: searching for the largest load that meets the SLO, {what}, into {out}")

    def probe(self, state: SearchState, _made: Made) -> None:
        """A probe that is over."""
        from benchbench.capacity.answer_texts import progress_text

        self._tell(progress_text(state))

    def _tell(self, text: str) -> None:
        if say := getattr(self._observer, "say", None):
            say(text)


@click.command()
@click.argument("file", type=click.Path(), callback=source_of, metavar="SWEEP|RUN")
@SETS
@click.option("--plots", type=FOLDER, metavar="DIR", help="Draw the figure here (SWEEP: by itself, in plots/).")
@click.option("--only", metavar="SELECTION", help="Only the shapes and variants that match.")
@click.option("--width", default="5%", help="How near to each other the two loads shall be.")
@click.option("--budget-s", default=1800.0, type=click.FloatRange(0, min_open=True), help="Seconds for each search.")
@click.option("--out", type=FOLDER, metavar="DIR", help="Run directory (default: runs/NAME-TIME).")
@click.option("--resume", is_flag=True, help="Continue the run in --out (or the latest of this name).")
@click.option("--quiet", "-q", is_flag=True, help="Print errors alone, and on stdout the run's directory.")
@click.option("--json", "as_json", is_flag=True, help="On stdout one JSON object alone.")
def capacity(file: Source, sets: tuple[str, ...], only: str | None, out: Path | None, **flags: Any) -> None:  # noqa: ANN401 - click's
    """How much does it carry? The largest batch (or rate) of each shape that meets the sweep's `slo`.

    SWEEP's grid gives the shapes, and the smallest and largest load to search between. Each shape's answer is a load at
    which the SLO is met and one at which it is missed, both with 95 % confidence together. A RUN of it is shown again.

    Exit: 0 complete, 1 stopped and can be resumed, 2 bad input, 130 on Ctrl-C.
    """
    if isinstance(file, str) and Path(file).is_dir():
        refuse_of_runs(file, "--json", "--plots")
        _shown_again(Path(file), as_json=flags["as_json"])
        if flags["plots"]:
            _draw(Path(file), flags["plots"], tell=not flags["as_json"])
        return
    with Stop() as stop:
        from benchbench.api.capacities import find_capacity
        from benchbench.gates.rules import percent_of

        with refusing():
            width = percent_of(flags["width"], "--width")
            if not 0 < width < 0.5:
                fail(BAD_INPUT, f"bench capacity: --width {flags['width']}: must be above 0 and below 50%")
        spec, sets = spec_and_sets(file, sets, out, resume=flags["resume"], quiet=flags["quiet"])
        with watching(file, sets, quiet=flags["quiet"]) as observer:
            view: Any = _ProbesShown(observer)
            stop.check()
            shared: dict[str, Any] = {"only": only, "sets": sets, "resume": flags["resume"], "stop": stop.fd}
            shared |= {"width": width, "budget_s": flags["budget_s"]}
            outcome = find_capacity(spec, out, **shared, observer=view, tell=view.probe)
    if flags["quiet"] and not flags["as_json"]:
        show(outcome.path)
    elif (file_of := outcome.path / ("capacity.json" if flags["as_json"] else "capacity.md")).exists():
        (show if flags["as_json"] else show_markdown)(file_of.read_text().rstrip("\n"))
    words = [*same_command("capacity", file, sets, only), "--width", flags["width"]]
    words += ["--plots", str(flags["plots"])] if flags["plots"] else []
    end_unless_complete(outcome, stop, (file, sets), [*words, "--budget-s", f"{flags['budget_s']:g}"])
    spoken = not (flags["quiet"] or flags["as_json"])
    _draw(outcome.path, flags["plots"] or outcome.path / "plots", tell=spoken)
    if spoken:
        show(f"Run: {outcome.path}" + (f" ({outcome.message})" if outcome.message else ""))


def _draw(run: Path, folder: Path, *, tell: bool) -> None:
    """The figure of a run's searches; what cannot be drawn is a note."""
    from benchbench.api.capacities import capacity_pictures
    from benchbench.cli.drawing import plots_text

    if (lines := plots_text(capacity_pictures(run, folder))) and tell:
        show(lines)


def _shown_again(path: Path, *, as_json: bool) -> None:
    """The answers of a run, from its records."""
    from benchbench.capacity.answer_texts import run_json, run_table
    from benchbench.store.run_directory import RunDirectory

    run = RunDirectory.existing(path)
    (show if as_json else show_markdown)((run_json if as_json else run_table)(run).rstrip("\n"))
