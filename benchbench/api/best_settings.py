"""Which of a run's settings is best, from Python: `Run.best`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from benchbench.api.notebook import html_table, paragraphs
from benchbench.api.run_tables import FORMS, Form
from benchbench.api.selecting import AnyRun, opened
from benchbench.best import answer_text
from benchbench.best.answer import Answer, answer
from benchbench.best.from_run import trial_of
from benchbench.safe_text import printable

if TYPE_CHECKING:
    import pandas as pd

_TEXTS = {"md": answer_text.best_markdown, "json": answer_text.best_json, "csv": answer_text.best_csv}


@dataclass(frozen=True, repr=False)
class BestSettings:
    """The best setting of each cell and the default for all, each with what cannot be told from it: `Run.best`.

    `answer` has all that is known (docs/best.md).
    """

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
        if format not in FORMS:
            raise ValueError(f"format {format!r}: unknown (allowed: {', '.join(FORMS)})")
        return _TEXTS["md" if format == "github" else format](self.answer)


def best_of_run(run: AnyRun, *, metric: str = "sys_tok_s", valid_only: bool = False) -> BestSettings:
    """Which setting of a run is best: see `Run.best`. Raises ValueError for what cannot be judged, and RunError."""
    return BestSettings(answer(trial_of(opened(run), metric, valid_only=valid_only), metric))
