"""Which of several settings is best, from Python: `Run.best`, and `best`, which makes the starts where they decide."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from benchbench.analysis.runs import Run
from benchbench.api.measuring import drawn_of
from benchbench.api.notebook import html_table, paragraphs
from benchbench.api.pictures import FORMATS, Pictures
from benchbench.api.run_tables import Form, check_format
from benchbench.api.selecting import AnyRun, opened
from benchbench.choice import answer_text
from benchbench.choice.answer import Answer, answer
from benchbench.choice.chooser import Chooser
from benchbench.choice.from_run import METRICS, trial_of
from benchbench.figures.caption import run_title
from benchbench.measure import run as measuring
from benchbench.measure.observer import Observer
from benchbench.measure.run import Outcome
from benchbench.safe_text import printable
from benchbench.spec import SweepSpec, make_plan

if TYPE_CHECKING:
    import pandas as pd

_TEXTS = {"md": answer_text.best_markdown, "json": answer_text.best_json, "csv": answer_text.best_csv}


@dataclass(frozen=True, repr=False)
class BestSettings:
    """The best setting of each cell and the default for all, each with what cannot be told from it: `Run.best`.

    `answer` has all that is known (docs/best.md), `run` is what it was made of.
    """

    run: Run
    answer: Answer

    @property
    def default(self) -> str:
        """The default for all cells; empty where there is none."""
        return self.answer.default.best

    @property
    def sentences(self) -> tuple[str, ...]:
        """A sentence of each cell, the default's last."""
        return tuple(answer_text.best_sentences(self.answer))

    def __repr__(self) -> str:
        return f"<BestSettings: {printable(self.sentences[-1])}>"

    def _repr_html_(self) -> str:
        tables = (answer_text.best_table(self.answer), answer_text.default_table(self.answer))
        return "".join(html_table(*table) for table in tables) + paragraphs(answer_text.best_notes(self.answer))

    def summary(self) -> pd.DataFrame:
        """One row a cell and setting (of the default the cell is "default"): place, figure (s, tok/s or req/s; of the
        default a share), starts, ratio to the best with its simultaneous interval, and why it is out.
        """
        import pandas as pd

        return pd.DataFrame(answer_text.best_records(self.answer))

    def table(self, format: Form = "md") -> str:
        """As `bench best` prints it: md, json or csv (github is md). Raises ValueError for another format."""
        check_format(format)
        return _TEXTS["md" if format == "github" else format](self.answer)

    def pictures(self, folder: str | Path) -> Pictures:
        """The run's figures, and its settings' throughput against latency (`best_pareto`); comparisons are left out."""
        return Pictures(self.run.rows, None, (), Path(folder), run_title(self.run), self.answer)

    def draw(self, folder: str | Path, formats: Sequence[str] = FORMATS) -> list[Path]:
        """Draw throughput against latency of all settings into `folder`, which is made; the files. Raises OSError."""
        from benchbench.choice.pareto import draw_best

        return draw_best(self.answer, Path(folder), run_title(self.run), formats)


def best_of_run(run: AnyRun, *, metric: str = "sys_tok_s", valid_only: bool = False) -> BestSettings:
    """Which setting of a run is best: see `Run.best`. Raises ValueError for what cannot be judged, and RunError."""
    own = opened(run)
    return BestSettings(own, answer(trial_of(own, metric, valid_only=valid_only), metric))


def best(  # noqa: PLR0913 - the options of the command
    spec: SweepSpec,
    out: str | Path | None = None,
    *,
    metric: str = "sys_tok_s",
    margin: float = 0.01,
    only: str | None = None,
    sets: Sequence[str] = (),
    resume: bool = False,
    plots: bool = True,
    observer: Observer | None = None,
    stop: int | None = None,
) -> Outcome:
    """Carry out a sweep of several settings as `sweep` does, without the starts that can decide nothing any more.

    Two blocks have all settings; before each later one those are left out that are beaten for `metric`, miss the `slo`,
    or are surely within `margin` (0.01 is 1 %) of all that are left. `open_run(outcome.path).best(metric=metric)` then
    says which is best. Raises ValueError for what cannot be judged, and what `sweep` does.
    """
    if metric not in METRICS:
        raise ValueError(f"--metric {metric}: unknown (allowed: {', '.join(METRICS)})")
    if not margin > 0:
        raise ValueError(f"--margin {margin}: must be above 0")
    if len({cell.variant for cell in make_plan(spec, only).cells}) < 2:
        raise ValueError("variants: one setting only; the best of several needs two or more")
    if metric == "goodput_req_s" and not any(cell.slo.is_set for cell in make_plan(spec, only).cells):
        raise ValueError("--metric goodput_req_s: needs an `slo` in the sweep")
    observer = observer or Observer()
    chooser = Chooser(metric, margin, observer.note)
    outcome = measuring.sweep(
        spec, out, only=only, sets=sets, resume=resume, observer=observer, stop=stop, choose=chooser
    )
    if not plots or outcome.state != "complete":
        return outcome
    return drawn_of(outcome, best_of_run(outcome.path, metric=metric).pictures(outcome.path / "plots"))
