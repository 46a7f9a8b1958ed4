"""Two builds' kernels beside each other: where the difference of a step is. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean

from benchbench.comparison.shifts import welch_shift
from benchbench.profiling.traces import Profile
from benchbench.report.markdown import write_table
from benchbench.student.t_distribution import t_quantile

SHOWN = 15  # kernels of a table
NAME = 90  # characters of a kernel's name


@dataclass(frozen=True, slots=True)
class Row:
    """A kernel: seconds and calls a step of base and candidate (None: it did not run), and the difference in seconds.

    `half_s` is half of its 95 % interval over starts (Welch); None with one start of a build.
    """

    name: str
    base_s: float | None
    candidate_s: float | None
    calls: tuple[float, float]
    half_s: float | None

    @property
    def difference_s(self) -> float:
        """Candidate - base."""
        return (self.candidate_s or 0.0) - (self.base_s or 0.0)


def rows_of(base: Sequence[Profile], candidate: Sequence[Profile]) -> list[Row]:
    """Every kernel of two builds, each with a profile a start; the largest difference first."""
    names = dict.fromkeys(name for profile in (*base, *candidate) for name in profile.kernels)
    return sorted((_row(name, base, candidate) for name in names), key=lambda row: -abs(row.difference_s))


def _row(name: str, base: Sequence[Profile], candidate: Sequence[Profile]) -> Row:
    sides = [[profile.kernels.get(name, (0.0, 0.0)) for profile in side] for side in (base, candidate)]
    seconds = [[s for s, _ in side] for side in sides]
    shift, half = welch_shift(seconds[0], seconds[1]), None
    if shift.parts:
        error, degrees = shift.error()
        half = t_quantile(0.975, degrees) * error
    ran = [fmean(side) if any(name in profile.kernels for profile in profiles) else None
           for side, profiles in zip(seconds, (base, candidate), strict=True)]  # fmt: skip
    calls = fmean(n for _, n in sides[0]), fmean(n for _, n in sides[1])
    return Row(name, ran[0], ran[1], calls, half)


def profile_text(cells: Mapping[str, tuple[Sequence[Profile], Sequence[Profile]]], base: str, candidate: str) -> str:
    """Markdown: for each cell the kernels whose time a step differs most between two builds."""
    parts = []
    for cell, sides in cells.items():
        rows = rows_of(*sides)
        step = [fmean(profile.step_s for profile in side) for side in sides]
        what = "GPU kernels" if sides[0][0].on_gpu else "CPU operators, own time (the trace has no GPU kernel)"
        took = " and ".join(
            f"{_us(seconds)} us in {name} ({len(side)} start{'s' * (len(side) > 1)} of {side[0].steps} steps)"
            for seconds, name, side in zip(step, (base, candidate), sides, strict=True)
        )
        parts += [
            f"## {cell}",
            "",
            f"{what}; a step takes {took}, traced, so slower than timed.",
            "",
            *write_table(
                ["Kernel", f"{base} (us/step)", f"{candidate} (us/step)", "Difference (us/step)", "Calls/step"],
                [_words(row, base, candidate) for row in rows[:SHOWN]],
            ),
            "",
        ]
        if len(rows) > SHOWN:
            rest = sum(row.difference_s for row in rows[SHOWN:])
            parts += [f"{len(rows) - SHOWN} more kernels differ by {_us(rest)} us in all.", ""]
    return "\n".join(parts)


def _words(row: Row, base: str, candidate: str) -> list[str]:
    only = f" (only {candidate})" if row.base_s is None else f" (only {base})" if row.candidate_s is None else ""
    name = row.name if len(row.name) <= NAME else row.name[: NAME - 3] + "..."
    half = "" if row.half_s is None else f" ± {_us(row.half_s)}"
    calls = [f"{n:g}" if n == int(n) else f"{n:.1f}" for n in row.calls]
    return [
        name + only,
        "-" if row.base_s is None else _us(row.base_s),
        "-" if row.candidate_s is None else _us(row.candidate_s),
        f"{row.difference_s * 1e6:+,.1f}{half}",
        calls[0] if calls[0] == calls[1] else f"{calls[0]} -> {calls[1]}",
    ]


def _us(seconds: float) -> str:
    return f"{seconds * 1e6:,.1f}"
