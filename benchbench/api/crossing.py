"""Good and bad code crosswise with two versions of a component, measured, from Python: `cross`."""

from __future__ import annotations

import math
import re
import shlex
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchbench.analysis.runs import Run
from benchbench.bisect.crosswise import VARIANTS, Crosswise
from benchbench.bisect.line_of_builds import sweep_of, template_of
from benchbench.bisect.search import METRICS
from benchbench.comparison.pairs import Side, unpaired_cells, values_of
from benchbench.comparison.verdicts import BETTER
from benchbench.errors import RunError
from benchbench.measure.observer import Observer
from benchbench.measure.run import default_out, sweep
from benchbench.secrets import masked
from benchbench.spec import Session, SweepSpec, spec_from_mapping
from benchbench.store.run_directory import RunDirectory

__all__ = ["Crosswise", "cross"]

_BEGUN, _START = "crosswise_begun", "crosswise_start"  # the journal's words


def axis_of(text: str) -> tuple[str, tuple[str, str]]:
    """`NAME=A,B`: a variable of the environment and its two values. Raises ValueError."""
    name, _, values = text.partition("=")
    pair = tuple(value.strip() for value in values.split(","))
    if not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", name) or len(pair) != 2 or not all(pair):
        raise ValueError(f"--axis {text}: must be NAME=A,B, an environment variable and two values")
    return name, (pair[0], pair[1])


def _checked(name: str, pair: tuple[str, str]) -> None:
    """Raise ValueError for what cannot name two variants, and for a secret."""
    if masked({name: pair[0]}) != {name: pair[0]}:
        raise ValueError(f"axis {name}: looks like a secret, which is not written down")
    if _word(pair[0]) == _word(pair[1]):
        raise ValueError(f"axis {name}={','.join(pair)}: the two values must differ in letters, digits or dots")


def four_variants(
    spec: SweepSpec, ends: tuple[str, str], axis: str | None, variant: str | None, blocks: int
) -> SweepSpec:
    """The sweep of good-A, good-B, bad-A, bad-B; the variable is in the engine's environment and the build commands'.

    `axis`: as `axis_of` takes it; None: the sweep's own. A build is kept under its commands, so that each value has its
    own. Raises ValueError and SpecError.
    """
    if axis is None and not spec.axis:
        raise ValueError(f"{spec.name}: has no axis, and none is given: NAME=A,B")
    key, values = axis_of(axis) if axis is not None else next(iter(spec.axis.items()))
    _checked(key, values)
    names = {f"{end}-{_word(v)}": (ref, v) for end, ref in zip(("good", "bad"), ends, strict=True) for v in values}
    refs = {name: ref for name, (ref, _) in names.items()}
    data = sweep_of(spec, template_of(spec, variant), refs, blocks, "crosswise").model_dump(mode="json")
    for name, (_, value) in names.items():
        of_variant = data["variants"][name]
        env = {**data["engine"].get("env", {}), **of_variant["engine"].get("env", {}), key: value}
        build = [f"export {key}={shlex.quote(value)}; {command}" for command in of_variant["git"]["build"] or ["true"]]
        data["variants"][name] = {
            "engine": of_variant["engine"] | {"env": env},
            "git": of_variant["git"] | {"build": build},
        }
    return spec_from_mapping(data)


