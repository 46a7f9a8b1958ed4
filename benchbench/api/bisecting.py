"""Which commit made the difference, from Python: `find_commit` and what it gives."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from benchbench.bisect import bisection_text
from benchbench.bisect.search import Bisection, Terms, bisect
from benchbench.measure.observer import Observer
from benchbench.measure.run import Outcome
from benchbench.safe_text import printable
from benchbench.spec import SweepSpec
from benchbench.store.run_directory import replace_file


@dataclass(frozen=True, repr=False)
class FoundCommit:
    """How a search for a commit ended. `bisection` has all that is known (docs/bisect.md)."""

    bisection: Bisection

    @property
    def outcome(self) -> Outcome:
        """The run, and whether the search came to its end: state complete, stopped or interrupted."""
        return self.bisection.outcome

    @property
    def named(self) -> bool:
        """Whether commits are named with the confidence that was asked for."""
        return self.bisection.answer is not None and self.bisection.answer.reason == "found"

    @property
    def sentences(self) -> tuple[str, ...]:
        """The answer in words."""
        return tuple(bisection_text.bisection_sentences(self.bisection))

    def record(self) -> dict[str, Any]:
        """As `bench bisect --format json` prints it: reason, confidence, commits, ratio with interval, skipped ..."""
        return bisection_text.bisection_record(self.bisection)

    def table(self, format: Literal["md", "json"] = "md") -> str:
        """As `bench bisect` prints it."""
        texts = {"md": bisection_text.bisection_markdown, "json": bisection_text.bisection_json}
        return texts[format](self.bisection)

    def __repr__(self) -> str:
        return f"<FoundCommit: {printable(' '.join(self.sentences))}>"


def find_commit(  # noqa: PLR0913 - the options of the command
    spec: SweepSpec,
    good: str,
    bad: str,
    out: str | Path | None = None,
    *,
    only: str | None = None,
    metric: str = "sys_tok_s",
    paths: Sequence[str] = (),
    variant: str | None = None,
    confidence: float = 0.95,
    starts: int = 40,
    budget_s: float | None = None,
    paired: bool = False,
    sets: Sequence[str] = (),
    resume: bool = False,
    observer: Observer | None = None,
    stop: int | None = None,
) -> FoundCommit:
    """Look for the commit between `good` and `bad` that changed `metric`; the run is kept.

    `out`: its folder (default: runs/NAME-bisect-TIME). `spec` has a variant with `git` (`variant` names it): its
    repository, build and engine are every build's. `only`: a
    selection of cells. `paths`: only commits that touch these. The search ends at `confidence`, or before more than
    `starts` or `budget_s` seconds. `paired`: the good build stands in each block. What is said is also kept in the run,
    as bisect.md and bisect.json. Raises ValueError, SpecError, EngineError and RunError.
    """
    terms = Terms(
        good=good,
        bad=bad,
        only=only,
        metric=metric,
        paths=tuple(paths),
        variant=variant,
        confidence=confidence,
        starts=starts,
        budget_s=budget_s,
        paired=paired,
    )
    result = FoundCommit(bisect(spec, terms, out, resume=resume, sets=sets, observer=observer, stop=stop))
    if (path := result.outcome.path).is_dir():
        replace_file(path / "bisect.md", result.table().encode())
        replace_file(path / "bisect.json", result.table("json").encode())
    return result
