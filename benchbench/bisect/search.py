"""A bisection carried out: block after block in one run, each with its builds made before its first start.

The run's journal has what it needs to go on: `bisect_begun` (what was asked), `bisect_block` (a block's places, before
it is built), `bisect_skip` (a place that cannot be measured, and why). The figures are the records'.
"""

from __future__ import annotations

import math
import re
import time
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from benchbench.analysis.runs import Run
from benchbench.bisect.line_of_builds import Line, in_order, line_of, plan_of_blocks, sweep_of, template_of
from benchbench.comparison.pairs import STARTS_CHOSEN, Side, unpaired_cells, values_of
from benchbench.comparison.verdicts import BETTER
from benchbench.engines.git_checkout import checkout, commits_between
from benchbench.engines.process import Hooks
from benchbench.errors import EngineError, LaunchStoppedError, ModelError, RunError, StoppedError
from benchbench.measure.observer import Observer
from benchbench.measure.run import Outcome, concluding, default_out, lacking
from benchbench.measure.sessions import Sessions
from benchbench.model.served import served_models
from benchbench.prompts.prompt_dealer import Dealer
from benchbench.secrets import masked
from benchbench.spec import Plan, SweepSpec
from benchbench.stepsearch.next_block import Answer, Ask, Question, next_block
from benchbench.stepsearch.step_posterior import Start
from benchbench.store.run_directory import RunDirectory

METRICS = ("sys_tok_s", "ttft", "tpot")
TRIES = 2  # blocks without a valid start, after which a build is skipped; an end, after which the search stops


@dataclass(frozen=True, slots=True, kw_only=True)
class Terms:
    """What a bisection is asked, beside its sweep; as the command's options."""

    good: str
    bad: str
    only: str | None = None
    metric: str = "sys_tok_s"
    paths: tuple[str, ...] = ()
    variant: str | None = None
    confidence: float = 0.95
    starts: int = 40
    budget_s: float | None = None
    paired: bool = False


@dataclass(slots=True)
class Bisection:
    """How far a bisection is. `starts`: those that count; `tried`: each block's places; `skipped`: place -> why.

    `answer` is None where it was interrupted or stopped: `outcome` says so.
    """

    terms: Terms
    line: Line
    starts: tuple[Start, ...]
    tried: tuple[tuple[int, ...], ...]
    skipped: Mapping[int, str]
    cells: tuple[str, ...]
    outcome: Outcome
    answer: Answer | None


def bisect(
    spec: SweepSpec,
    terms: Terms,
    out: str | Path | None = None,
    *,
    resume: bool = False,
    sets: Sequence[str] = (),
    observer: Observer | None = None,
    stop: int | None = None,
) -> Bisection:
    """Look for the commit between good and bad that changed the metric, in a run of its own (`out`).

    Raises ValueError and SpecError (what is asked), EngineError (git; good or bad cannot be built), RunError.
    """
    if terms.metric not in METRICS:
        raise ValueError(f"--metric {terms.metric}: unknown (allowed: {', '.join(METRICS)})")
    template = template_of(spec, terms.variant)
    named = sweep_of(spec, template, {"good": terms.good, "bad": terms.bad}, 1, "bisect")
    plan_of_blocks(named, terms.only, ())  # a selection of nothing is told before anything is built
    run = RunDirectory(Path(out) if out is not None else default_out(named, resume=resume))
    run.open_for_writing(resume=resume)
    try:
        search = _Search(spec, terms, template, run, observer or Observer(), stop, sets)
        return search.carried_out()
    except EngineError as error:
        error.key = re.sub(r"^variants\.[^.]+", f"variants.{template}", error.key)  # as it stands in the user's file
        raise
    finally:
        run.drop_if_empty()
        run.close()


