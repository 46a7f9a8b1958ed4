"""By whom the answers of a run are: the models and builds (system fingerprints) that they name themselves.

What a server is, is asked once. That another one answers later (restarted with other flags, a fallback, one of several
builds behind one address) only its answers tell: vLLM's fingerprint is of its version, parallelism and configuration.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from benchbench.model.served_names import is_among
from benchbench.store.requests import RequestStatus

if TYPE_CHECKING:
    from benchbench.store.requests import RoundColumns
    from benchbench.store.run_directory import RunDirectory


class Answers:
    """Holds what answers name against the first that was named in the run, by variant."""

    def __init__(self, run: RunDirectory) -> None:
        self._run = run
        self._first = {e["variant"]: str(e["name"]) for e in run.events() if e["event"] == "answered_by"}

    def has_fingerprint(self, variant: str) -> bool:
        """Whether its answers name a fingerprint beside the model."""
        return ", " in self._first.get(variant, "")

    def of_round(self, variant: str, columns: RoundColumns) -> list[str]:
        """What the round's good answers named, and the first that was named; more than one are as many engines."""
        rows = zip(columns["status"], columns["answered_by"], strict=True)
        names = sorted({name for status, name in rows if name and status == RequestStatus.OK})
        if names and variant not in self._first:
            self._first[variant] = names[0]
            self._run.journal("answered_by", variant=variant, name=names[0])
        return sorted({*names, *([self._first[variant]] if names else [])})


def other_model(columns: RoundColumns, names: Sequence[str]) -> str:
    """A model that a round's good answers name and that is none of `names`; "" without one, or without any names."""
    rows = zip(columns["status"], columns["answered_by"], strict=True)
    models = sorted({text.partition(", ")[0] for status, text in rows if status == RequestStatus.OK} - {""})
    return next((model for model in models if names and not is_among(model, names)), "")


def servers_named(columns: RoundColumns) -> set[str]:
    """The servers that a round's good answers name, as where a gateway chooses one for each request."""
    rows = zip(columns["status"], columns.get("served_by", ()), strict=False)
    return {name for status, name in rows if name and status == RequestStatus.OK}


def other_models(facts: Sequence[Mapping[str, Any]]) -> list[str]:
    """Those of several rounds."""
    return sorted({fact["other_model"] for fact in facts if fact.get("other_model")})


def answered_by(facts: Sequence[Mapping[str, Any]]) -> list[str]:
    """What the answers of these rounds named, each with the first of its run."""
    return sorted({name for fact in facts for name in fact.get("answered_by", ())})


def engines_of(facts: Sequence[Mapping[str, Any]]) -> int:
    """Of how many engines these rounds are: by what was asked before them, and by what they were answered."""
    return max(len({fact["identity"] for fact in facts if fact.get("identity")}), len(answered_by(facts)))
