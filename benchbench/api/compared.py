"""Whether one build is faster than another, from Python: `compare_runs` and what it gives."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchbench.analysis.runs import Run
from benchbench.api.notebook import html_table, paragraphs
from benchbench.api.run_tables import Form, check_format
from benchbench.api.selecting import AnyRun, opened
from benchbench.comparison import tables
from benchbench.comparison.candidates import together
from benchbench.comparison.pairs import METRICS, Pair, Side, differences, noise_of, pair, sides_of
from benchbench.comparison.verdicts import Noise
from benchbench.figures.caption import run_title
from benchbench.safe_text import printable

if TYPE_CHECKING:
    import pandas as pd

_FORMS = {
    "md": tables.comparison_table,
    "json": tables.comparison_json,
    "csv": tables.comparison_csv,
    "github": tables.comparison_github,
}
_SIDES = ["base", "candidate"]
_CELL = ["input", "output", "batch", "rate", "load"]
_VALUES = ["unit", "base_value", "candidate_value"]
_EFFECT = ["ratio", "ratio_low", "ratio_high", "verdict", "p_value", "p_adjusted", "mde", "mde_family", "noise"]
_EFFECT += ["more_blocks", "starts", "fidelity", "warnings"]


@dataclass(frozen=True, repr=False)
class RunComparison:
    """A baseline against one candidate, or each of several: what `compare_runs` and `Run.compare` give.

    `pairs` has each comparison with all that is known of it, `noise` what was given as noise, `title` what figures are
    headed by. Ratios above 1 say that the candidate is better, for latencies too (docs/comparing.md).
    """

    title: str
    pairs: tuple[Pair, ...]
    noise: tuple[Noise, ...] = ()

    @property
    def sentences(self) -> tuple[str, ...]:
        """The result of each pair in one sentence."""
        return tuple(tables.sentence(of_sides) for of_sides in self.pairs)

    def __repr__(self) -> str:
        return f"<RunComparison: {' '.join(map(printable, self.sentences))}>"

    def _repr_html_(self) -> str:
        return "".join(
            paragraphs([tables.sentence(of_sides)])
            + html_table(*tables.ratio_table(of_sides))
            + paragraphs(tables.notes(of_sides))
            for of_sides in self.pairs
        )

    def summary(self) -> pd.DataFrame:
        """One row a cell and metric: base, candidate, axes, ratio with its 95 % interval, verdict, p, MDE, fidelity.

        Times in s, rates in tok/s and req/s (`unit`); effects are shares, 0.02 is 2 %.
        """
        records = [record for of_sides in self.pairs for record in self._record(of_sides)["cells"]]
        return _frame(records, [*_SIDES, *_CELL, "metric", *_VALUES, *_EFFECT])

    def means(self) -> pd.DataFrame:
        """One row a pair and metric: the geometric mean over the cells, with columns as in `summary()`."""
        records = [
            {"base": record["base"], "candidate": record["candidate"], **mean}
            for of_sides in self.pairs
            for record in self._record(of_sides)["pairs"]
            for mean in record["means"]
        ]
        return _frame(records, [*_SIDES, "metric", *_EFFECT])

    def _record(self, of_sides: Pair) -> Mapping[str, Any]:
        return tables.comparison_record([of_sides], METRICS)

    def table(self, format: Form = "md", *, metrics: Sequence[str] = ()) -> str:
        """As `bench compare` prints it: md, json, csv or github. `metrics`: sys_tok_s, ttft, tpot, e2el, goodput_req_s.

        Raises ValueError for an unknown format or metric.
        """
        check_format(format)
        if wrong := [name for name in metrics if name not in METRICS]:
            raise ValueError(f"--metric {wrong[0]}: unknown (allowed: {', '.join(METRICS)})")
        return _FORMS[format](self.pairs, tuple(metrics) or tables.SHOWN)

    def draw(self, folder: str | Path, formats: Sequence[str] = ("png", "svg")) -> list[Path]:
        """Draw the figures whose data exist into `folder`, which is made; the files. Raises OSError."""
        from benchbench.comparison.figures import draw_comparisons

        return draw_comparisons(self.pairs, Path(folder), self.title, formats)


def _frame(records: Sequence[Mapping[str, Any]], columns: list[str]) -> pd.DataFrame:
    import pandas as pd

    rows = [
        {f"ratio_{end}" if end != "point" else "ratio": value for end, value in record["ratio"].items()}
        | {name: value for name, value in record.items() if name not in {"ratio", "warnings"}}
        | {"warnings": "; ".join(record["warnings"])}
        for record in records
    ]
    return pd.DataFrame(rows, columns=columns)


def compare_runs(
    run: AnyRun,
    other: AnyRun | Sequence[AnyRun] | None = None,
    *,
    base: str | None = None,
    candidate: str | None = None,
    margin: float = 0.01,
    noise: AnyRun | None = None,
    allow_unlike: bool = False,
) -> RunComparison:
    """Compare the variants of a run, or a run with another one, or each of several, start by start.

    `base`: the variant to compare with (default: the sweep's baseline); `candidate`: the one to judge (default: each of
    the others). Several candidates are one question: they share their families. `margin`: differences within it are
    equivalent (0.01 is 1 %). `noise`: a run of `bench noise`; nothing inside its noise is called faster or slower.
    `allow_unlike`: also runs of unlike models, shapes, loads, GPUs or drivers. Raises RunError for what cannot be read,
    and ValueError for what cannot be compared.
    """
    first = opened(run)
    others = [] if other is None else [other] if isinstance(other, (Run, str, Path)) else list(other)
    rest = [opened(each) for each in others]
    if bare := next((each for each in (first, *rest) if not each.has_records), None):
        beside = f"bench table {' '.join(str(each.path) for each in (first, *rest))}"
        raise ValueError(f"{bare.path}: has no records of requests, so no comparison ({beside} shows the rows)")
    sides = _of_runs(first, rest, base, candidate) if rest else _of_variants(first, base, candidate)
    floor: tuple[Noise, ...] = ()
    notes: list[str] = []
    if noise is not None:
        aa = opened(noise)
        floor = noise_of(aa)[0]
        notes += _refused(differences(aa, first), f"the noise run {aa.path} and {first.path}", allow=allow_unlike)
    unlike = [
        _refused(differences(first, each), f"{first.path} and {each.path}", allow=allow_unlike) for each in rest
    ] or [[] for _ in sides]
    pairs = together([pair(*of_sides, margin, floor, subset=allow_unlike) for of_sides in sides], floor)
    title = " and ".join(dict.fromkeys(run_title(each) for each in (first, *rest)))
    own = zip(unlike, pairs, strict=True)
    return RunComparison(title, tuple(replace(p, notes=(*of_runs, *notes, *p.notes)) for of_runs, p in own), floor)


def _refused(differences: Sequence[str], what: str, *, allow: bool) -> list[str]:
    if differences and not allow:
        raise ValueError(f"{what} are unlike: {'; '.join(differences)} (--allow-unlike compares them anyway)")
    return [f"unlike: {difference}" for difference in differences]


def _of_variants(run: Run, base: str | None, candidate: str | None) -> list[tuple[Side, Side]]:
    olds = sides_of(run)
    old = _side(run, olds, base, "--base") if base else olds[0]
    if len(olds) < 2:
        raise ValueError(f"{run.path}: has no variants to compare; give a second run")
    news = [_side(run, olds, candidate, "--candidate")] if candidate else [side for side in olds if side != old]
    if news == [old]:
        raise ValueError(f"{old.name}: is the base and the candidate")
    return [(old, new) for new in news]


def _of_runs(first: Run, rest: Sequence[Run], base: str | None, candidate: str | None) -> list[tuple[Side, Side]]:
    """One side of each run, the first one's against each of the others."""
    named = [(first, base, "--base"), *((run, candidate, "--candidate") for run in rest)]
    sides = []
    for run, name, option in named:
        own = sides_of(run)
        if len(own) > 1 and not name:
            allowed = ", ".join(side.name for side in own)
            raise ValueError(f"{run.path}: has several variants; name one with {option} (allowed: {allowed})")
        sides.append(_side(run, own, name, option) if name else own[0])
    names = {side.name for side in sides}
    if len(names) < len(sides):  # runs of one sweep: their folders tell them apart
        sides = [side._replace(name=str(side.run.path)) for side in sides]
    return [(sides[0], side) for side in sides[1:]]


def _side(run: Run, sides: Sequence[Side], name: str, option: str) -> Side:
    for side in sides:
        if side.variant == name:
            return side
    allowed = ", ".join(side.variant for side in sides if side.variant) or "none, it has no variants"
    raise ValueError(f"{option} {name}: no variant of {run.path} (allowed: {allowed})")
