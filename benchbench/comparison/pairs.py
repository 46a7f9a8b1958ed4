"""Stored runs -> comparisons: which starts count, what is compared with what, and what must be said with it. Pure.

A start gives a cell one value per metric, its mean over its rounds, and is judged alone (`validity.status_of` on its
rounds). An *incident* (requests failed, somebody else's load, a clock step, a client that fell behind, too few rounds)
costs that start and no other: its block lacks the cell. Any other reason that makes a cell invalid, such as
`cached_prefix` or `output_length`, is no accident of one start but what the build, the server or the sweep does: the
cell drops out in all blocks, though only some starts showed it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from statistics import fmean
from time import gmtime, strftime
from typing import Any, NamedTuple, TypeVar

from benchbench.analysis.evidence import evidence_of, measured
from benchbench.analysis.metrics import Pools, RoundMetrics, by_start
from benchbench.analysis.reasons import Reason
from benchbench.analysis.runs import Run
from benchbench.analysis.summary import FIGURES, CellSummary, like_outputs
from benchbench.analysis.validity import status_of
from benchbench.comparison.hit_rates import hit_note, unlike_hits
from benchbench.comparison.loaded_builds import loaded_notes
from benchbench.comparison.outlying_starts import outlying_starts
from benchbench.comparison.verdicts import BETTER, TITLES, Comparisons, Noise, Sample, compare, noise
from benchbench.fidelity.judge import Fidelity, unmeasured
from benchbench.fidelity.judge import judge as judge_fidelity
from benchbench.fidelity.stored_answers import read_answers
from benchbench.prefixes.hits import Hits
from benchbench.spec.cell import CellInfo
from benchbench.spec.schema import DEFAULT_BLOCKS
from benchbench.speculation.acceptance import Acceptance, acceptance_note

K = TypeVar("K")
R = TypeVar("R")
METRICS = tuple(BETTER)
STARTS_CHOSEN = "starts_chosen"  # the journal's word for a look at a run, after which it went on without some starts
_CHOSEN = "starts were left out where bench best could decide nothing by them"
INCIDENTS = {
    *(Reason.NO_DATA, Reason.REQUEST_FAILED, Reason.FOREIGN_LOAD, Reason.CLOCK_STEP),
    *(Reason.SHARED_READS, Reason.FIRST_TOKEN_SHARED),
}
_ALIKE = ("load", "requests", "prompts", "output_mode", "capped", "lengths")  # of a cell, on both sides


class Side(NamedTuple):
    """One side of a comparison: a variant of a run ("" where it has none), and what it is called."""

    run: Run
    variant: str
    name: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Pair:
    """A baseline and a candidate, compared. `cells`: label, as in `Sample.cell`, -> what the cell is.

    `planned`: starts of the side with fewer. `planned_cells`: those that either side planned.
    `missing`: those that are not compared, with the reason. `absent`
    says why there is nothing to compare, else it is empty.
    `notes` are sentences that belong to the result.
    `fidelity` is matches, differs or not_measured, `fidelity_note` its sentence, `fidelity_mode` the sweep's key.
    """

    base: str
    candidate: str
    cells: Mapping[str, CellInfo]
    samples: tuple[Sample, ...]
    compared: Comparisons
    planned_cells: Mapping[str, CellInfo]
    missing: Mapping[str, str]
    blocks: int
    planned: int
    interleaved: bool
    margin: float
    absent: str
    notes: tuple[str, ...]
    fidelity: str
    fidelity_note: str
    fidelity_mode: str


@dataclass(slots=True)
class Values:
    """What one side has: cell -> metric -> block -> value, and cell -> block -> the rounds that these are the means of.

    `dropped` cells and `lost` (block, cell): their reasons.
    """

    cells: dict[str, CellInfo] = field(default_factory=dict)
    means: dict[str, dict[str, dict[int, float]]] = field(default_factory=dict)
    dropped: dict[str, str] = field(default_factory=dict)
    lost: dict[tuple[int, str], str] = field(default_factory=dict)
    suspect: dict[str, str] = field(default_factory=dict)
    lengths: dict[str, float | None] = field(default_factory=dict)  # mean output tokens received
    rounds: dict[str, dict[int, Sequence[RoundMetrics]]] = field(default_factory=dict)
    hits: dict[str, Hits | None] = field(default_factory=dict)  # wanted ones of the prefix cache
    acceptance: dict[str, Acceptance | None] = field(default_factory=dict)  # of drafted tokens


def sides_of(run: Run) -> list[Side]:
    """The variants of a run, the baseline first; of a run without variants its one side."""
    variants = run.manifest["spec"]["variants"]
    first = run.manifest["spec"]["baseline"] or next(iter(variants), "")
    names = [first, *(name for name in variants if name != first)]
    return [Side(run, name, name or run.name) for name in names]


def pair(
    base: Side, candidate: Side, margin: float = 0.01, floor: Iterable[Noise] = (), *, subset: bool = False
) -> Pair:
    """Compare two variants of one run, block by block, or (not interleaved) two runs, start by start.

    `subset`: the runs may have cells that the other one lacks; these are not `missing`.
    Raises ValueError for a margin that is not above 0.
    """
    within = base.run is candidate.run
    old, new = values_of(base), values_of(candidate)
    unpaired = unpaired_cells(old, new, base.name, candidate.name)
    labels = [label for label in old.cells if label in new.cells and label not in unpaired]
    labels = [label for label in labels if label not in old.dropped and label not in new.dropped]
    planned = (_planned(base.run), _planned(candidate.run))
    blocks = max(planned)
    samples, zeros = _samples(old, new, labels, blocks)
    missing = {
        label: why for label, why in unpaired.items() if not subset or label in old.cells.keys() & new.cells.keys()
    }
    for side, values in ((base, old), (candidate, new)):
        missing |= {label: f"dropped as invalid of {side.name} ({why})" for label, why in values.dropped.items()}
    absent = next((reason for side in (base, candidate) if (reason := _absent(side))), "")
    fidelity = _fidelity(base, candidate)
    loaded = loaded_notes(*((side.name, side.run.manifest, side.variant) for side in (base, candidate)))
    notes = [
        *loaded,
        *(f"{label} is left out: {why}" for label, why in unpaired.items()),
        *_confounded(base, candidate),
        *[_CHOSEN] * (within and starts_were_chosen(base.run)),
        *(note for label in labels if (note := hit_note(label, old.hits[label], new.hits[label]))),
        *(note for label in labels if (note := acceptance_note(label, old.acceptance[label], new.acceptance[label]))),
    ]
    notes += [f"{label}: {TITLES[metric]} is 0 in a start, so it has no ratio" for metric, label in zeros]
    for side, values in ((base, old), (candidate, new)):
        notes += _side_notes(side, values)
    for start in outlying_starts(samples):
        name, metric = {"base": base.name, "candidate": candidate.name}[start.side], TITLES[start.metric]
        off = f"{100 * abs(start.change):.1f} % {'above' if start.change > 0 else 'below'} the median of its starts"
        notes.append(f"{name}: the start in block {start.block} is far off: {metric} {off} ({start.cells} cells)")
    commits = [(side.name, side.run.manifest.get("variants", {}).get(side.variant)) for side in (base, candidate)]
    notes += [f"{name} is commit {facts['commit'][:12]}" for name, facts in commits if facts]
    return Pair(
        base=base.name,
        candidate=candidate.name,
        cells={label: old.cells[label] for label in labels},
        samples=samples,
        compared=compare(samples, paired=within, margin=margin, floor=floor, planned=min(planned)),
        planned=min(planned),
        planned_cells={**new.cells, **old.cells},
        missing=missing,
        blocks=blocks,
        interleaved=within,
        margin=margin,
        absent=absent,
        notes=tuple(notes),
        fidelity=fidelity[0],
        fidelity_note=fidelity[1],
        fidelity_mode=str(base.run.manifest["spec"].get("fidelity", "off")),
    )


def _samples(
    old: Values, new: Values, labels: Sequence[str], blocks: int
) -> tuple[tuple[Sample, ...], list[tuple[str, str]]]:
    """What is compared, and the (metric, cell) of which a start has 0: that has no ratio.

    To leave out that start alone would be selection.
    """
    values = {(m, label): [side.means[label][m] for side in (old, new)] for m in METRICS for label in labels}
    zeros = [at for at, sides in values.items() if any(0 in side.values() for side in sides)]
    samples = tuple(
        Sample(label, metric, block, *(side.get(block) for side in sides))
        for (metric, label), sides in values.items()
        if (metric, label) not in zeros and (metric != "goodput_req_s" or any(sides))
        for block in range(blocks)
    )
    return samples, zeros


def noise_of(run: Run) -> tuple[tuple[Noise, ...], Pair]:
    """The noise per start of an A/A run, of each cell and each geometric mean, and A against A.

    Raises ValueError for a run that does not have two equal variants.
    """
    sides = sides_of(run)
    definitions = list(run.manifest["spec"]["variants"].values())
    if len(definitions) != 2 or definitions[0] != definitions[1]:
        raise ValueError(f"{run.path}: not a run of A against A (bench noise makes one)")
    result = pair(sides[0], sides[1])
    return noise(result.samples), result


def differences(base: Run, candidate: Run) -> list[str]:
    """In what two runs differ that must be alike for a comparison of builds, one sentence each."""
    conditions = [(name, value_of(base), value_of(candidate)) for name, value_of in _CONDITIONS.items()]
    return [f"{name}: {_words(old)} against {_words(new)}" for name, old, new in conditions if old != new]


def _gpus(run: Run) -> list[str]:
    devices = run.manifest.get("devices") or []
    return sorted(f"{gpu.get('name', 'unknown')} {gpu.get('power_limit_w', '')}".strip() for gpu in devices)


def _drivers(run: Run) -> list[str]:
    drivers = {f"{name} {version}" for name, version in run.manifest["host"].get("drivers", {}).items()}
    return sorted(drivers | {str(gpu["driver"]) for gpu in run.manifest.get("devices") or [] if "driver" in gpu})


_CONDITIONS: dict[str, Any] = {
    "model": lambda run: run.manifest["spec"]["model"],
    "load": lambda run: run.manifest["spec"]["load"],
    "first waves": lambda run: {cell.load: "spread" for cell in run.cells if cell.spread} or None,
    "shapes": lambda run: sorted({cell.shape for cell in run.cells}),
    "prompts": lambda run: run.manifest["spec"]["prompts"]["kind"],
    "shared prefixes": lambda run: run.manifest["spec"]["prompts"].get("shared"),
    "output": lambda run: run.manifest["spec"]["output"],
    "hardware": lambda run: {k: v for k, v in (run.manifest["spec"].get("hardware") or {}).items() if v} or None,
    "GPUs": _gpus,
    "drivers": _drivers,
}


def _words(value: object) -> str:
    """A value in words few enough to read."""
    if isinstance(value, dict):
        value = [f"{key}={item}" for key, item in value.items() if item is not None]
    if not isinstance(value, list):
        return "none" if value is None else str(value)
    texts = [item if count == 1 else f"{count} x {item}" for item, count in Counter(value).items()]
    return ", ".join(texts if len(texts) <= 6 else [*texts[:6], f"{len(texts) - 6} more"]) or "none"


def _planned(run: Run) -> int:
    spec = run.manifest["spec"]
    return int(spec["blocks"] or (DEFAULT_BLOCKS if spec["variants"] else 1))


def values_of(side: Side) -> Values:
    """The starts of one side that count, by the rules of this module; a run's records are read once."""
    values = Values()
    for summary in side.run.summaries:
        if summary.cell.variant != side.variant:
            continue
        label = summary.cell.shape
        values.cells[label] = summary.cell
        values.lengths[label] = summary.estimate("output_tokens")
        values.hits[label] = summary.evidence.hits
        values.means[label] = {metric: {} for metric in METRICS}
        values.acceptance[label] = summary.evidence.acceptance
        lasting = [reason.code for reason in summary.reasons if reason.status == "invalid" and reason not in INCIDENTS]
        if lasting:
            values.dropped[label] = ", ".join(lasting)
            continue
        if doubts := [reason.code for reason in summary.reasons if reason.status == "suspect"]:
            values.suspect[label] = ", ".join(dict.fromkeys(doubts))
        for block, rounds, why in _starts(side.run, summary):
            if why:
                values.lost[block, label] = why
                continue
            values.rounds.setdefault(label, {})[block] = rounds
            for metric in METRICS:
                if of_rounds := [value for r in rounds if (value := FIGURES[metric](r)) is not None]:
                    values.means[label][metric][block] = fmean(of_rounds)
    return values