@dataclass(slots=True)
class _Search:
    spec: SweepSpec
    terms: Terms
    template: str
    run: RunDirectory
    observer: Observer
    stop: int | None
    sets: Sequence[str]
    sessions: Sessions | None = None
    tried: list[tuple[int, ...]] = field(default_factory=list)
    skipped: dict[int, str] = field(default_factory=dict)
    seconds: list[float] = field(default_factory=list)  # of each block

    def carried_out(self) -> Bisection:
        git = self.spec.variants[self.template].git
        assert git is not None  # noqa: S101 - `template_of` sees to it
        hooks = Hooks(self.run.path / "logs", self.observer.starting, self.stop)
        base, commits = commits_between(git, self.terms.good, self.terms.bad, "good", hooks, self.terms.paths)
        line = line_of(base, commits)
        self._read_journal(line)
        question = Question(line.prior, self.terms.starts, self.terms.paired, self.terms.confidence)
        outcome = Outcome(self.run.path, "complete", "", [])
        starts: tuple[Start, ...] = ()
        cells: tuple[str, ...] = ()
        step: Answer | None = None
        while step is None and outcome.state == "complete":
            try:
                starts, cells = self._measured(line)
                following = self._following(question, starts)
                if isinstance(following, Answer):
                    step = following
                elif self._built(line, following.places, hooks):
                    outcome = self._block(line, following.places)
            except LaunchStoppedError:
                outcome = replace(outcome, state="interrupted", message="interrupted")
            except StoppedError as error:
                outcome = replace(outcome, state="stopped", message=str(error))
        return Bisection(self.terms, line, starts, tuple(self.tried), dict(self.skipped), cells, outcome, step)

    def _following(self, question: Question, starts: Sequence[Start]) -> Ask | Answer:
        """The next block, unless it would not end within the budget of time."""
        step = next_block(question, starts, self.tried, self.skipped.keys())
        if isinstance(step, Ask) and self._late():
            spent = replace(question, starts=sum(map(len, self.tried)))
            step = next_block(spent, starts, self.tried, self.skipped.keys())
        return step

    def _read_journal(self, line: Line) -> None:
        """What was done before a resume, or the first word of a new journal. Raises RunError for another question."""
        same = ("metric", "only", "paths")
        question: dict[str, Any] = {name: getattr(self.terms, name) for name in same} | {"paths": [*self.terms.paths]}
        question |= {"good": line.base.sha, "bad": line.built(line.bad).sha, "variant": self.template}
        events = [event for event in self.run.events() if event["event"].startswith("bisect_")]
        if not events or not self.run.earlier():  # nothing was measured by then
            if self.run.earlier():
                raise RunError(f"{self.run.path}: holds a run that is no bisection: use another --out")
            self.run.journal("bisect_begun", asked=question)
            self.run.journal(STARTS_CHOSEN, block=0)
            return
        begun = max(place for place, event in enumerate(events) if event["event"] == "bisect_begun")
        before, events = events[begun]["asked"], events[begun:]
        if different := [
            f"{name} {before.get(name)} -> {question[name]}" for name in question if before.get(name) != question[name]
        ]:
            raise RunError(f"{self.run.path}: is another bisection ({'; '.join(different)}): use another --out")
        for event in events[1:]:
            if event["event"] == "bisect_skip":
                self.skipped[event["place"]] = event["reason"]
            elif event["event"] == "bisect_block":
                self.tried.append(tuple(event["places"]))
            else:
                self.seconds.append(event["seconds"])

    def _late(self) -> bool:
        """Whether a block more would not end within the budget of time."""
        if self.terms.budget_s is None:
            return False
        usual = sum(self.seconds) / len(self.seconds) if self.seconds else 0.0
        return sum(self.seconds) + usual > self.terms.budget_s

    def _skip(self, place: int, reason: str, line: Line) -> None:
        self.skipped[place] = reason
        self.run.journal("bisect_skip", place=place, commit=line.built(place).sha, reason=reason)
        self.observer.note(f"{line.name(place)} is skipped: {reason}")

    def _built(self, line: Line, places: Sequence[int], hooks: Hooks) -> bool:
        """Build all that the block starts. False where one cannot be built, and is skipped. Raises for good and bad."""
        git = self.spec.variants[self.template].git
        assert git is not None  # noqa: S101 - as above
        able = True
        for place in places:
            try:
                checkout(git.model_copy(update={"ref": line.built(place).sha}), line.name(place), hooks)
            except EngineError as error:
                if place in {0, line.bad} or error.gone:
                    raise
                self._skip(place, f"does not build: {error.message}", line)
                able = False
        return able

    def _block(self, line: Line, places: tuple[int, ...]) -> Outcome:
        """Start the builds of one more block, and measure them."""
        begun, number = time.monotonic(), len(self.tried)
        self.tried.append(places)
        self.run.journal("bisect_block", block=number, places=places)
        plan = self._plan(line)
        own = Plan(plan.spec, tuple(session for session in plan.sessions if session.block == number))
        if self.sessions is None:
            try:
                models = served_models(plan.spec)
            except ModelError as error:
                raise EngineError(str(error), "model_facts.config") from None
            given = {"only": self.terms.only, "sets": masked(self.sets)}
            self.sessions = Sessions(plan, given, self.run, self.observer, self.stop, deque(), models)
        self.sessions.plan, self.sessions.todo = plan, lacking(self.run, own)
        self.sessions.dealer = Dealer(plan.spec)
        self.sessions.unable.clear()
        outcome = carry_out(self.sessions)
        if outcome.state == "complete":
            self.seconds.append(time.monotonic() - begun)
            self.run.journal("bisect_block_done", block=number, seconds=round(self.seconds[-1], 3))
        return outcome

    def _plan(self, line: Line) -> Plan:
        places = sorted({0, line.bad}.union(*self.tried), key=lambda place: (place != 0, place))
        builds = {line.name(place): line.built(place).sha for place in places}
        spec = sweep_of(self.spec, self.template, builds, len(self.tried), "bisect")
        blocks = [
            (number, [line.name(place) for place in in_order(number, block)]) for number, block in enumerate(self.tried)
        ]
        return plan_of_blocks(spec, self.terms.only, blocks)

    def _measured(self, line: Line) -> tuple[tuple[Start, ...], tuple[str, ...]]:
        """The starts that count: those with a valid figure of every cell. What never has one is skipped."""
        if not self.run.earlier():
            return (), ()
        run = Run(self.run.path)
        places = sorted({place for block in self.tried for place in block})
        values = {place: values_of(Side(run, line.name(place), line.name(place))) for place in places}
        cells = tuple(dict.fromkeys(cell.shape for cell in run.cells))
        starts = []
        for place in places:
            name, unlike = line.name(place), unpaired_cells(values[0], values[place], "good", line.name(place))
            means = values[place].means
            own = [number for number, block in enumerate(self.tried) if place in block]
            usable = []
            for number in own if not unlike else ():
                figures = [means.get(cell, {}).get(self.terms.metric, {}).get(number) for cell in cells]
                logs = [math.log(figure) for figure in figures if figure]
                if logs and len(logs) == len(cells):
                    usable.append(Start(number, place, BETTER[self.terms.metric] * math.fsum(logs) / len(logs)))
            starts += usable
            if not usable and place not in self.skipped and (len(own) >= TRIES or unlike or values[place].dropped):
                why = self._why(
                    name, values[place].dropped | unlike, {c: w for (_, c), w in values[place].lost.items()}
                )
                if place in {0, line.bad}:
                    raise StoppedError(f"{name} has no valid start: {why}")
                self._skip(place, f"cannot be measured: {why}", line)
        return tuple(sorted(starts)), cells

    def _why(self, name: str, dropped: Mapping[str, str], lost: Mapping[str, str]) -> str:
        failed = [e["reason"] for e in self.run.events() if e["event"] == "start_failed" and e["variant"] == name]
        if failed:
            return str(failed[-1])
        cell, reason = next(iter((dict(dropped) or dict(lost)).items()), ("", "it has no finished round"))
        return f"{cell}: {reason}" if cell else reason


def carry_out(sessions: Sessions) -> Outcome:
    """Build what is not built, make the starts, and write what follows from the run's records."""
    with concluding(sessions) as outcomes:
        sessions.prepare()
        while sessions.todo:
            sessions.serve_next()
    return outcomes[0]
