"""What `bench compare` and `bench noise` were asked for, and what they say."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from statistics import median

import orjson

from benchbench.analysis.runs import Run, open_run
from benchbench.comparison.pairs import METRICS, Pair, Side, differences, noise_of, pair, sides_of
from benchbench.comparison.tables import (
    SHOWN,
    comparison_csv,
    comparison_github,
    comparison_json,
    comparison_table,
    noise_table,
)
from benchbench.comparison.verdicts import PRIMARY, Noise
from benchbench.gates.gate_checks import NoiseOf
from benchbench.gates.rules import percent_of
from benchbench.host.local_results import NOISE, store, stored
from benchbench.spec import SweepSpec, spec_from_mapping
from benchbench.store.run_directory import replace_file

_FORMS = {
    "md": comparison_table,
    "json": comparison_json,
    "csv": comparison_csv,
    "github": comparison_github,
}


def pairs_of_options(
    run: Path,
    others: Sequence[str],
    *,
    base: str | None,
    candidate: str | None,
    margin: str,
    noise: Path | None,
    allow_unlike: bool,
) -> list[tuple[Pair, NoiseOf | None]]:
    """The comparisons that the command line asks for, each with what is known of noise. Raises ValueError, RunError."""
    first, second, names = open_run(run), None, list(others)
    if len(names) == 1 or (names and _is_run(names[0]) and names[0] not in first.manifest["spec"]["variants"]):
        second = open_run(names.pop(0))
    if names and (len(names) != 2 or second or base or candidate):
        raise ValueError(f"{' '.join(others)}: give one other run, or the names of a base and a candidate")
    runs = [opened for opened in (first, second) if opened]
    if bare := next((opened for opened in runs if not opened.has_records), None):
        beside = f"bench table {' '.join(str(opened.path) for opened in runs)}"
        raise ValueError(f"{bare.path}: has no records of requests, so no comparison ({beside} shows the rows)")
    base, candidate = names or (base, candidate)
    sides = _sides(first, second, base, candidate)
    notes: list[str] = []
    if second:
        notes += _refused(differences(first, second), f"{run} and {others[0]}", allow=allow_unlike)
    floor: tuple[Noise, ...] = ()
    if noise is not None:
        aa = open_run(noise)
        floor = noise_of(aa)[0]
        notes += _refused(differences(aa, first), f"the noise run {noise} and {run}", allow=allow_unlike)
    share = percent_of(margin, "--margin")
    pairs = [pair(*both, share, floor, subset=allow_unlike) for both in sides]
    pairs = [replace(of_sides, notes=(*notes, *of_sides.notes)) for of_sides in pairs]
    return [(of_sides, _noise_of_sys_tok_s(first, of_sides, floor)) for of_sides in pairs]


def _noise_of_sys_tok_s(run: Run, of_sides: Pair, floor: Sequence[Noise]) -> NoiseOf | None:
    """By the A/A run that was named, else by the last one of this sweep on this host."""
    if floor:
        return {frozenset(n.cells): (n.sd, n.degrees) for n in floor if n.metric == PRIMARY[0]}
    if (known := stored(NOISE, name=run.manifest["spec"]["name"])) is None:
        return None
    degrees = known["blocks"] - 1
    means = {frozenset(overall.cells): (known["mean"], degrees) for overall in of_sides.compared.overall}
    return means | {frozenset([label]): (known["cell"], degrees) for label in of_sides.cells}


def _is_run(name: str) -> bool:
    return (Path(name) / "manifest.json").is_file()


def _refused(differences: Sequence[str], what: str, *, allow: bool) -> list[str]:
    if differences and not allow:
        raise ValueError(f"{what} are unlike: {'; '.join(differences)} (--allow-unlike compares them anyway)")
    return [f"unlike: {difference}" for difference in differences]


def _sides(first: Run, second: Run | None, base: str | None, candidate: str | None) -> list[tuple[Side, Side]]:
    olds = sides_of(first)
    old = _side(first, olds, base, "--base") if base else olds[0]
    if second is None:
        if len(olds) < 2:
            raise ValueError(f"{first.path}: has no variants to compare; give a second run")
        news = [_side(first, olds, candidate, "--candidate")] if candidate else [side for side in olds if side != old]
        if news == [old]:
            raise ValueError(f"{old.name}: is the base and the candidate")
        return [(old, new) for new in news]
    news = sides_of(second)
    new = _side(second, news, candidate, "--candidate") if candidate else news[0]
    for sides, name, option in ((olds, base, "--base"), (news, candidate, "--candidate")):
        if len(sides) > 1 and not name:
            allowed = ", ".join(side.name for side in sides)
            raise ValueError(f"{sides[0].run.path}: has several variants; name one with {option} (allowed: {allowed})")
    if old.name == new.name:  # two runs of one sweep: their folders tell them apart
        old, new = (side._replace(name=str(side.run.path)) for side in (old, new))
    return [(old, new)]


def _side(run: Run, sides: Sequence[Side], name: str, option: str) -> Side:
    for side in sides:
        if side.variant == name:
            return side
    allowed = ", ".join(side.variant for side in sides if side.variant) or "none, it has no variants"
    raise ValueError(f"{option} {name}: no variant of {run.path} (allowed: {allowed})")


def text(pairs: Sequence[Pair], form: str, metrics: Sequence[str]) -> str:
    """The comparisons in one of the formats. Raises ValueError for an unknown metric."""
    if wrong := [name for name in metrics if name not in METRICS]:
        raise ValueError(f"--metric {wrong[0]}: unknown (allowed: {', '.join(METRICS)})")
    return _FORMS[form](pairs, tuple(metrics) or SHOWN)


# ---- Noise ----------------------------------------------------------------------------------------------


def against_itself(spec: SweepSpec, blocks: int | None) -> SweepSpec:
    """The sweep with its baseline, or its one engine, as both variants A and A2. Raises ValueError."""
    if any("variant" in override.when for override in spec.overrides):
        raise ValueError("overrides that select by variant would make A unlike A2: take them out, or use --set")
    data = spec.model_dump(mode="json")
    name = spec.baseline or next(iter(spec.variants), None)
    variant = data["variants"][name] if name else {}
    changes = {"variants": {"A": variant, "A2": variant}, "baseline": "A", "fidelity": "off"}
    return spec_from_mapping(data | changes | {"name": f"{spec.name}-noise", "blocks": blocks or spec.blocks})


def keep_noise(path: Path) -> str:
    """Write noise.json into an A/A run and keep its figures for `--dry-run`; the table as text. Raises ValueError."""
    run = open_run(path)
    noise, both = noise_of(run)
    name = run.name.removesuffix("-noise")
    data = {"name": name, "blocks": both.blocks, "noise": [asdict(n) for n in noise]}
    replace_file(path / "noise.json", orjson.dumps(data, option=orjson.OPT_INDENT_2) + b"\n")
    speeds = [n for n in noise if n.metric == PRIMARY[0]]
    cells = [n.sd for n in speeds if len(n.cells) == 1]
    if cells:
        mean = next((n.sd for n in speeds if len(n.cells) > 1), cells[0])
        store({"name": name, "blocks": both.blocks, "cell": median(cells), "mean": mean}, NOISE)
    return f"{noise_table(noise, both)}For comparisons: bench compare RUN --noise {path}"
