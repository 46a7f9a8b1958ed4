"""`Run` as Python users have it: what is stored, and what can be made of it."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING

from benchbench.analysis import runs
from benchbench.analysis.summary import COLUMNS
from benchbench.api.frames import Phase, requests_frame, rounds_frame, token_batches
from benchbench.api.notebook import run_html
from benchbench.errors import BenchError
from benchbench.host.samples import read_telemetry
from benchbench.safe_text import printable

if TYPE_CHECKING:
    import pandas as pd
    import pyarrow as pa


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

    def _repr_html_(self) -> str:
        return run_html(self, f"{self.name}: {self._counts()}")

    def summary(self) -> pd.DataFrame:
        """One row a cell, columns as in summary.csv, whatever the cell's status; columns without values are floats."""
        import pandas as pd

        frame = pd.DataFrame(self.rows, columns=list(COLUMNS))
        return frame.astype(dict.fromkeys(frame.columns[frame.isna().all()], float))

    def requests(self, phase: Phase = "measured", *, events: bool = False) -> pd.DataFrame:
        """One row a request: the columns of its record (docs/definitions.md), and what it took.

        `ttft_ms`, `tpot_ms`, `e2el_ms` are NaN where the request failed, `tpot_ms` too where one event held all its
        tokens. `steady`: whether the table's latencies are over this request; in a closed load those while the batch
        fills and empties are not. `phase`: "measured", "warmup" or "all". `events` adds the lists `event_ns`,
        `event_tokens` and `lag_ns`; `tokens()` has them as rows.
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
        """One row a finished round: the instrument's own facts (longest loop turn, CPU, clock step ...)."""
        return rounds_frame(self, phase)

    def telemetry(self) -> pd.DataFrame:
        """One row a sample of a device (`time_ns`, `device`; see docs/definitions.md); empty without telemetry."""
        import pandas as pd

        samples = read_telemetry(self.directory)
        return pd.DataFrame() if samples is None else samples.to_pandas()


def open_run(path: str | Path) -> Run:
    """Open the run directory at `path`. Raises `RunError` when there is none."""
    return Run(path)
