"""Since when a cell is slower, over many stored runs, from Python: `history_of` and what it gives."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from benchbench.analysis.runs import Run
from benchbench.api.notebook import html_table, paragraphs
from benchbench.api.run_tables import Form, check_format
from benchbench.api.selecting import AnyRun, opened
from benchbench.comparison.pairs import METRICS
from benchbench.comparison.tables import SHOWN
from benchbench.errors import RunError
from benchbench.history import history_tables as tables
from benchbench.history.nights import Measured, Night, nights_of
from benchbench.history.series import Series, series_of
from benchbench.safe_text import printable

if TYPE_CHECKING:
    import pandas as pd

_OfCell = TypeVar("_OfCell", Series, Measured)
_RUN = {"records", "summary.parquet", "journal.jsonl"}  # a folder with one of these was to be a run


@dataclass(frozen=True, repr=False)
class History:
    """Series over stored runs, by the date of what was measured: what `history_of` gives.

    `series` has each variant's cell and metric with its segments and steps, `notes` what was not read and why,
    `never` the cells of the latest runs that have had a number in no night.
    Ratios above 1 are better, for latencies too (docs/history.md).
    """

    series: tuple[Series, ...]
    notes: tuple[str, ...] = ()
    never: tuple[Measured, ...] = ()

    def __repr__(self) -> str:
        return f"<History: {printable(tables.headline(self.series))}>"

    def _repr_html_(self) -> str:
        return paragraphs([tables.headline(self.series)]) + html_table(*tables.step_rows(self.series))

    def steps(self) -> pd.DataFrame:
        """One row a step, the latest first: its ratio with the 95 % interval, levels, dates, commits, nights.

        Levels in `unit`: tok/s, req/s, or s.
        """
        import pandas as pd

        return pd.DataFrame(tables.step_records(self.series), columns=list(tables.STEP_COLUMNS))

    def nights(self) -> pd.DataFrame:
        """One row a night of each series: value in `unit`, interval over its starts, its level, whether it was used."""
        import pandas as pd

        return pd.DataFrame(tables.night_records(self.series), columns=list(tables.NIGHT_COLUMNS))

    def table(self, format: Form = "md") -> str:
        """As `bench history` prints it: md, json, csv or github. Raises ValueError for an unknown format."""
        check_format(format)
        if format == "csv":
            return tables.history_csv(self.series)
        return (tables.history_json if format == "json" else tables.history_table)(self.series, self.notes)

    def draw(self, folder: str | Path, formats: Sequence[str] = ("png", "svg")) -> list[Path]:
        """Draw the series of each metric into `folder`, which is made; the files. Raises OSError."""
        from benchbench.history.history_figures import draw_history

        return draw_history(self.series, Path(folder), formats)


def history_of(
    runs: AnyRun | Sequence[AnyRun],
    *,
    metrics: Sequence[str] = (),
    only: str | None = None,
    join: Sequence[str] = (),
    strict: bool = False,
) -> History:
    """Series over these runs, or those in these folders; steps, with the noise between nights.

    `metrics`: sys_tok_s, ttft, tpot (these by default), e2el, goodput_req_s. `only`: cells, as "batch=16". `join`:
    conditions in which the runs of a segment may differ, as ("host", "tool"). A folder that is no readable run is a
    note, but `strict` raises for one that was named. Raises RunError without any run, ValueError for what cannot be
    asked.
    """
    if wrong := [name for name in metrics if name not in METRICS]:
        raise ValueError(f"--metric {wrong[0]}: unknown (allowed: {', '.join(METRICS)})")
    notes: list[str] = []
    nights: list[Night] = []
    listed = [runs] if isinstance(runs, (Run, str, Path)) else list(runs)
    for given in listed:
        inside = isinstance(given, (str, Path)) and not (Path(given) / "manifest.json").is_file()
        for run in _within(Path(given)) if inside and isinstance(given, (str, Path)) else [given]:
            try:
                of_run = nights_of(opened(run))
            except (RunError, ValueError) as error:
                if strict and not inside:
                    raise
                notes.append(f"not read: {error}")
                continue
            if twin := next((night for night in nights for new in of_run if _of_one_run(night, new)), None):
                if twin.run.path.resolve() != of_run[0].run.path.resolve():
                    notes.append(f"not read: {of_run[0].run.path}: a copy of {twin.run.path}")
                continue
            nights += of_run
    if not nights:
        raise RunError(notes[0] if notes else f"{', '.join(map(str, listed)) or 'history_of'}: no run was found")
    series = series_of(nights, tuple(metrics) or SHOWN, join)
    latest = {night.variant: night for night in sorted(nights, key=lambda night: (night.when_ns, night.measured_ns))}
    shown = {(each.variant, each.cell.shape) for each in series}
    cells = [(night.variant, shape, measured) for night in latest.values() for shape, measured in night.cells.items()]
    never = [measured for variant, shape, measured in cells if (variant, shape) not in shown and measured.why]
    if only is not None:
        series, never = _selected(series, only, latest), _selected(never, only, latest)
        if not (series or never):
            raise ValueError(f"--only {only}: selects no cell of these runs")
    return History(tuple(series), tuple(notes), tuple(never))


def _of_one_run(night: Night, other: Night) -> bool:
    """Whether both are of one run, or of its copies, such as one kept small: begun in the same ns."""
    return night.measured_ns == other.measured_ns and night.run.manifest["spec"] == other.run.manifest["spec"]


def _within(folder: Path) -> Iterator[Path]:
    """The runs in a folder, and what was to be each, in order of their paths; nothing below a run."""
    if not folder.is_dir():
        yield folder
        return
    for path, folders, files in os.walk(folder):
        folders.sort()
        if "manifest.json" in files or (_RUN & {*folders, *files} and Path(path) != folder):
            folders.clear()
            yield Path(path)


def _selected(items: Sequence[_OfCell], only: str, variants: Iterable[str]) -> list[_OfCell]:
    from benchbench.spec import SelectionError, parse_selection

    try:
        selection = parse_selection(only, dict.fromkeys(variants))
    except SelectionError as error:
        raise ValueError(f"--only {only}: {error}") from None
    return [each for each in items if selection.matches(dict(each.cell))]