def _starts(run: Run, summary: CellSummary) -> Iterator[tuple[int, Sequence[RoundMetrics], str]]:
    """Each start's block and rounds, and why it does not count."""
    cell = summary.cell
    tables = run.directory.read_pieces(cell.key) if summary.status == "invalid" else ()
    taken = [measured(cell, table) for table in tables]
    for start in by_start(summary.rounds):
        block = start[0].block
        why = f"{len(start)} of {cell.rounds_min} rounds" if len(start) < cell.rounds_min else ""
        if taken:
            own = [r for r in taken if r.metrics.block == block]
            evidence = evidence_of(cell, own, (), Pools([r.metrics for r in own]))
            codes = [reason.code for reason in status_of(evidence, cell.validity)[1] if reason.status == "invalid"]
            why = ", ".join(codes) or why
        yield block or 0, start, why


def unpaired_cells(old: Values, new: Values, base: str, candidate: str) -> dict[str, str]:
    """Cells that only one side has, or that the sides did not measure alike."""
    reasons = {label: f"only {base} has it" for label in old.cells if label not in new.cells}
    reasons |= {label: f"only {candidate} has it" for label in new.cells if label not in old.cells}
    for label in old.cells.keys() & new.cells.keys():
        sides = old.cells[label], new.cells[label]
        if differing := [name for name in _ALIKE if len({getattr(cell, name) for cell in sides}) > 1]:
            reasons[label] = f"measured with different {', '.join(differing)}"
        elif why := unlike_hits(old.hits[label], new.hits[label]):
            reasons[label] = why
        elif not like_outputs(*(lengths := (old.lengths[label], new.lengths[label]))):
            reasons[label] = f"answers of different lengths ({lengths[0]:.1f} and {lengths[1]:.1f} tokens)"
    return dict(sorted(reasons.items()))


