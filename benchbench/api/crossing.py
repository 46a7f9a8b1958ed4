"""Good and bad code crosswise with two versions of a component, measured, from Python: `cross`."""

from __future__ import annotations

import math
import re
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchbench.analysis.runs import Run
from benchbench.bisect.crosswise import VARIANTS, Crosswise
from benchbench.bisect.line_of_builds import sweep_of, template_of
from benchbench.bisect.search import METRICS
from benchbench.comparison.pairs import Side, unpaired_cells, values_of
from benchbench.comparison.verdicts import BETTER
from benchbench.errors import RunError
from benchbench.measure.run import default_out, sweep
from benchbench.secrets import masked
from benchbench.spec import SweepSpec, spec_from_mapping


def axis_of(text: str) -> tuple[str, tuple[str, str]]:
    """`NAME=A,B`: a variable of the environment and its two values. Raises ValueError."""
    name, _, values = text.partition("=")
    pair = tuple(value.strip() for value in values.split(","))
    if not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", name) or len(pair) != 2 or not all(pair):
        raise ValueError(f"--axis {text}: must be NAME=A,B, an environment variable and two values")
    if masked({name: pair[0]}) != {name: pair[0]}:
        raise ValueError(f"--axis {name}: looks like a secret, which is not written down")
    if _word(pair[0]) == _word(pair[1]):
        raise ValueError(f"--axis {text}: the two values must differ in letters, digits or dots")
    return name, (pair[0], pair[1])


def four_variants(spec: SweepSpec, ends: tuple[str, str], axis: str, variant: str | None, blocks: int) -> SweepSpec:
    """The sweep of good-A, good-B, bad-A, bad-B; the variable is in the engine's environment and the build commands'.

    A build is kept under its commands, so that each value has its own. Raises ValueError and SpecError.
    """
    key, values = axis_of(axis)
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


def cross(
    spec: SweepSpec,
    ends: tuple[str, str],
    axis: str,
    out: str | Path | None = None,
    *,
    metric: str = "sys_tok_s",
    variant: str | None = None,
    starts: int = 40,
    **given: Any,  # noqa: ANN401 - what `sweep` takes
) -> Crosswise:
    """Measure the four variants in starts / 4 blocks, an ordinary sweep that resumes. Raises as `bisect`."""
    if metric not in METRICS:
        raise ValueError(f"--metric {metric}: unknown (allowed: {', '.join(METRICS)})")
    if starts < 2 * VARIANTS:
        raise ValueError(f"--starts {starts}: --axis needs at least {2 * VARIANTS}, two blocks of four")
    four = four_variants(spec, ends, axis, variant, starts // VARIANTS)
    path = Path(out) if out is not None else default_out(four, resume=bool(given.get("resume")))
    _refuse_another(path, four)
    outcome = sweep(four, path, **given)
    names = tuple(four.variants)
    blocks, why_not = _measured(outcome.path, names, metric) if outcome.state == "complete" else ((), outcome.message)
    return Crosswise(names, metric, blocks, why_not, outcome)


def _refuse_another(path: Path, four: SweepSpec) -> None:
    """Raise RunError where the run has other builds: a block would be of two times."""
    if not (path / "manifest.json").exists():
        return
    before = Run(path).manifest["spec"]["variants"]
    now = masked(four.model_dump(mode="json"))["variants"]
    if {name: variant.get("git") for name, variant in before.items()} != {name: now[name]["git"] for name in now}:
        raise RunError(f"{path}: has other builds than {', '.join(now)} of these refs: use another --out")


def _measured(path: Path, names: Sequence[str], metric: str) -> tuple[tuple[tuple[float, ...], ...], str]:
    """The blocks in which all four have a valid figure of every cell; or why none has."""
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
        for block in sorted(whole)
    ]
    return tuple(blocks), ""


def _word(value: str) -> str:
    return re.sub(r"[^A-Za-z0-9.]", "-", value)
