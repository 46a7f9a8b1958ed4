"""Whether a start is still wanted, of a sweep that looks for the best setting: decided before each block, once.

Two blocks have all settings, since one start says nothing of noise. Before each later block the run is looked at: the
settings go on that may still be the best of a cell, or the default, of a set that is not decided. What was decided is
in the journal, so that a run that was killed goes on as it would have.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from benchbench.analysis.runs import Run
from benchbench.choice.from_run import trial_of
from benchbench.choice.sets import sets_of
from benchbench.comparison.pairs import STARTS_CHOSEN
from benchbench.spec import Session
from benchbench.store.run_directory import RunDirectory

FIRST = 2  # blocks of all settings


@dataclass(slots=True)
class Chooser:
    """Asked before each start of a sweep. `margin`: settings surely within it of each other need not be told apart.

    `note` is told what was decided. Raises RunError and OSError, as reading and writing a run does.
    """

    metric: str = "sys_tok_s"
    margin: float = 0.01
    note: Callable[[str], None] = lambda _text: None
    wanted: dict[int, frozenset[str]] = field(default_factory=dict)  # block -> settings

    def __call__(self, run: RunDirectory, session: Session) -> bool:
        block = session.block or 0
        if block < FIRST:
            return True
        if block not in self.wanted:
            self.wanted |= {e["block"]: frozenset(e["settings"]) for e in run.events() if e["event"] == STARTS_CHOSEN}
        if block not in self.wanted:
            self.wanted[block] = self._decide(run, block)
        return session.variant in self.wanted[block]

    def _decide(self, run: RunDirectory, block: int) -> frozenset[str]:
        trial = trial_of(Run(run.path), self.metric, looking=True)
        sets = sets_of(trial.cells, trial.settings, trial.levels, range(FIRST, block + 1))
        wanted = sets.needed(trial.levels, self.margin)
        run.journal(STARTS_CHOSEN, block=block, settings=sorted(wanted), metric=self.metric, margin=self.margin)
        left = f"{len(wanted)} of {len(trial.settings)} settings go on" if wanted else "all that can be is decided"
        self.note(f"after {block} blocks {left}")
        return frozenset(wanted)