def _failures(side: Side) -> dict[int, str]:
    """The blocks in which a start of this side failed, and why."""
    events = [event for event in side.run.directory.events() if event["event"] == "start_failed"]
    return {event["block"]: str(event["reason"]) for event in events if event["variant"] == side.variant}


def _absent(side: Side) -> str:
    """Why a side has no number at all; empty when it has."""
    if any(summary.rounds for summary in side.run.summaries if summary.cell.variant == side.variant):
        return ""
    if failures := _failures(side):
        started = any(start.get("variant") == side.variant for start in side.run.manifest["starts"])
        why = next(iter(failures.values()))
        return f"{side.name} " + (f"has no finished round: {why}" if started else f"never started: {why}")
    return f"{side.name} has no finished round"


def _confounded(base: Side, candidate: Side) -> list[str]:
    """What an experiment like this leaves confounded."""
    if base.run is not candidate.run:
        hosts = {side.run.manifest["host"].get("name") for side in (base, candidate)}
        days = [_days(side.run) for side in (base, candidate)]
        notes = ["the runs were made on different hosts"] if len(hosts) > 1 else []
        if all(days) and days[0] != days[1]:
            notes.append(
                f"the runs are of different days ({days[0]} and {days[1]}), which the interval does not contain"
            )
        return notes
    if base.run.manifest["spec"]["engine"]["kind"] == "endpoint":
        return ["no server was restarted between blocks: the change is confounded with the variance between starts"]
    return []


