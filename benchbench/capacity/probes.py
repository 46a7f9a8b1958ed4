"""A search's probes, from which its next step follows: a run's journal and records give them back. Pure."""

from __future__ import annotations

from dataclasses import dataclass, field
from math import sqrt

from benchbench.boundary.boundary_search import Answer, Ask, Probe, Question, certified, next_probe
from benchbench.boundary.certify import FAILED
from benchbench.boundary.isotonic import score
from benchbench.boundary.start_estimate import Estimate, next_load
from benchbench.capacity.observations import Observed, observe
from benchbench.capacity.targets import Target
from benchbench.errors import RunError
from benchbench.spec.cell import CellInfo
from benchbench.store.run_directory import RunDirectory

BEGUN, ASKED, ENDED = "capacity", "probe", "probe_ended"  # events of the journal
COUNTED, VOID, DIED = "counted", "void", "died"  # how a probe ended: void says nothing of the server, died: it is gone
UNSEEN = Observed(())


@dataclass(slots=True)
class Made:
    """A probe: `rounds` measured rounds of `cell`, numbered from `first`, and what they say when it is over.

    `seconds`: that it took, warm-up and all.
    """

    load: float
    test: int | None
    cell: str
    first: int
    rounds: int
    ended: str = ""
    seconds: float = 0.0
    observed: Observed = UNSEEN


@dataclass(slots=True)
class SearchState:
    """One search; where the sweep has blocks, that of one start."""

    target: Target
    block: int | None
    width: float
    budget_s: float
    made: list[Made] = field(default_factory=list)

    @property
    def seconds(self) -> float:
        """That its probes took."""
        return sum(made.seconds for made in self.made)

    @property
    def void(self) -> list[Made]:
        """Probes that the load generator could not carry out."""
        return [made for made in self.made if made.ended == VOID]

    @property
    def counted(self) -> list[Made]:
        """Probes that are over and say something of the server."""
        return [made for made in self.made if made.ended in {COUNTED, DIED}]

    @property
    def question(self) -> Question:
        """What is asked: the range ends half way (of logs) below a load that the load generator cannot send."""
        low, high, whole = self.target.low, self.target.high, self.target.axis == "batch"
        for place, beyond in enumerate(self.made):
            if beyond.ended == VOID:
                before = [made.load for made in self.made[:place] if made.ended != VOID and made.load < beyond.load]
                high = min(high, sqrt(max(before, default=low) * beyond.load))
        return Question(low, max(low, float(int(high)) if whole else high), self.width, whole)

    @property
    def probes(self) -> list[Probe]:
        """As the search knows them: a test with a void probe has no rounds."""
        void = {made.test for made in self.void if made.test is not None}
        return [Probe(m.load, m.test, () if m.test in void else m.observed.excess) for m in self.made if m.ended]

    def step(self, guess: float | None = None) -> Ask | Answer | Estimate:
        """The next probe, its rounds in observations; or what was found. `guess`: see `next_load`."""
        lowest = min((made.load for made in self.void), default=None)
        if lowest is not None and lowest <= self.target.low * (1 if self.target.axis == "batch" else 1 + self.width):
            return self._so_far("instrument")
        if self.seconds >= self.budget_s:
            return self._so_far("time")
        step: Ask | Answer | Estimate
        if self.block is None:
            step = next_probe(self.question, self.probes)
        else:
            figures = {made.load: score(mean_of(made.observed)) for made in self.counted}
            load = next_load(self.question, figures, guess)
            step = load if isinstance(load, Estimate) else Ask(load, 1, None)
        limited = not isinstance(step, Ask) and step.reason == "always" and lowest is not None
        return self._so_far("instrument") if limited else step

    @property
    def ends(self) -> tuple[float | None, float | None]:
        """The largest load that is certified to hold, and the smallest to fail."""
        return certified(self.question, self.probes)

    def _so_far(self, reason: str) -> Answer | Estimate:
        return Answer(*self.ends, reason) if self.block is None else Estimate(None, reason)


def mean_of(observed: Observed) -> float:
    """The mean excess of a probe."""
    return FAILED if FAILED in observed.excess else sum(observed.excess) / max(1, len(observed.excess))


def searches_of(run: RunDirectory) -> list[SearchState]:
    """All searches of a run as its journal and records have them, in the order in which they began.

    Raises RunError for a run that is none of `bench capacity`.
    """
    cells = {entry["key"]: CellInfo.model_validate(entry) for entry in run.manifest()["plan"]}
    states: dict[tuple[Target, int | None], SearchState] = {}
    settings: tuple[float, float] | None = None
    for event in run.events():
        if event["event"] == BEGUN:
            settings = event["width"], event["budget_s"]
            for state in states.values():
                state.width, state.budget_s = settings
        elif event["event"] == ASKED and settings:
            target = Target(**event["target"])
            state = states.setdefault((target, event["block"]), SearchState(target, event["block"], *settings))
            state.made.append(Made(*(event[name] for name in ("load", "test", "cell", "first", "rounds"))))
        elif event["event"] == ENDED:
            made = next(m for state in states.values() for m in state.made if m.cell == event["cell"] and not m.ended)
            made.ended, made.seconds = event["how"], event["seconds"]
            made.observed = observed_in(run, cells[made.cell], made)
    if settings is None:
        raise RunError(f"{run.path}: not a run of bench capacity")
    return list(states.values())


def observed_in(run: RunDirectory, cell: CellInfo, made: Made) -> Observed:
    """What the records of a probe say; nothing but that it failed where the engine died."""
    if made.ended == DIED:
        return Observed((FAILED,), failing=("engine_died",))
    return observe([run.read_round(cell.key, "measured", number) for number in _numbers(run, made)], cell)


def spoiled_rounds(run: RunDirectory, cell: CellInfo, made: Made) -> list[int]:
    """The numbers of a probe's rounds that say nothing of the server by themselves; all, where none does alone."""
    numbers = _numbers(run, made)
    alone = {number: observe([run.read_round(cell.key, "measured", number)], cell) for number in numbers}
    return [number for number, seen in alone.items() if seen.limited or seen.invalid] or numbers


def _numbers(run: RunDirectory, made: Made) -> list[int]:
    return [n for n in run.finished_rounds(made.cell) if made.first <= n < made.first + made.rounds]
