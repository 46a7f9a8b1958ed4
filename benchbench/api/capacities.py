"""How much a server carries, from Python: `find_capacity` measures it, `compare_capacities` compares what it was."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from benchbench.analysis.runs import Run
from benchbench.api.pictures import Pictures
from benchbench.api.selecting import AnyRun, opened
from benchbench.capacity import answer_texts
from benchbench.capacity.over_starts import Against, Starts, against, starts_of
from benchbench.capacity.probes import searches_of
from benchbench.capacity.searches_shown import shown
from benchbench.capacity.searching import find_capacity
from benchbench.comparison.pairs import differences
from benchbench.figures.caption import run_title
from benchbench.figures.searches import Shown

__all__ = ["capacity_pictures", "compare_capacities", "comparison_text", "find_capacity", "is_capacity_run"]


def is_capacity_run(path: str | Path) -> bool:
    """Whether `bench capacity` has left its answers there."""
    return (Path(path) / "capacity.json").is_file()


def capacity_pictures(run: AnyRun, folder: str | Path) -> Pictures:
    """The picture of a run's searches alone; `Run.draw` draws it with the figures of its probes. Raises RunError."""
    own = opened(run)
    return Pictures((), None, (), Path(folder), run_title(own), capacity=searches_in(own))


def searches_in(run: Run) -> list[Shown]:
    """What a picture shows of the searches of a run; nothing for a run of another kind."""
    if not run.has_records or not is_capacity_run(run.path):
        return []
    return shown(searches_of(run.directory), {cell.key: cell for cell in run.cells})


def compare_capacities(
    run: Run,
    other: Run | None = None,
    *,
    base: str | None = None,
    candidate: str | None = None,
    allow_unlike: bool = False,
) -> list[Against]:
    """The variants of a capacity's run, paired over blocks, or two such runs, start by start.

    Arguments as of `compare_runs`. Raises ValueError for what cannot be compared, and RunError.
    """
    olds = _by_variant(run)
    first = base or run.manifest["spec"]["baseline"] or next(iter(olds))
    if other is None:
        if len(olds) < 2:
            raise ValueError(f"{run.path}: has no variants to compare; give a second run")
        names = [candidate] if candidate else [name for name in olds if name != first]
        sides = [(_side(run, olds, first), _side(run, olds, name), (first, name)) for name in names]
        return [against(old, new, both, paired=True) for old, new, both in sides]
    news = _by_variant(other)
    second = candidate or next(iter(news))
    unlike = [text for text in differences(run, other) if not text.startswith("shapes: ")]
    if (limits := [of.manifest["spec"]["slo"] for of in (run, other)])[0] != limits[1]:
        unlike.append(f"slo: {limits[0]} against {limits[1]}")
    if unlike and not allow_unlike:
        raise ValueError(
            f"{run.path} and {other.path} are unlike: {'; '.join(unlike)} (--allow-unlike compares anyway)"
        )
    called = (first or run.name, second or other.name)
    called = called if called[0] != called[1] else (str(run.path), str(other.path))
    return [against(_side(run, olds, first), _side(other, news, second), called, paired=False)]


def _by_variant(run: Run) -> dict[str, list[Starts]]:
    """What each variant's starts carry. Raises ValueError where a run has one start."""
    states = searches_of(run.directory)
    if any(state.block is None for state in states) or not states:
        raise ValueError(f"{run.path}: has one start, and no interval over starts: bench capacity --set blocks=6")
    by_variant: dict[str, list[Starts]] = {}
    for starts in starts_of(states):
        by_variant.setdefault(starts.variant, []).append(starts)
    return by_variant


def _side(run: Run, sides: dict[str, list[Starts]], name: str) -> list[Starts]:
    if name not in sides:
        raise ValueError(f"{name}: no variant of {run.path} (allowed: {', '.join(filter(None, sides)) or 'none'})")
    return sides[name]


def comparison_text(pairs: Sequence[Against], form: str) -> str:
    """As `bench compare` prints it: md (github too) or json. Raises ValueError for another form."""
    if form == "json":
        return answer_texts.pairs_json(pairs)
    if form not in {"md", "github"}:
        raise ValueError(f"--format {form}: not of a capacity's run (allowed: md, github, json)")
    return "\n".join(answer_texts.pair_table(pair) for pair in pairs)
