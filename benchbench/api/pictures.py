"""What the pictures of a run show. Light: processes that only draw import it, and nothing that reads runs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from benchbench.choice.answer import Answer
    from benchbench.comparison.pairs import Pair
    from benchbench.figures.plots import Timeline
    from benchbench.figures.searches import Shown
    from benchbench.report.summary_table import Row

FORMATS = ("png", "svg")


@dataclass(frozen=True, slots=True)
class Pictures:
    """What the pictures of a run show, and the folder that they go to, which is made."""

    rows: Sequence[Row]
    timeline: Timeline | None
    pairs: Sequence[Pair]
    out: Path
    title: str
    best: Answer | None = None  # of several settings
    capacity: Sequence[Shown] = ()  # searches for one

    def draw(self, formats: Sequence[str] = FORMATS) -> list[Path]:
        """Draw them here; the files. Raises OSError."""
        from benchbench.figures.plots import draw_plots

        files = draw_plots([*self.rows], self.timeline, self.out, self.title, formats)
        if self.pairs:
            from benchbench.comparison.figures import draw_comparisons

            files += draw_comparisons(self.pairs, self.out, self.title, formats)
        if self.capacity:
            from benchbench.figures.searches import draw_searches

            files += draw_searches(self.capacity, self.out, self.title, formats)
        if self.best:
            from benchbench.choice.pareto import draw_best

            files += draw_best(self.best, self.out, self.title, formats)
        return files
