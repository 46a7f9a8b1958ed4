"""Whether the rounds of a session are of the server that it began with: by its answers, its page, its process.

A server that we attached to may be started again, or be another one, whenever we do not look. What it tells of itself
is compared; where only the process is known to be another, nobody knows with which flags it runs, and all that the
run has of the variant is in doubt.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Collection, Mapping
from dataclasses import replace
from typing import Any

from benchbench.counters.server_counters import ServerView
from benchbench.counters.server_metrics import Counts
from benchbench.engines.open import Opened
from benchbench.identity.answering_engines import Answers, other_model
from benchbench.openai.client import attach, http_session, json_object
from benchbench.openai.target import MODELS
from benchbench.secrets import mask_text
from benchbench.spec import EndpointEngine, Engine, SweepSpec
from benchbench.stopping import unless_stopped
from benchbench.store.requests import RoundColumns
from benchbench.store.run_directory import STARTED_AGAIN, RunDirectory

_PROCESS = ("started_s", "engines")  # of a page: by which a process is known again
SEEN = "server_seen"
_MARKED = "all its cells are marked (replicas)"


class SameServer:
    """Of one session of a variant. `view`: its servers' counters, None without HTTP.

    `identify`: writes what an engine is into the manifest; raises EngineError when it is not the run's.
    """

    def __init__(
        self,
        run: RunDirectory,
        spec: SweepSpec,
        opened: Opened,
        variant: str,
        stop: int | None,
        identify: Callable[[Opened], object],
    ) -> None:
        self._run, self._opened, self._variant, self._stop, self._identify = run, opened, variant, stop, identify
        self._model, self._is_attached = spec.model, isinstance(spec.engine, EndpointEngine)
        self._answers, self._seen, self._pid = Answers(run), list[Counts](), self._side().get("pid")
        self._peers = set[str]()  # that have answered in this session, and servers that answers have named
        self._named = set[str]()
        self.view: ServerView | None = None
        if opened.urls:
            for event in run.events() if self._is_attached else ():
                if event["event"] == SEEN and event["variant"] == variant:
                    self._seen, self._pid = event["process"], event["pid"]
            self.view = ServerView(opened.urls, opened.access, opened.capabilities.metrics, stop, self._seen)

    def answered_by(self, columns: RoundColumns) -> list[str]:
        """Whom the round's answers named, and what its server tells of itself, where it told something else before."""
        differs = [] if self._knows_process or not self._is_attached else self._told_otherwise()
        return [*self._answers.of_round(self._variant, columns), *differs]

    def other_model(self, engine: Engine, columns: RoundColumns) -> str:
        """A model that the round's answers name, of which neither server nor sweep says that it is the asked one."""
        listed, alias = self._opened.capabilities.answers_as, getattr(engine, "answers_as", None)
        return other_model(columns, [*listed, *filter(None, [alias])] if listed else ())

    def notice(self, peers: Mapping[str, int], named: Collection[str] = ()) -> str:
        """What is to be said of a server that was started again since the last time, or is another machine; "" where it
        is neither. `peers`: of a round, how many answers came from each address; `named`: servers that they name.

        Raises EngineError when it is another engine now, and InterruptedSweep.
        """
        if len(self._opened.urls) == 1:
            self._peers |= set() if self._opened.access.proxy else peers.keys()
            self._named |= {*named}
        return self._several() or self._started_again()

    def _several(self) -> str:
        several = next((sorted(names) for names in (self._peers, self._named) if len(names) > 1), [])
        if not several or self._variant in self._run.doubted:
            return ""
        self._doubt()
        return f"answers come from several machines under one name ({', '.join(several[:9])}): {_MARKED}"

    def _doubt(self) -> None:
        self._run.journal(STARTED_AGAIN, variant=self._variant)
        self._run.doubted.add(self._variant)

    def _started_again(self) -> str:
        view = self.view
        if view is None or not self._is_attached:
            return ""
        moved, view.moved = view.moved and self._variant not in self._run.doubted, False
        is_as_before = not moved or self._is_as_before()
        if self._knows_process and (process := [_process(counts) for counts in view.seen]) != self._seen:
            self._seen = process
            self._run.journal(SEEN, variant=self._variant, process=process, pid=self._pid)
        if not moved:
            return ""
        if is_as_before:
            return "the server was started again, as it was by all that it tells"
        self._doubt()
        what = "the server is another process than before (started again, or one of several)"
        return f"{what} and does not tell its flags: {_MARKED}"

    @property
    def _knows_process(self) -> bool:
        return self.view is not None and bool(self.view.seen) and all("started_s" in each for each in self.view.seen)

    def _is_as_before(self) -> bool:
        """Whether a server that was started again is told to be as before: by the fingerprint in its answers, or by
        the command of its process, where that is another process than before, too. Raises EngineError when it is not.
        """
        opened = self._opened
        if len(opened.urls) == 1:
            now = attach(opened.url, self._model, opened.access, self._stop)
            self._identify(replace(opened, capabilities=now))
        side, before = self._side(), self._pid
        self._pid = side.get("pid")
        is_new = None not in {before, self._pid} and before != self._pid
        return self._answers.has_fingerprint(self._variant) or (is_new and bool(side.get("command")))

    def _side(self) -> Mapping[str, Any]:
        """The environment of the variant's latest start, as the manifest has it."""
        starts = [start for start in self._run.earlier().get("starts", ()) if start["variant"] == self._variant]
        return starts[-1].get("environment") or {} if starts else {}

    def _told_otherwise(self) -> list[str]:
        """What the server told of itself when the session began and what it tells now, where these differ."""
        before = self._opened.capabilities
        known = {"version": before.version, "max_model_len": before.max_model_len}
        if all(value is None for value in known.values()):
            return []
        try:
            now = asyncio.run(unless_stopped(self._stop, self._ask(known)))
        except OSError:
            return []
        differ = [name for name, value in now.items() if value not in (None, known[name])]
        return [f"{name} {value}" for name in differ for value in (known[name], now[name])]

    async def _ask(self, known: dict[str, Any]) -> dict[str, Any]:
        access, now = self._opened.access, dict[str, Any]()
        async with http_session(self._opened.url, access) as request:
            if known["version"] is not None:
                version = json_object(*await request("/version")).get("version")
                now["version"] = None if version is None else mask_text(str(version)[:100], access.secrets)
            if known["max_model_len"] is not None:
                data = json_object(*await request(MODELS)).get("data")
                listed = [each for each in data if isinstance(each, dict)] if isinstance(data, list) else []
                lengths = [each.get("max_model_len") for each in listed if each.get("id") == self._model]
                now["max_model_len"] = lengths[0] if lengths else None
        return now


def _process(counts: Counts) -> Counts:
    return {name: counts[name] for name in _PROCESS if name in counts}
