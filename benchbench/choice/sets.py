"""The settings that can be the best of each cell, and the default for all cells: look after look. Pure."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from statistics import fmean
from typing import NamedTuple

from benchbench.choice.elimination import Levels, Starts, alike, beaten, limits_met

DEFAULT = ""  # stands for the default where cells are named


class Out(NamedTuple):
    """Why a setting is not in a set: `invalid` (`text` says of what), `slo` (missed) or `beaten` (by `text`).

    `blocks`: after how many blocks that was known.
    """

    why: str
    text: str
    blocks: int


@dataclass(frozen=True, slots=True)
class CellStarts:
    """One cell: y of each setting's starts; with a limit x of each; settings without a usable number, and why."""

    starts: Starts
    excess: Starts | None = None
    unusable: Mapping[str, str] = field(default_factory=dict)


@dataclass(slots=True)
class Sets:
    """Of each cell, and of the default: settings that are out, and the others; whether each meets the limit."""

    out: dict[str, dict[str, Out]] = field(default_factory=dict)
    kept: dict[str, list[str]] = field(default_factory=dict)
    met: dict[str, dict[str, bool | None]] = field(default_factory=dict)  # also where a cell has no limit
    default_cells: list[str] = field(default_factory=list)
    pooled: dict[str, Starts] = field(default_factory=dict)  # y, of the default means over its cells

    def needed(self, levels: Levels, margin: float) -> set[str]:
        """The settings of which another start can still change a set.

        None of a set of one (if it is known to meet the limit), nor of settings that are all within `margin`.
        """
        wanted: set[str] = set()
        for label, kept in self.kept.items():
            sure = not levels.limited or all(self.met[label].get(setting) for setting in kept)
            starts = self.pooled[label]
            if not (sure and (len(kept) < 2 or alike(kept, starts, levels, starts, math.log1p(margin)))):
                wanted.update(kept)
        return wanted


def sets_of(cells: Mapping[str, CellStarts], settings: Sequence[str], levels: Levels, looks: Sequence[int]) -> Sets:
    """All sets after the last of the `looks`, each at so many blocks; what one of them put out stays out."""
    sets = Sets()
    for label, cell in cells.items():
        out = {setting: Out("invalid", why, 0) for setting, why in cell.unusable.items()}
        met: dict[str, bool | None] = dict.fromkeys(cell.starts, True) if levels.limited and cell.excess is None else {}
        for blocks in looks:
            if cell.excess is not None:
                fresh = limits_met(_until(cell.excess, blocks), levels.limit)
                met |= {setting: state for setting, state in fresh.items() if met.get(setting) is None}
                out |= {v: Out("slo", "", blocks) for v, good in met.items() if good is False and v not in out}
            _put_out(out, cell.starts, met if cell.excess is not None else None, levels, blocks)
        sets.out[label], sets.met[label], sets.pooled[label] = out, met, cell.starts
        sets.kept[label] = [setting for setting in settings if setting in cell.starts and setting not in out]
    _add_default(sets, cells, settings, levels, looks)
    return sets


def _add_default(
    sets: Sets, cells: Mapping[str, CellStarts], settings: Sequence[str], levels: Levels, looks: Sequence[int]
) -> None:
    """The default: the best mean log over the cells in which any setting counts, so the best geometric mean."""
    labels = sets.default_cells = [label for label in cells if sets.kept[label]]
    lost = {(v, label): out for label in labels for v, out in sets.out[label].items() if out.why != "beaten"}
    out: dict[str, Out] = {}
    for (setting, label), why in lost.items():
        out.setdefault(setting, why._replace(text=f"{label}: {why.text}" if why.text else label))
    starts = {v: mean for v in settings if labels and v not in out and (mean := _mean(cells, labels, v))}
    for v in settings:
        if v not in out and v not in starts:
            out[v] = Out("invalid", "no start has all cells", 0) if labels else next(iter(sets.out.values()))[v]
    met: dict[str, bool | None] | None = None
    if levels.limited:
        limited = [label for label in labels if cells[label].excess is not None]
        met = {v: all(sets.met[label].get(v) for label in limited) or None for v in starts}
    for blocks in looks:
        _put_out(out, starts, met, levels, blocks)
    sets.out[DEFAULT], sets.met[DEFAULT], sets.pooled[DEFAULT] = out, met or {}, starts
    sets.kept[DEFAULT] = [setting for setting in starts if setting not in out]


def _mean(cells: Mapping[str, CellStarts], labels: Sequence[str], setting: str) -> dict[int, float]:
    """Block -> mean over the cells, of the blocks that have all of them."""
    of = [cells[label].starts[setting] for label in labels]
    return {block: fmean(starts[block] for starts in of) for block in of[0] if all(block in starts for starts in of)}


def _put_out(
    out: dict[str, Out], starts: Starts, met: Mapping[str, bool | None] | None, levels: Levels, blocks: int
) -> None:
    """Add those that are beaten at this look. Noise is pooled over all settings, those that are out too."""
    now = _until(starts, blocks)
    able = {v: own for v, own in now.items() if v not in out}
    out |= {v: Out("beaten", rival, blocks) for v, rival in beaten(able, met, levels, now).items()}


def _until(starts: Starts, blocks: int) -> Starts:
    return {v: {b: y for b, y in own.items() if b < blocks} for v, own in starts.items()}