def cross(  # noqa: PLR0913 - the options of the command
    spec: SweepSpec,
    good: str,
    bad: str,
    axis: str | None = None,
    out: str | Path | None = None,
    *,
    only: str | None = None,
    metric: str = "sys_tok_s",
    variant: str | None = None,
    starts: int = 40,
    sets: Sequence[str] = (),
    resume: bool = False,
    observer: Observer | None = None,
    stop: int | None = None,
) -> Crosswise:
    """Measure `good` and `bad` code, each with both values of a component's variable; say which makes the difference.

    `axis`: `NAME=A,B`, or None for the sweep's `axis`; the other arguments are as `find_commit` takes them. It is an
    ordinary sweep of starts / 4 blocks of four, which resumes. What comes has `sentences()` and `record()`, effects as
    differences of logarithms, better above 0. Raises ValueError, SpecError, EngineError and RunError.
    """
    if metric not in METRICS:
        raise ValueError(f"--metric {metric}: unknown (allowed: {', '.join(METRICS)})")
    if starts < 2 * VARIANTS:
        raise ValueError(f"--starts {starts}: an axis needs at least {2 * VARIANTS}, two blocks of four")
    four = four_variants(spec, (good, bad), axis, variant, starts // VARIANTS)
    path = Path(out) if out is not None else default_out(four, resume=resume)
    _refuse_another(path, four)
    sitting = _Sitting(starts // VARIANTS)
    outcome = sweep(four, path, only=only, sets=sets, resume=resume, observer=observer, stop=stop, choose=sitting.noted)
    names, (planned, cut) = tuple(four.variants), sittings_of(RunDirectory(outcome.path).events())
    whole = outcome.state == "complete"
    blocks, why_not = _measured(outcome.path, names, metric, cut) if whole else ((), outcome.message)
    return Crosswise(names, metric, blocks, why_not, outcome, planned, cut)


@dataclass(slots=True)
class _Sitting:
    """Writes in the run's journal which starts were made between one beginning of the command and its end."""

    blocks: int
    begun: bool = False

    def noted(self, run: RunDirectory, session: Session) -> bool:
        """Called before each start, which is always wanted."""
        if not self.begun:
            run.journal(_BEGUN, blocks=self.blocks)
            self.begun = True
        run.journal(_START, block=session.block, variant=session.variant)
        return True


def sittings_of(events: Iterable[Mapping[str, Any]]) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Of a run's journal: how many blocks were planned, at first and at each resume; the blocks that a resume cut.

    A run without such notes (an older one) gives nothing.
    """
    planned: list[int] = []
    sittings: dict[int, set[int]] = {}
    for event in events:
        if event["event"] == _BEGUN:
            planned.append(event["blocks"])
        elif event["event"] == _START:
            sittings.setdefault(event["block"], set()).add(len(planned))
    return tuple(planned), tuple(sorted(block for block, numbers in sittings.items() if len(numbers) > 1))


def _refuse_another(path: Path, four: SweepSpec) -> None:
    """Raise RunError where the run has other builds: a block would be of two times."""
    if not (path / "manifest.json").exists():
        return
    before = Run(path).manifest["spec"]["variants"]
    now = masked(four.model_dump(mode="json"))["variants"]
    if {name: variant.get("git") for name, variant in before.items()} != {name: now[name]["git"] for name in now}:
        raise RunError(f"{path}: has other builds than {', '.join(now)} of these refs: use another --out")


def _measured(
    path: Path, names: Sequence[str], metric: str, cut: Collection[int]
) -> tuple[tuple[tuple[float, ...], ...], str]:
    """The blocks in which all four have a valid figure of every cell, but those that were cut; or why none has."""
    run = Run(path)
    values = [values_of(Side(run, name, name)) for name in names]
    for name, of_variant in zip(names, values, strict=True):
        for cell, why in (of_variant.dropped | unpaired_cells(values[0], of_variant, names[0], name)).items():
            return (), f"{name}, {cell}: {why}"
    figures = [[of_variant.means[cell][metric] for cell in of_variant.cells] for of_variant in values]
    if not any(figures):
        return (), "nothing was measured"
    whole = set.intersection(*({b for b, v in cell.items() if v} for of_variant in figures for cell in of_variant))
    blocks = [
        tuple(
            BETTER[metric] * math.fsum(math.log(cell[block]) for cell in of_variant) / len(of_variant)
            for of_variant in figures
        )
        for block in sorted(whole.difference(cut))
    ]
    return tuple(blocks), ""


def _word(value: str) -> str:
    return re.sub(r"[^A-Za-z0-9.]", "-", value)
