"""What `bench compare` and `bench noise` were asked for, and what they say."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from statistics import median
from typing import Any

import orjson

from benchbench.analysis.runs import Run
from benchbench.api.compared import RunComparison, compare_runs
from benchbench.comparison.pairs import Pair, noise_of
from benchbench.comparison.tables import (
    noise_table,
)
from benchbench.comparison.verdicts import PRIMARY, Noise
from benchbench.gates.gate_checks import NoiseOf
from benchbench.gates.rules import percent_of
from benchbench.host.local_results import NOISE, store, stored
from benchbench.spec import SweepSpec, spec_from_mapping
from benchbench.store.run_directory import replace_file


def comparison_of_options(
    run: Path,
    others: Sequence[str],
    *,
    base: str | None,
    candidate: str | None,
    margin: str,
    noise: Path | None,
    allow_unlike: bool,
) -> tuple[RunComparison, list[NoiseOf | None]]:
    """What the command line asks for, and what is known of each pair's noise. Raises ValueError, RunError."""
    first = Run(run)
    own = [name in first.manifest["spec"]["variants"] for name in others]
    are_runs = [_is_run(name) and not is_own for name, is_own in zip(others, own, strict=True)]
    runs = [Run(name) for name in others] if own == [False] or all(are_runs) else []
    if others and not runs:
        if len(others) != 2 or any(are_runs) or base or candidate:
            raise ValueError(f"{' '.join(others)}: give other runs, or the names of a base and a candidate")
        base, candidate = others
    share = percent_of(margin, "--margin")
    named: dict[str, Any] = {"base": base, "candidate": candidate, "noise": noise, "allow_unlike": allow_unlike}
    compared = compare_runs(first, runs or None, margin=share, **named)
    return compared, [_noise_of_sys_tok_s(first, of_sides, compared.noise) for of_sides in compared.pairs]


def capacities_of_options(run: Path, others: Sequence[str], form: str, options: Mapping[str, Any]) -> str:
    """The comparison of capacities, where `run` is of `bench capacity`; else "". Raises ValueError, RunError."""
    from benchbench.api.capacities import compare_capacities, comparison_text, is_capacity_run

    if not is_capacity_run(run):
        return ""
    names, second = list(others), None
    if names and _is_run(names[0]):
        second = Run(names.pop(0))
    if names and (len(names) != 2 or second):
        raise ValueError(f"{' '.join(others)}: give one other run, or the names of a base and a candidate")
    base, candidate = names or (options["base"], options["candidate"])
    shared = {"base": base, "candidate": candidate, "allow_unlike": options["allow_unlike"]}
    return comparison_text(compare_capacities(Run(run), second, **shared), form)


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


def keep_noise(path: Path) -> tuple[str, dict[str, Any]]:
    """Write noise.json into an A/A run and keep its figures for `--dry-run`; the table as text, and what was written.

    Raises ValueError.
    """
    run = Run(path)
    noise, both = noise_of(run)
    name = run.name.removesuffix("-noise")
    data = {"name": name, "blocks": both.blocks, "noise": [asdict(n) for n in noise]}
    replace_file(path / "noise.json", orjson.dumps(data, option=orjson.OPT_INDENT_2) + b"\n")
    speeds = [n for n in noise if n.metric == PRIMARY[0]]
    cells = [n.sd for n in speeds if len(n.cells) == 1]
    if cells:
        mean = next((n.sd for n in speeds if len(n.cells) > 1), cells[0])
        store({"name": name, "blocks": both.blocks, "cell": median(cells), "mean": mean}, NOISE)
    use = f"For comparisons: bench compare RUN --noise {path}" if noise else ""
    return noise_table(noise, both) + use, data