def starts_were_chosen(run: Run) -> bool:
    """Whether starts that could decide nothing were left out."""
    return any(event["event"] == STARTS_CHOSEN for event in run.directory.events())


def _days(run: Run) -> str:
    """The days (UTC) of the run's starts, the first and the last; empty where it does not tell."""
    times = [start["time_ns"] for start in run.manifest["starts"] if "time_ns" in start]
    days = [strftime("%Y-%m-%d", gmtime(time / 1e9)) for time in ({min(times), max(times)} if times else ())]
    return " to ".join(sorted(set(days)))


def _side_notes(side: Side, values: Values) -> list[str]:
    """What happened on one side, in sentences."""
    notes = [f"{side.name}: {_cells(cells)} dropped as invalid ({why})" for why, cells in _grouped(values.dropped)]
    blocks = [values.means[label][METRICS[0]] for label in values.means if label not in values.dropped]
    if any(blocks):
        notes += [
            f"{side.name} failed in block {block}: {why}"
            for block, why in _failures(side).items()
            if any(block not in of_cell for of_cell in blocks)
        ]
    by_block = _grouped({place: (place[0], why) for place, why in values.lost.items()})
    alike = _grouped({key: (tuple(label for _, label in places), key[1]) for key, places in by_block})
    for (labels, why), keys in alike:
        numbers = f"block{'s'[: len(keys) > 1]} {', '.join(str(block) for block, _ in sorted(keys))}"
        where = f" in {numbers}" if side.variant or _planned(side.run) > 1 else ""
        notes.append(f"{side.name}: {_cells(labels)} not counted{where} ({why})")
    return notes + [f"{side.name}: {_cells(cells)} suspect ({why})" for why, cells in _grouped(values.suspect)]


def _grouped(reasons: Mapping[K, R]) -> list[tuple[R, list[K]]]:
    groups: dict[R, list[K]] = {}
    for key, reason in reasons.items():
        groups.setdefault(reason, []).append(key)
    return list(groups.items())


def _cells(labels: Sequence[str]) -> str:
    return ", ".join(labels) if len(labels) <= 3 else f"{len(labels)} cells"


def _fidelity(base: Side, candidate: Side) -> tuple[str, str]:
    """Verdict and sentence of `fidelity.judge`, where the sweep asked for it."""
    if base.run is not candidate.run or base.run.manifest["spec"].get("fidelity", "off") == "off":
        return "not_measured", "outputs were not compared"
    fidelity = fidelity_of(base.run, base.variant, candidate.variant)
    return fidelity.verdict, fidelity.sentence


def fidelity_of(run: Run, base: str, candidate: str) -> Fidelity:
    """What the stored answers of two variants of a run say."""
    sides = []
    for variant in (base, candidate):
        if not (stored := read_answers(run.directory, variant)):
            failed = [e for e in run.directory.events() if e["event"] == "fidelity_failed" and e["variant"] == variant]
            return unmeasured(f"{variant} has no answers" + (f": {failed[-1]['reason']}" if failed else ""))
        sides.append(list(stored.values()))
    return judge_fidelity(*sides)
