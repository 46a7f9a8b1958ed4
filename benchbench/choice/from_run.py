"""A stored run -> the starts of its settings, cell by cell, as `sets` judges them. Pure.

Which starts count is decided as in comparisons (`comparison.pairs`): an incident costs one start its cell, any other
reason that makes a cell invalid takes the setting out of that cell.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean

import numpy as np

from benchbench.analysis.metrics import RoundMetrics
from benchbench.analysis.runs import Run
from benchbench.choice.elimination import Levels
from benchbench.choice.sets import CellStarts
from benchbench.comparison.pairs import Values, sides_of, starts_were_chosen, unpaired_cells, values_of
from benchbench.comparison.verdicts import BETTER
from benchbench.model.served import ranks_of
from benchbench.slo.attainment import share_of
from benchbench.spec import SpecError, spec_from_mapping
from benchbench.spec.cell import CellInfo
from benchbench.spec.plan import variant_spec
from benchbench.spec.schema import DEFAULT_BLOCKS

METRICS = ("sys_tok_s", "ttft", "tpot", "goodput_req_s")
_LIMITS = ("ttft", "tpot", "e2el")


@dataclass(frozen=True)
class Trial:
    """A run as a trial of settings.

    `figures`: cell -> setting -> metric -> the values of its starts, in s and 1/s. `gpus`: setting -> how many GPUs it
    takes; empty where that is not known of all.
    """

    settings: tuple[str, ...]
    infos: Mapping[str, CellInfo]
    cells: Mapping[str, CellStarts]
    figures: Mapping[str, Mapping[str, Mapping[str, Sequence[float]]]]
    gpus: Mapping[str, int]
    suspect: Mapping[str, Mapping[str, str]]
    levels: Levels
    looks: tuple[int, ...]
    blocks: int
    starts: int  # that were made


def trial_of(run: Run, metric: str = "sys_tok_s", *, valid_only: bool = False, looking: bool = False) -> Trial:
    """The settings (variants) of a run and what their starts gave.

    `valid_only`: suspect cells do not count. `looking`: the run is looked at after every block. Raises ValueError for
    an unknown metric and for a run with fewer than two settings, RunError for one without records.
    """
    if metric not in METRICS:
        raise ValueError(f"--metric {metric}: unknown (allowed: {', '.join(METRICS)})")
    run.need_records()
    planned = {cell.variant for cell in run.cells}
    sides = [side for side in sides_of(run) if side.variant in planned]
    if len(sides) < 2:
        raise ValueError(f"{run.path}: has one setting only; the best of several needs `variants` in its sweep")
    infos = {cell.shape: cell for cell in reversed(run.cells)}
    if metric == "goodput_req_s" and not any(cell.slo.is_set for cell in infos.values()):
        raise ValueError("--metric goodput_req_s: needs an `slo` in the sweep")
    values = {side.variant: values_of(side) for side in sides}
    blocks = int(run.manifest["spec"]["blocks"] or DEFAULT_BLOCKS)
    looks = tuple(range(2, blocks + 1)) if looking or starts_were_chosen(run) else (blocks,)
    limited = any(cell.slo.is_set for cell in infos.values())
    cells = {
        label: _cell(label, info, values, metric, valid_only=valid_only)
        for label, info in sorted(infos.items(), key=lambda known: known[1].index)
    }
    return Trial(
        settings=tuple(values),
        infos=infos,
        cells=cells,
        figures={label: {v: _figures(of, label) for v, of in values.items()} for label in cells},
        gpus=_gpus(run, values),
        suspect={label: {v: of.suspect[label] for v, of in values.items() if label in of.suspect} for label in cells},
        levels=Levels(len(values), len(cells), max(1, len(looks)), limited),
        looks=looks or (blocks,),
        blocks=blocks,
        starts=len({(start.get("block"), start.get("variant")) for start in run.manifest["starts"]}),
    )


def _cell(label: str, info: CellInfo, values: Mapping[str, Values], metric: str, *, valid_only: bool) -> CellStarts:
    known = {v: of for v, of in values.items() if of.means.get(label, {}).get(metric)}
    unusable = {v: _why_not(label, of) for v, of in values.items() if v not in known}
    first = next(iter(known), None)
    for v, of in known.items():
        unlike = unpaired_cells(known[first], of, first, v).get(label) if first is not None and v != first else None
        if unlike:
            unusable[v] = unlike
        elif valid_only and label in of.suspect:
            unusable[v] = f"suspect: {of.suspect[label]}"
        elif 0 in of.means[label][metric].values():
            unusable[v] = "0 in a start"
    usable = {v: of for v, of in known.items() if v not in unusable}
    starts = {
        v: {block: BETTER[metric] * math.log(value) for block, value in of.means[label][metric].items()}
        for v, of in usable.items()
    }
    excess = None
    if info.slo.is_set:
        excess = {
            v: {b: x for b, rounds in of.rounds[label].items() if (x := excess_of(rounds, of.cells[label])) is not None}
            for v, of in usable.items()
        }
        excess = excess if any(excess.values()) else None  # a TPOT that does not exist breaks no limit
    return CellStarts(starts, excess, unusable)


def _why_not(label: str, of: Values) -> str:
    if label in of.dropped:
        return of.dropped[label]
    lost = [why for (_, cell), why in of.lost.items() if cell == label]
    return lost[0] if lost else "no finished start"


def excess_of(rounds: Sequence[RoundMetrics], info: CellInfo) -> float | None:
    """X of a start: log of what its requests took, as a share of the limit, of the worst limit; above 0: it misses.

    By `slo.statistic`: for p99 the smallest share of a limit that 99 % of the requests keep to, so that x <= 0 just
    where 99 % are within every limit (where some requests have no TPOT each limit has its own 99 %); for the mean,
    the means over rounds.
    """
    limits = {name: limit / 1e3 for name in _LIMITS if (limit := getattr(info.slo, f"{name}_ms")) is not None}
    of_rounds = [[getattr(r, f"{name}_s") / limit for r in rounds] for name, limit in limits.items()]
    share = share_of(info.slo.statistic)
    if share is None:
        means = [fmean(float(values.mean()) for values in of if len(values)) for of in of_rounds if any(map(len, of))]
        worst = max(means, default=0.0)
    else:
        shares = [joined for of in of_rounds if len(joined := np.concatenate(of))]
        if len({len(joined) for joined in shares}) == 1:
            shares = [np.max(shares, axis=0)]
        worst = max((float(np.quantile(joined, share, method="inverted_cdf")) for joined in shares), default=0.0)
    return math.log(worst) if worst > 0 else None


def _figures(of: Values, label: str) -> dict[str, list[float]]:
    known = {metric: list(blocks.values()) for metric, blocks in of.means.get(label, {}).items()}
    return {metric: values for metric, values in known.items() if values and min(values) > 0}


def _gpus(run: Run, settings: Iterable[str]) -> dict[str, int]:
    """By the flags of a launched engine, else as many as the manifest knows of; none where a setting's is not known."""
    with contextlib.suppress(SpecError):
        spec = spec_from_mapping(run.manifest["spec"], "manifest.json")
        if "args" in type(spec.engine).model_fields:
            return {setting: ranks_of(variant_spec(spec, setting)) for setting in settings}
    count = (run.manifest.get("accelerator") or {}).get("count")
    return dict.fromkeys(settings, int(count)) if count else {}


def geometric_mean(values: Sequence[float]) -> float:
    """Of positive values."""
    return math.exp(fmean(map(math.log, values)))
