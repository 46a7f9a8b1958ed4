"""The best setting of each cell and the default for all of them, each with what cannot be told from it. Pure."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from benchbench.choice.elimination import fitted, gap, noise_of
from benchbench.choice.from_run import Trial, geometric_mean
from benchbench.choice.sets import DEFAULT, Out, Sets, sets_of
from benchbench.spec.cell import CellInfo

Place = Literal["best", "in the set", "beaten", "misses the SLO", "invalid"]
_PLACES: dict[str, Place] = {"beaten": "beaten", "slo": "misses the SLO", "invalid": "invalid"}


@dataclass(frozen=True, slots=True)
class Standing:
    """One setting in one cell, or as the default.

    `figure`: geometric mean of the metric over its starts, in s or 1/s; as the default, of the ratios to each cell's
    highest. `ratio`: to the best, above 1 is better, with its simultaneous interval; None where it is not known.
    `worst`: of a default, its smallest ratio to a cell's highest. `met`: whether it meets the SLO, None if undecided.
    `text`: by which setting it is beaten, or what it is invalid for; `blocks`: after how many of them that was known.
    """

    setting: str
    place: Place
    figure: float | None
    starts: int
    ratio: float | None
    low: float | None
    high: float | None
    met: bool | None
    text: str
    blocks: int
    worst: float | None = None


@dataclass(frozen=True, slots=True)
class CellAnswer:
    """A cell (`info` None: the default for all of `cells`) and its settings: the best first, then its set, then others.

    `best` is empty where no setting can be: `reason` says why.
    """

    label: str
    info: CellInfo | None
    standings: tuple[Standing, ...]
    cells: tuple[str, ...]
    reason: str

    @property
    def best(self) -> str:
        """The name of the best setting by what was measured; empty where there is none."""
        return next((s.setting for s in self.standings if s.place == "best"), "")

    @property
    def kept(self) -> tuple[str, ...]:
        """The best and what cannot be told from it: with 95 % the truly best of each cell is in its set."""
        return tuple(s.setting for s in self.standings if s.place in {"best", "in the set"})


@dataclass(frozen=True, slots=True)
class Answer:
    """Of a whole run: its cells' answers, the default's, and what it took."""

    metric: str
    cells: tuple[CellAnswer, ...]
    default: CellAnswer
    trial: Trial
    limited: bool


def answer(trial: Trial, metric: str) -> Answer:
    """The answer that follows from a trial, with `metric` as `trial_of` takes it."""
    sets = sets_of(trial.cells, trial.settings, trial.levels, trial.looks)
    cells = tuple(_answered(label, trial, sets, metric) for label in trial.cells)
    return Answer(metric, cells, _answered(DEFAULT, trial, sets, metric), trial, trial.levels.limited)


def _answered(label: str, trial: Trial, sets: Sets, metric: str) -> CellAnswer:
    starts, out, kept, met = sets.pooled[label], sets.out[label], sets.kept[label], sets.met[label]
    levels = fitted(starts).levels
    sure = [setting for setting in kept if met.get(setting)] or kept
    best = max(sure, key=lambda setting: levels[setting], default=None)
    noise = noise_of(starts)
    lines = []
    for setting in trial.settings:
        known = gap(starts[setting], starts[best], noise, trial.levels.beaten) if best and setting in starts else None
        place: Place = _PLACES[out[setting].why] if setting in out else "best" if setting == best else "in the set"
        bounded = known is not None and math.isfinite(known.half) and setting != best
        if label == DEFAULT:
            figure, worst = _shares(setting, trial, sets)
        else:
            values = trial.figures[label].get(setting, {}).get(metric)
            figure, worst = geometric_mean(values) if values else None, None
        lines.append(
            Standing(
                setting,
                place,
                figure,
                len(starts.get(setting, ())),
                _exp(known.mean) if known else None,
                _exp(known.mean - known.half) if known and bounded else None,
                _exp(known.mean + known.half) if known and bounded else None,
                met.get(setting, False if place == "misses the SLO" else None),
                out[setting].text if setting in out else "",
                out[setting].blocks if setting in out else 0,
                worst,
            )
        )
    order = ("best", "in the set", "beaten", "misses the SLO", "invalid")
    lines.sort(key=lambda s: (order.index(s.place), -(s.ratio or 0.0)))
    cells = tuple(sets.default_cells) if label == DEFAULT else (label,)
    return CellAnswer(label, trial.infos.get(label), tuple(lines), cells, "" if best else _reason(out))


def _shares(setting: str, trial: Trial, sets: Sets) -> tuple[float | None, float | None]:
    """Geometric mean and least of a setting's ratios to the highest of each of the default's cells."""
    logs = []
    for label in sets.default_cells:
        levels = fitted(trial.cells[label].starts).levels
        if setting not in levels:
            return None, None
        logs.append(levels[setting] - max(levels[rival] for rival in sets.kept[label]))
    return (_exp(math.fsum(logs) / len(logs)), _exp(min(logs))) if logs else (None, None)


def _reason(out: Mapping[str, Out]) -> str:
    whys = {why.why for why in out.values()}
    if whys == {"slo"}:
        return "no setting meets the SLO"
    return "no setting has valid numbers" if whys == {"invalid"} else "no setting meets the SLO with valid numbers"


def _exp(log: float) -> float:
    return math.exp(min(log, 700.0))
