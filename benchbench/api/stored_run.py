"""`Run` as Python users have it: what is stored, and what can be made of it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Unpack

from benchbench.analysis import runs
from benchbench.analysis.summary import COLUMNS
from benchbench.api.artifacts import pictures_of, write_page
from benchbench.api.compared import RunComparison, compare_runs
from benchbench.api.frames import Phase, requests_frame, rounds_frame, token_batches
from benchbench.api.notebook import run_html
from benchbench.api.pictures import FORMATS
from benchbench.api.run_tables import Form, runs_table
from benchbench.api.selecting import AnyRun, chosen
from benchbench.errors import BenchError
from benchbench.host.samples import read_telemetry
from benchbench.safe_text import printable

if TYPE_CHECKING:
    import pandas as pd
    import pyarrow as pa

    from benchbench.api.auditing import Audit, Corrections
    from benchbench.api.best_settings import BestSettings
    from benchbench.exporters.write_files import Exported, Format


class Run(runs.Run):
    """A stored run, read only: `open_run(path)`.

    Its numbers are recomputed from `records/` when they are first asked for, and then kept. `path`, `name`, `manifest`
    and `cells` say what was measured; `rows` are the summary's rows as dicts, one a cell. What needs the records of
    requests raises RunError for a run that has none (`has_records`).
    """

    def __repr__(self) -> str:
        return f"<Run {printable(self.name)}: {self._counts()}, {printable(self.path)}>"

    def _counts(self) -> str:
        """`12 cells (10 valid, 2 suspect)`; never raises, since debuggers ask."""
        try:
            counts = Counter(str(row["status"]) for row in self.rows)
        except BenchError as error:
            return f"unreadable ({printable(error)})"
        kinds = ", ".join(f"{counts[status]} {status}" for status in ("valid", "suspect", "invalid") if counts[status])
        return f"{counts.total()} cell{'s'[: counts.total() != 1]} ({kinds or 'none'})"

    def _repr_html_(self) -> str | None:
        try:
            return run_html(self, self._counts())
        except BenchError:
            return None  # notebooks show the repr then

    def summary(self) -> pd.DataFrame:
        """One row a cell, columns as in summary.csv, whatever the cell's status; columns without values are floats."""
        import pandas as pd

        frame = pd.DataFrame(self.rows, columns=list(COLUMNS))
        return frame.astype(dict.fromkeys(frame.columns[frame.isna().all()], float))

    def requests(self, phase: Phase = "measured", *, events: bool = False) -> pd.DataFrame:
        """One row a request: the columns of its record (docs/definitions.md), and what it took.

        `ttft_ms`, `tpot_ms`, `e2el_ms` are NaN where the request failed, `tpot_ms` too where one event held all its
        tokens. `steady`: whether the table's latencies are over this request; in a closed load those while the batch
        fills and empties are not. Times in ns are whole numbers (Int64), NA where missing. `phase`: "measured",
        "warmup" or "all". `events` adds the lists `event_ns`, `event_tokens` and `lag_ns`; `tokens()` has them as rows.
        """
        return requests_frame(self, phase, events=events)

    def tokens(self, phase: Phase = "measured") -> pa.RecordBatchReader:
        """One row a token event: cell, phase, round, index (of the request), since_send_ms, tokens.

        A stream with one batch a round, each read when its turn comes, so that memory stays flat: iterate over it, hand
        it to DuckDB or Polars, or take all of it with `.read_pandas()`. Warm-up, failed and invalid are as in
        `requests()`, on whose columns cell, phase, round and index it joins. Raises RunError while it is read, too.
        """
        return token_batches(self, phase)

    def rounds(self, phase: Phase = "measured") -> pd.DataFrame:
        """One row a finished round: its figures, named as in the summary, and the instrument's own facts.

        The summary's means and intervals are over these figures, in a sweep with blocks over the means of each start
        (`block`). Facts are the longest loop turn, CPU, clock step ... (docs/definitions.md).
        """
        return rounds_frame(self, phase)

    def replicas(self) -> pd.DataFrame:
        """One row a cell and server, of a run whose `engine.url` names several: requests, failures, latencies, rates.

        `replica`: the server's place in `engine.url`, as `target` in `requests()`. `share`: of the output tokens per
        second. `slow`: surely slower than the others (the cell's reason `uneven_replicas`).
        """
        import pandas as pd

        from benchbench.api.by_replica import replica_rows

        return pd.DataFrame(replica_rows(self))

    def telemetry(self) -> pd.DataFrame:
        """One row a sample of a device (`time_ns`, `device`; see docs/definitions.md); empty without telemetry."""
        import pandas as pd

        samples = read_telemetry(self.directory)
        return pd.DataFrame() if samples is None else samples.to_pandas()

    # -- what can be made of it

    def table(
        self,
        format: Form = "md",
        *,
        columns: Sequence[str] | None = None,
        pivot: str | None = None,
        include_invalid: bool = False,
    ) -> str:
        """As `bench table` prints it: md, csv, json, or github (Markdown for a job's summary).

        `columns`: of summary.csv. `pivot`: one column for each value of an axis, as "batch:sys_tok_s". Invalid cells
        are left out unless asked for. Raises ValueError for what cannot be asked.
        """
        return runs_table([self], format, columns=columns, pivot=pivot, include_invalid=include_invalid)

    def explain(self, *cells: str) -> str:
        """What was checked of each cell, and why it is (in)valid; `cells` by key or as "batch>=8,input=128".

        Raises ValueError for what selects no cell.
        """
        from benchbench.explain.of_run import explain_cells

        return "\n\n".join(explain_cells(self, chosen(self.cells, cells))) + "\n"

    def draw(
        self, folder: str | Path | None = None, *, cell: str | None = None, formats: Sequence[str] = FORMATS
    ) -> list[Path]:
        """Draw the figures whose data exist into `folder` (default: plots/ in the run), which is made; the files.

        `cell`: whose timeline, by its key. With variants also their comparison's. Raises ValueError for an unknown
        cell, and OSError.
        """
        return pictures_of(self, folder, cell).draw(formats)

    def compare(
        self,
        other: AnyRun | None = None,
        *,
        base: str | None = None,
        candidate: str | None = None,
        margin: float = 0.01,
        noise: AnyRun | None = None,
        allow_unlike: bool = False,
    ) -> RunComparison:
        """Its variants with each other, or it as the base with another run: see `benchbench.compare_runs`."""
        named = {"base": base, "candidate": candidate}
        return compare_runs(self, other, **named, margin=margin, noise=noise, allow_unlike=allow_unlike)

    def best(self, *, metric: str = "sys_tok_s", valid_only: bool = False) -> BestSettings:
        """Its best setting (variant) per cell and for all cells, each with what cannot be told from it (95 %).

        `metric`: sys_tok_s, ttft, tpot or goodput_req_s; of settings that meet the sweep's `slo`. `valid_only`: suspect
        cells do not count. Raises ValueError for what cannot be judged, and RunError without records.
        """
        from benchbench.api.best_settings import best_of_run

        return best_of_run(self, metric=metric, valid_only=valid_only)

    def write_page(self, path: str | Path = "report.html") -> Path:
        """Write it as one HTML file that loads nothing; its path. Raises OSError."""
        return write_page(self, path)

    def export(self, format: Format, output: str | Path | None = None, *, include_invalid: bool = False) -> Exported:
        """Write its cells as files that other tools read: "vllm", "llm-d" or "csv" (docs/imports.md#export).

        `output`: an empty folder or none yet (default: export/FORMAT in the run). What it gives has the `files` and, in
        `notes`, the cells that are not valid; invalid ones are left out unless asked for. Raises RunError, ValueError
        for an unknown format, and OSError.
        """
        from benchbench.exporters.write_files import export_run

        return export_run(self, format, output, include_invalid=include_invalid)

    def audit(self, **corrections: Unpack[Corrections]) -> Audit:
        """What is impossible or suspicious in its numbers, given model and hardware: see `benchbench.audit_file`."""
        from benchbench.api.auditing import audit_run

        return audit_run(self, corrections)

    def publish(  # noqa: PLR0913 - the options of the command
        self,
        card: str | Path,
        *,
        after: str | None = None,
        sections: Sequence[str] = ("performance",),
        model: str | Path | None = None,
        evaluation: str | Path | None = None,
        only: Sequence[str] = (),
        columns: Sequence[str] | None = None,
        pivot: str | None = None,
        allow_empty: bool = False,
        dry_run: bool = False,
    ) -> str:
        """Write its table into a model card, between the card's markers; the change as a unified diff, "" if none.

        `after`: the heading behind which a section without markers is put. `sections`: performance, comparison, model
        (of the folder `model`), evaluation (of lm-eval's results in `evaluation`). `only`: cells as in `explain`.
        `dry_run` writes nothing. Raises ValueError (a CardError is one) for what cannot be published, and OSError.
        """
        from benchbench.api.cards import Wanted, card_change

        made_of: dict[str, Any] = {"model": model, "evaluation": evaluation, "only": only}
        shown: dict[str, Any] = {"columns": columns, "pivot": pivot, "allow_empty": allow_empty}
        change = card_change(self, card, Wanted(after=after, sections=sections, **made_of, **shown))
        if not dry_run:
            change.write()
        return "".join(change.difference())


def open_run(path: str | Path) -> Run:
    """Open the run directory at `path`. Raises `RunError` when there is none."""
    return Run(path)
