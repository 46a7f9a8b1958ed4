"""Good and bad code crosswise with two versions of a component: which of them makes the difference, or only both."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from benchbench.comparison.shifts import holm, paired_shift, t_p_value
from benchbench.comparison.verdicts import BETTER, TITLES
from benchbench.measure.run import Outcome
from benchbench.student.t_distribution import t_quantile

ALPHA = 0.05
VARIANTS = 4
# Weights of good-A, good-B, bad-A, bad-B in the figure's logarithm: each factor's mean effect, and how much larger the
# code's effect is with B than with A (which is how much larger the component's is in bad code than in good).
CONTRASTS = {"code": (-0.5, -0.5, 0.5, 0.5), "component": (-0.5, 0.5, -0.5, 0.5), "interaction": (1.0, -1.0, -1.0, 1.0)}
# Of one factor, the other held: the edges of the square.
EDGES = {"code with A": (0, 2), "code with B": (1, 3), "component in good": (0, 1), "component in bad": (2, 3)}


@dataclass(frozen=True, slots=True)
class Contrast:
    """A difference of logarithms, better is above 0, with its 95 % interval; `p` is Holm's of its family.

    The interval and p are nan where blocks have no spread.
    """

    point: float
    low: float = math.nan
    high: float = math.nan
    p: float = math.nan

    @property
    def shown(self) -> bool:
        """Whether its family has it."""
        return self.p <= ALPHA


def contrasts(blocks: Sequence[Sequence[float]], weights: Mapping[str, Sequence[float]]) -> dict[str, Contrast]:
    """Paired t over blocks (each: four logarithms) of each weighted sum, as one family. Needs two blocks."""
    family = {}
    for name, of_variants in weights.items():
        sums = [math.fsum(w * y for w, y in zip(of_variants, block, strict=True)) for block in blocks]
        shift = paired_shift([0.0] * len(sums), sums, least_spread=1e-12)
        if shift.parts:
            error, degrees = shift.error()
            reach = t_quantile(1 - ALPHA / 2, degrees) * error
            family[name] = Contrast(shift.point, shift.point - reach, shift.point + reach, t_p_value(shift))
        else:
            family[name] = Contrast(shift.point)
    adjusted = holm([1.0 if math.isnan(contrast.p) else contrast.p for contrast in family.values()])
    return {
        name: contrast if math.isnan(contrast.p) else Contrast(contrast.point, contrast.low, contrast.high, p)
        for (name, contrast), p in zip(family.items(), adjusted, strict=True)
    }


def edges(blocks: Sequence[Sequence[float]]) -> dict[str, Contrast]:
    """Each factor's effect with the other held, as a family of four."""
    return contrasts(
        blocks,
        {
            name: [float(place == end) - float(place == begin) for place in range(VARIANTS)]
            for name, (begin, end) in EDGES.items()
        },
    )


@dataclass(frozen=True, slots=True)
class Crosswise:
    """What was measured: `blocks` are those with all four variants, `names` these in the order of the weights.

    `planned`: how many blocks were, at first and at each resume; `cut`: blocks within which it was resumed, left out.
    """

    names: tuple[str, ...]
    metric: str
    blocks: tuple[tuple[float, ...], ...]
    why_not: str
    outcome: Outcome
    planned: tuple[int, ...] = ()
    cut: tuple[int, ...] = ()

    @property
    def families(self) -> tuple[dict[str, Contrast], dict[str, Contrast]]:
        """The contrasts, and the edges; empty where there are too few blocks."""
        return (contrasts(self.blocks, CONTRASTS), edges(self.blocks)) if len(self.blocks) > 1 else ({}, {})

    def sentences(self) -> list[str]:
        """The verdict in words, then each contrast with its interval."""
        main, held = self.families
        if not main:
            why = self.why_not or f"{len(self.blocks)} whole blocks, and two are needed"
            return [f"No verdict: {why}.", *self._notes()]
        lines = [verdict(self.names, main, held), ""]
        lines += [f"- {name}: {self._effect(contrast)}" for name, contrast in [*main.items(), *held.items()]]
        with_a, with_b = (name.removeprefix("good-") for name in self.names[:2])
        note = f"A is {with_a}, B is {with_b}; {len(self.blocks)} blocks of {', '.join(self.names)}"
        return [*lines, "", f"{TITLES[self.metric]}; {note}.", *self._notes()]

    def _notes(self) -> list[str]:
        """In what the run is not the design that was fixed beforehand."""
        notes = []
        if self.cut:
            numbers = ", ".join(map(str, self.cut))
            notes.append(f"Left out: block {numbers}, cut by a stop: its starts are not of one time.")
        if len(set(self.planned)) > 1:
            steps = " -> ".join(map(str, self.planned))
            notes.append(
                f"Blocks planned: {steps}. At most 5 % false calls hold for a number fixed beforehand, not where what "
                "was seen decided on more."
            )
        return notes

    def record(self) -> dict[str, Any]:
        """For JSON: differences of logarithms, above 0 is better."""
        clean = [
            {k: {n: None if math.isnan(v) else v for n, v in asdict(c).items()} for k, c in family.items()}
            for family in self.families
        ]
        facts = {
            "variants": self.names,
            "metric": self.metric,
            "blocks": len(self.blocks),
            "planned": self.planned,
            "cut": self.cut,
            "verdict": self.sentences()[0],
        }
        return facts | {"contrasts": clean[0], "edges": clean[1]}

    def table(self, form: str) -> str:
        """As the command prints it: md or json."""
        return "\n".join(self.sentences()) if form == "md" else json.dumps(self.record(), indent=2)

    def _effect(self, contrast: Contrast) -> str:
        sign = BETTER[self.metric]
        low, high = sorted((sign * contrast.low, sign * contrast.high))
        point, low, high = (100 * math.expm1(value) for value in (sign * contrast.point, low, high))
        if math.isnan(low):
            return f"{point:+.1f} %, blocks without spread: not tested"
        return f"{point:+.1f} % (95 % CI {low:+.1f} to {high:+.1f} %), p {contrast.p:.2g}"


def verdict(names: Sequence[str], main: Mapping[str, Contrast], held: Mapping[str, Contrast]) -> str:
    """What makes the difference, in one sentence."""
    if main["interaction"].shown:
        shown = [set(EDGES[name]) for name, contrast in held.items() if contrast.shown]
        if len(shown) == 2 and len(corner := shown[0] & shown[1]) == 1:
            odd = names[corner.pop()]
            return f"Only together: {odd} differs from its neighbours, and no other single change is shown to matter."
        return "Both matter together: what the code changes depends on the component."
    if single := [name for name in ("code", "component") if main[name].shown]:
        which = " and ".join(f"the {name}" for name in single)
        return f"It is {which}, and that it depends on the other is not shown."
    return "No difference is shown: neither of the code, nor of the component, nor of both together."
